"""The lines in docs/usage.md that send the metrics of a run elsewhere, run as they are there."""

import json
import re

import pytest

from tests import runs
from tests.untrained import write_run

DATABASE = "sqlite:///mlflow.db"


def block(word: str) -> str:
    """Return the block of Python in docs/usage.md that imports `word`."""
    text = (runs.ROOT / "docs" / "usage.md").read_text()
    [found] = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if f"import {word}\n" in b]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("store", [DATABASE, "files"])
def test_the_lines_for_mlflow_send_every_metric(store, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="not among the requirements: pip install mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    write_run(tmp_path / "runs" / "digits", [0.5, 0.25])
    exec(block("mlflow").replace(DATABASE, store), {})  # by which the store of files is chosen

    client = mlflow.MlflowClient(store)
    [sent] = client.search_runs(["0"])
    assert sent.info.run_name == "digits"
    lines = (tmp_path / "runs" / "digits" / "metrics.jsonl").read_text().splitlines()
    expected: dict[str, list] = {}
    for line in map(json.loads, lines):
        step, split = line.pop("step"), line.pop("split")
        for name, value in line.items():
            expected.setdefault(f"{split}/{name}", []).append((step, value))
    assert len(expected) == 12
    for name, values in expected.items():
        history = client.get_metric_history(sent.info.run_id, name)
        assert sorted((metric.step, metric.value) for metric in history) == values
    assert [file.path for file in client.list_artifacts(sent.info.run_id)] == ["config.json"]


@pytest.mark.slow
def test_the_lines_for_weights_and_biases_log_every_metric(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="not among the requirements: pip install wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_run(tmp_path / "runs" / "digits", [0.5, 0.25])
    sent, log = [], wandb.Run.log
    monkeypatch.setattr(
        wandb.Run, "log", lambda run, data, step: (sent.append((data, step)), log(run, data, step))
    )
    exec(block("wandb"), {})

    expected = []
    for line in (tmp_path / "runs" / "digits" / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        step, split = values.pop("step"), values.pop("split")
        expected.append(({f"{split}/{name}": value for name, value in values.items()}, step))
    assert sent == expected
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 1
