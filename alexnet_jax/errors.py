"""Errors that the user can fix."""


class InputError(ValueError):
    """Bad input: a config field, a path, a data set, an image.

    The message is one line that names the thing and the remedy. `run.py` prints it to stderr
    without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        """Take the message; what is not printable, such as a newline in a file name, is escaped."""
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


class NotFinite(InputError):
    """A loss, a gradient or a parameter has become NaN or infinite.

    `since` is the step whose update made the parameters that gave it. A lower learning rate cannot
    repair them, so a checkpoint of that step is not a good one.
    """

    def __init__(self, message: str, since: int) -> None:
        super().__init__(message)
        self.since = since
