"""The script that runs all benchmarks in one call; no test claims their times."""

import json
import pathlib
import sys
import time

import pytest

from experiments.benchmarks import gpu


@pytest.fixture
def benchmarks(tmp_path, monkeypatch):
    """Return a function that runs gpu.py with stages that are lines of Python, as (limit, code)."""
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    monkeypatch.setattr(gpu, "compose", lambda folder, number: None)

    def run(seconds=60, **stages):
        commands = {}
        for name, (limit, code) in stages.items():
            (tmp_path / f"{name}.py").write_text(code)
            commands[name] = limit, [sys.executable, f"{name}.py"]
        monkeypatch.setattr(gpu, "stages", lambda options, images: commands)
        monkeypatch.setattr("sys.argv", ["gpu.py", f"--out={tmp_path}/out", f"--seconds={seconds}"])
        gpu.main()
        return json.loads((tmp_path / "out" / "gpu.json").read_text())["stages"]

    return run


NOTE = "import sys, pathlib; pathlib.Path(sys.argv[-1][6:] + '.json').write_text(%r)"


def test_the_same_command_runs_what_failed_and_nothing_that_succeeded(benchmarks, tmp_path):
    first = benchmarks(one=(20, NOTE % "{}"), two=(20, "raise SystemExit(3)"))
    assert {name: stage["ended"] for name, stage in first.items()} == {
        "one": "succeeded",
        "two": "failed",
    }
    again = benchmarks(one=(20, "raise SystemExit(3)"), two=(20, NOTE % "{}"))
    assert again["one"] == first["one"]
    assert again["two"]["ended"] == "succeeded"


def test_a_stage_that_takes_too_long_ends_with_its_children(benchmarks, tmp_path):
    code = f"""
import pathlib, subprocess, time
child = subprocess.Popen(["sleep", "60"])
pathlib.Path({str(tmp_path)!r}, "child").write_text(str(child.pid))
time.sleep(60)
"""
    began = time.monotonic()
    assert benchmarks(slow=(3, code))["slow"]["ended"] == "ran out of time"
    assert time.monotonic() - began < 20
    state = pathlib.Path("/proc", (tmp_path / "child").read_text(), "stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_stage_begins_only_where_half_of_its_limit_is_left(benchmarks, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "gpu.json").write_text('{"stages": {}}')
    assert set(benchmarks(seconds=10, long=(21, ""), short=(10, ""))) == {"short"}
    assert "long: not enough time is left; the same command cont" in capsys.readouterr().out


def test_rates_are_of_steps_loops_and_decoding(tmp_path):
    step = {"batches": {"8": {"ours": {"pictures_per_second": 50.0}}}}
    (tmp_path / "step_8.json").write_text(json.dumps(step))
    loop = {"batch_size": 8, "milliseconds": {"step": [1, 2, 3], "fed": [3, 4, 5]}}
    (tmp_path / "loop_torch.json").write_text(json.dumps(loop))
    fused = {"steps": {"8": {"plain": {"ms": 1.0, "images_per_second": 8000}}}}
    (tmp_path / "fused.json").write_text(json.dumps(fused))
    scaling = {"results": {"jpeg": {"workers": {"16": {"images_per_second": 9.0}}}}}
    (tmp_path / "scaling.json").write_text(json.dumps(scaling))
    assert gpu.rates(tmp_path) == {
        "step 8, ours": 50.0,
        "step 8, plain block": 8000,
        "decoding, 16 workers": 9.0,
        "loop_torch, step": 4000.0,
        "loop_torch, fed": 2000.0,
    }


@pytest.mark.slow
def test_the_smallest_shapes_run_from_end_to_end(tmp_path, monkeypatch):
    names = ["loop_jpeg", "loop_cached", "start_unsearched", "copy"]
    monkeypatch.setattr("sys.argv", ["gpu.py", f"--out={tmp_path}", "--small", "--stages", *names])
    gpu.main()
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: stage["ended"] for name, stage in report["stages"].items()} == dict.fromkeys(
        names, "succeeded"
    )
    assert {"loop_jpeg, step", "loop_cached, written"} <= set(report["images_per_second"])
