"""On the disk, where it outlasts a loss of power, and not only on its way there."""

import errno
import os
import pathlib


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
