"""Standard output and standard error: what cannot be written there is lost, and nothing else.

A terminal closes, the reader of a pipe ends, the disk of a log is full: that must not end a run.
So the streams are replaced at one place, and no other code needs to know: print, tqdm, logging, and
Python itself, which writes what is left when it exits.
"""

import contextlib
import errno
import io
import os
import sys
from typing import Any

from alexnet_jax.errors import InputError


class _Descriptor(io.FileIO):
    """A file whose writes never fail.

    Attributes:
      error: the first error there was.
      ended: whether nothing is written any more.
    """

    error: OSError | None = None
    ended = False

    def write(self, data: Any) -> int:
        """Write what can be written, and say that all of it was."""
        if self.ended:
            return memoryview(data).nbytes
        try:
            written = super().write(data)
            if written is None:  # a pipe that does not wait for its reader
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except OSError as error:
            self.error = self.error or error
            return memoryview(data).nbytes
        return written


def never_fail() -> None:
    """Replace sys.stdout and sys.stderr by streams on the same descriptors that never fail.

    The descriptors must be open; one that was closed when Python started has no stream yet.
    """
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        stream = io.TextIOWrapper(
            io.BufferedWriter(_Descriptor(descriptor, "w", closefd=False)),
            encoding=before.encoding if before else "utf-8",
            errors="backslashreplace",  # names of files may hold what no encoding has
            line_buffering=before is not None and (before.line_buffering or before.write_through),
        )
        setattr(sys, name, stream)


def refuse_loss() -> None:
    """Raise InputError where part of standard output is lost, unless its reader wanted no more."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = raw.error if isinstance(raw, _Descriptor) else None
    if error is not None and error.errno != errno.EPIPE:
        raise InputError(
            f"standard output cannot be written ({error.strerror}); give another place"
        )


def say_last(line: str) -> None:
    """Print `line` on standard error, where threads of a failed save may speak up after it.

    Where `never_fail` was called, nothing comes after it.
    """
    raw = getattr(getattr(sys.stderr, "buffer", None), "raw", None)
    if not isinstance(raw, _Descriptor):
        print(line, file=sys.stderr)
        return
    sys.stderr.flush()
    raw.ended = True
    with contextlib.suppress(OSError):
        os.write(raw.fileno(), (line + "\n").encode(errors="backslashreplace"))
