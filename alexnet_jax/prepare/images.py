"""Decodes one image to what is stored: the centre square as uint8 RGB of one size.

The side of the square is the shorter side of the image. It is resized to size x size, which is
section 2 of the paper (shorter side to 256, centre crop) in one step. In detail:

* grey, palette, 1-bit and CMYK images (also inverted ones by Adobe) become RGB;
* 16-bit grey is scaled to 8 bits, not clipped; floating-point pixels are refused;
* transparent images are blended with white; the first frame of an animation is used;
* the EXIF orientation is applied; an image smaller than size is enlarged, however small it is;
* an image that already has the size is kept pixel for pixel;
* the content decides on the format, not the extension, and only FORMATS are opened;
* a file that cannot be decoded (truncated, empty, not an image, larger than Pillow's limit against
  decompression bombs, unreadable, a pipe) raises an `InputError` that names it.
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

ImageLike = str | os.PathLike[str] | bytes | np.ndarray | Image.Image | IO[bytes]


def load_image(image: ImageLike, size: int, name: str | None = None) -> np.ndarray:
    """Return an image as it is stored: uint8 (size, size, 3), RGB.

    Args:
      image: a path, encoded bytes, an open binary file (any of FORMATS), a PIL image, or a uint8
        array (height, width), (height, width, 3) or, with opacity, (height, width, 4).
      size: side of the result in pixels.
      name: of the image in messages; by default its path.

    Raises:
      InputError: it cannot be read or decoded.
      OSError: too many files are open.
    """
    if name is None:
        name = str(image) if isinstance(image, str | os.PathLike) else "the image"
    try:
        with _open(image) as opened:
            # In place: pixels are decoded and copied only if there is an orientation to apply.
            ImageOps.exif_transpose(opened, in_place=True)
            rgb = _rgb(opened)
        if rgb.size != (size, size):
            width, height = rgb.size
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            # Only the square is resampled, so that an image of 1 x 5000 pixels is cheap, too.
            box = (left, top, left + side, top + side)
            rgb = rgb.resize((size, size), Image.Resampling.BICUBIC, box=box)
        return np.array(rgb)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        if isinstance(error, OSError) and limit_met(error):  # the image may be whole
            raise
        if isinstance(error, FileNotFoundError):
            raise InputError(f"{name} does not exist") from error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = " ".join(reason.split())[:200]
        raise InputError(f"{name} cannot be decoded as an image ({reason})") from error


def _open(image: ImageLike) -> Image.Image:
    if isinstance(image, np.ndarray):
        if not image.size or image.ndim < 2 or image.shape[2:] not in ((), (3,), (4,)):
            raise ValueError(f"an array of shape {image.shape}")
        return Image.fromarray(image)
    if isinstance(image, Image.Image):  # a copy: the caller's stays open and as it is
        return ImageOps.exif_transpose(image)
    with warnings.catch_warnings():  # Pillow itself raises an error only from twice the limit on
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if isinstance(image, bytes):
            image = io.BytesIO(image)
        elif isinstance(image, str | os.PathLike):
            image = regular(image)
        elif not hasattr(image, "read"):
            raise TypeError(f"{type(image).__name__} is not a path, a PIL image or a uint8 array")
        return Image.open(image, formats=tuple(FORMATS))


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
