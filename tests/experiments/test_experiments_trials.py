"""Trials resume, stop with the process that started them, are trained once; failures are kept."""

import json
import pathlib
import shutil

import pytest
from PIL import Image

from alexnet_jax import InputError, data
from alexnet_jax import config as config_lib
from alexnet_jax.prepare import prepare
from alexnet_jax.rundir import LAST_GOOD, checkpoint, locked, resume
from experiments import command_line
from experiments.paper import cifar10, figure1
from experiments.reports import metrics
from experiments.runs import run_process, trial_records, trials
from tests import runs
from tests.experiments.test_experiments import main, read, recipe

# A run.py of a few milliseconds: its errors fall to nothing in ten epochs over the learning rate,
# by steps of a tenth of an epoch, and it ends by a signal alone; at rates above 1 it diverges.
FAKE_RUN = """
import ast, json, pathlib, signal, sys
given = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
workdir = pathlib.Path(given["workdir"])
recipe = pathlib.Path(__file__).with_name(pathlib.Path(given["config"]).stem + ".json")
config = json.loads(recipe.read_text())
for name, text in given.items():
    if name.startswith("config."):
        _, *groups, leaf = name.split(".")
        tree = config
        for group in groups:
            tree = tree[group]
        tree[leaf] = ast.literal_eval(text)
(workdir / "config.json").write_text(json.dumps(config))
rate = float(given["config.learning_rate"])
signal.signal(signal.SIGTERM, lambda *_: (workdir / "saved").touch() or sys.exit(0))
print("begun", file=sys.stderr, flush=True)
if rate > 1:
    sys.exit("error: step 7: conv1 is not finite after the update; LAST_GOOD: none")
rate /= 1 + ("tanh" in given.get("config.model.stages", ""))
if given["config.seed"] == "13":
    sys.exit("error: no luck")
with (workdir / "metrics.jsonl").open("w") as file:
    for i in range(1, 301):
        line = {"step": i, "epoch": i / 10, "split": "train"}
        line["top1_error"] = max(0, 1 - rate * i / 100)
        file.write(json.dumps(line) + "\\n")
signal.pause()
""".replace("LAST_GOOD", LAST_GOOD)


@pytest.fixture
def fake_run(tmp_path, monkeypatch):
    """Let trials run FAKE_RUN, poll often, and not ask for the device."""
    (tmp_path / "run.py").write_text(FAKE_RUN)
    for name in ("figure1", "cifar10_80sec"):
        config_lib.save(read(name), tmp_path / f"{name}.json")
    monkeypatch.setattr(run_process, "ROOT", tmp_path)
    monkeypatch.setattr(run_process, "POLL", 0.02)
    monkeypatch.setattr(trials, "POLL", 0.02)
    monkeypatch.setattr(trials, "device", lambda: "none")
    return tmp_path / "runs"


def test_a_run_is_finished_only_with_the_result_of_its_own_config(tmp_path):
    trial = trials.Trial("net", recipe("cifar10_80sec"), ("--config.num_epochs=2",), {}, 5)
    directory = trial.directory(tmp_path)
    directory.mkdir()
    assert trials.finished(trial, tmp_path) is None
    config_lib.save(trial.config(), directory / "config.json")
    assert trials.finished(trial, tmp_path) is None
    result = dict.fromkeys(trial_records.ERRORS, 0.3) | {"best_step": 782, "seconds": 9.0}
    result |= {"step": 782, "epoch": 782 * 128 / 50000}
    (directory / "result.json").write_text(json.dumps(result))
    assert trials.finished(trial, tmp_path) == result
    longer = trial._replace(overrides=("--config.num_epochs=3",))
    assert trials.finished(longer, tmp_path) is None
    other = trial._replace(differences={"learning_rate": 0.5})
    assert trials.finished(other, tmp_path) is None
    found = cifar10.summary("80sec", trial.overrides, [trial_records.record(trial, tmp_path)])
    assert found["error"] == {"mean": 0.3, "std": None, "n": 1}


def train_until_there(monkeypatch):
    """End FAKE_RUN after its last line; it would wait forever."""

    def until_there(trial, workdir):
        directory = trial.directory(workdir)
        return train(trial, workdir, lambda: len(metrics.lines(directory)) == 300)

    train = trials.train
    monkeypatch.setattr(trials, "train", until_there)


