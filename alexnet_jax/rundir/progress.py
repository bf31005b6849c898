"""Progress: a bar on a terminal; elsewhere, as in the log of a batch job, a line at times."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

EVERY = 10  # seconds between two lines where there is no terminal


class Progress:
    """How far a run of `num_steps` steps is, on stderr."""

    def __init__(self, start_step: int, num_steps: int) -> None:
        self._start, self._total = start_step, num_steps
        self._printed = time.perf_counter()
        # The first step that is shown, and when: what came before it, such as compiling, is left
        # out of the estimate.
        self._first: tuple[int, float] | None = None
        self._bar: tqdm | None = None  # made when there is something to show

    def show(self, step: int, text: str) -> None:
        """Show that `step` is done."""
        now = time.perf_counter()
        first, began = self._first = self._first or (step, now)
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(
                    total=self._total,
                    initial=self._start,
                    desc="training",
                    unit="step",
                    dynamic_ncols=True,
                )
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif now - self._printed >= EVERY:
            self._printed = now
            left = ""
            if step > first:
                seconds = (now - began) * (self._total - step) / (step - first)
                left = f", {tqdm.format_interval(seconds)} left"
            say(f"step {step}/{self._total}, {text}{left}")

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def say(line: str) -> None:
    """Print `line` on stderr without breaking a bar."""
    tqdm.write(line, file=sys.stderr)


@contextlib.contextmanager
def evaluating(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of images evaluated so far, of `total`."""
    if sys.stderr.isatty():
        bar = tqdm(total=total, desc=what, unit="image", dynamic_ncols=True, leave=False)
        with bar:
            yield lambda done: bar.update(done - bar.n) and None
        return
    printed = time.perf_counter()

    def line(done: int) -> None:
        nonlocal printed
        if done < total and time.perf_counter() - printed >= EVERY:
            printed = time.perf_counter()
            say(f"{what}: {done:,} of {total:,} images")

    yield line
