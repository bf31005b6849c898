"""Merges finished shards to a data set: tfds metadata, mean image and statistics."""

import dataclasses
import hashlib
import json
import math
import pathlib

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from alexnet_jax.data import statistics_sha256
from alexnet_jax.host import sync
from alexnet_jax.prepare.examples import Source
from alexnet_jax.prepare.pixel_sums import PixelSums
from alexnet_jax.prepare.shards import (
    MADE_WITH,
    MAX_UNDECODABLE,
    Shard,
    done,
    features,
    finished,
    refuse_too_many,
)

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclasses.dataclass
class _Split:
    """What all shards of one split hold."""

    sums: PixelSums
    counts: np.ndarray
    lengths: list[int] = dataclasses.field(default_factory=list)
    num_bytes: int = 0
    files: dict[str, dict] = dataclasses.field(default_factory=dict)
    undecodable: list[str] = dataclasses.field(default_factory=list)

    def add(self, shard: Shard) -> None:
        self.sums.merge(shard.sums)
        self.counts += shard.counts
        self.lengths.append(shard.sums.count)
        self.num_bytes += shard.num_bytes
        self.files[shard.path.name] = {"bytes": shard.file_bytes, "sha256": shard.sha256}
        self.undecodable += shard.undecodable


def merge(
    source: Source,
    class_names: tuple[str, ...],
    paths: dict[str, list[pathlib.Path]],
    dataset: ml_collections.ConfigDict,
    identity: dict,
    directory: pathlib.Path,
) -> None:
    """Write the other files of the data set into the directory of the shards.

    No record is read.

    Args:
      source: what the shards were made from.
      class_names: label i is class_names[i].
      paths: of the finished shards of each split, in order.
      dataset: `config.dataset`.
      identity: the hash in the directory's name is of this.
      directory: of the shards. Other files there, of a killed process, are removed.
    """
    wanted = {path for of_split in paths.values() for path in of_split}
    wanted |= set(map(done, wanted))
    for file in directory.iterdir():
        if file not in wanted:
            file.unlink()
    splits: dict[str, _Split] = {}
    for split, of_split in paths.items():
        size = dataset.image_size
        splits[split] = _Split(PixelSums.zeros(size), np.zeros(len(class_names), np.int64))
        for path in of_split:  # one at a time: their sums are large
            shard = finished(path)
            if shard is None:
                raise FileNotFoundError(f"{path.name} has disappeared")
            splits[split].add(shard)
        skipped = splits[split].undecodable
        total = len(skipped) + int(splits[split].counts.sum())
        refuse_too_many(skipped, math.ceil(MAX_UNDECODABLE * total))  # of this split alone
    _write_metadata(features(dataset, class_names), splits, directory)
    _write_statistics(source, class_names, splits, identity, directory)
    for file in directory.iterdir():
        if file not in wanted:  # the shards have been synced already
            sync(file)
    sync(directory)


def _write_metadata(
    tfds_features: tfds.features.FeaturesDict,
    splits: dict[str, _Split],
    directory: pathlib.Path,
) -> None:
    """Write `dataset_info.json`, `features.json` and `label.labels.txt`, as tfds needs them."""
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory,
        template=_TEMPLATE,
        dataset_name="pictures",
        filetype_suffix="array_record",
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=tfds_features,
        split_infos=[
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=split.lengths,
                num_bytes=split.num_bytes,
                filename_template=template.replace(split=name),
            )
            for name, split in splits.items()
        ],
        check_data=False,  # the check would need TensorFlow
        description="Squares of one size with their labels, made by alexnet_jax.prepare.",
    )


def _write_statistics(
    source: Source,
    class_names: tuple[str, ...],
    splits: dict[str, _Split],
    identity: dict,
    directory: pathlib.Path,
) -> None:
    """Write `mean_image.npy` and `statistics.json`."""
    sums = splits["train"].sums
    values, vectors = sums.principal_axes()
    np.save(directory / "mean_image.npy", sums.mean_image(), allow_pickle=False)
    files = {
        file.name: _described(file)
        for file in sorted(directory.iterdir())
        if file.suffix in (".json", ".txt", ".npy")
    }
    for split in splits.values():
        files |= split.files
    train = "".join(file["sha256"] for file in splits["train"].files.values())
    statistics: dict = {
        "format": identity["format"],
        "made_from": identity | {"train_sha256": hashlib.sha256(train.encode()).hexdigest()},
        "made_with": MADE_WITH,
        "image_size": identity["image_size"],
        "class_names": class_names,
        "counts": {name: split.counts.tolist() for name, split in splits.items()},
        "mean_colour": sums.mean_image().mean((0, 1), np.float64).tolist(),
        "eigenvalues": values.tolist(),
        "eigenvectors": vectors.tolist(),
        "not_pictures": source.num_not_images,
        "undecodable": [line for split in splits.values() for line in split.undecodable],
        "files": files,
    }
    statistics["sha256"] = statistics_sha256(statistics)
    text = json.dumps(statistics, indent=1) + "\n"
    (directory / "statistics.json").write_text(text, encoding="utf-8")


def _described(file: pathlib.Path) -> dict[str, int | str]:
    content = file.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