def test_a_failed_run_is_reported_each_time_and_tried_again(fake_run, monkeypatch, capsys):
    train_until_there(monkeypatch)
    arguments = ["--net=80sec", f"--workdir={fake_run}", "--config.learning_rate=0.1"]
    arguments += [f"--out={fake_run / 'lr0.1'}", "--seeds", "13", "1"]

    def states():
        found = json.loads((fake_run / "lr0.1.json").read_text())
        return [(run["seed"], run["status"], run.get("failure")) for run in found["runs"]]

    assert main(cifar10, monkeypatch, *arguments) == 1
    error = capsys.readouterr().err
    log = fake_run / "80sec-seed13" / "log.txt"
    said = f"failed: 80sec-seed13: exit code 1: error: no luck; see {log}"
    assert error.splitlines()[-1] == said
    assert "80sec-seed13: begun\n" in error and "80sec-seed1: begun\n" in error
    failed = [(13, "failed", "exit code 1: error: no luck"), (1, "unfinished", None)]
    assert states() == failed
    assert {path.name for path in fake_run.glob("lr0.1*")} == {
        "lr0.1.csv",
        "lr0.1.json",
        "lr0.1.png",
    }
    assert main(cifar10, monkeypatch, *arguments, "--report") == 0
    assert states() == failed
    assert capsys.readouterr().err.splitlines() == [said]
    rewinding = ["--report", "--config.on_nan=rewind"]  # of which it is not known that it fails
    assert main(cifar10, monkeypatch, *arguments, *rewinding) == 0
    assert [status for _, status, _ in states()] == ["unfinished", "unfinished"]
    (fake_run.parent / "run.py").write_text(FAKE_RUN.replace('"13"', '"14"'))
    assert main(cifar10, monkeypatch, *arguments) == 0
    assert [status for _, status, _ in states()] == ["unfinished", "unfinished"]
    assert log.read_text().count("$ python run.py") == 2


def test_a_run_that_another_process_trains_or_stops_has_not_failed(fake_run):
    trial = trials.Trial("net", recipe("cifar10_80sec"), (), {}, 13)
    directory = trial.directory(fake_run)
    directory.mkdir(parents=True)
    with locked(directory):
        assert "is being trained in by process" in trials.train(trial, fake_run)
    assert trials.failed(trial, fake_run) is None
    assert not (directory / "log.txt").exists()
    (fake_run.parent / "run.py").write_text("print('stopped at step 3 of 9')")
    assert trials.train(trial, fake_run) == "exit code 0: stopped at step 3 of 9"
    assert trials.failed(trial, fake_run) is None
    (directory / "failure.json").write_text("[]")  # nobody's
    assert trials.failed(trial, fake_run) is None


def test_the_same_images_may_move_and_other_images_are_refused(tmp_path):
    for split in ("train", "val"):
        for label in range(10):
            folder = tmp_path / f"pictures/{split}/{label}"
            folder.mkdir(parents=True)
            Image.new("RGB", (72, 72), (25 * label, 0, 0)).save(folder / "1.png")
    shutil.copytree(tmp_path / "pictures", tmp_path / "moved")
    shutil.copytree(tmp_path / "pictures", tmp_path / "others")
    Image.effect_noise((72, 72), 50).save(tmp_path / "others/train/3/1.png")
    config = runs.tiny_config(tmp_path)
    config.dataset.name, config.dataset.path = "folder", str(tmp_path / "pictures")
    tiny = runs.FIELDS | {"dataset.data_dir": str(tmp_path), "num_steps": 3}

    def trial(pictures):
        overrides = command_line.dataset(str(tmp_path / pictures))
        return trials.Trial("net", recipe("quickstart"), overrides, tiny, 0)

    directory = trial("pictures").directory(tmp_path)
    directory.mkdir()
    config_lib.save(trial("pictures").config(), directory / "config.json")
    with pytest.raises(InputError, match=r"in .*/pictures, and those in .*/moved are not known"):
        trials.refuse([trial("moved")], tmp_path, training=True)
    dataset = data.open_dataset(prepare(config.dataset))
    with checkpoint.Checkpoints(directory) as checkpoints:
        state, run = resume.begin(config, directory, dataset, checkpoints)
        checkpoints.save(0, state, run)
    trials.refuse([trial("pictures"), trial("moved")], tmp_path, training=True)
    with pytest.raises(InputError, match=r"num_classes=4, but 'moved' has 10 classes"):
        four = trial("moved")._replace(differences=tiny | {"model.num_classes": 4}, seed=1)
        trials.refuse([four], tmp_path, training=True)
    with pytest.raises(InputError, match=rf"give --data={tmp_path}/pictures, or take another"):
        trials.refuse([trial("others")], tmp_path, training=True)


