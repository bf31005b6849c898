"""Bad images: generated damage, and files made to be expensive."""

import io
import struct
import zlib

import numpy as np
from hypothesis import strategies as st
from PIL import Image


def _encoded(form: str, **options: object) -> bytes:
    """Return 48 x 40 pixels of a smooth pattern in a format."""
    y, x = np.mgrid[:40, :48]
    pixels = np.stack([5 * x, 6 * y, 2 * x + 3 * y], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"  # orientation
    return exif


WHOLE = {
    "baseline.jpg": _encoded("JPEG"),
    "progressive.jpg": _encoded("JPEG", progressive=True),
    "exif.jpg": _encoded("JPEG", exif=_exif()),
    "a.png": _encoded("PNG"),
    "a.gif": _encoded("GIF"),
    "a.bmp": _encoded("BMP"),
    "lossy.webp": _encoded("WEBP"),
    "lossless.webp": _encoded("WEBP", lossless=True),
    "plain.tif": _encoded("TIFF"),
    "deflate.tif": _encoded("TIFF", compression="tiff_deflate"),
    "a.ppm": _encoded("PPM"),
    "a.avif": _encoded("AVIF"),
}
_SIZES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw a name and content: an undamaged image, changed one to three times."""
    name = draw(st.sampled_from(sorted(WHOLE)))
    content = bytearray(WHOLE[name])
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.one_of(st.integers(0, 64), st.integers(0, len(content))))
        match draw(st.sampled_from(("cut", "flip", "number", "splice", "insert", "repeat"))):
            case "cut":
                del content[at:]
            case "flip":
                content[at : at + 1] = bytes(b ^ draw(_bytes) for b in content[at : at + 1])
            case "number":  # an extreme value, perhaps of a side, a length or an offset
                order = draw(st.sampled_from("<>"))
                width = draw(st.sampled_from("HI"))
                value = draw(st.sampled_from(_SIZES)) & (0xFFFF if width == "H" else 0xFFFFFFFF)
                number = struct.pack(order + width, value)
                content[at : at + len(number)] = number
            case "splice":  # the head of another format
                other = WHOLE[draw(st.sampled_from(sorted(WHOLE)))]
                content[:at] = other[:at]
            case "insert":
                content[at:at] = draw(st.binary(max_size=16))
            case "repeat":
                content[at:at] = content[at : at + 40] * 20
    extension = draw(st.sampled_from([n.rpartition(".")[2] for n in sorted(WHOLE)]))
    return f"{name.partition('.')[0]}.{extension}", bytes(content)


_bytes = st.integers(1, 255)


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def _png(*chunks: bytes, width: int = 4, height: int = 4) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(chunks) + _chunk(b"IEND", b"")


def _tiff(width: int, height: int, content: bytes, compression: int = 8) -> bytes:
    """Return a one-strip RGB TIFF with whatever its tags declare."""
    tags = [(256, width), (257, height), (259, compression), (262, 2), (273, 8), (277, 3)]
    tags += [(278, height), (279, len(content))]
    start = 8 + len(content) + len(content) % 2
    bits = start + 2 + 12 * (len(tags) + 1) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags]
    entries.insert(2, struct.pack("<HHII", 258, 3, 3, bits))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    padding = bytes(len(content) % 2)
    head = b"II*\0" + struct.pack("<I", start)
    return head + content + padding + directory + struct.pack("<HHH", 8, 8, 8)


def _with_sides(name: str, at: int, form: str, width: int, height: int) -> bytes:
    content = bytearray(WHOLE[name])
    struct.pack_into(form, content, at, width, height)
    return bytes(content)


def _jpeg_of(width: int, height: int, name: str = "baseline.jpg") -> bytes:
    marker = b"\xff\xc2" if name.startswith("progressive") else b"\xff\xc0"
    return _with_sides(name, WHOLE[name].index(marker) + 5, ">HH", height, width)


def _scans(number: int) -> bytes:
    """Return a progressive JPEG of 2000 x 2000 pixels whose last scan comes `number` times."""
    file = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * number + b"\xff\xd9"


def expensive() -> dict[str, bytes]:
    """Return small files that declare, or unpack to, more than fits in memory."""
    zeros = zlib.compress(bytes(300 << 20), 1)  # 300 MiB of memory in 1.3 MB
    frames = [Image.new("L", (8, 8), i % 256) for i in range(1000)]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    pixels = _chunk(b"IDAT", zlib.compress(bytes(4 * 13)))
    colour = b"iCCP", b"name\0\0" + zeros
    text = b"zTXt", b"Comment\0\0" + zeros
    unicode_text = b"iTXt", b"Comment\0\x01\0\0\0" + zeros
    return {
        "sides.png": _png(_chunk(b"IDAT", zlib.compress(b"")), width=2**31 - 1, height=2**31 - 1),
        "thin.png": _png(_chunk(b"IDAT", zlib.compress(b"")), width=100_000_000, height=1),
        "profile.png": _png(_chunk(*colour), pixels),
        "text.png": _png(_chunk(*text), pixels),
        "texts.png": _png(*[_chunk(*text)] * 20, pixels),
        "unicode.png": _png(_chunk(*unicode_text), pixels),
        "pixels.png": _png(_chunk(b"IDAT", zeros)),
        "just_below.png": _png(_chunk(b"IDAT", zeros), width=9000, height=9900),
        "long_chunk.png": _png() + struct.pack(">I", 2**31 - 1) + b"IDAT",
        "sides.jpg": _jpeg_of(65500, 65500),
        "just_below.jpg": _jpeg_of(9400, 9400),
        "scans.jpg": _scans(30),
        "sides.gif": _with_sides("a.gif", 6, "<HH", 65535, 65535),
        "frames.gif": animated.getvalue(),
        "sides.bmp": _with_sides("a.bmp", 18, "<ii", 2**31 - 1, -(2**31)),
        "sides.ppm": b"P6 99999999999 99999999999 255\n" + bytes(99),
        "digits.ppm": b"P6 " + b"9" * 1_000_000,
        "comment.ppm": b"P6 #" + b"x" * 500_000,
        "plain.ppm": b"P3 9000 9000 255\n" + b"1 " * 10,
        "sides.tif": _tiff(2**31 - 1, 2**31 - 1, b"x" * 10),
        "bomb.tif": _tiff(9000, 9000, zeros),
        "strip.tif": _tiff(4, 4, zeros),
        "lzma.tif": _tiff(9000, 9000, b"x" * 50, compression=34925),
        "ifd_loop.tif": b"II*\0" + struct.pack("<IHI", 8, 0, 8),
        "sides.webp": _with_sides("lossy.webp", 26, "<HH", 0x3FFF, 0x3FFF),
    }
