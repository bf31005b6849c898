"""Recycled memory for batches: the page faults of a fresh array cost as much as decoding into it.

The caller uses an array like a fresh one. When nothing refers to it any more, neither a view of it
nor a device array that shares its memory, the next array gets its memory. So a batch that someone
keeps is never overwritten, and a caller that releases its batches needs memory for only a few.
"""

import collections
import math
from typing import Any

import numpy as np

_ALIGNMENT = 64  # bytes; XLA on a CPU uses such memory in place and copies any other


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


class _Lease:
    """Owns memory for the lifetime of the array made from it; all NumPy views refer to this."""

    def __init__(
        self, memory: np.ndarray, shape: tuple[int, ...], free: collections.deque[np.ndarray]
    ) -> None:
        self._memory, self._free = memory, free
        self.__array_interface__: dict[str, Any] = memory.__array_interface__ | {"shape": shape}

    def __del__(self) -> None:
        self._free.append(self._memory)


def _aligned(size: int) -> np.ndarray:
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size]
