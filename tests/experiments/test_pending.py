"""What is pending of the paper's experiments: in order, within the minutes, recorded."""

import argparse
import json
import sys
import time

import pytest

from alexnet_jax import config as config_lib
from experiments.paper import bits, numerics, pending
from experiments.reports import results_table
from experiments.runs import trials
from tests import conftest, runs
from tests.experiments.test_experiments import main


@pytest.fixture
def given(tmp_path):
    places = {"workdir": tmp_path / "runs", "out": tmp_path / "results", "minutes": 10.0}
    return argparse.Namespace(**places, cifar10=None, imagewoof=tmp_path)


def rows(*names, data=""):
    return [pending.Row(name, "recipes", data, (), "2", 1) for name in names]


def record(given, name, **found):
    given.out.mkdir(exist_ok=True)
    (given.out / f"{name}.json").write_text(json.dumps(found))


def test_each_row_is_a_command_that_its_script_accepts(given, monkeypatch):
    def accept(each, *_, **__):
        for trial in each:
            trial.config()
        raise Accepted

    monkeypatch.setattr(trials, "refuse", accept)
    for row in pending.ROWS:
        program, script, *arguments = row.command(given)
        assert script.endswith(f"experiments/paper/{row.script}.py")
        if row.script in ("bits", "numerics"):
            continue
        module = __import__(f"experiments.paper.{row.script}", fromlist=["main"])
        with pytest.raises(Accepted):
            main(module, monkeypatch, *arguments)
    assert len({row.name for row in pending.ROWS}) == len(pending.ROWS)


class Accepted(Exception):
    """A command line has been read, and every config made of it is valid."""


def test_what_is_recorded_is_not_run_again_and_a_failed_row_stops_no_other(
    given, monkeypatch, capsys
):
    record(given, "done", runs=[{"status": "finished"}], pending=[])
    record(given, "half", runs=[{"status": "there"}, {"status": "failed"}], pending=["x-seed1"])
    record(given, "old", runs=[{"status": "finished"}])
    given.at_once, ran = 1, []

    def command(row, _):
        ran.append(row.name)
        return [sys.executable, "-c", f"raise SystemExit({2 if row.name == 'half' else 0})"]

    monkeypatch.setattr(pending.Row, "command", command)
    every = [*rows("done", data="cifar10"), *rows("half"), *rows("no_images", data="cifar10")]
    every += rows("old", "new")
    assert pending.run(every, given) == 1
    assert capsys.readouterr().err.count("left out") == 1
    assert ran == ["half", "old", "new"]
    lines = pending.listing(every, given.out).splitlines()[1:]
    said = [line[52:] for line in lines]
    assert said == [
        "1 recorded",
        "1 recorded, 1 failed, 1 pending",
        "nothing of 2",
        "1 recorded, more may be pending",
        "nothing of 2",
    ]
    given.minutes, ran[:] = 0.0, []
    assert pending.run(every, given) == 0 and ran == []


def test_rows_run_at_once_and_are_stopped_with_the_minutes(given, monkeypatch):
    """Two that never end, of three, begin side by side; each is asked once to stop."""
    saves = """
import pathlib, sys, time
file = pathlib.Path(sys.argv[1])
try:
    file.touch()
    time.sleep(600)
except KeyboardInterrupt:
    file.write_text("saved")
    sys.exit(130)
"""

    def command(row, _):
        return [sys.executable, "-c", saves, str(given.out / row.name)]

    wait = time.sleep

    def sleep(_):  # until both have begun, 15 seconds at most
        wait(0.05)
        given.now += 60.0 if len(list(given.out.iterdir())) == 2 else 0.2

    given.out.mkdir()
    given.minutes, given.at_once, given.now = 1.0, 2, 0.0
    monkeypatch.setattr(pending.Row, "command", command)
    monkeypatch.setattr(pending.time, "monotonic", lambda: given.now)
    monkeypatch.setattr(pending.time, "sleep", sleep)
    assert pending.run(rows("a", "b", "c"), given) == 0
    assert {file.name: file.read_text() for file in given.out.iterdir()} == dict.fromkeys(
        ("a", "b"), "saved"
    )


