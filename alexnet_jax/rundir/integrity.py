"""Whether a checkpoint holds what was saved: its format, its network, the checksum of each array.

What does not is a DamagedCheckpoint, unlike one that cannot be read just now, or one of another
format or network, which is whole.
"""

import contextlib
import errno
import json
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tensorstore  # which orbax writes arrays with

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


def read_run(path: pathlib.Path) -> dict[str, Any]:
    """Return what `sealed` gave for the checkpoint `path`, as it was before its checksum.

    Raises InputError where it is of another format, ValueError where the checksum is wrong.
    """
    run = json.loads((path / "run" / "metadata").read_text())
    with contextlib.suppress(FileNotFoundError):  # they are in `run` as well
        json.loads((path / "metrics" / "metrics").read_text())
    if run["format"] != FORMAT:
        raise InputError(
            f"{path} has format {run['format']}, this version reads {FORMAT}; use the version that"
            " wrote it, or start a new run in another --workdir"
        )
    content = {name: value for name, value in run.items() if name != "crc32"}
    if run["crc32"] != _checksum(content):
        raise ValueError("the checksum of its JSON is wrong")
    return content


def read_back(path: pathlib.Path) -> None:
    """Raise unless the checkpoint `path`, just written, can be found again by whoever restores it.

    Read are its JSON, and of every array that is named there whether the index of the arrays has
    its shape and its data. Not the data: that is as much as was written, in the middle of the
    training, and from memory, where a disk's faults do not show; `check_state` reads them when the
    checkpoint is used. It takes milliseconds, whatever the size.
    """
    arrays = read_run(path)["arrays"]
    base = {"driver": "file", "path": f"{path}/state/"}
    index = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    found = {key.decode() for key in index.list().result()}  # 'params.conv1.bias/.zarray', '.../0'
    with_data = {key.rpartition("/")[0] for key in found if not key.endswith("/.zarray")}
    for name in arrays:
        key = name.replace("/", ".")
        if f"{key}/.zarray" not in found or key not in with_data:
            raise ValueError(f"{name} is not there when step {path.stem} is read back")


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
        outside = _unreadable(path) or (error if _says_nothing_of_the_content(error) else None)
        cause = outside or error
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
        if outside is not None:
            raise InputError(
                f"{path} cannot be read now ({reason}); it stays where it is:"
                f" {remedy(outside) or 'fix the cause'}; the same command continues"
            ) from error
        raise DamagedCheckpoint(
            f"{path} cannot be restored ({reason}); take another step, or continue the training: it"
            " resumes from the checkpoint before"
        ) from error


_HANDLES = "raise the limit of open files (ulimit -n)"
_RIGHTS = "give this user the right to it"
_ROOM = "make room there"
_REMEDIES = {
    errno.EMFILE: _HANDLES,
    errno.ENFILE: _HANDLES,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit of the size of files (ulimit -f)",
    errno.ENOMEM: "free memory",
    errno.EROFS: "make that file system writable",
    errno.EIO: "see to that disk",
}


def remedy(error: BaseException) -> str | None:
    """Return what to do about `error` of the system, in words; None if it is of another kind."""
    number = _number(error)
    return None if number is None else _REMEDIES[number]


def _number(error: BaseException) -> int | None:
    """Return the errno of an error that says nothing about the content.

    Tensorstore's are ValueErrors that name it in their text.
    """
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _REMEDIES else None
    text = str(error)
    named = (number for number in _REMEDIES if os.strerror(number) in text)
    codes = {"PERMISSION_DENIED": errno.EACCES, "RESOURCE_EXHAUSTED": errno.ENOMEM}
    return next(named, next((codes[code] for code in codes if code in text), None))


def _says_nothing_of_the_content(error: Exception) -> bool:
    """Return whether reading failed for want of memory, files, rights, or a disk that answers."""
    missing = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
    if isinstance(error, OSError) and not isinstance(error, missing) and error.errno is not None:
        return True
    return _number(error) is not None


def _unreadable(path: pathlib.Path) -> OSError | None:
    """Return why a file or folder below `path` cannot be opened, None if all can be.

    What may not be looked into orbax takes for missing.
    """

    def fail(error: OSError) -> None:
        raise error

    try:
        for folder, _, files in os.walk(path, onerror=fail):
            for file in files:
                os.close(os.open(pathlib.Path(folder, file), os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        return error if _says_nothing_of_the_content(error) else None
    return None


def _checksum(run: dict[str, Any]) -> int:
    """Return the CRC-32 of JSON, whatever the order of its names."""
    return zlib.crc32(json.dumps(run, sort_keys=True).encode())


def _words(array: tuple | None) -> str:
    return "missing" if array is None else f"{array[-1]} of shape {array[:-1]}"
