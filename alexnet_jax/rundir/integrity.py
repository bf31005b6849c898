"""Whether a checkpoint holds what was saved: its format, its network, the checksum of each array.

What does not is a DamagedCheckpoint, unlike one that cannot be read just now, or one of another
format or network, which is whole.
"""

import contextlib
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from alexnet_jax.errors import InputError
from alexnet_jax.rundir.version import versions
from alexnet_jax.state import TrainState

FORMAT = 3


class DamagedCheckpoint(InputError):
    """What is on the disk is not what was saved."""


def named_arrays(state: TrainState) -> Iterator[tuple[str, Any]]:
    """Yield every array of `state` with its name, such as 'params/conv1/kernel'."""
    for path, leaf in jax.tree.leaves_with_path(state):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def described(state: TrainState) -> dict[str, dict[str, Any]]:
    """Return shape, type and the CRC-32 of the bytes of every array of `state`, by its name."""
    return {
        name: {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "crc32": zlib.crc32(np.ascontiguousarray(leaf).data),
        }
        for name, leaf in named_arrays(state)
    }


def sealed(run: dict[str, Any], state: TrainState) -> dict[str, Any]:
    """Return a copy of the JSON `run` with all that is needed to check it and `state` later."""
    run = run | {"format": FORMAT, "code": versions(), "arrays": described(state)}
    run = json.loads(json.dumps(run))
    return run | {"crc32": _checksum(run)}


def opened(run: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """Return what `sealed` gave for the checkpoint `path`, as it was before its checksum.

    Raises InputError where it is of another format, ValueError where the checksum is wrong.
    """
    if run["format"] != FORMAT:
        raise InputError(
            f"{path} has format {run['format']}, this version reads {FORMAT}; use the version that"
            " wrote it, or train anew in another --workdir"
        )
    content = {name: value for name, value in run.items() if name != "crc32"}
    if run["crc32"] != _checksum(content):
        raise ValueError("the checksum of its JSON is wrong")
    return content


def check_state(state: TrainState, step: int, arrays: dict[str, Any]) -> None:
    """Raise ValueError unless `state` is that of `step`, and as `described` when it was saved."""
    if int(state.step) != step:
        raise ValueError(f"it is that of step {state.step}")
    found = described(state)
    bad = [name for name in arrays if found[name] != arrays[name]]
    if bad:
        raise ValueError(f"the checksum of {bad[0]} is wrong")


def refuse_another_network(
    path: pathlib.Path, arrays: dict[str, Any], abstract: TrainState
) -> None:
    """Raise InputError unless the `arrays` saved in `path` are those of the network at hand."""
    saved = {name: (*array["shape"], array["dtype"]) for name, array in arrays.items()}
    wanted = {name: (*leaf.shape, str(leaf.dtype)) for name, leaf in named_arrays(abstract)}
    for name in wanted | saved:
        if saved.get(name) != wanted.get(name):
            has, needs = (_words(of.get(name)) for of in (saved, wanted))
            raise InputError(
                f"{path} is of another network: {name} is {has} there, the config's is {needs};"
                " give the config that it was trained with"
            )


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Say of what goes wrong while the checkpoint `path` is read whether it is damaged.

    Raises DamagedCheckpoint, or InputError where that says nothing of its content.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if _says_nothing_of_the_content(error):
            raise InputError(
                f"{path} cannot be read now ({reason}); it stays where it is: when that is mended"
                " the same command continues"
            ) from error
        raise DamagedCheckpoint(
            f"{path} cannot be restored ({reason}); take another step, or continue the training: it"
            " goes on from the checkpoint before"
        ) from error


def _says_nothing_of_the_content(error: Exception) -> bool:
    """Return whether reading failed for want of memory, files, rights, or a disk that answers."""
    if isinstance(error, OSError):
        missing = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
        return error.errno is not None and not isinstance(error, missing)
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _checksum(run: dict[str, Any]) -> int:
    """Return the CRC-32 of JSON, whatever the order of its names."""
    return zlib.crc32(json.dumps(run, sort_keys=True).encode())


def _words(array: tuple | None) -> str:
    return "missing" if array is None else f"{array[-1]} of shape {array[:-1]}"
