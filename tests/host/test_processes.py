"""Several processes, each with its own devices and share of the data, train as one process."""

import fcntl
import itertools
import os
import signal
import time

import jax
import numpy as np
import pytest

from alexnet_jax.rundir import restoring
from tests import runs
from tests.agreement import agree

# JAX derives its port from the number of the job. The workers of pytest have neighbouring ids, and
# each starts fewer than 32 jobs.
JOBS = itertools.count(32 * os.getpid())


def start_two(*arguments, each=((), ())):
    """Start two processes of two devices each, as SLURM does; `each` adds arguments to each one."""
    job = next(JOBS)
    return [
        runs.start(
            *runs.TINY,
            *arguments,
            *own,
            "--distributed",
            devices=2,
            environment={
                "SLURM_JOB_ID": str(job),
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_NTASKS": "2",
                "SLURM_PROCID": str(index),
                "SLURM_LOCALID": str(index),
            },
        )
        for index, own in enumerate(each)
    ]


def ended(process, code, within=300):
    """Return the lines on stderr of a process, which must end with `code` in `within` seconds."""
    try:
        _, err = process.communicate(timeout=within)
    finally:
        process.kill()
    assert process.returncode == code, err
    return err.splitlines()


def wait_for(workdir, number, split="train"):
    """Wait until the run has written `number` lines of `split`."""
    begun = time.monotonic()
    while True:
        if (workdir / "metrics.jsonl").exists() and len(runs.metrics(workdir, split)) >= number:
            return
        assert time.monotonic() - begun < 200, "the run is too slow"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("layout", "cache"),
    [("pmap", "none"), pytest.param("split", "device", marks=pytest.mark.slow)],
)
def test_two_processes_of_two_devices_train_as_one_of_four(tmp_path, data_dir, layout, cache):
    command = [
        f"--config.dataset.data_dir={data_dir}",
        f"--config.parallel={layout}",
        "--config.model.groups=2",
        "--config.num_steps=6",
    ]
    processes = start_two(
        *command, f"--workdir={tmp_path / 'two'}", f"--config.dataset.cache={cache}"
    )
    one = runs.run(*runs.TINY, *command, f"--workdir={tmp_path / 'one'}", devices=4)
    assert one.returncode == 0, one.stderr
    for process in processes:
        ended(process, 0)
    lines = [runs.metrics(tmp_path / name) for name in ("one", "two")]
    assert [line["step"] for line in lines[1]] == [1, 2, 3, 4, 5, 6]  # written once
    agree([x["loss"] for x in lines[1]], [x["loss"] for x in lines[0]], rtol=1e-5, what="losses")
    states = [restoring.load(tmp_path / name, "latest")[1] for name in ("one", "two")]
    agree(states[1].params, states[0].params, rtol=1e-5, what="parameters ")
    errors = [runs.metrics(tmp_path / name, "val")[-1] for name in ("one", "two")]
    assert errors[0]["top1_error"] == pytest.approx(errors[1]["top1_error"], abs=1 / 359)


