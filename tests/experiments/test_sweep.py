"""A sweep: what it varies, how its workers share trials, and what it reports."""

import concurrent.futures
import functools
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time

import optuna
import pytest
from optuna.trial import TrialState

from alexnet_jax import config as config_lib
from experiments import command_line
from experiments.runs import run_process
from experiments.sweeps import sweep, sweep_report, sweep_space, sweep_worker
from tests import runs

# In place of run.py: a run whose error is 1 - dropout at its end, without a network.
FAKE = """
import json, os, pathlib, signal, sys, time
flags = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
signal.signal(signal.SIGTERM, lambda *_: (workdir.joinpath("stopped").touch(), os._exit(0)))
rate, dropout = float(flags["config.learning_rate"]), float(flags["config.model.dropout"])
if rate > 1:
    print("error: step 3, training: loss is nan", file=sys.stderr)
    sys.exit(2)
again = (workdir / "metrics.jsonl").exists()
with (workdir / "metrics.jsonl").open("w") as file:
    for epoch in range(1, 5):
        line = {"step": epoch, "epoch": float(epoch), "split": "val"}
        file.write(json.dumps(line | {"top1_error": 1 - dropout + 0.1 * (4 - epoch)}) + "\\n")
        file.flush()
        while rate > 0.5 and epoch == 3 and not again:
            time.sleep(0.01)
        after_five = len(list(workdir.parent.glob("*/result.json"))) >= 5
        deadline = time.monotonic() + 60 * (after_five and epoch == 3 and dropout == 0.5)
        while time.monotonic() < deadline:  # to be stopped, as the worst
            time.sleep(0.01)
(workdir / "result.json").write_text("{}")
"""
FIXED = ("--config.num_steps=4", "--config.batch_size=64")


