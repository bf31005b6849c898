"""Whether the threads that native libraries are about to start can be started.

Where they cannot, the libraries do not say so: array_record waits for ever, XLA aborts the process.
"""

import functools
import os
import threading

from alexnet_jax.errors import InputError, limit_met

_OF_ARRAY_RECORD = 64  # threads of its pool, whatever the number of cores
# What else a run starts later: 35 with 2 cores. So it matters not that the system may still count
# some of the threads that have only just ended.
_OTHERS = 40
OF_JAX = 16 + 4 * (os.cpu_count() or 1)  # 12 with 2 cores; more with more


@functools.cache
def for_array_record() -> None:
    """Raise InputError unless array_record can start its threads, as it does at its first file."""
    refuse_too_few(_OF_ARRAY_RECORD + _OTHERS)


def for_jax() -> None:
    """Raise InputError unless JAX can start its threads, as it does when it makes its devices."""
    refuse_too_few(OF_JAX)


def refuse_too_few(number: int) -> None:
    """Raise InputError unless `number` more threads can be started; start and end them to see it.

    That depends on limits of the user, the container and the address space, and nobody can be asked
    what is left of them.
    """
    leave = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(number):
            thread = threading.Thread(target=leave.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError) as error:
        raise InputError(
            f"{number} more threads are needed, {len(started)} could be started ({error}):"
            f" {limit_met(error) or 'make room in memory'}"
        ) from error
    finally:
        leave.set()
        for thread in started:
            thread.join()
