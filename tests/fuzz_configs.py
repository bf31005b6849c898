"""Generated changes of a config, as values and as arguments; and the command line itself."""

import contextlib
import io

from hypothesis import strategies as st
from ml_collections import ConfigDict

from alexnet_jax import command_line
from alexnet_jax.fields import FIELDS

_NUMBERS = (float("nan"), float("inf"), -float("inf"), -0.0, 1e308, 1e-308, 1e39, 1e9, 0.5, 2.0)
_WHOLE = (0, 1, 2, 3, 5, 11, 16, 64, 255, 65536, 2**31 - 1, 2**31, 2**63, 10**30, -1, 10**4000)
_WORDS = (
    "",
    "folder",
    "digits",
    "*",
    "*/bias",
    "conv2/kernel",
    "[!",
    "~nobody/x",
    "a\0b",
    "\udcff",
)

_numbers = st.one_of(st.sampled_from(_NUMBERS), st.floats(0, 2), st.floats())
_whole = st.one_of(st.sampled_from(_WHOLE), st.integers(1, 12), st.integers())
_words = st.one_of(st.sampled_from(_WORDS), st.text(max_size=12))
_single = st.one_of(_numbers, _whole, _words, st.booleans(), st.none())
anything = st.recursive(_single, lambda inner: st.lists(inner, max_size=6).map(tuple), max_leaves=8)
_BY_TYPE = {bool: st.booleans(), int: st.integers(1, 40), float: st.floats(0, 2), str: _words}


@st.composite
def changes(draw: st.DrawFn, values: dict[str, object]) -> dict[str, object]:
    """Draw one to four fields of `values`, and a value for each, which may be valid or not."""
    of_layers = sorted(name for name in FIELDS if name.startswith(("model.", "augment.crop")))
    name = st.one_of(st.sampled_from(sorted(FIELDS)), st.sampled_from(of_layers))
    names = draw(st.lists(name, min_size=1, max_size=4, unique=True))
    return {name: draw(_value(name, values[name])) for name in names}


def _value(name: str, now: object) -> st.SearchStrategy:
    field = FIELDS[name]
    likely = [st.just(now), st.sampled_from(field.choices or (now,))]
    types = field.type if isinstance(field.type, tuple) else (field.type,)
    likely += [_BY_TYPE[kind] for kind in types if kind in _BY_TYPE]
    if isinstance(now, tuple):
        element = st.one_of(st.sampled_from(now or (1,)), st.integers(1, 40), anything)
        likely += [_with_one_other(now, element), st.lists(element, max_size=9).map(tuple)]
    return st.one_of(*likely, *likely, anything)


@st.composite
def _with_one_other(draw: st.DrawFn, now: tuple, element: st.SearchStrategy) -> tuple:
    place = draw(st.integers(0, len(now)))
    return (*now[:place], draw(element), *now[place + 1 :])


def apply(config: ConfigDict, changed: dict[str, object]) -> None:
    """Set the fields to values of any type."""
    for name, value in changed.items():
        *path, last = name.split(".")
        node = config
        for part in path:
            node = node[part]
        with node.ignore_type():
            node[last] = value


def typo(draw: st.DrawFn, word: str) -> str:
    """Return `word` with a letter missing, doubled or swapped with its neighbour."""
    i = draw(st.integers(0, len(word) - 2))
    return draw(
        st.sampled_from(
            (
                word[:i] + word[i + 1 :],
                word[:i] + word[i] + word[i:],
                word[:i] + word[i + 1] + word[i] + word[i + 2 :],
            )
        ).filter(lambda other: other != word)
    )


def command(*arguments: str) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of `python run.py` with `arguments`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command_line.main(["run.py", *arguments])
    return code, out.getvalue(), err.getvalue()