@pytest.fixture
def fake_run(tmp_path, monkeypatch):
    """Return the directory that holds the fake in place of run.py."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "run.py").write_text(FAKE)
    monkeypatch.setattr(run_process, "ROOT", root)
    monkeypatch.setattr(run_process, "POLL", 0.05)
    monkeypatch.setattr(sweep_worker, "WAIT", 0.05)
    return root


def swept(workdir, *arguments):
    flags = ("--config=configs/quickstart.py", f"--workdir={workdir}", *FIXED, *arguments)
    return sweep.main(["sweep.py", *flags])


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


RATE = "--sweep.learning_rate=loguniform:1e-3,1e-1"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--sweep.learning_rat=0.1,0.2"], "did you mean 'learning_rate'"),
        (["--sweep.learning_rate=uniform:0.1"], "uniform:a,b"),
        (["--sweep.learning_rate=uniform:0.2,0.1"], "first end must be below"),
        (["--sweep.learning_rate=uniform:0,nan"], "config.learning_rate='0'"),
        (["--sweep.learning_rate=int:1,2"], "int does not go with config.learning_rate"),
        (["--sweep.learning_rate=normal:1,2"], "no distribution 'normal'"),
        (["--sweep.weight_decay=loguniform:0,1"], "ends above 0"),
        (["--sweep.max_rewinds=uniform:1,2"], "uniform does not go with config.max_rewinds"),
        (["--sweep.model.dropout=0.5,1"], "config.model.dropout='1'"),
        (["--sweep.model.dropout=0.5,half"], "config.model.dropout='half'"),
        (["--sweep.model.dropout=0.5"], "give it as --config.model.dropout=0.5"),
        (["--sweep.model.dropout=0.5,0.50"], "twice"),
        (["--sweep.model.hidden=(8,8),(8"], "(...),(...)"),
        (["--sweep.model.hidden=(8,8),(8,0)"], "config.model.hidden='(8, 0)'"),
        (["--sweep.model.hidden=(8,8),(8,8,8)"], "config.model.biases"),
        (["--sweep.augment.crop=67,73"], "config.augment.crop=73 is larger"),
        (["--sweep.dtype=float32,float16"], "config.dtype='float16'"),
        ([RATE, "--config.learning_rate=0.1"], "config.learning_rate is given twice"),
        ([RATE, "--config.seed=-1"], "config.seed=-1"),
        ([RATE, "--config.sed=1"], "did you mean 'seed'"),
        ([RATE, "--config=nowhere.py"], "--config=nowhere.py does not exist"),
        ([RATE, "--trials=0"], "--trials=0"),
        ([RATE, "--sampler=grid"], "--sampler=grid needs values of learning_rate"),
        ([RATE, "--sampler=bayes"], "bayes"),
        ([RATE, "--trails=3"], "did you mean '--trials'"),
        ([RATE, "--storage=nonsense://"], "--storage"),
        ([RATE, "--storage=sqlite://"], "--storage=sqlite:// keeps nothing"),
        ([RATE, "--storage=no/such/directory/journal.log"], "no/such/directory does not exist"),
        ([], "nothing is swept"),
    ],
)
def test_a_bad_argument_is_refused_by_name_and_nothing_is_created(
    arguments, named, tmp_path, capsys
):
    assert swept(tmp_path / "sweep", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert named in error
    assert list(tmp_path.iterdir()) == []


def test_a_value_is_allowed_if_one_of_its_combinations_is_valid():
    space = sweep_space.read({"augment.crop": "67,73", "dataset.image_size": "72,80"})
    sweep_space.check(command_line.parsed(["--config=configs/quickstart.py"]), space)


@pytest.mark.parametrize("database", [False, True])
def test_a_grid_is_run_completely_and_the_best_command_is_that_of_the_best_run(
    database, fake_run, tmp_path, capsys
):
    workdir = tmp_path / "a sweep"
    storage = [f"--storage=sqlite:///{tmp_path}/sweep.db"] if database else []
    grid = ("--sampler=grid", "--sweep.model.dropout=0.2,0.6", "--sweep.learning_rate=0.1,10")
    assert swept(workdir, *grid, *storage) == 0
    found = results(workdir)
    by_values = {tuple(row["values"].values()): row for row in found["trials"]}
    assert {values: row["state"] for values, row in by_values.items()} == {
        ("0.2", "0.1"): "complete",
        ("0.6", "0.1"): "complete",
        ("0.2", "10"): "failed",
        ("0.6", "10"): "failed",
    }
    assert by_values["0.6", "0.1"]["top1_error"] == pytest.approx(0.4)
    assert by_values["0.6", "0.1"]["epochs"] == 4
    assert "step 3, training: loss is nan" in by_values["0.2", "10"]["failure"]
    assert found["best"]["number"] == by_values["0.6", "0.1"]["number"]
    out = capsys.readouterr().out
    assert found["best"]["command"] in out
    assert shlex.split(found["best"]["command"]) == [
        *("python", "run.py", "--config=configs/quickstart.py", *FIXED),
        *("--config.model.dropout=0.6", "--config.learning_rate=0.1"),
        f"--workdir={workdir / 'best'}",
    ]
    for name in ("fields.png", "trials.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    assert sweep.main(["sweep.py", f"--workdir={workdir}", "--report", *storage]) == 0
    assert capsys.readouterr().out == out


def test_a_trial_worse_than_the_median_is_stopped(fake_run, tmp_path):
    """Its error is that of the epoch of the decision, whatever the run does until it stops."""
    workdir = tmp_path / "sweep"
    values = "--sweep.model.dropout=0.5,0.6,0.61,0.62,0.63,0.64"
    grid = ("--sampler=grid", "--sweep.learning_rate=0.1,0.2", values, "--prune_after=3")
    assert swept(workdir, *grid, "--seed=1") == 0
    assert list(workdir.glob("trials/*/stopped"))
    states = [row["state"] for row in results(workdir)["trials"]]
    assert states[:5] == ["complete"] * 5  # the pruner compares with five at least
    assert set(states[5:]) == {"complete", "pruned"}
    for row in results(workdir)["trials"]:
        epochs = 3 if row["state"] == "pruned" else 4
        expected = 1 - float(row["values"]["model.dropout"]) + 0.1 * (4 - epochs)
        assert row["top1_error"] == pytest.approx(expected)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_values_drawn_do_not_depend_on_interruptions(sampler, fake_run, tmp_path, monkeypatch):
    """A signal stops the fourth trial, which is saved; the same command resumes it."""
    few_at_random = functools.partial(optuna.samplers.TPESampler, n_startup_trials=2)
    monkeypatch.setattr(optuna.samplers, "TPESampler", few_at_random)
    waits = '"stopped" in workdir.parts and workdir.name == "0003"'
    (fake_run / "run.py").write_text(FAKE.replace("rate > 0.5", waits))
    flags = (f"--sampler={sampler}", RATE, "--trials=5", "--config.model.dropout=0.5")
    assert swept(tmp_path / "straight", *flags) == 0
    trial = tmp_path / "stopped/trials/0003"

    def stop():
        wait_for(trial / "metrics.jsonl")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert swept(tmp_path / "stopped", *flags) == 0
    thread.join()
    assert (trial / "stopped").exists() and not (trial / "result.json").exists()
    assert swept(tmp_path / "stopped", *flags) == 0
    assert (trial / "log.txt").read_text().count("$ python run.py") == 2
    drawn = [
        [row["values"]["learning_rate"] for row in results(tmp_path / name)["trials"]]
        for name in ("straight", "stopped")
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 5


def test_two_workers_run_each_trial_once(fake_run, tmp_path, monkeypatch):
    """The first trial's run waits for the second's, which only another worker can begin."""
    parsed, one_at_a_time = command_line.parsed, threading.Lock()

    def parsed_alone(arguments):
        with one_at_a_time:  # workers are processes; in threads they load one recipe at once
            return parsed(arguments)

    monkeypatch.setattr(command_line, "parsed", parsed_alone)
    wait = """
