"""What a run does again and again: no program is compiled twice, and no stop changes its end."""


import jax
import pytest

from alexnet_jax import train
from alexnet_jax.evaluate import evaluate
from alexnet_jax.train import train_and_evaluate
from tests import runs
from tests.prepared import make_folder

ERRORS = {2: 0.25, 4: 0.75, 6: 0.5}  # top-1 errors of the evaluations: the first is the best
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Return the config of a run whose epoch is two steps, on 16 images of noise."""
    path = tmp_path_factory.mktemp("pets")
    config = runs.tiny_config(path)
    config.dataset.name, config.dataset.path = "folder", str(make_folder(path / "pets", train=8))
    config.model.num_classes, config.batch_size, config.num_steps = 2, 8, 6
    config.eval_every_epochs, config.plateau.patience = 1, 1
    config.checkpoint_every_steps = 100
    return config


def test_nothing_is_compiled_after_the_first_evaluation_and_save(pets, tmp_path, monkeypatch):
    config = pets.copy_and_resolve_references()
    config.num_steps = 12
    programs, at_evaluations = [], []

    def count(event, _, **__):
        programs.extend([event] * (event == COMPILED))

    def counted(*arguments):
        at_evaluations.append(len(programs))
        return evaluate(*arguments)

    monkeypatch.setattr(train, "evaluate", counted)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        train_and_evaluate(config, tmp_path)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert len({line["plateau_scale"] for line in runs.metrics(tmp_path, "val")}) > 1
    first, *others, ten_crops = at_evaluations
    assert first > 0
    assert others == others[:1] * 5
    assert ten_crops == others[-1]
