"""Memory that a program frees, kept for its next step, where malloc is glibc's."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep() -> None:
    """Let malloc keep what is freed, instead of handing it back to the system.

    To be called before JAX makes its devices, and before any thread is started. On a CPU XLA
    allocates a step's buffers anew in every step, and its convolutions the patches they multiply;
    by default glibc maps such large blocks from the system and unmaps them, and the next have their
    page faults again. What that costs is in docs/performance.md. Afterwards the process holds at
    least the most it has needed, until it ends.

    All threads share one heap, for glibc maps every large block of any other: a thread that is
    there before may have one, which later threads then get. Does nothing where malloc is not
    glibc's, or where the environment has settings for it already (MALLOC_..., GLIBC_TUNABLES).
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc, no such function; Windows
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
    mallopt(_ARENA_MAX, 1)
