"""The package as pip installs it: what the wheel holds, and its use outside the repository."""

import pathlib
import shutil
import site
import subprocess
import sys
import zipfile
from email.parser import Parser

import pytest
from packaging.requirements import Requirement

import alexnet_jax
from alexnet_jax import fused
from tests import runs

FOLDERS = ("alexnet_jax", "configs", "experiments", "notebooks", "tests")
FILES = ("LICENSE", "README.md", "pyproject.toml", "requirements.txt", "run.py")
MODULES = sorted(
    path.relative_to(runs.ROOT).as_posix() for path in (runs.ROOT / "alexnet_jax").rglob("*.py")
)
RECIPES = sorted(path.name for path in (runs.ROOT / "configs").glob("*.py"))


def built(kind: str, folder: pathlib.Path) -> pathlib.Path:
    """Return the `wheel` or `editable` that the sources, copied to `folder`, build.

    Without a network, as pip does with --no-build-isolation.
    """
    pytest.importorskip("setuptools", minversion="77", reason="requirements-dev.txt installs it")
    sources, out = folder / "sources", folder / kind
    out.mkdir()
    if not sources.exists():
        for name in FOLDERS:
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(runs.ROOT / name, sources / name, ignore=ignored)
        for name in FILES:
            shutil.copy(runs.ROOT / name, sources)
    build = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=sources, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Directory of this module's builds."""
    return tmp_path_factory.mktemp("install")


@pytest.fixture(scope="module")
def wheel(folder):
    """Return the wheel of the package."""
    return built("wheel", folder)


def read(wheel: pathlib.Path, name: str) -> str:
    """Return the file `name` of the metadata in `wheel`."""
    with zipfile.ZipFile(wheel) as file:
        return file.read(f"alexnet_jax-{alexnet_jax.__version__}.dist-info/{name}").decode()


def test_the_wheel_holds_the_package_with_the_recipes_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        found = sorted(name for name in file.namelist() if ".dist-info/" not in name)
    recipes = [f"alexnet_jax/configs/{name}" for name in RECIPES]
    assert found == sorted([*MODULES, *recipes, "alexnet_jax/py.typed"])


def test_the_wheel_asks_for_what_requirements_txt_lists(wheel):
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    asked = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    lines = (runs.ROOT / "requirements.txt").read_text().splitlines()
    listed = [line.partition("#")[0].strip() for line in lines]
    assert {r for r in asked if not r.marker} == {Requirement(line) for line in listed if line}
    optional = {(r.name, *r.extras) for r in asked if r.marker}
    names = {("jax", "cuda13"), ("jax", "tpu"), ("onnx",), ("onnxruntime",), ("warp-lang",)}
    assert optional == names
    [warp] = [r for r in asked if r.name == "warp-lang"]
    assert warp.specifier == Requirement(fused.WARP).specifier


def test_the_wheel_states_version_license_and_command(wheel):
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    assert metadata["Version"] == alexnet_jax.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "alexnet_jax = alexnet_jax.command_line:run" in read(wheel, "entry_points.txt")


def test_the_citation_is_of_this_version():
    lines = (runs.ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {alexnet_jax.__version__}" in lines


def installed(wheel: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Return the bin/ of a fresh environment with `wheel`, and this one's packages behind it."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.check_output([python, "-c", where], text=True).strip()
    pathlib.Path(packages, "behind.pth").write_text("\n".join(site.getsitepackages()))
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    return folder / "bin"


def output(*command: str | pathlib.Path, cwd: pathlib.Path) -> str:
    """Return what `command` prints in the directory `cwd`, in which nothing of ours lies."""
    done = subprocess.run(
        command, cwd=cwd, env=runs.cpu_devices(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


USE = """
import importlib.metadata, pathlib, sys
import numpy as np
import alexnet_jax
from alexnet_jax.configs import quickstart
from ml_collections import ConfigDict

folder = pathlib.Path(alexnet_jax.__file__).parent
assert folder.is_relative_to(sys.prefix), folder
assert (folder / "py.typed").is_file()
assert alexnet_jax.__version__ == importlib.metadata.version("alexnet_jax")
model, variables, config = alexnet_jax.restore("copy")
logits = model.apply(variables, np.zeros((1, 67, 67, 3), np.float32))
assert logits.shape == (1, 10)
[answer] = alexnet_jax.predict("copy", np.zeros((72, 72, 3), np.uint8), top=3)
print(*(name for name, _ in answer))
"""


@pytest.mark.slow
def test_the_installed_package_trains_by_name_and_uses_a_copied_run(wheel, tmp_path, data_dir):
    programs = installed(wheel, tmp_path / "environment")
    outside = tmp_path / "outside"
    outside.mkdir()
    overrides = [f"--config.dataset.data_dir={data_dir}", "--config.num_steps=2", *runs.TINY[1:]]
    command = [programs / "alexnet_jax", "--config=quickstart", "--workdir=run", *overrides]
    assert "step 2" in output(*command, cwd=outside)
    (outside / "run").rename(outside / "moved")
    shutil.copytree(outside / "moved", outside / "copy")
    shutil.rmtree(outside / "moved")
    names = output(programs / "python", "-c", USE, cwd=outside).split()
    assert len(set(names)) == 3
    assert set(names) <= set("0123456789")

    again = [programs / "python", "-m", "alexnet_jax", "--mode=evaluate", "--workdir=copy"]
    assert "step 2" in output(*again, cwd=outside)


@pytest.mark.slow
def test_an_editable_install_finds_recipes_by_name_and_as_bases_of_others(folder, tmp_path):
    programs = installed(built("editable", folder), tmp_path / "environment")
    (tmp_path / "mine.py").write_text(
        "from alexnet_jax.configs import alexnet_2012_code\n\n\n"
        "def get_config():\n"
        "    config = alexnet_2012_code.get_config()\n"
        "    config.model.num_classes = 7\n"
        "    return config\n"
    )
    summary = [programs / "alexnet_jax", "--mode=summary"]
    assert "60,965,224" in output(*summary, "--config=alexnet_2012_code", cwd=tmp_path)
    fewer = 60_965_224 - 993 * 4097
    assert f"{fewer:,}" in output(*summary, "--config=mine.py", cwd=tmp_path)
