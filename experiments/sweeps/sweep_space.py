"""What a sweep varies: a distribution for each field, read from the command line and checked.

uniform:a,b  loguniform:a,b   of a field that is a number
int:a,b                       of a field that is an integer; both ends included
v1,v2,...                     one of these, of any field: 0.3,0.5  plateau,epochs  (256,256),(64,64)
"""

import ast
import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from alexnet_jax import config as config_lib
from alexnet_jax.errors import InputError
from alexnet_jax.fields import FIELDS, unknown_field
from experiments.command_line import value

LARGEST_GRID = 10_000
_TRIED = 1000  # combinations with a value before it is refused
_KINDS = {"uniform": float, "loguniform": float, "int": int}


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """Return a copy of `config` with `values`, by dotted field."""
    config = copy.deepcopy(config)
    for name, new in values.items():
        try:
            config.update_from_flattened_dict({name: new})
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"config.{name}={new!r}: the recipe does not take it ({error})"
            ) from None
    return config


def read(specs: Mapping[str, str]) -> dict[str, BaseDistribution]:
    """Return the distribution that each of `specs`, by field, means."""
    return {name: distribution(name, spec) for name, spec in specs.items()}


def distribution(name: str, spec: str) -> BaseDistribution:
    """Return the distribution that `--sweep.name=spec` means; raise InputError where it has none.

    That of values is one of their texts, which is what storages hold.
    """
    if name not in FIELDS:
        raise unknown_field(name)
    kind, colon, ends = spec.partition(":")
    if colon and kind in _KINDS:
        return _range(name, spec, kind, ends)
    types = FIELDS[name].type
    if colon and kind.isalpha() and types not in (str, tuple):
        raise InputError(
            f"--sweep.{name}={spec}: there is no distribution {kind!r}; there are uniform:a,b,"
            " loguniform:a,b, int:a,b and values, such as v1,v2"
        )
    texts = _tuples(name, spec) if types is tuple else [t.strip() for t in spec.split(",")]
    values = [value(name, text) for text in texts]
    if len(values) == 1:
        raise InputError(
            f"--sweep.{name}={spec} is one value; give it as --config.{name}={spec}, or several"
        )
    twice = [text for i, text in enumerate(texts) if values[i] in values[:i]]
    if twice:
        raise InputError(f"--sweep.{name}={spec} has {twice[0]} twice; give each value once")
    return CategoricalDistribution(texts)


def _tuples(name: str, spec: str) -> list[str]:
    try:
        return [repr(each) for each in ast.literal_eval(f"{spec.strip()},")]
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise InputError(
            f"--sweep.{name}={spec}: give tuples with commas between them, such as"
            f" --sweep.{name}='(...),(...)'; each is {FIELDS[name].expected}"
        ) from None


def _range(name: str, spec: str, kind: str, ends: str) -> BaseDistribution:
    types = FIELDS[name].type
    wanted = _KINDS[kind]
    if types is not wanted and not (isinstance(types, tuple) and types[0] is wanted):
        raise InputError(
            f"--sweep.{name}={spec}: {kind} does not go with config.{name}, which is"
            f" {FIELDS[name].expected}"
        )
    texts = ends.split(",")
    if len(texts) != 2:
        raise InputError(f"--sweep.{name}={spec}: give two ends, as {kind}:a,b")
    low, high = (value(name, text) for text in texts)
    if not low < high:
        raise InputError(f"--sweep.{name}={spec}: the first end must be below the second")
    if kind == "loguniform" and low <= 0:
        raise InputError(f"--sweep.{name}={spec}: loguniform needs ends above 0")
    if kind == "int":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=kind == "loguniform")


def check(config: ConfigDict, space: Mapping[str, BaseDistribution]) -> None:
    """Raise InputError unless each value and each end in `space` has a valid combination."""
    ends = {name: _ends(name, each) for name, each in space.items()}
    for name in space:
        for end in ends[name]:
            with_it = ends | {name: [end]}
            first: InputError | None = None
            for combination in itertools.islice(itertools.product(*with_it.values()), _TRIED):
                try:
                    config_lib.validate(
                        with_values(config, dict(zip(with_it, combination, strict=True)))
                    )
                    break
                except InputError as error:
                    first = first or error
            else:
                raise first or InputError("the space is empty")


def _ends(name: str, each: BaseDistribution) -> list[Any]:
    if isinstance(each, CategoricalDistribution):
        return [value(name, str(text)) for text in each.choices]
    assert isinstance(each, FloatDistribution | IntDistribution)
    return [each.low, each.high]


def grid(space: Mapping[str, BaseDistribution]) -> dict[str, Sequence[Any]]:
    """Return all values of each field; raise InputError where they are not finite, or too many."""
    values: dict[str, Sequence[Any]] = {}
    for name, each in space.items():
        if isinstance(each, CategoricalDistribution):
            values[name] = each.choices
        elif isinstance(each, IntDistribution):
            values[name] = range(each.low, each.high + 1)
        else:
            raise InputError(
                f"--sampler=grid needs values of {name}, as --sweep.{name}=v1,v2,..., not a range"
            )
    size = math.prod(map(len, values.values()))
    if size > LARGEST_GRID:
        raise InputError(
            f"--sampler=grid: {size} combinations are more than {LARGEST_GRID}; give"
            " fewer values, or --sampler=random"
        )
    return {name: list(each) for name, each in values.items()}


def drawn(trial: Trial, space: Mapping[str, BaseDistribution]) -> dict[str, str]:
    """Return the text of each field's value in `trial`, drawn now or when it was begun."""
    return dict(_drawn(trial, space))


def _drawn(trial: Trial, space: Mapping[str, BaseDistribution]) -> Iterator[tuple[str, str]]:
    for name, each in space.items():
        if isinstance(each, FloatDistribution):
            yield name, repr(trial.suggest_float(name, each.low, each.high, log=each.log))
        elif isinstance(each, IntDistribution):
            yield name, str(trial.suggest_int(name, each.low, each.high))
        else:
            assert isinstance(each, CategoricalDistribution)
            yield name, str(trial.suggest_categorical(name, each.choices))
