"""Makes finished shards a data set: the metadata of tfds, the mean image and the statistics."""

import hashlib
import json
import pathlib

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from alexnet_jax.example import Source
from alexnet_jax.pixel_sums import PixelSums
from alexnet_jax.shards import MADE_WITH, Shard, done, features, sync

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def merge(
    source: Source,
    class_names: tuple[str, ...],
    shards: dict[str, list[Shard]],
    dataset: ml_collections.ConfigDict,
    identity: dict,
    directory: pathlib.Path,
) -> None:
    """Writes what belongs beside the shards in `directory`; reads none of their records.

    Args:
      source: what they were made from.
      class_names: label i is class_names[i].
      shards: of each split, in order.
      dataset: `config.dataset`.
      identity: what the hash in the directory's name is of.
      directory: what is there beside the shards, of a killed process, is removed.
    """
    paths = {shard.path for parts in shards.values() for shard in parts}
    for file in directory.iterdir():
        if file not in paths | set(map(done, paths)):
            file.unlink()
    _write_metadata(features(dataset, class_names), shards, directory)
    _write_statistics(source, class_names, shards, identity, directory)
    for file in directory.iterdir():
        if file not in paths:  # those are on the disk
            sync(file)
    sync(directory)


def _write_metadata(
    tfds_features: tfds.features.FeaturesDict,
    shards: dict[str, list[Shard]],
    directory: pathlib.Path,
) -> None:
    """`dataset_info.json`, `features.json`, `label.labels.txt`: what makes it a tfds data set."""
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
                name=split,
                shard_lengths=[shard.sums.count for shard in parts],
                num_bytes=sum(shard.num_bytes for shard in parts),
                filename_template=template.replace(split=split),
            )
            for split, parts in shards.items()
        ],
        check_data=False,  # its check would read through TensorFlow
        description="Squares of one size with their labels, made by alexnet_jax.prepare.",
    )


def _write_statistics(
    source: Source,
    class_names: tuple[str, ...],
    shards: dict[str, list[Shard]],
    identity: dict,
    directory: pathlib.Path,
) -> None:
    """`mean_image.npy` and `statistics.json`."""
    sums = PixelSums.zeros(identity["image_size"])
    for shard in shards["train"]:
        sums.merge(shard.sums)
    values, vectors = sums.principal_axes()
    np.save(directory / "mean_image.npy", sums.mean_image(), allow_pickle=False)
    every = [shard for parts in shards.values() for shard in parts]
    files = {
        file.name: _described(file)
        for file in sorted(directory.iterdir())
        if file.suffix in (".json", ".txt", ".npy")
    }
    files |= {s.path.name: {"bytes": s.file_bytes, "sha256": s.sha256} for s in every}
    train = "".join(shard.sha256 for shard in shards["train"])
    statistics = {
        "format": identity["format"],
        "made_from": identity | {"train_sha256": hashlib.sha256(train.encode()).hexdigest()},
        "made_with": MADE_WITH,
        "image_size": identity["image_size"],
        "class_names": class_names,
        "counts": {
            split: np.sum([shard.counts for shard in parts], 0).tolist()
            for split, parts in shards.items()
        },
        "mean_colour": sums.mean_image().mean((0, 1), np.float64).tolist(),
        "eigenvalues": values.tolist(),
        "eigenvectors": vectors.tolist(),
        "not_pictures": source.num_not_pictures,
        "undecodable": [line for shard in every for line in shard.undecodable],
        "files": files,
    }
    text = json.dumps(statistics, indent=1) + "\n"
    (directory / "statistics.json").write_text(text, encoding="utf-8")


def _described(file: pathlib.Path) -> dict[str, int | str]:
    content = file.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
