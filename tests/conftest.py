"""What all tests share: forced host devices, compiled programs, and the digits prepared once."""

import gc
import os
import tempfile

from tests import runs

os.environ |= runs.cpu_devices(8, quick=False)  # before JAX is imported, which reads them then
# Half the time of the tests is compiling, much of it the same programs in another process.
if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit the variable
    _cache = tempfile.TemporaryDirectory(prefix="alexnet_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import pytest

from alexnet_jax import data
from alexnet_jax.prepare import prepare
from configs import quickstart
from tests import agreement, generated, outcomes
from tests.prepared import make_folder


def pytest_configure(config):
    """Generate all cases of test_fuzz_*.py if slow tests run as well, and a tenth otherwise."""
    generated.share = 0.1 if config.option.markexpr == "not slow" else 1.0


@pytest.fixture(autouse=True, scope="module")
def out_of_the_collectors_way():
    """Let later collections pass over what a module has left, JAX's programs above all.

    Whole collections, of which plots cause many, took most of a test's time among millions of them.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Directory in which the quickstart's data set lies prepared."""
    path = tmp_path_factory.mktemp("data")
    config = quickstart.get_config()
    config.dataset.data_dir = str(path)
    prepare(config.dataset)
    return path


@pytest.fixture
def config(data_dir):
    """Return the quickstart as narrow as it can be, on the prepared digits."""
    return runs.tiny_config(data_dir)


@pytest.fixture
def digits(config):
    """Return the prepared digits."""
    return data.open_dataset(prepare(config.dataset))


@pytest.fixture
def folder(tmp_path):
    """Return a folder data set of ten pictures of noise."""
    return make_folder(tmp_path / "pets")


def pytest_sessionfinish(session):
    """Send a worker's errors and outcomes to the process that reports them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["agreement"] = agreement.LINES
        session.config.workeroutput["outcomes"] = list(outcomes.COUNTS.items())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take them from a worker that has ended."""
    output = getattr(node, "workeroutput", {})
    agreement.LINES.update(output.get("agreement", {}))
    outcomes.COUNTS.update({tuple(case): n for case, n in output.get("outcomes", [])})


def pytest_terminal_summary(terminalreporter):
    """Show the errors of all comparisons with a reference, and how generated cases ended."""
    if agreement.LINES:
        terminalreporter.section("largest relative errors, and what is allowed")
        for test, (_, figure) in agreement.LINES.items():
            terminalreporter.line(f"{figure}  {test}")
    if outcomes.COUNTS:
        terminalreporter.section("generated cases, and how they ended")
        for line in outcomes.lines():
            terminalreporter.line(line)
