"""The layer table: the output, parameters and multiply-adds of each layer."""

from ml_collections import ConfigDict

from alexnet_jax.config import with_num_classes
from alexnet_jax.layers import walk
from alexnet_jax.prepare import open_source

HEADER = ("layer", "output", "parameters", "multiply-adds", "activations")


def summary(config: ConfigDict) -> str:
    """Return the table as text; nothing is computed but shapes.

    Outputs are height x width x channels of one image. Activations are counted after the
    convolutional and fully connected layers, as the paper does (section 3.5); multiply-adds are
    those of their kernels. Where the config leaves the number of classes to the data set, that is
    opened. Raises InputError where this fails.
    """
    if not config.model.num_classes:
        class_names = open_source(config.dataset).open().class_names
        config = with_num_classes(config, len(class_names))
    crop = config.augment.crop
    rows: list[tuple[str, ...]] = [("input", f"{crop}x{crop}x3", "", "", "")]
    totals = [0, 0, 0]
    for part in walk(config.model, crop):
        counts = [0, 0, 0]
        if part.kernel:
            counts = [part.parameters, part.multiply_adds, part.activations]
        elif part.name.startswith(("relu", "dropout")):  # neither changes the shape
            continue
        totals = [t + c for t, c in zip(totals, counts, strict=True)]
        shape = "x".join(map(str, part.output))
        rows.append((part.name, shape, *(f"{c:,}" if c else "" for c in counts)))
    rows.append(("total", "", *(f"{t:,}" for t in totals)))

    widths = [max(len(row[i]) for row in [HEADER, *rows]) for i in range(len(HEADER))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [HEADER, *rows]
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
