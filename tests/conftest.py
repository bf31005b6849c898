"""What all tests share: eight CPU devices, compiled programs, prepared digits, a finished run."""

import gc
import os
import shutil
import tempfile

from tests import runs

if runs.ON_DEVICE not in os.environ:  # with it `-m numerics` runs on JAX's default backend
    os.environ |= runs.cpu_devices(8, quick=False)  # before JAX is imported, which reads them then
# Half of the time is compiling, and other processes compile many of the same programs.
if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit the variable
    _cache = tempfile.TemporaryDirectory(prefix="alexnet_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import pytest

from alexnet_jax import data
from alexnet_jax.prepare import prepare
from alexnet_jax.train import train_and_evaluate
from configs import quickstart
from tests import agreement, generated, outcomes
from tests.prepared import make_folder


def pytest_configure(config):
    """Generate all cases of test_fuzz_*.py if slow tests run as well, and a tenth otherwise."""
    generated.share = 0.1 if config.option.markexpr == "not slow" else 1.0


# Which compare in this process what a device computes with a reference.
NUMERICS = {
    *("test_norms.py", "test_pools.py", "test_conv.py", "test_conv_local.py", "test_ops.py"),
    *("test_network.py", "test_model.py", "test_augment.py", "test_optim.py"),
    "test_device_cache.py",
}


def pytest_collection_modifyitems(items):
    """Mark the tests of numerics."""
    for item in items:
        if item.path.name in NUMERICS:
            item.add_marker("numerics")


@pytest.fixture(autouse=True, scope="module")
def frozen_garbage():
    """Exempt the objects that a module leaves, such as JAX's programs, from garbage collection.

    There are millions of them, and full collections, which plots cause, took most of the time.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Return the directory that holds the prepared data set of the quickstart."""
    path = tmp_path_factory.mktemp("data")
    config = quickstart.get_config()
    config.dataset.data_dir = str(path)
    prepare(config.dataset)
    return path


@pytest.fixture
def config(data_dir):
    """Return the narrowest possible quickstart, on the prepared digits."""
    return runs.tiny_config(data_dir)


@pytest.fixture
def digits(config):
    """Return the prepared digits."""
    return data.open_dataset(prepare(config.dataset))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, data_dir):
    """Return the directory of a run of four steps; its checkpoints are of the steps 2 and 4."""
    config = runs.tiny_config(data_dir)
    config.checkpoint_every_steps, config.num_steps = 2, 4
    path = tmp_path_factory.mktemp("finished") / "run"
    train_and_evaluate(config, path)
    return path


@pytest.fixture
def run_copy(finished_run, tmp_path):
    """Return a copy of that directory, which a test may change."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture(scope="session")
def pets_dir(tmp_path_factory):
    """Return the directory of a folder data set of 16 training images of noise."""
    path = tmp_path_factory.mktemp("pets")
    make_folder(path / "pets", train=8)
    return path


@pytest.fixture
def pets(pets_dir):
    """Return the config of a run on them whose epoch is two steps."""
    config = runs.tiny_config(pets_dir)
    config.dataset.name, config.dataset.path = "folder", str(pets_dir / "pets")
    config.model.num_classes, config.batch_size, config.num_steps = 2, 8, 6
    config.eval_every_epochs, config.checkpoint_every_steps = 1, 100
    return config


@pytest.fixture
def folder(tmp_path):
    """Return a folder data set of ten images of noise."""
    return make_folder(tmp_path / "pets")


def pytest_sessionfinish(session):
    """Send the errors and outcomes of a worker to the process that reports them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["agreement"] = agreement.LINES
        session.config.workeroutput["outcomes"] = list(outcomes.COUNTS.items())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Receive them from a worker that has ended."""
    output = getattr(node, "workeroutput", {})
    agreement.LINES.update(output.get("agreement", {}))
    outcomes.COUNTS.update({tuple(case): n for case, n in output.get("outcomes", [])})


def pytest_terminal_summary(terminalreporter):
    """Show the errors of all comparisons with a reference, and the outcomes of generated cases."""
    if agreement.LINES:
        terminalreporter.section("largest relative errors, and what is allowed")
        for test, (_, figure) in agreement.LINES.items():
            terminalreporter.line(f"{figure}  {test}")
    if outcomes.COUNTS:
        terminalreporter.section("generated cases, and how they ended")
        for line in outcomes.lines():
            terminalreporter.line(line)
