"""Memory of batches, used again: the page faults of a fresh array cost as much as decoding into it.

An array is handed out like a fresh one. When nothing refers to it any more, neither it nor a view
of it nor a device array that shares its memory, its memory goes to the next one. So a batch that
somebody keeps is never written over, and a consumer that lets go of them pays for few.
"""

import collections
import math
from typing import Any

import numpy as np

_ALIGNMENT = 64  # bytes; XLA on a CPU uses such memory in place and copies any other


class RecycledArrays:
    """Source of uint8 arrays of one shape, of which up to `keep` unused ones wait."""

    def __init__(self, shape: tuple[int, ...], keep: int) -> None:
        self._shape = shape
        self._free: collections.deque[np.ndarray] = collections.deque(maxlen=keep)

    def array(self) -> np.ndarray:
        """Return an array with whatever its memory holds. May be called from any thread."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = _aligned(math.prod(self._shape))
        return np.asarray(_Lease(memory, self._shape, self._free))


class _Lease:
    """Owner of memory for the lifetime of the array made of it, which NumPy's views all hold."""

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
