"""Which code a run was made with, and which devices."""

import functools
import importlib.metadata
import pathlib
import platform
import subprocess

import jax

from alexnet_jax.host import cores

VERSION = "0.1.0"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@functools.cache  # of the code that runs, whatever is committed meanwhile
def versions() -> dict[str, str]:
    """Return the versions of this code, of Python and of the packages that the numbers depend on.

    `commit` is what git says of the directory that the code lies in, with '-dirty' where files
    differ from it; it is missing where git is, or where the code is in no repository: an installed
    copy may lie inside another project's.
    """
    found = {"alexnet_jax": VERSION, "python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    here = pathlib.Path(__file__)
    is_tracked = ["git", "ls-files", "--error-unmatch", here.name]
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        for command in (is_tracked, describe):
            done = subprocess.run(
                command, cwd=here.parent, capture_output=True, text=True, timeout=10
            )
            if done.returncode:
                return found
    except (OSError, subprocess.TimeoutExpired):
        return found
    return found | {"commit": done.stdout.strip()}


def device() -> str:
    """Return the devices that JAX has, and the cores of this process: 'cpu, 2 cores'."""
    kind, number = jax.devices()[0].device_kind, len(jax.devices())
    of_cores = f"{cores()} core{'s' if cores() > 1 else ''}"
    return f"{f'{number} x ' if number > 1 else ''}{kind}, {of_cores}"
