"""The parameters of a run in one file: safetensors, with config and class names as metadata.

It holds what predicting needs, a third of a checkpoint's bytes, and no pickle: a header of JSON,
and the arrays.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.errors import InputError
from alexnet_jax.host import regular
from alexnet_jax.rundir.integrity import named_arrays
from alexnet_jax.rundir.record import RunRecord
from alexnet_jax.state import TrainState, abstract_state

FORMAT = "alexnet_jax 1"  # in the metadata, by which our files are known
PICKLES = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))


def save(path: pathlib.Path, state: TrainState, record: RunRecord) -> None:
    """Write parameters and mean image of `state`, and what `record` says of them, to `path`."""
    from safetensors.numpy import save as to_bytes

    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in _kept(state).items()}
    metadata = {
        "format": FORMAT,
        "step": str(int(state.step)),
        "config": json.dumps(record.config),
        "class_names": json.dumps(record.class_names),
    }
    path.write_bytes(to_bytes(arrays, metadata))


def load(path: pathlib.Path) -> tuple[ConfigDict, TrainState, RunRecord]:
    """Return config, state (on one device, without velocity) and record of a file of `save`.

    Raises InputError where it is another file or damaged, or this version cannot use its config.
    """
    metadata, arrays = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} is not of --mode=export --format=safetensors; exchange.convert makes such a"
            " file from those of other programs (docs/weights.md)"
        )
    try:
        tree, names = (json.loads(metadata[name]) for name in ("config", "class_names"))
        config, step = config_lib.from_dict(tree), int(metadata["step"])
    except (KeyError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error!r}); export the run again") from None
    config_lib.validate_read(config, path)
    abstract = abstract_state(config)
    for name, leaf in _kept(abstract).items():
        if name not in arrays or arrays[name].shape != leaf.shape:
            raise InputError(f"{path} is damaged ({name}); export the run again")
    params = {
        layer: {part: arrays[f"params/{layer}/{part}"] for part in parts}
        for layer, parts in abstract.params.items()
    }
    return config, state_of(config, params, arrays["mean_image"], step), RunRecord(tree, names)


def state_of(config: ConfigDict, params: Any, mean_image: Any, step: int = 0) -> TrainState:
    """Return a state of the network of `config` that has these arrays, and zeros for the others."""
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_state(config))
    arrays = {"params": params, "mean_image": mean_image}
    return dataclasses.replace(state, step=jnp.int32(step), **jax.tree.map(jnp.asarray, arrays))


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return the metadata and the arrays, float32, of a safetensors file.

    Raises InputError where it is damaged, of another format, or a pickle, which is never read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with regular(path).open("rb") as file:
            head = file.read(9)
        refuse_pickle(path, head)
        if head[8:] != b"{":
            raise InputError(
                f"{path} is not a safetensors file; for files of other programs see docs/weights.md"
            )
        with safe_open(path, framework="numpy") as opened:
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:  # types NumPy lacks
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({error}); download or export it again") from None
    return metadata, {name: array.astype(np.float32) for name, array in arrays.items()}


def refuse_pickle(path: pathlib.Path, head: bytes) -> None:
    """Raise InputError where `head`, the first bytes of a file, are those of a pickle."""
    if head.startswith(PICKLES):
        raise InputError(
            f"{path} is a pickle, as PyTorch writes, which can run any code when it is read;"
            " convert it to safetensors where PyTorch is: docs/weights.md"
        )


def _kept(state: TrainState) -> dict[str, Any]:
    """Return the arrays that are saved, by their names."""
    return {n: leaf for n, leaf in named_arrays(state) if n.startswith(("params/", "mean_image"))}
