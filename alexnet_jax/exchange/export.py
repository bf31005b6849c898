"""A network as a file: of a run for other programs, and of other programs as ours."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import augment, data
from alexnet_jax import model as model_lib
from alexnet_jax.errors import InputError
from alexnet_jax.exchange import onnx_file
from alexnet_jax.exchange.weights import load
from alexnet_jax.host import whole_files
from alexnet_jax.prepare import is_prepared, prepare
from alexnet_jax.rundir import RunRecord, restoring, weights_file
from alexnet_jax.state import TrainState

PLATFORMS = ("cpu", "cuda", "tpu")
COMPARED = 64  # images
TOLERANCE = 1e-4  # of a probability
Probabilities = Callable[[np.ndarray], Any]  # of uint8 (batch, size, size, 3)


def export(workdir: pathlib.Path, form: str, out: pathlib.Path) -> str:
    """Write the network of a run's best checkpoint to the file `out`, and return what was done.

    'safetensors' holds parameters and mean image, with config, class names and step as metadata.
    'stablehlo' and 'onnx' are functions: uint8 images (batch, image_size, image_size, 3), RGB, any
    number of them, to probabilities (batch, num_classes) float32. Mean and centre crop are inside.

    Before the file gets its name, it is read back, and its probabilities are compared with the
    run's on at most COMPARED images of the validation set, or of noise where that is not prepared.

    Raises:
      InputError: there is no checkpoint, `out` exists or cannot be written, a package is missing,
        or the file does not give the same probabilities.
    """
    _refuse_existing(out)
    config, state, record = restoring.load(workdir)
    precision = None
    if form == "onnx":
        onnx_file.refuse(config)
        config.dtype = "float32"  # ONNX programs need not know bfloat16
        precision = "highest"  # onnxruntime's on a CPU; a GPU would take TF32
    images, kind = _images(config)
    with whole_files(out.parent) as scratch:
        file = scratch / out.name
        written = _WRITERS[form](file, config, state, record)
        with jax.default_matmul_precision(precision):
            expected = _network(config, state)(images)
        difference = np.abs(np.asarray(written(images)) - expected).max()
        if not difference <= TOLERANCE:
            raise InputError(
                f"{out} is not written: its probabilities differ by {difference:.2g} from those of"
                f" {workdir}; this is a fault of the export, please report it"
            )
        size = file.stat().st_size / 1e6
    return (
        f"{out}: step {int(state.step)} of {workdir}, {size:,.1f} MB; verified on {len(images)}"
        f" {kind}: probabilities differ by at most {difference:.1g}"
    )


def convert(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: ConfigDict,
    class_names: Sequence[str],
    mean: str | os.PathLike[str] | None = None,
) -> None:
    """Write the network in a file of another program to `out`, as export does as 'safetensors'.

    `out` is then used like a run: by --mode=predict, evaluate and export, `restore` and `predict`.

    Args:
      path: as for `load`.
      out: a file that does not exist.
      config: as for `load`.
      class_names: in the order of the network's outputs.
      mean: as for `load`.

    Raises:
      InputError: as `load`, `out` exists or cannot be written, or there are too many or too few
        names.
    """
    names, number = [str(name) for name in class_names], config.model.num_classes
    if len(names) != number:
        raise InputError(f"{len(names)} class names, but config.model.num_classes={number}")
    out = pathlib.Path(out)
    _refuse_existing(out)
    variables = load(path, config, mean)
    mean_image = variables["statistics"]["mean_image"]
    state = weights_file.state_of(config, variables["params"], mean_image)
    with whole_files(out.parent) as scratch:
        weights_file.save(scratch / out.name, state, RunRecord(config.to_dict(), names))


def _refuse_existing(out: pathlib.Path) -> None:
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists; remove it, or name another file")


def _images(config: ConfigDict) -> tuple[np.ndarray, str]:
    """Return uint8 images to compare on, and what they are."""
    try:
        prepared = is_prepared(config.dataset)
    except InputError:  # its source is on another machine
        prepared = False
    if not prepared:
        shape = (8, *[config.dataset.image_size] * 2, 3)
        noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return noise, f"images of noise, as {config.dataset.name!r} is not prepared here"
    dataset = data.open_dataset(prepare(config.dataset), config.dataset.on_error)
    batch = next(data.eval_batches(dataset, batch_size=min(COMPARED, dataset.num_val)))
    return np.array(batch["image"][batch["mask"]]), "images of its validation set"


def _network(config: ConfigDict, state: TrainState) -> Any:
    """Return the function from uint8 images to probabilities, of the centre crop, jitted."""
    model = model_lib.from_config(config)

    @jax.jit
    def probabilities(images: jax.Array) -> jax.Array:
        crops = augment.centre_crop(images, state.mean_image, config.augment.crop)
        logits: Any = model.apply({"params": state.params}, crops)
        return jax.nn.softmax(logits)

    return probabilities


def _safetensors(
    file: pathlib.Path, config: ConfigDict, state: TrainState, record: RunRecord
) -> Probabilities:
    weights_file.save(file, state, record)
    config, state, _ = weights_file.load(file)
    return _network(config, state)


def _stablehlo(
    file: pathlib.Path, config: ConfigDict, state: TrainState, record: RunRecord
) -> Probabilities:
    size = config.dataset.image_size
    shape = jax.export.symbolic_shape(f"batch, {size}, {size}, 3")
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    program = jax.export.export(_network(config, state), platforms=PLATFORMS)(images)
    file.write_bytes(program.serialize())
    return jax.export.deserialize(bytearray(file.read_bytes())).call


def _onnx(
    file: pathlib.Path, config: ConfigDict, state: TrainState, record: RunRecord
) -> Probabilities:
    file.write_bytes(onnx_file.model(config, state, record.class_names))
    return onnx_file.session(file)


_WRITERS = {"safetensors": _safetensors, "stablehlo": _stablehlo, "onnx": _onnx}
FORMATS = tuple(_WRITERS)
