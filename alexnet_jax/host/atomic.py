"""Files that are written whole or not at all, and together."""

import contextlib
import errno
import pathlib
import tempfile
from collections.abc import Iterator

from alexnet_jax.errors import InputError, limit_met
from alexnet_jax.host.disk import sync
from alexnet_jax.host.signals import interrupts


@contextlib.contextmanager
def whole_files(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield an empty directory whose files move into `directory` when all has gone well.

    `directory` is made where it is not there, and removed again where nothing came into it. What
    is in the way of a file's name, or a disk that is full, raises InputError before any file of
    `directory` is touched.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = tempfile.TemporaryDirectory(prefix=".unfinished-", dir=directory)
        with interrupts(), unfinished as scratch:
            yield pathlib.Path(scratch)
            files = sorted(pathlib.Path(scratch).iterdir())
            for file in files:
                sync(file)
                if (directory / file.name).is_dir():
                    raise IsADirectoryError(errno.EISDIR, f"{file.name} is a directory")
            for file in files:
                file.replace(directory / file.name)
            sync(directory)
    except BaseException as error:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()
        if isinstance(error, OSError):
            raise InputError(
                f"{directory} cannot be written ({error.strerror});"
                f" {limit_met(error) or 'make room, or name another place'}"
            ) from error
        raise
