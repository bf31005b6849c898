"""What the benchmark of the start records; no test claims its times."""

import shlex

from experiments.benchmarks import start


def test_the_recorded_command_measures_the_same_runs_and_contains_no_paths():
    places = "--config.dataset.path='/home/me/my pictures' --config.dataset.data_dir=/data"
    run = "configs/alexnet.py --config.dataset.name=folder '--config.model.hidden=(8, 8)'"
    words = shlex.split(start.command([f"{run}\n {places}", "configs/quickstart.py"], rounds=2))
    assert words[:2] == ["python", "experiments/benchmarks/start.py"]
    runs = [shlex.split(w.removeprefix("--run=")) for w in words if w.startswith("--run=")]
    assert runs == [shlex.split(run), ["configs/quickstart.py"]]
    assert "--rounds=2" in words
