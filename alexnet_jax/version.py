"""Which code a run was made with."""

import functools
import importlib.metadata
import pathlib
import platform
import subprocess

VERSION = "0.1.0"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@functools.cache  # of the code that runs, whatever is committed meanwhile
def versions() -> dict[str, str]:
    """Return the versions of this code, of Python and of the packages that the numbers depend on.

    `commit` is what git says of the directory that the code lies in, with '-dirty' where files
    differ from it; it is missing where git or its repository is.
    """
    found = {"alexnet_jax": VERSION, "python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    try:
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        here = pathlib.Path(__file__).parent
        done = subprocess.run(describe, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return found
    return found | ({"commit": done.stdout.strip()} if done.returncode == 0 else {})