def test_a_record_contains_no_paths_and_skips_torn_lines(fake_run, monkeypatch):
    (fake_run.parent / "run.py").write_text(f"raise SystemExit('error: {fake_run}/x is gone.')")
    trial = trials.Trial("net", recipe("cifar10_80sec"), (), {}, 13)
    for _ in range(2):
        assert f"{fake_run}/x is gone" in trials.train(trial, fake_run)
        with (trial.directory(fake_run) / "sessions.jsonl").open("a") as file:
            file.write('{"date": "2026')
    record = trial_records.record(trial, fake_run)
    assert record["failure"] == "exit code 1: error: WORKDIR/x is gone."
    assert [session["device"] for session in record["sessions"]] == ["none", "none"]
    monkeypatch.chdir(trial.directory(fake_run).parent)
    here = trial_records.record(trial, pathlib.Path())  # of which every sentence has one
    assert here["failure"] == "exit code 1: error: WORKDIR/x is gone."


def test_a_run_that_diverged_is_not_trained_again(fake_run, monkeypatch):
    (fake_run.parent / "run.py").write_text(f"raise SystemExit('error: {LAST_GOOD} step 3')")
    arguments = ["--net=80sec", f"--workdir={fake_run}", f"--out={fake_run / 'net'}", "--seeds=1"]
    assert main(cifar10, monkeypatch, *arguments) == 1
    assert main(cifar10, monkeypatch, *arguments) == 0
    found = json.loads((fake_run / "net.json").read_text())
    assert found["pending"] == [] and [run["status"] for run in found["runs"]] == ["failed"]
    log = (fake_run / "80sec-seed1/log.txt").read_text()
    assert log.count("$ python run.py") == 1


def test_an_interrupt_waits_for_the_run_to_save(fake_run):
    trial = figure1.trial("relu", 0.1, 0)
    directory = trial.directory(fake_run)

    def interrupt_when_begun():
        if (directory / "metrics.jsonl").exists() and len(metrics.lines(directory)) == 300:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        trials.train(trial, fake_run, interrupt_when_begun)
    assert (directory / "saved").exists()


def test_figure_1_takes_the_fastest_rate_and_compares_epochs(fake_run, monkeypatch, capsys):
    monkeypatch.setattr(figure1, "RECIPE", recipe("figure1"))
    arguments = [f"--workdir={fake_run}", "--rates", "0.9", "2", "1", "0.7", "--seeds", "0", "1"]
    assert main(figure1, monkeypatch, *arguments) == 0  # a rate that diverges is no failure
    found = json.loads((fake_run / "figure1.json").read_text())
    for activation in figure1.ACTIVATIONS:
        assert found[activation]["learning_rate"] == 1
        assert found[activation]["epochs"]["n"] == 2
        assert found[activation]["epochs"]["std"] == 0
    ratio = found["tanh_by_relu"]
    assert ratio["mean"] == pytest.approx(2, abs=0.1)
    assert ratio["by_seed"] == {"0": ratio["mean"], "1": ratio["mean"]}
    assert f"tanh by ReLU: {ratio['mean']:.2f} ± 0.00 (n 2)" in capsys.readouterr().out
    runs_of = [(run["name"], run["seed"], run["epochs_to_target"]) for run in found["runs"]]
    assert len(runs_of) == 10
    assert ("relu-lr0.9", 0, pytest.approx(8.8)) in runs_of
    assert ("relu-lr2", 0, None) in runs_of
    sessions = {each: each.read_text() for each in fake_run.glob("*/sessions.jsonl")}
    assert main(figure1, monkeypatch, *arguments) == 0
    assert {each: each.read_text() for each in sessions} == sessions  # nothing was trained again
    assert found["pending"] == []
    states = {run["name"]: run["status"] for run in found["runs"]}
    assert states["relu-lr1"] == "there" and states["tanh-lr2"] == "failed"
    assert json.loads((fake_run / "figure1.json").read_text())["runs"] == found["runs"]
    monkeypatch.setattr(trials, "train", None)
    assert main(figure1, monkeypatch, *arguments, "--report") == 0
    for other in (["--config.momentum=0.5"], ["--config.momentum=0.5", "--report"]):
        with pytest.raises(InputError, match=r"momentum=0\.9 .*0\.5"):
            main(figure1, monkeypatch, *arguments, *other)
    assert json.loads((fake_run / "figure1.json").read_text())["overrides"] == []


