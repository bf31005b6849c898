"""Comparisons with a reference, whose largest errors are shown at the end of a run."""

import os

import jax
import numpy as np

LINES: dict[str, tuple[float, str]] = {}


def note(what: str, size: float, figure: str) -> None:
    """Show `figure` at the end of the run; of several with the same name, the largest by size."""
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].removesuffix(" (call)")
    name = f"{test}  {what}"
    LINES[name] = max(LINES.get(name, (0.0, "")), (float(size), figure))


def agree(got, want, *, rtol, what=""):
    """Assert that two arrays or trees of them agree.

    The error of an array is its largest difference over the largest absolute value wanted.
    """

    def error(one, other):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert one.shape == other.shape
        assert np.isfinite(one).all() and np.isfinite(other).all(), what
        return np.abs(one - other).max() / max(np.abs(other).max(), np.finfo(float).tiny)

    errors = jax.tree.leaves_with_path(jax.tree.map(error, got, want))
    worst_path, worst = max(errors, key=lambda item: item[1])
    where = what + jax.tree_util.keystr(worst_path)
    note(where, worst, f"{worst:8.1e} of {rtol:.0e}")
    assert worst <= rtol, f"{where}: relative error {worst:.2e} > {rtol:.0e}"


def agree_each(got, want, *, rtol):
    """Assert that two arrays agree: each element to rtol of it and rtol/100 of the largest."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    np.testing.assert_allclose(got, want, rtol, rtol / 100 * np.abs(want).max())
    allowed = np.abs(want) + np.abs(want).max() / 100 + np.finfo(float).tiny
    worst = np.max(np.abs(got - want) / allowed, where=np.isfinite(want), initial=0.0)
    note("", worst, f"{worst:8.1e} of {rtol:.0e}")


def one_value(array: jax.Array) -> float:
    """Return the number that every device holds a copy of."""
    return array.addressable_data(0).item()
