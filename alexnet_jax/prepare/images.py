"""Decodes one picture to what is stored: the centre square as uint8 RGB of one size.

The square has the shorter side of the picture and is resized to size x size, which is section 2
of the paper (shorter side to 256, centre crop) in one step. Decided behaviours:

* grey, palette and 1-bit pictures become RGB; CMYK too (inverted where Adobe wrote it so);
* 16-bit grey is scaled to 8 bits, not clipped; floating-point pixels are refused;
* transparency is laid over white; of an animation the first frame counts;
* the EXIF orientation is applied; a picture smaller than size is enlarged, however small;
* a picture that already has the size is kept pixel for pixel;
* the content decides on the format, not the extension, and only FORMATS are opened;
* whatever cannot be decoded (truncated, empty, no picture inside, larger than Pillow's limit
  against decompression bombs, unreadable, a pipe) is an `InputError` that names it.
"""

import io
import itertools
import os
import warnings
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from alexnet_jax.errors import InputError, limit_met
from alexnet_jax.host import regular

# The formats that are opened, by Pillow's names, and their extensions. Pillow knows more, some of
# which start an external program (PostScript) or are not images (.pdf, .h5).
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
EXTENSIONS = frozenset(itertools.chain(*FORMATS.values()))

Picture = str | os.PathLike[str] | bytes | np.ndarray | IO[bytes]


def load_image(picture: Picture, size: int, name: str | None = None) -> np.ndarray:
    """One picture as it is stored: uint8 (size, size, 3), RGB.

    Args:
      picture: a path, encoded bytes, an open binary file (any of FORMATS), or a uint8
        array (height, width), (height, width, 3) or, with opacity, (height, width, 4).
      size: side of the result in pixels.
      name: what to call the picture in a message; its path by default.

    Raises:
      InputError: it cannot be read or decoded.
      OSError: too many files are open.
    """
    if name is None:
        name = str(picture) if isinstance(picture, str | os.PathLike) else "the picture"
    try:
        with _open(picture) as image:
            # In place: a copy is made, and the pixels decoded, only if there is one to apply.
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _rgb(image)
        if rgb.size != (size, size):
            width, height = rgb.size
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            # Only the square is resampled: a picture of 1 x 5000 pixels costs as little as any.
            box = (left, top, left + side, top + side)
            rgb = rgb.resize((size, size), Image.Resampling.BICUBIC, box=box)
        return np.array(rgb)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        if isinstance(error, OSError) and limit_met(error):  # the image may be whole
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = " ".join(reason.split())[:200]
        raise InputError(f"{name} cannot be decoded as a picture ({reason})") from error


def _open(picture: Picture) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    with warnings.catch_warnings():  # of twice as many pixels Pillow makes an error itself
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if isinstance(picture, bytes):
            picture = io.BytesIO(picture)
        elif isinstance(picture, str | os.PathLike):
            picture = regular(picture)
        return Image.open(picture, formats=tuple(FORMATS))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own convert would clip at 255
        grey = np.clip(np.asarray(image).astype(np.int32), 0, 65535)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
