"""The machine and the process: signals, other processes, memory, compiled programs, files."""

from alexnet_jax.host import compilation_cache, heap, processes, streams, threads
from alexnet_jax.host.atomic import whole_files
from alexnet_jax.host.disk import open_lock, regular, sync
from alexnet_jax.host.machine import cores, free_bytes
from alexnet_jax.host.signals import SIGNALS, Stop, StopRequest, as_interrupts, interrupts

__all__ = [
    "SIGNALS",
    "Stop",
    "StopRequest",
    "as_interrupts",
    "compilation_cache",
    "cores",
    "free_bytes",
    "heap",
    "interrupts",
    "open_lock",
    "processes",
    "regular",
    "streams",
    "sync",
    "threads",
    "whole_files",
]
