"""Recycled memory: only when nothing refers to it any more."""

import gc
import mmap
import os

import jax
import numpy as np
import pytest

from alexnet_jax.data.buffers import RecycledArrays, SharedArrays, exists, place

SHAPE = (4, 8, 8, 3)
needs_memfd = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd here")


@pytest.fixture(params=["recycled", pytest.param("shared", marks=needs_memfd)])
def source(request):
    if request.param == "recycled":
        return RecycledArrays(SHAPE, keep=2)
    return SharedArrays(SHAPE, keep=2, most=40)


def address(array):
    return array.__array_interface__["data"][0]


def test_released_memory_is_recycled(source):
    first = source.array()
    where = address(first)
    del first
    assert address(source.array()) == where


@pytest.mark.parametrize("keep", [lambda a: a[1:], lambda a: a.reshape(2, 2, 8, 8, 3), memoryview])
def test_memory_that_a_view_refers_to_is_not_recycled(source, keep):
    first = source.array()
    first[:] = 7
    kept = keep(first)
    del first
    gc.collect()
    for _ in range(5):
        source.array()[:] = 9
    assert (np.asarray(kept) == 7).all()


def test_memory_under_a_device_array_is_not_recycled(source):
    """A CPU device uses it in place, also while a computation still reads it."""
    step = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda i, y: y * 1, x.astype(np.int32)))
    kept, results = [], []
    for value in range(20):
        array = source.array()
        array[:] = value
        kept.append(jax.device_put(array))
        results.append(step(kept[-1]))
        if value % 2:
            kept.pop()
    del array
    for value, device_array in zip(range(0, 20, 2), kept, strict=True):
        assert (np.asarray(device_array) == value).all()
    for value, result in enumerate(results):
        assert (np.asarray(result) == value).all()


def test_a_cpu_device_uses_the_memory_in_place(source):
    array = source.array()
    assert jax.device_put(array).unsafe_buffer_pointer() == address(array)


def test_unused_memory_is_bounded():
    source = RecycledArrays(SHAPE, keep=2)
    arrays = [source.array() for _ in range(10)]
    del arrays
    assert len(source._free) == 2


@needs_memfd
def test_unused_shared_memory_is_bounded_and_handed_back():
    source = SharedArrays(SHAPE, keep=2, most=10)
    arrays = [source.array() for _ in range(10)]
    for value, array in enumerate(arrays):
        array[:] = value
    assert source.array() is None, "all are in use"
    where = place(arrays[0][2:])

    def bytes_used():
        return os.fstat(where.descriptor).st_blocks * 512

    assert bytes_used() == 10 * mmap.PAGESIZE
    kept = arrays[4][1]
    del arrays, array
    assert bytes_used() == 3 * mmap.PAGESIZE
    for _ in range(3):
        for again in [source.array() for _ in range(8)]:
            again[:] = 99
    assert (kept == 4).all()

    del source, again
    assert exists(where.file)
    assert (kept == 4).all()
    del kept
    assert not exists(where.file)


@needs_memfd
def test_another_mapping_of_the_file_finds_the_array_at_its_place():
    source = SharedArrays(SHAPE, keep=2, most=3)
    arrays = [source.array() for _ in range(3)]
    where = place(arrays[1][2:])
    theirs = mmap.mmap(where.descriptor, where.size)
    theirs[where.start] = 77
    assert arrays[1][2, 0, 0, 0] == 77
    assert place(np.zeros(SHAPE, np.uint8)) is None
    assert place(RecycledArrays(SHAPE, 1).array()) is None
