"""Checks that a run has images, and the same as when it was trained before.

run.py asks that too, when it prepares them; here it is asked before anything is begun, and of
runs that have ended. `dataset.path` may change, for the same images may have moved.
"""

import contextlib
import functools
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import data
from alexnet_jax.errors import InputError
from alexnet_jax.fields import expanded
from alexnet_jax.prepare import check_classes, open_source
from alexnet_jax.rundir import checkpoint


def refuse_other_images(directory: pathlib.Path, dataset: ConfigDict) -> None:
    """Raise InputError where the run in `directory`, if there is one, is of another folder.

    A folder of another name with the same images is accepted if that is known: from the
    run's checkpoint, which holds the hash of its prepared set, and that set.
    """
    if dataset.name != "folder" or not (directory / "config.json").exists():
        return
    was = config_lib.load(directory / "config.json").dataset.path
    here, there = (expanded("dataset.path", path).resolve() for path in (dataset.path, was))
    if here == there:
        return
    with contextlib.suppress(InputError, OSError, ValueError, KeyError, TypeError):
        with checkpoint.Checkpoints(directory, read_only=True) as checkpoints:
            identity = checkpoints.restore_record(checkpoints.latest() or 0).data
        prepared = expanded("dataset.data_dir", dataset.data_dir) / "alexnet_jax"
        (path,) = prepared.glob(f"*-{identity.partition('-')[0]}/statistics.json")
        statistics = json.loads(path.read_text())
        same_set = data.same_set(identity, data.identity(path.parent, statistics))
        source = statistics["made_from"]["source"]
        if same_set and source == fingerprint(here, dataset.val_fraction):
            return
    raise InputError(
        f"{directory} was trained on the images in {was}, and those in {dataset.path} are not"
        f" known to be the same; give --data={was}, or take another --workdir"
    )


def refuse_without_images(dataset: ConfigDict, num_classes: int) -> None:
    """Raise InputError where there is no such data set, or a folder has another number of classes.

    Those of tensorflow-datasets are not opened, for that may download.
    """
    named = {name: dataset[name] for name in ("name", "path", "data_dir", "val_fraction")}
    _refuse_without(tuple(named.items()), num_classes)


@functools.cache
def _refuse_without(named: tuple[tuple[str, Any], ...], num_classes: int) -> None:
    dataset = ConfigDict(dict(named))
    source = open_source(dataset)
    if dataset.name == "folder":
        check_classes(num_classes, source.open().class_names, source.name)


@functools.cache
def fingerprint(folder: pathlib.Path, val_fraction: float) -> str:
    """Return a text that identifies the images; raise InputError if there are none."""
    dataset = {"name": "folder", "path": str(folder), "val_fraction": val_fraction}
    return open_source(ConfigDict(dataset)).fingerprint
