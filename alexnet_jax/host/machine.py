"""What this machine has: cores, and free memory of its devices."""

import os
import pathlib

import jax


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_bytes() -> float:
    """Return the free memory of one device; of CPU devices, its part of the machine's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():  # what the page cache holds is free as well
        free = int(meminfo.read_text().partition("MemAvailable:")[2].split()[0]) * 1024
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free / jax.local_device_count()