def test_a_seed_that_does_not_reach_the_error_is_named(fake_run, monkeypatch, capsys):
    monkeypatch.setattr(figure1, "RECIPE", recipe("figure1"))
    fake = FAKE_RUN.replace('given["config.seed"] == "13"', 'given["config.seed"] == "1"')
    (fake_run.parent / "run.py").write_text(fake)
    written = []
    write_json = trial_records.write_json
    monkeypatch.setattr(
        trial_records, "write_json", lambda *of: (written.append(of), write_json(*of))
    )
    arguments = [f"--workdir={fake_run}", "--rates", "1", "--seeds", "0", "1"]
    assert main(figure1, monkeypatch, *arguments) == 1
    assert len(written) == 6  # before the first run, after each of four, and at the end
    found = json.loads((fake_run / "figure1.json").read_text())
    assert found["relu"]["not_there"] == {"1": 0} and found["relu"]["epochs"]["n"] == 1
    assert found["pending"] == ["relu-lr1-seed1", "tanh-lr1-seed1"]
    said = capsys.readouterr()
    assert "ReLU: seed 1, 0.0 epochs, did not reach it: not in the mean" in said.out
    assert "relu-lr1-seed1: exit code 1: error: no luck" in said.err


def test_the_log_has_one_row_per_epoch_and_evaluation(tmp_path):
    trial = trials.Trial("net", recipe("cifar10_80sec"), (), {}, 5)
    trial.directory(tmp_path).mkdir()
    errors = {"loss": 3.0, "top1_error": 0.9, "top5_error": 0.5, "learning_rate": 0.1}
    lines = [{"split": "val", "step": 0, "epoch": 0.0} | errors]  # before a step is logged
    for step in range(1, 8):  # three steps an epoch, the last begun and not ended
        errors = {"loss": 2.0, "top1_error": step / 10, "top5_error": 0.0, "learning_rate": 0.1}
        lines.append({"split": "train", "step": step, "epoch": step / 3} | errors)
        if step == 5:
            lines.append({"split": "val", "step": 5, "epoch": 5 / 3} | errors)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (trial.directory(tmp_path) / "metrics.jsonl").write_text(text)
    trial_records.write_log([trial], tmp_path, tmp_path / "log")
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows == [
        "run,seed,step,epoch,training_top1_error,loss,top1_error,top5_error,learning_rate",
        "net,5,0,0,,3,0.9,0.5,0.1",
        "net,5,3,1,0.2000,,,,",
        "net,5,5,1.6667,0.4000,2,0.5,0,0.1",
        "net,5,6,2,0.5000,,,,",
        "net,5,7,2.3333,0.6000,,,,",
    ]


def test_results_are_not_replaced_by_fewer_results(tmp_path):
    out, files = tmp_path / "lr0.1", []
    ended, begun = {"status": "finished", "seed": 1}, {"status": "unfinished", "seed": 2}

    def write(runs):
        with trial_records.replaced(out, runs) as scratch:
            trial_records.write_json({"runs": runs}, scratch)
            trial_records.extended(scratch, ".csv").write_text(f"{len(runs)} runs")

    for of_new in ([begun], [begun], [ended], [ended, begun]):
        write(of_new)
        assert json.loads((tmp_path / "lr0.1.json").read_text())["runs"] == of_new
        files = sorted((path.name, path.read_text()) for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=r"lr0\.1\.json holds results, but none of the requested"):
        write([begun])
    with pytest.raises(ZeroDivisionError), trial_records.replaced(out, [ended]) as scratch:
        trial_records.write_json({"runs": [ended]}, scratch)
        raise ZeroDivisionError
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == files
