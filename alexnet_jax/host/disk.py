"""Files on the disk: written so that they outlast a loss of power, and safe to read."""

import errno
import os
import pathlib
import stat


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
