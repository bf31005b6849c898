"""The one exception that means: what the user gave cannot be used."""


class InputError(ValueError):
    """Bad input: a config field, a path, a data set, a picture.

    The message is one line that names the thing and the remedy. `run.py` prints it to stderr
    without a traceback and exits with code 2.
    """
