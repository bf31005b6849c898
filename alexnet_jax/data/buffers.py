"""Recycled memory for batches: the page faults of a fresh array cost as much as decoding into it.

The caller uses an array like a fresh one. When nothing refers to it any more, neither a view of it
nor a device array that shares its memory, the next array gets its memory. So a batch that someone
keeps is never overwritten, and a caller that releases its batches needs memory for only a few.
"""

import collections
import contextlib
import errno
import itertools
import math
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

_ALIGNMENT = 64  # bytes; XLA on a CPU uses such memory in place and copies any other
_numbers = itertools.count()
_existing: set[int] = set()  # numbers of the shared files that there are


class RecycledArrays:
    """Source of uint8 arrays of one shape; it keeps the memory of up to `keep` unused ones."""

    def __init__(self, shape: tuple[int, ...], keep: int) -> None:
        self._shape = shape
        self._free: collections.deque[np.ndarray] = collections.deque(maxlen=keep)

    def array(self) -> np.ndarray:
        """Return an uninitialized array. May be called from any thread."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = _aligned(math.prod(self._shape))
        return np.asarray(_Lease(memory, self._shape, self._free))


class SharedArrays:
    """Like RecycledArrays, with memory that other processes can map: that of one nameless file.

    The file is of memfd_create, so it needs no room in /dev/shm, and the system removes it with
    the last process that has it, however that process ends.
    """

    def __init__(self, shape: tuple[int, ...], keep: int, most: int) -> None:
        """Take how many unused arrays keep their memory, and how many there can be at a time.

        Raises OSError where the system does not give such memory.
        """
        self._shape = shape
        self._slots = _Slots(math.prod(shape), keep, most)

    def array(self) -> np.ndarray | None:
        """Return an uninitialized array, or None while `most` are in use."""
        memory = self._slots.pop()
        return None if memory is None else np.asarray(_Lease(memory, self._shape, self._slots))


class Place(NamedTuple):
    """Where an array of SharedArrays lies, for another process.

    Attributes:
      descriptor: of the file, open in this process.
      file: its number, which no other such file of this process has.
      size: of the file, in bytes.
      start: of the array in the file, in bytes.
    """

    descriptor: int
    file: int
    size: int
    start: int


def exists(file: int) -> bool:
    """Return whether arrays can still lie in the shared file of this number."""
    return file in _existing


def place(array: np.ndarray) -> Place | None:
    """Return where the memory of `array`, or of what it is a view of, lies; None if not shared."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, _Lease) or not isinstance(owner.free, _Slots):
        return None
    return owner.free.place(_address(array))


class _Free(Protocol):
    """What takes memory back."""

    def append(self, memory: np.ndarray) -> None: ...


class _Lease:
    """Owns memory for the lifetime of the array made from it; all NumPy views refer to this."""

    def __init__(self, memory: np.ndarray, shape: tuple[int, ...], free: _Free) -> None:
        self._memory, self.free = memory, free
        self.__array_interface__: dict[str, Any] = memory.__array_interface__ | {"shape": shape}

    def __del__(self, at_exit: Callable[[], bool] = sys.is_finalizing) -> None:
        if not at_exit():  # when modules may have lost their names
            self.free.append(self._memory)


class _Slots:
    """Equal parts of one shared file; all but `keep` of those not in use have no memory."""

    def __init__(self, size: int, keep: int, most: int) -> None:
        self._step = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._keep, self._number = keep, next(_numbers)
        if not hasattr(os, "memfd_create"):
            raise OSError(errno.ENOSYS, "this system has no memfd_create")
        self._descriptor = os.memfd_create("alexnet_jax-batches", os.MFD_CLOEXEC)
        os.ftruncate(self._descriptor, most * self._step)
        self._map = mmap.mmap(self._descriptor, most * self._step)
        whole = np.frombuffer(self._map, np.uint8)
        self._start = _address(whole)
        parts = [whole[i * self._step :][:size] for i in range(most)]
        self._full: list[np.ndarray] = []  # those with memory
        self._empty = parts[::-1]
        _existing.add(self._number)

    def pop(self) -> np.ndarray | None:
        for free in (self._full, self._empty):
            with contextlib.suppress(IndexError):
                return free.pop()
        return None

    def append(self, memory: np.ndarray) -> None:
        if len(self._full) < self._keep:
            self._full.append(memory)
        else:  # nobody writes there: the processes were done before the caller got it
            start = _address(memory) - self._start
            self._map.madvise(mmap.MADV_REMOVE, start, self._step)
            self._empty.append(memory)

    def place(self, address: int) -> Place:
        return Place(self._descriptor, self._number, len(self._map), address - self._start)

    def __del__(self, at_exit: Callable[[], bool] = sys.is_finalizing) -> None:
        if not at_exit() and hasattr(self, "_descriptor"):
            _existing.discard(self._number)
            # Others may still map the file. They do not write there any more, and without its
            # memory it costs nothing.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _aligned(size: int) -> np.ndarray:
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -_address(memory) % _ALIGNMENT
    return memory[start : start + size]
