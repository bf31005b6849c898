"""How every kind of image is decoded."""

import io
import itertools
import os
import re

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

from alexnet_jax.errors import InputError
from alexnet_jax.predict import predict
from alexnet_jax.prepare import FORMATS, load_image, prepare
from tests import runs
from tests.prepared import config, noise, stored


def opened(path, attribute):
    with Image.open(path) as image:
        return getattr(image, attribute)


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_an_image_of_the_stored_size_is_kept_pixel_for_pixel(tmp_path):
    pixels = noise(8, 8, 3)
    np.testing.assert_array_equal(load_image(pixels, 8), pixels)
    path = saved(tmp_path, Image.fromarray(pixels), "a.png")
    for given in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        np.testing.assert_array_equal(load_image(given, 8), pixels)


@pytest.mark.parametrize("shape", [(60, 100, 3), (100, 60, 3), (61, 100, 3)])
def test_square_is_the_papers_resize_then_centre_crop_up_to_rounding(shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    smooth = np.stack([127 + 120 * np.sin(x / 9), 127 + 120 * np.cos(y / 7), x + y], -1)
    image = Image.fromarray(smooth.clip(0, 255).astype(np.uint8))
    scale = 30 / min(image.size)
    resized = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    paper = np.asarray(ImageOps.fit(resized, (30, 30)), np.int32)
    assert np.abs(load_image(np.asarray(image), 30).astype(np.int32) - paper).mean() < 2


def test_shrinking_antialiases(tmp_path):
    checkers = np.indices((64, 64)).sum(0) % 2 * 255
    small = load_image(checkers.astype(np.uint8), 8)
    assert np.ptp(small) < 20, "a checkerboard must become grey, not a moire"


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1), (3, 5)])
def test_tiny_and_thin_images_are_enlarged(shape):
    pixels = np.full((*shape, 3), (10, 200, 90), np.uint8)
    np.testing.assert_array_equal(load_image(pixels, 16), np.full((16, 16, 3), (10, 200, 90)))


def test_grey_becomes_rgb(tmp_path):
    pixels = noise(8, 8)
    path = saved(tmp_path, Image.fromarray(pixels), "a.png")
    np.testing.assert_array_equal(load_image(path, 8), np.stack([pixels] * 3, -1))


def test_one_bit_becomes_black_and_white(tmp_path):
    bits = noise(8, 8) > 127
    path = saved(tmp_path, Image.fromarray(bits), "a.png")
    assert opened(path, "mode") == "1"
    np.testing.assert_array_equal(load_image(path, 8), np.stack([bits * 255] * 3, -1))