@pytest.mark.slow
def test_if_one_process_is_killed_the_other_ends_and_both_resume_exactly(tmp_path, data_dir):
    command = [
        f"--config.dataset.data_dir={data_dir}",
        "--config.num_steps=120",
        "--config.checkpoint_every_steps=5",
    ]
    workdir = tmp_path / "killed"
    for killed, steps in ((1, 12), (0, 28)):
        processes = start_two(*command, f"--workdir={workdir}")
        wait_for(workdir, steps)
        processes[killed].kill()
        ended(processes[killed], -signal.SIGKILL)
        lines = ended(processes[1 - killed], 3, within=30)
        assert lines[-1] == (
            f"error: process {killed} of 2 has ended; start all of them again: the same command"
            " continues"
        )
        assert not any("Traceback" in line for line in lines)
        if killed == 1:  # if process 0 is killed, JAX prints a long message first
            assert not any("Check failure" in line for line in lines)

    newest = max((p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), key=_step)
    for file in (newest / "state").rglob("d/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    restarted = start_two(*command, f"--workdir={workdir}")
    said = [ended(process, 0) for process in restarted]
    warned = [[line for line in lines if "is damaged and now in" in line] for lines in said]
    assert [len(lines) for lines in warned] == [1, 0]  # one process moves it, the other follows

    for process in start_two(*command, f"--workdir={tmp_path / 'undisturbed'}"):
        ended(process, 0)
    lines = [runs.metrics(tmp_path / name) for name in ("killed", "undisturbed")]
    assert [(x["step"], x["loss"]) for x in lines[0]] == [(x["step"], x["loss"]) for x in lines[1]]
    states = [restoring.load(tmp_path / n, "latest")[1] for n in ("killed", "undisturbed")]
    jax.tree.map(np.testing.assert_array_equal, *states)


def _step(path):
    return int(path.name)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path, data_dir):
    # Small batches, so that an evaluation takes a while.
    command = [f"--config.dataset.data_dir={data_dir}", f"--workdir={tmp_path}"]
    command += ["--config.batch_size=4", "--config.checkpoint_every_steps=100000"]
    processes = start_two(*command, "--config.num_steps=100000")
    wait_for(tmp_path, 5)
    processes[1].send_signal(signal.SIGTERM)
    last = [ended(process, 0)[-1] for process in processes]
    step = restoring.load(tmp_path, "latest")[2].metrics["train"]["step"]
    stopped = "stopped at step {} of {}; the same command continues"
    assert last == [stopped.format(step, 100000)] * 2

    # Also during the ten-crop evaluation.
    processes = start_two(*command, f"--config.num_steps={step + 2}")
    wait_for(tmp_path, 1, "val")
    processes[0].send_signal(signal.SIGINT)
    last = [ended(process, 0)[-1] for process in processes]
    assert last == [stopped.format(step + 2, step + 2)] * 2
    assert not (tmp_path / "result.json").exists()


@pytest.mark.slow
def test_both_processes_rewind_together(tmp_path, data_dir):
    command = [f"--config.dataset.data_dir={data_dir}", f"--workdir={tmp_path}"]
    command += ["--config.num_steps=4", "--config.checkpoint_every_steps=1"]
    command += ["--config.learning_rate=1e4", "--config.on_nan=rewind"]
    command += ["--config.rewind_divisor=1e9"]
    said = [ended(process, 0) for process in start_two(*command)]
    for what in (
        "; rewind 1 of 3; step 2, which led to it, is now in",
        "rewound: from step 1, learning rate divided by 1e+09",
    ):
        assert [sum(what in line for line in lines) for lines in said] == [1, 0]
    assert [line["step"] for line in runs.metrics(tmp_path)] == [1, 2, 3, 4]
    assert restoring.load(tmp_path, "latest")[2].rewinds >= 1


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_other(tmp_path, data_dir):
    begun = [f"--config.dataset.data_dir={data_dir}", f"--config.dataset.data_dir={__file__}"]
    one = start_two(
        f"--workdir={tmp_path / 'one'}", "--config.num_steps=9", each=[(a,) for a in begun]
    )
    (tmp_path / "zero").mkdir()
    with (tmp_path / "zero" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run holds the lock, so that process 0 is refused
        zero = start_two(begun[0], f"--workdir={tmp_path / 'zero'}", "--config.num_steps=9")
        said = {(0, 0): ended(zero[0], 2), (0, 1): ended(zero[1], 3)}
    said |= {(1, 0): ended(one[0], 3), (1, 1): ended(one[1], 2)}
    for failed in (0, 1):
        reason = said[failed, failed][-1].removeprefix("error: ")
        line = said[failed, 1 - failed][-1]
        assert line.startswith(f"error: process {failed} of 2 has ended (InputError: {reason[:60]}")
        assert not any("Check failure" in x or "Traceback" in x for x in said[failed, 1 - failed])


def test_the_distributed_flag_without_a_cluster_is_refused(tmp_path):
    done = runs.run(*runs.TINY, f"--workdir={tmp_path / 'run'}", "--distributed")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --distributed: JAX finds no cluster to join (")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
