"""What orbax says beside the exception, when a save or a restore fails, is dropped.

The exception is what counts, and becomes one line on the terminal; the rest is dropped here.
"""

import contextlib
import gc
import inspect
import logging
import pathlib
import sys
import traceback
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def failures_of_orbax() -> Iterator[None]:
    """Let orbax's failures show as the exceptions they raise, and as nothing else."""
    unraisablehook = sys.unraisablehook

    def unless_of_a_loop(unraisable: Any) -> None:
        # Threads call a loop that is gone, Python finalises coroutines of one: none are ours.
        closed = str(unraisable.exc_value) == "Event loop is closed"
        if not (closed or inspect.iscoroutine(unraisable.object)):
            unraisablehook(unraisable)

    def not_of_orbax(record: logging.LogRecord) -> bool:
        of_orbax = "orbax" in pathlib.PurePath(record.pathname).parts
        return record.levelno < logging.ERROR or not of_orbax

    def not_of_a_task(record: logging.LogRecord) -> bool:
        return "exception was never retrieved" not in record.getMessage()

    filters = {"absl": not_of_orbax, "asyncio": not_of_a_task}
    sys.unraisablehook = unless_of_a_loop
    for name, keep in filters.items():
        logging.getLogger(name).addFilter(keep)
    try:
        yield
    finally:
        gc.collect()  # of coroutines and tasks that are left, while nobody listens
        for name, keep in filters.items():
            logging.getLogger(name).removeFilter(keep)
        sys.unraisablehook = unraisablehook


def for_good(context: contextlib.AbstractContextManager, error: BaseException | None) -> None:
    """Stay in `context`, of failures_of_orbax, as long as the process lives.

    The frames that `error` and what it came from have left are emptied, and what they held is
    collected: tasks whose failures would be told when `error` itself is forgotten.
    """
    _for_good.append(context)
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


_for_good: list[contextlib.AbstractContextManager] = []
