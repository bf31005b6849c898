"""Errors that the user can fix."""

import errno
import os


def printable(text: str) -> str:
    """Return `text` with what does not print, such as what steers a terminal, escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class InputError(ValueError):
    """Bad input: a config field, a path, a data set, an image.

    The message is one line that names the thing and the remedy. `run.py` prints it to stderr
    without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        """Take the message; what does not print, as a newline in a file's name, is escaped."""
        super().__init__(printable(message))


class NotFinite(InputError):
    """A loss, a gradient or a parameter has become NaN or infinite.

    `since` is the step whose update made the parameters that gave it. A lower learning rate cannot
    repair them, so a checkpoint of that step is not a good one.
    """

    def __init__(self, message: str, since: int) -> None:
        super().__init__(message)
        self.since = since


def limit_met(error: BaseException) -> str | None:
    """Return how to raise the limit of this process that `error` has met; None if it met none.

    Such an error says nothing of the file at hand, and no room need be made for it. It is told by
    its words, for libraries raise errors of their own in place of an OSError.
    """
    said = str(error)
    if os.strerror(errno.EMFILE) in said:  # and ENFILE, whose words begin with these
        return "raise the limit on open files (ulimit -n)"
    if os.strerror(errno.EAGAIN) in said or "can't start new thread" in said:
        return (
            "raise the limit on processes (ulimit -u, a container's pids limit) or on memory"
            " (ulimit -v)"
        )
    return None
