"""Recycled memory: only when nothing refers to it any more."""

import gc

import jax
import numpy as np
import pytest

from alexnet_jax.data.buffers import RecycledArrays


@pytest.fixture
def source():
    return RecycledArrays((4, 8, 8, 3), keep=2)


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


def test_unused_memory_is_bounded(source):
    arrays = [source.array() for _ in range(10)]
    del arrays
    assert len(source._free) == 2
