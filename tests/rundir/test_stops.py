"""A run compiles no program twice, and a stop at any time does not change how it ends."""

import contextlib
import gc
import importlib
import pathlib

import jax
import numpy as np
import pytest

from alexnet_jax import parallel
from alexnet_jax.evaluate import validation_metrics
from alexnet_jax.rundir import Checkpoints, RunRecord, resume
from alexnet_jax.state import abstract_state
from alexnet_jax.train import train_and_evaluate
from experiments.runs.run_differences import differences
from tests import runs

train = importlib.import_module("alexnet_jax.train")  # the module: the package has the function
ERRORS = {2: 0.25, 4: 0.75, 6: 0.5}  # top-1 errors of the evaluations: the first is the best
COMPILED = "/jax/core/compile/backend_compile_duration"


def test_nothing_is_compiled_after_the_first_evaluation_and_save(pets, tmp_path, monkeypatch):
    pets.num_steps, pets.plateau.patience = 12, 1
    programs, at_evaluations = [], []

    def count(event, _, **__):
        programs.extend([event] * (event == COMPILED))

    def counted(*arguments):
        at_evaluations.append(len(programs))
        return validation_metrics(*arguments)

    monkeypatch.setattr(train, "validation_metrics", counted)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        train_and_evaluate(pets, tmp_path)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert len({line["plateau_scale"] for line in runs.metrics(tmp_path, "val")}) > 1
    first, *others, ten_crops = at_evaluations
    assert first > 0
    assert others == others[:1] * 5
    assert ten_crops == others[-1]


class StopAt:
    """A stop that is requested from the poll of that number on, counted from 1."""

    def __init__(self, poll):
        self.polls, self.poll = 0, poll

    @property
    def requested(self):
        self.polls += 1
        return self.polls >= self.poll

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def run_to(pets, monkeypatch):
    """Return a function that runs in a directory until a poll; it returns the result and the polls.

    All runs share their programs, and the errors of their evaluations are ERRORS.
    """
    pets.plateau.patience = 1

    def evaluate_as_told(step, state, *arguments):
        found = validation_metrics(step, state, *arguments)
        number = int(parallel.Pmap().unreplicate(state.step))
        return found and found | {"top1_error": ERRORS[number]}

    monkeypatch.setattr(train, "validation_metrics", evaluate_as_told)
    for module, name in (
        (train, "compile_programs"),
        (resume, "initial_state"),
        (resume, "abstract_state"),
    ):
        monkeypatch.setattr(module, name, _once(getattr(module, name)))
    gc.freeze()  # each run collects garbage at its end, and need not look at all that is imported

    def run(directory, poll=10**9):
        stop = StopAt(poll)
        monkeypatch.setattr(train, "StopRequest", lambda: stop)
        return train_and_evaluate(pets, directory), stop.polls

    return run


def _once(function):
    """Return a function that always returns what `function` returns to the first call."""
    answers = []

    def first_answer(*arguments):
        answers[:] = answers or [function(*arguments)]
        return answers[0]

    return first_answer


def _kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_a_stop_at_any_poll_changes_nothing(run_to, tmp_path):
    """The step of a stop is saved, and stays until two later steps are saved."""
    straight = tmp_path / "straight"
    result, polls = run_to(straight)
    assert (result["best_step"], _kept(straight)) == (2, [2, 4, 6])
    stopped_at = set()
    for poll in range(1, polls + 1):
        stopped = tmp_path / f"poll {poll}"
        result, _ = run_to(stopped, poll)
        assert result is None
        step = max(_kept(stopped), default=0)
        stopped_at.add(step)
        run_to(stopped)
        found = differences(straight, stopped, stops={step} - {0})
        assert found == [], f"stopped at poll {poll}, step {step}"
        assert _kept(stopped) == sorted({2, *sorted({2, 4, 6, step} - {0})[-2:]})
    assert stopped_at == set(range(7))


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_kill_while_a_step_is_saved_again_keeps_a_checkpoint(
    config, tmp_path, monkeypatch, moves
):
    """The kill comes after `moves` of two moves: the old one away, the new one into its place."""
    state = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), abstract_state(config))
    evaluated = RunRecord(validation={"top1_error": 0.25})
    rename, moved = pathlib.Path.rename, []

    def killed_after(path, target):
        if len(moved) == moves:
            raise KeyboardInterrupt
        moved.append(rename(path, target))

    with contextlib.suppress(KeyboardInterrupt), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, RunRecord())
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(pathlib.Path, "rename", killed_after)
            checkpoints.save(1, state, evaluated)
    assert len(moved) == moves
    # What a kill leaves while the new one is being written.
    (tmp_path / "checkpoints" / "1.replacement.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        found, run = checkpoints.restore_latest(abstract_state(config))
        jax.tree.map(np.testing.assert_array_equal, found, state)
        assert run.validation == evaluated.validation
        assert checkpoints.best() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    assert _kept(tmp_path) == [1]