workdir.joinpath("begun").touch()
other = workdir.with_name("0001").joinpath("begun")
give_up = time.monotonic() + 60
while workdir.name == "0000" and not other.exists():
    if time.monotonic() > give_up:
        sys.exit("error: there is no other worker")
    time.sleep(0.01)
"""
    (fake_run / "run.py").write_text(FAKE.replace("rate, dropout =", wait + "rate, dropout ="))
    workdir = tmp_path / "sweep"
    flags = ("--sampler=random", RATE, "--config.model.dropout=0.4", "--trials=6")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        workers = [pool.submit(swept, workdir, *flags) for _ in range(2)]
        assert [worker.result() for worker in workers] == [0, 0]
    assert [row["state"] for row in results(workdir)["trials"]] == ["complete"] * 6
    logs = [path.read_text() for path in sorted(workdir.glob("trials/*/log.txt"))]
    assert [log.count("$ python run.py") for log in logs] == [1] * 6


def test_the_same_storage_is_used_from_any_working_directory(
    fake_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sweep_report, "write", lambda *_: "")
    monkeypatch.chdir(tmp_path)
    flags = ("--sampler=random", RATE, "--config.model.dropout=0.5", "--trials=1")
    flags += (f"--config={runs.ROOT / 'configs/quickstart.py'}",)
    for name, first, same in (
        ("default", [], [f"--storage={tmp_path}/default/journal.log"]),
        ("given", ["--storage=given/journal.log"], []),
        ("file", ["--storage=one.log"], [f"--storage={tmp_path}/one.log"]),
        ("database", ["--storage=sqlite:///x.db"], [f"--storage=sqlite:///{tmp_path}/x.db"]),
    ):
        assert swept(name, *flags, *first) == 0, capsys.readouterr().err
        monkeypatch.chdir(name)
        assert swept(tmp_path / name, *flags, *same) == 0, capsys.readouterr().err
        assert swept(tmp_path / name, "--report", *same) == 0, capsys.readouterr().err
        monkeypatch.chdir(tmp_path)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("**/*.log")}
    assert files == {"default/journal.log", "given/journal.log", "one.log"}
    assert swept("default", *flags, "--storage=journal.log") == 2
    assert "holds a sweep with storage=None" in capsys.readouterr().err
    record = tmp_path / "default" / "sweep.json"
    assert json.loads(record.read_text())["storage"] is None
    record.write_text(record.read_text().replace('"storage": null', '"storage": "journal.log"'))
    assert swept("default", *flags) == 0  # as earlier versions wrote it


def test_another_sweep_in_the_same_directory_is_refused_by_what_differs(fake_run, tmp_path, capsys):
    flags = ("--sampler=random", RATE, "--config.model.dropout=0.5", "--trials=1")
    assert swept(tmp_path / "sweep", *flags) == 0
    capsys.readouterr()
    for other in ("--seed=1", "--config.momentum=0.8", "--sweep.weight_decay=0.0,0.1"):
        assert swept(tmp_path / "sweep", *flags, other) == 2
        name = other.lstrip("-").partition("=")[0]
        assert f"holds a sweep with {name}=" in capsys.readouterr().err
    assert swept(tmp_path / "sweep", *flags, "--config.log_every_steps=7") == 0


def test_a_worker_may_read_the_same_images_elsewhere_but_no_other_images(
    fake_run, tmp_path, capsys
):
    for place, size in (("here", 1), ("there", 1), ("others", 2)):
        for split in ("train", "val"):
            folder = tmp_path / place / split / "cat"
            folder.mkdir(parents=True)
            (folder / "1.png").write_bytes(b"x" * size)
    flags = ("--sampler=random", RATE, "--config.model.dropout=0.5", "--trials=1")
    flags += ("--config.dataset.name=folder",)
    for place, code in (("here", 0), ("there", 0), ("others", 2), ("nowhere", 2)):
        path = f"--config.dataset.path={tmp_path / place}"
        assert swept(tmp_path / "sweep", *flags, path) == code, place
    error = capsys.readouterr().err
    assert "holds a sweep with pictures='folder: " in error and "nowhere is not a folder" in error


def test_runs_that_fail_before_any_step_end_the_sweep(fake_run, tmp_path, capsys):
    (fake_run / "run.py").write_text("import sys; sys.exit('error: the disk is full')")
    flags = ("--sampler=random", RATE, "--config.model.dropout=0.5", "--trials=9")
    assert swept(tmp_path / "sweep", *flags) == 2
    assert len(results(tmp_path / "sweep")["trials"]) == sweep_worker.FAILURES
    assert "the disk is full" in capsys.readouterr().err.splitlines()[-1]


def test_a_failed_trial_that_another_worker_completed_has_not_failed(tmp_path):
    """A worker may be killed after it has recorded a failure and before it ends the trial."""
    said = {sweep_report.FAILURE: "exit code 2: error: no memory"}
    states = [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED]
    values = [0.5, None, None]
    trials = [
        optuna.trial.create_trial(state=state, value=value, user_attrs=said)
        for state, value in zip(states, values, strict=True)
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    found = sweep_report.rows(tmp_path, trials)
    assert [row["state"] for row in found] == ["complete", "failed", "failed"]
    assert sweep_report.best(found) == found[0]


def test_the_run_of_a_killed_worker_stops_and_another_worker_finishes_the_trial(fake_run, tmp_path):
    workdir = tmp_path / "sweep"
    flags = [
        *("--config=configs/quickstart.py", f"--workdir={workdir}", *FIXED, "--trials=2"),
        *("--sampler=random", "--sweep.learning_rate=uniform:0.6,0.9"),
        "--config.model.dropout=0.5",
    ]
    code = "import pathlib, sys; from experiments.runs import run_process"
    code += "; from experiments.sweeps import sweep"
    code += f"; run_process.ROOT = pathlib.Path({str(fake_run)!r}); sweep.main(sys.argv)"
    worker = subprocess.Popen([sys.executable, "-c", code, *flags], cwd=runs.ROOT)
    trial = workdir / "trials" / "0000"
    wait_for(trial / "metrics.jsonl", worker)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    wait_for(trial / "stopped")
    (workdir / "trials" / "0001").mkdir()  # the second does not wait for anything
    (workdir / "trials" / "0001" / "metrics.jsonl").touch()
    assert sweep.main(["sweep.py", *flags]) == 0
    found = results(workdir)["trials"]
    assert [row["state"] for row in found] == ["complete", "complete"]
    assert (trial / "log.txt").read_text().count("$ python run.py") == 2
    assert (trial / "result.json").exists()


def wait_for(path: pathlib.Path, process: subprocess.Popen | None = None) -> None:
    while not path.exists():
        assert process is None or process.poll() is None
        time.sleep(0.02)


def test_the_command_line_of_a_trial_gives_run_py_its_config(tmp_path):
    values = {"learning_rate": "0.02", "model.hidden": "(16, 32)", "augment.flip": "true"}
    overrides = {"dtype": "bfloat16", "model.pool.window": "2", "num_steps": "4"}
    recipe = command_line.parsed(sweep_report.command("configs/quickstart.py", overrides, {}))
    record = {"recipe": "configs/quickstart.py", "overrides": overrides}
    swept = sweep_worker.Sweep(tmp_path, recipe, {}, 1, record)
    *arguments, workdir = swept.arguments(values, 3)
    assert workdir == f"--workdir={tmp_path / 'trials' / '0003'}"
    of_values = {name: command_line.value(name, text) for name, text in values.items()}
    wanted = sweep_space.with_values(recipe, of_values)
    found = command_line.read_config(arguments)
    assert dict(config_lib.flatten(found)) == dict(config_lib.flatten(wanted))
