"""Memory that a program frees, kept for its next step, where malloc is glibc's."""

import ctypes
import importlib.util
import os
import pathlib

# NVIDIA's GPUs (the last one in WSL), AMD's, and TPUs.
_NVIDIA = ("nvidia[0-9]*", "nvidiactl", "dxg")
_OTHERS = ("kfd", "accel[0-9]*", "vfio/[0-9]*")
_DEVICES = pathlib.Path("/dev")
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep() -> None:
    """Let malloc keep what is freed, instead of handing it back to the system.

    To be called before JAX makes its devices, and before any thread is started. On a CPU XLA
    allocates a step's buffers again in every step, and its convolutions the patches they multiply;
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


def keep_on_cpu() -> None:
    """Call `keep` where the program will compute on a CPU, and not where it has an accelerator.

    With an accelerator the host decodes images and little else. Threads that decode are half as
    fast with one heap on 16 cores, and the step's memory is the accelerator's.
    """
    if not accelerator_expected():
        keep()


def accelerator_expected() -> bool:
    """Return whether JAX will find an accelerator, as far as can be told before it is imported."""
    chosen = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME")
    if chosen:
        return chosen.split(",")[0].strip().lower() != "cpu"
    if not any(importlib.util.find_spec(package) for package in ("jax_plugins", "libtpu")):
        return False  # JAX as it is installed here knows no other device than CPUs
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    files = _OTHERS if hidden else _NVIDIA + _OTHERS
    return any(True for pattern in files for _ in _DEVICES.glob(pattern))
