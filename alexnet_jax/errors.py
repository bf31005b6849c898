"""The exceptions that mean: this cannot go on, and no bug is the reason."""


class InputError(ValueError):
    """Bad input: a config field, a path, a data set, a picture.

    The message is one line that names the thing and the remedy. `run.py` prints it to stderr
    without a traceback and exits with code 2.
    """


class NotFinite(InputError):
    """A loss, a gradient or a parameter has become NaN or infinite."""