def test_a_row_that_measures_speed_has_the_device_alone(given, monkeypatch):
    alive, beside, sharing = set(), {}, {}

    class Process:
        returncode = 0

        def __init__(self, name):
            self.name, self.polls = name, 0

        def poll(self):
            self.polls += 1
            if self.polls < 2:
                return None
            alive.discard(self.name)
            return 0

    def start(command, shares):
        [name] = command
        alive.add(name)
        sharing[name] = shares
        for each in alive:
            beside.setdefault(each, set()).update(alive - {each})
        return Process(name)

    monkeypatch.setattr(pending, "_started", start)
    monkeypatch.setattr(pending.Row, "command", lambda row, _: [row.name])
    monkeypatch.setattr(pending.time, "sleep", lambda _: None)
    given.at_once = 2
    timed = pending.Row("timed", "bits", "", (), "6", 1)
    assert pending.run([*rows("a", "b"), timed, *rows("c", "d")], given) == 0
    assert beside == {"a": {"b"}, "b": {"a"}, "timed": set(), "c": {"d"}, "d": {"c"}}
    assert [name for name, shares in sharing.items() if not shares] == ["timed"]


@pytest.mark.slow
def test_real_runs_stop_with_the_minutes_and_continue(given, data_dir, monkeypatch):
    """Two seeds of a tiny ablation: recorded one by one, stopped at the limit, then completed."""
    monkeypatch.setenv("XLA_FLAGS", runs.cpu_devices(1)["XLA_FLAGS"])
    tiny = [override for override in runs.TINY if not override.startswith("--config=")]
    quickstart = runs.ROOT / "configs/quickstart.py"
    arguments = (f"--config={quickstart}", *tiny, "--config.num_steps=30")
    arguments += (f"--config.dataset.data_dir={data_dir}", "--only", "full", "--drop_checkpoints")
    row = pending.Row("tiny", "ablations", "", (*arguments, "--seeds", "0", "1"), "2", 1)
    given.at_once = 1
    given.minutes = 0.05  # it is asked to stop before its first run has ended
    assert pending.run([row], given) == 0
    assert not pending.state(row, given.out)[0]
    given.minutes = 10.0
    assert pending.run([row], given) == 0
    assert pending.state(row, given.out) == (True, "2 recorded")
    found = json.loads((given.out / "tiny.json").read_text())
    assert [run["step"] for run in found["runs"]] == [30, 30]
    directory = given.workdir / "tiny/full-seed1"
    assert not (directory / "checkpoints").exists() and (directory / "metrics.jsonl").exists()
    for extension in (".csv", ".png", ".md"):
        assert (given.out / f"tiny{extension}").stat().st_size > 0
    assert config_lib.load(directory / "config.json").seed == 1


@pytest.mark.slow
def test_bits_compares_runs_and_records_each_setting_once(tmp_path, data_dir, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", runs.cpu_devices(1)["XLA_FLAGS"])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    tiny = [*runs.TINY, f"--config.dataset.data_dir={data_dir}", "--config.num_steps=60"]
    arguments = [f"--workdir={tmp_path}", f"--out={tmp_path / 'bits'}", "--", *tiny]
    arguments += ["--config.checkpoint_every_steps=10", "--config.eval_every_epochs=1"]
    assert main(bits, monkeypatch, *arguments) == 0
    found = json.loads((tmp_path / "bits.json").read_text())
    assert [run["name"] for run in found["runs"]] == list(bits.SETTINGS) and not found["pending"]
    for run in found["runs"]:
        assert run["trained_twice_differs_in"] == run["after_a_kill_differs_in"] == []
    monkeypatch.setattr(bits, "compare", None)
    assert main(bits, monkeypatch, *arguments) == 0


def test_outcomes_and_errors_of_the_numerics_are_read_from_what_pytest_says():
    said = (
        "==== largest ... ====\n 1.2e-06 of 1e-05  test_a[1]  \n 3.0e-07 of 1e-06  test_b  loss\n"
    )
    assert numerics.errors(said) == [
        {"test": "test_a[1]", "what": "", "error": 1.2e-06, "allowed": 1e-05},
        {"test": "test_b", "what": "loss", "error": 3e-07, "allowed": 1e-06},
    ]
    report = """<testsuites><testsuite><testcase classname="t" name="a" time="1.5"/>
      <testcase classname="t" name="b" time="0"><failure message="off by 1&#10;more"/></testcase>
      <testcase classname="t" name="c" time="0"><skipped/></testcase></testsuite></testsuites>"""
    assert numerics.outcomes(report) == [
        {"name": "t.a", "status": "finished", "seconds": 1.5},
        {"name": "t.b", "status": "failed", "seconds": 0.0, "failure": "off by 1"},
    ]


def test_the_files_of_the_numerics_exist():
    tests = {path.name for path in (runs.ROOT / "tests").rglob("test_*.py")}
    assert tests >= conftest.NUMERICS


def test_a_row_that_is_not_recorded_yet_is_not_in_the_table(tmp_path):
    row = results_table.Row("alexnet", "data", "missing", "net")
    assert results_table.table(tmp_path, (row,)).count("\n") == 2  # its head