def test_palette_becomes_its_colours(tmp_path):
    image = Image.fromarray(noise(8, 8, 3)).quantize(16)
    path = saved(tmp_path, image, "a.png")
    assert opened(path, "mode") == "P"
    np.testing.assert_array_equal(load_image(path, 8), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    deep = np.array([[0, 255, 257, 32768], [40000, 50000, 65280, 65535]] * 2, np.uint16)
    path = saved(tmp_path, Image.fromarray(deep), name)
    assert opened(path, "mode") in ("I;16", "I")
    expected = np.rint(deep / 257).astype(np.uint8)
    np.testing.assert_array_equal(load_image(path, 4), np.stack([expected] * 3, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_become_white(tmp_path, mode):
    image = Image.fromarray(noise(8, 8, 3)).convert(mode)
    image.putalpha(Image.fromarray(np.repeat([[0, 255]], 8, 0).repeat(4, 1).astype(np.uint8)))
    result = load_image(saved(tmp_path, image, "a.png"), 8)
    np.testing.assert_array_equal(result[:, :4], 255)
    np.testing.assert_array_equal(result[:, 4:], np.asarray(image.convert("RGB"))[:, 4:])


def test_half_transparency_is_blended_with_white(tmp_path):
    image = Image.new("RGBA", (4, 4), (0, 100, 200, 128))
    result = load_image(saved(tmp_path, image, "a.png"), 4)
    assert np.abs(result[0, 0].astype(int) - (127, 177, 227)).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_transparent_palette_colour_becomes_white(tmp_path, name):
    image = Image.fromarray(np.array([[0, 1]] * 2, np.uint8)).convert("P")
    image.putpalette([9, 8, 7, 30, 20, 10])
    result = load_image(saved(tmp_path, image, name, transparency=0), 2)
    np.testing.assert_array_equal(result[0], [[255, 255, 255], [30, 20, 10]])


def test_cmyk_jpeg_is_converted(tmp_path):
    colour = Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK")
    path = saved(tmp_path, colour, "a.jpg", quality=95)
    assert opened(path, "mode") == "CMYK"
    assert np.abs(load_image(path, 16)[8, 8].astype(int) - (200, 100, 50)).max() <= 4


# Where row 0 and column 0 of the stored pixels are in the upright image, by EXIF's orientation
# (JEITA CP-3451, tag 0x0112).
ORIENTATIONS = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def turned(upright, orientation):
    """Return the pixels that are stored for a square `upright` with this orientation."""
    last = len(upright) - 1
    result = np.empty_like(upright)
    for row, column in np.ndindex(result.shape[:2]):
        place = dict(zip(ORIENTATIONS[orientation], (row, column), strict=True))
        y = place["top"] if "top" in place else last - place["bottom"]
        x = place["left"] if "left" in place else last - place["right"]
        result[row, column] = upright[y, x]
    return result


def saved_turned(path, upright, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(turned(upright, orientation)).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_each_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    for name, options in (
        ("a.png", {}),
        ("a.webp", {"lossless": True}),
        ("a.jpg", {"quality": 95}),
    ):
        path = saved_turned(tmp_path / name, upright, orientation, **options)
        result = load_image(path, 16)
        away = np.abs(result.astype(int) - upright)
        away[6:10], away[:, 6:10] = 0, 0  # where JPEG blurs the borders of the colours
        assert away.max() <= (8 if name == "a.jpg" else 0), name


def test_orientation_is_applied_where_images_are_prepared_and_predicted(tmp_path, finished_run):
    upright = noise(72, 72, 3)
    for split, name in itertools.product(("train", "val"), ("left", "right")):
        folder = tmp_path / "turned" / split / name
        folder.mkdir(parents=True)
        for orientation in ORIENTATIONS:
            saved_turned(folder / f"{orientation}.png", upright, orientation)
    directory = prepare(config(tmp_path, path=tmp_path / "turned", image_size=72))
    for record in stored(directory):
        np.testing.assert_array_equal(record["image"], upright)
    answers = predict(finished_run, [upright, *sorted(folder.iterdir())])
    assert answers == [answers[0]] * 9


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's
def test_broken_exif_does_not_prevent_decoding_a_good_image(tmp_path):
    image = Image.new("RGB", (8, 8), (50, 60, 70))
    path = saved(tmp_path, image, "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95)
    assert np.abs(load_image(path, 8).astype(int) - (50, 60, 70)).max() <= 3


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_first_frame_of_an_animation_is_used(tmp_path, name):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("#f00", "#0f0", "#00f")]
    options = {"lossless": True} if name == "a.webp" else {}
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
    assert opened(path, "n_frames") == 3
    np.testing.assert_array_equal(load_image(path, 4)[0, 0], (255, 0, 0))


def bad_images():
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(whole, "JPEG")
    png = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(png, "PNG")
    bomb = b"P6 30000 30000 255\n" + bytes(100)
    floats = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(floats, "TIFF")
    return {
        "truncated.jpg": whole.getvalue()[:2000],
        "truncated.png": png.getvalue()[:2000],
        "text.jpg": b"this is not an image",
        "empty.png": b"",
        "bomb.ppm": bomb,
        "floats.tif": floats.getvalue(),
    }


@pytest.mark.parametrize("name", bad_images())
def test_undecodable_image_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(bad_images()[name])
    with pytest.raises(InputError, match=name) as caught:
        load_image(tmp_path / name, 8)
    assert "\n" not in str(caught.value)


def test_missing_image_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jpg does not exist"):
        load_image(tmp_path / "gone.jpg", 8)


@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
def test_postscript_starts_no_program_whatever_its_name(tmp_path, kind, monkeypatch):
    started = tmp_path / "started"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {started}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # where Pillow caches what it has found
    path = tmp_path / "x.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    content = path.read_bytes()
    given = {"path": path, "bytes": content, "file": io.BytesIO(content)}[kind]
    with pytest.raises(InputError, match="cannot be decoded"):
        load_image(given, 8)
    assert not started.exists()


def test_no_image_is_opened_without_naming_its_formats():
    files = [runs.ROOT / "run.py", *(runs.ROOT / "notebooks").glob("*.ipynb")]
    for folder in ("alexnet_jax", "experiments"):
        files += (runs.ROOT / folder).rglob("*.py")
    calls = [call for f in files for call in re.findall(r"Image\.open\(.*", f.read_text())]
    assert len(calls) >= 5
    assert [call for call in calls if "formats=" not in call] == []


def test_each_format_is_opened_by_its_content_under_any_extension(tmp_path):
    Image.init()
    registered = Image.registered_extensions()
    for form, extensions in FORMATS.items():
        assert {registered[extension] for extension in extensions} == {form}
        content = io.BytesIO()
        Image.fromarray(noise(8, 8, 3)).save(content, form)
        for extension in (extensions[0], ".jpg", ".png"):
            path = tmp_path / f"a{extension}"
            path.write_bytes(content.getvalue())
            assert load_image(path, 8).shape == (8, 8, 3)


def test_a_pipe_a_device_and_a_directory_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for path in (tmp_path / "pipe.jpg", "/dev/zero", tmp_path / "folder.jpg"):
        message = f"{path} cannot be decoded .*not a regular file"
        with runs.within(5), pytest.raises(InputError, match=message):
            load_image(path, 8)
