"""The layout of the package: imports point down, and wings are used through their faces."""

import ast
import functools
import pathlib

import pytest

from tests.runs import ROOT

PACKAGE = ROOT / "alexnet_jax"
WINGS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
# From the ground up. A module or wing imports only from those before it.
FLOORS = (
    *("errors", "host", "fields", "layers", "config", "data", "prepare"),
    *("ops", "conv", "model", "augment", "optim", "state", "parallel", "step"),
    *("rundir", "exchange", "fused_native", "fused_kernels", "fused"),
    *("setting", "evaluate", "programs", "train", "predict"),
    *("inspect", "configs", "modes", "command_line", "__main__"),
)


def modules() -> dict[str, pathlib.Path]:
    """Return the file of each module of the package, faces left out, by its dotted name."""
    files = (path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


@functools.cache
def imported(path: pathlib.Path) -> frozenset[tuple[str, str | None]]:
    """Return (module, name or None) of every import statement in a file."""
    found: set[tuple[str, str | None]] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "", alias.name) for alias in node.names}
    return frozenset(found)


def exported(wing: str) -> frozenset[str]:
    """Return the names in `__all__` of a wing's face."""
    for node in ast.parse((PACKAGE / wing / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(node.value))
    raise AssertionError(f"{wing} has no face")


def dependencies(path: pathlib.Path) -> set[str]:
    """Return our modules that a file imports; for a face, the modules behind its names."""
    found = set()
    for module, name in imported(path):
        if module.split(".")[0] == "alexnet_jax":
            dotted = f"{module}.{name}"
            found.add(dotted if dotted in modules() or is_wing(dotted) else module)
    found -= {"alexnet_jax"}
    for wing in {name for name in found if is_wing(name)}:
        found.remove(wing)
        found |= dependencies(PACKAGE / wing.split(".")[1] / "__init__.py")
    return found


def is_wing(dotted: str) -> bool:
    """Return whether `dotted` is the package of a wing."""
    return dotted.count(".") == 1 and dotted.split(".")[1] in WINGS


def reach(module: str) -> set[str]:
    """Return all our modules that `module` imports, directly or through others."""
    left, found = [module], set()
    while left:
        new = dependencies(modules()[left.pop()]) - found
        found |= new
        left += new
    return found


def test_every_module_has_its_floor():
    tops = {name.split(".")[1] for name in modules()}
    assert tops == set(FLOORS)
    assert set(WINGS) <= set(FLOORS)


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down(module):
    place = module.split(".")[1]
    below = FLOORS[: FLOORS.index(place)]
    for other in dependencies(modules()[module]):
        top = other.split(".")[1]
        assert top in below or (top == place and place in WINGS), f"{module} imports {other}"


@pytest.mark.parametrize("module", sorted(modules()))
def test_no_module_imports_itself_through_others(module):
    assert module not in reach(module)


def test_the_step_reaches_few_modules_and_no_storage():
    found = reach("alexnet_jax.step")
    assert len(found) <= 11, sorted(found)
    assert not {name.split(".")[1] for name in found} & set(WINGS)
    for name in {"alexnet_jax.step", *found}:
        packages = {module.split(".")[0] for module, _ in imported(modules()[name])}
        assert not packages & {"orbax", "tensorflow_datasets", "array_record"}, name


def test_a_wing_is_used_through_its_face():
    users = [*PACKAGE.rglob("*.py"), *(ROOT / "experiments").rglob("*.py"), ROOT / "run.py"]
    for path in users:
        own = path.parent.name if path.parent.parent == PACKAGE else None
        for module, name in imported(path):
            if not module.startswith("alexnet_jax.") or module.split(".")[1] not in WINGS:
                continue
            wing = module.split(".")[1]
            if wing != own:
                where = f"{path.relative_to(ROOT)}: from {module} import {name}"
                assert is_wing(module) and name in exported(wing), where


@pytest.mark.parametrize("wing", WINGS)
def test_a_face_says_what_its_wing_is_for(wing):
    face = ast.parse((PACKAGE / wing / "__init__.py").read_text())
    assert ast.get_docstring(face)
    assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in face.body)
