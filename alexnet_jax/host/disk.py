"""Files on the disk: written so that they outlast a loss of power, and safe to read."""

import errno
import os
import pathlib
import stat
from typing import TextIO

from alexnet_jax.errors import InputError


def regular(path: str | os.PathLike[str]) -> pathlib.Path:
    """Return the path of a file to read; raise OSError where it is a pipe, a device or a folder.

    Reading these might wait for ever, or never end.
    """
    path = pathlib.Path(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path


def sync(path: pathlib.Path) -> None:
    """Waits until the file's or directory's contents are on the disk, or raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some file systems cannot do these
            raise
    finally:
        os.close(descriptor)


def open_lock(path: pathlib.Path) -> TextIO:
    """Open the file at `path` to be locked, made if it does not exist; its content stays.

    Raises InputError where it is a link or not a file: somebody else may have put it there, and
    what it leads to is not ours to write.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)  # less the umask: a group may share the directory
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"{path} is not a regular file: remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is not a regular file: remove it")
    return os.fdopen(descriptor, "r+")
