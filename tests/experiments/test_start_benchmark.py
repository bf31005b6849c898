"""What the benchmark of the start records; no test claims its times."""

import json
import shlex
from argparse import Namespace

import pytest

from experiments.benchmarks import start


def test_the_recorded_command_measures_the_same_runs_and_contains_no_paths():
    places = "--config.dataset.path='/home/me/my pictures' --config.dataset.data_dir=/data"
    run = "configs/alexnet.py --config.dataset.name=folder '--config.model.hidden=(8, 8)'"
    given = [f"{run}\n {places}", "configs/quickstart.py"]
    options = Namespace(run=given, rounds=2, steps=1, choices=["searched", "unsearched"])
    words = shlex.split(start.command(options))
    assert words[:2] == ["python", "experiments/benchmarks/start.py"]
    runs = [shlex.split(w.removeprefix("--run=")) for w in words if w.startswith("--run=")]
    assert runs == [shlex.split(run), ["configs/quickstart.py"]]
    assert "--rounds=2" in words


@pytest.mark.slow
def test_a_cold_and_a_warm_start_are_timed_with_each_choice(tmp_path, monkeypatch):
    run = f"configs/quickstart.py --config.dataset.data_dir={tmp_path} --config.batch_size=8"
    run += " --config.model.features=(8,8,8,8,8) --config.model.hidden=(8,8)"
    arguments = ["start.py", f"--run={run}", "--rounds=1", "--steps=3", f"--out={tmp_path}/out"]
    monkeypatch.setattr("sys.argv", [*arguments, "--choices", "searched", "unsearched"])
    start.main()
    results = json.loads((tmp_path / "out.json").read_text())["seconds"]
    assert set(results) == {"configs/quickstart.py", "configs/quickstart.py unsearched"}
    for result in results.values():
        for kind in ("cold", "warm"):
            assert result[kind]["data"] < result[kind]["compiled"] < result[kind]["step"]
            assert result[kind]["images_per_second"] > 0
