"""Crops, reflections and colour: compared with slices and sums in NumPy."""

from collections import defaultdict
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax import augment
from tests.agreement import agree
from tests.operations import as_on_a_tpu

SIZE, CROP = 12, 8
IMAGES = np.random.default_rng(0).integers(0, 256, (64, SIZE, SIZE, 3), np.uint8)
MEAN = np.random.default_rng(1).uniform(0, 255, (SIZE, SIZE, 3)).astype(np.float32)
IDS = jnp.arange(len(IMAGES))

# Published for ImageNet: axes of the covariance of RGB, one a column, and the standard deviations
# along them.
AXES = np.array([[0.418, -0.817, 0.397], [-0.713, -0.024, 0.701], [-0.564, -0.576, -0.592]])
DEVIATIONS = np.array([19.72, 37.09, 121.78])
COLOUR_STD = 0.1


def _fields(**changed):
    """Return a `config.augment` that only crops, with the `changed` fields."""
    fields = {"crop": CROP, "flip": True, "shared_by": 1, "mean_crop": "same", "test_crops": "ten"}
    return ConfigDict(fields | {"colour_std": 0.0, "colour_rule": "paper"} | changed)


def _crops(images=IMAGES, ids=IDS, key=0, colour=None, mean=MEAN, **changed):
    colour = jnp.zeros((3, 3)) if colour is None else colour
    statistics = augment.Statistics(mean, colour)
    key = jax.random.key(key)
    return np.asarray(augment.random_crops(key, ids, images, statistics, _fields(**changed)))


def _place(image, crop):
    """Return (y, x, reflected) of the crop of `image` less MEAN that equals `crop`, or None."""
    centred = image.astype(np.float32) - MEAN
    for y in range(SIZE - CROP + 1):
        for x in range(SIZE - CROP + 1):
            window = centred[y : y + CROP, x : x + CROP]
            for reflected in (False, True):
                if np.array_equal(window[:, ::-1] if reflected else window, crop):
                    return y, x, reflected
    return None


def _place_less_centre(image, crop):
    """Return (y, x, reflected) of the crop of `image` that, less MEAN's centre, equals `crop`."""
    for y, x in np.ndindex(SIZE - CROP + 1, SIZE - CROP + 1):
        window = image[y : y + CROP, x : x + CROP].astype(np.float32)
        for reflected in (False, True):
            seen = window[:, ::-1] if reflected else window
            if np.array_equal(seen - MEAN[2:10, 2:10], crop):
                return y, x, reflected
    return None


def test_every_crop_is_a_window_and_every_window_occurs():
    images = np.tile(IMAGES[:1], (2000, 1, 1, 1))
    places = [_place(IMAGES[0], c) for c in _crops(images, jnp.arange(2000))]
    assert None not in places
    counts = np.zeros((5, 5, 2))
    for y, x, reflected in places:
        counts[y, x, int(reflected)] += 1
    expected = 2000 / counts.size
    # chi-squared with 49 degrees of freedom: mean 49, standard deviation 10
    assert ((counts - expected) ** 2 / expected).sum() < 49 + 4 * 10


@pytest.mark.parametrize(
    "changed", [{}, {"flip": False}, {"mean_crop": "centre"}, {"crop": SIZE}, {"crop": 7}]
)
def test_a_tpu_gets_the_same_crops_to_the_bit(changed, monkeypatch):
    here = _crops(**changed)
    monkeypatch.setattr(jax.lax, "platform_dependent", as_on_a_tpu)
    np.testing.assert_array_equal(_crops(**changed), here)


def test_without_flip_nothing_is_reflected():
    places = [_place(p, c) for p, c in zip(IMAGES, _crops(flip=False), strict=True)]
    assert not any(reflected for _, _, reflected in places)


def test_augmentation_depends_on_the_example_and_not_on_its_row():
    whole = _crops(colour=jnp.eye(3), colour_std=1.0)
    order = np.random.default_rng(2).permutation(len(IMAGES))
    shuffled = _crops(IMAGES[order], IDS[order], colour=jnp.eye(3), colour_std=1.0)
    np.testing.assert_array_equal(shuffled, whole[order])


def test_each_step_draws_other_crops():
    assert not np.array_equal(_crops(key=0), _crops(key=1))


@pytest.mark.parametrize("first", [0, 3])
def test_consecutive_ids_share_crop_and_reflection(first):
    crops = _crops(ids=IDS + first, shared_by=8)
    runs = defaultdict(set)
    for row, (image, crop) in enumerate(zip(IMAGES, crops, strict=True)):
        runs[(row + first) // 8].add(_place(image, crop))
    assert all(len(places) == 1 for places in runs.values())
    places = set.union(*runs.values())
    assert None not in places
    assert len(places) > 3  # eight draws of 50: three different ones at most in 1 of 300,000 cases


def test_images_that_share_a_crop_differ_in_colour():
    plain = _crops(shared_by=64)
    shift = (_crops(colour=jnp.eye(3), colour_std=1.0, shared_by=64) - plain)[:, 0, 0]
    assert len(np.unique(shift.round(3), axis=0)) == len(IMAGES)


def test_the_centre_of_the_mean_is_subtracted_from_every_crop_after_its_reflection():
    crops = _crops(mean_crop="centre")
    places = [_place_less_centre(p, crop) for p, crop in zip(IMAGES, crops, strict=True)]
    assert None not in places
    assert {reflected for _, _, reflected in places} == {False, True}
    assert len(set(places)) > 20


def test_colour_shifts_all_pixels_of_an_image_by_the_matrix():
    colour = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [3.0, 0.0, 1.0]], np.float32)
    images = np.tile(IMAGES[:1], (4000, 1, 1, 1))
    ids = jnp.arange(4000)
    plain = _crops(images, ids)
    shift = _crops(images, ids, colour=jnp.asarray(colour), colour_std=0.5) - plain
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1, :1], shift.shape), atol=1e-4)
    covariance = np.cov(shift[:, 0, 0].T.astype(np.float64))
    expected = 0.25 * colour @ colour.T
    np.testing.assert_allclose(covariance, expected, atol=0.1 * expected.max())


def test_colour_axes_have_the_published_size_on_imagenet():
    """Standard deviations 19.72, 37.09, 121.78 give shifts of .15, .54 and 5.8 grey levels."""
    columns = np.asarray(augment.colour_axes(jnp.asarray(AXES), jnp.asarray(DEVIATIONS**2)))
    lengths = np.linalg.norm(COLOUR_STD * columns, axis=0)
    np.testing.assert_allclose(lengths, [0.1525, 0.5395, 5.816], rtol=2e-3)


def test_the_colour_axes_of_the_released_code_are_as_long_as_the_deviations():
    vectors, values = jnp.asarray(AXES), jnp.asarray(DEVIATIONS**2)
    columns = np.asarray(augment.colour_axes(vectors, values, "released"))
    for i in range(3):
        wanted = [AXES[channel, i] * DEVIATIONS[i] for channel in range(3)]
        agree(columns[:, i], np.array(wanted), rtol=1e-6, what=f"axis {i}")


def test_the_released_code_divides_the_shifted_image():
    centred = IMAGES.astype(np.float64) - MEAN
    options = {"crop": SIZE, "flip": False, "colour": 50 * jnp.eye(3), "colour_std": COLOUR_STD}
    shift = 1.1 * _crops(colour_rule="released", **options) - centred
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1, :1], shift.shape), atol=1e-3)
    assert shift.std((0, 1, 2)) == pytest.approx([5, 5, 5], rel=0.3)
    # The paper's rule draws the same shift and divides nothing.
    np.testing.assert_allclose(_crops(**options) - centred, shift, atol=1e-3)


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_without_colour_images_are_neither_shifted_nor_divided(rule):
    fields = _fields(crop=SIZE, flip=False, colour_std=COLOUR_STD, colour_rule=rule)
    statistics = augment.Statistics(MEAN, 50 * jnp.eye(3))

    def crops(colour_on):
        key = jax.random.key(0)
        return augment.random_crops(key, IDS, IMAGES, statistics, fields, colour_on)

    crops = jax.jit(crops)
    centred = IMAGES.astype(np.float32) - MEAN
    np.testing.assert_array_equal(crops(False), centred)
    assert np.abs(crops(True) - centred).max() > 1


def test_a_traced_deviation_shifts_as_a_number_does():
    options = {"colour": 50 * jnp.eye(3), "colour_rule": "released"}
    traced = _crops(colour_std=jnp.float32(COLOUR_STD), **options)
    agree(traced, _crops(colour_std=COLOUR_STD, **options), rtol=1e-6)


# What each axis of ImageNet is multiplied by: the alphas have the deviation COLOUR_STD.
LENGTHS = {"paper": DEVIATIONS**2 / 255, "released": DEVIATIONS}
RULES = pytest.mark.parametrize("rule", LENGTHS)
KEYS, PER_KEY = 4, 10_000
DRAWS = KEYS * PER_KEY


@cache
def _alphas(rule):
    """Return (KEYS, PER_KEY, 3) shifts of black images, undone by what the covariance should be.

    With the Cholesky factor L of the covariance C that the rule says, L^-1 shift has the covariance
    I if shifts have C. Each direction counts on its own scale: in grey levels the third axis would
    hide the others.
    """
    covariance = COLOUR_STD**2 * AXES @ np.diag(LENGTHS[rule] ** 2) @ AXES.T
    pixels, mean = np.zeros((PER_KEY, 1, 1, 3), np.uint8), np.zeros((1, 1, 3), np.float32)
    colour = augment.colour_axes(jnp.asarray(AXES), jnp.asarray(DEVIATIONS**2), rule)
    options = {"colour": colour, "colour_std": COLOUR_STD, "colour_rule": rule}
    ids = jnp.arange(PER_KEY)
    shifts = [_crops(pixels, ids, key, crop=1, mean=mean, **options) for key in range(KEYS)]
    shifts = np.array(shifts, np.float64).reshape(DRAWS, 3)
    if rule == "released":
        shifts *= 1 + COLOUR_STD
    return np.linalg.solve(np.linalg.cholesky(covariance), shifts.T).T.reshape(KEYS, PER_KEY, 3)


@RULES
def test_shifts_have_the_covariance_of_the_rule_on_imagenet(rule):
    alphas = _alphas(rule).reshape(DRAWS, 3)
    difference = alphas.T @ alphas / DRAWS - np.eye(3)
    # Of n normal draws, a variance has the standard error sqrt(2/n), a covariance sqrt(1/n).
    standard_errors = np.sqrt((1 + np.eye(3)) / DRAWS)
    assert (np.abs(difference) < 5 * standard_errors).all(), difference / standard_errors


def _standardised(rule):
    """Return `_alphas` divided by their deviations."""
    alphas = _alphas(rule)
    return alphas / alphas.std((0, 1))


@RULES
def test_shifts_have_a_mean_of_0(rule):
    mean = _standardised(rule).mean((0, 1))
    assert (np.abs(mean) < 5 * DRAWS**-0.5).all(), mean * DRAWS**0.5


@RULES
def test_shifts_are_normal(rule):
    kurtosis = (_standardised(rule) ** 4).mean((0, 1))
    # Of n normal draws it is 3 with the standard error sqrt(24/n).
    assert (np.abs(kurtosis - 3) < 5 * np.sqrt(24 / DRAWS)).all(), kurtosis


@RULES
def test_shifts_of_other_examples_and_steps_are_independent(rule):
    alphas = _standardised(rule)
    for one, other in [(alphas[:, :-1], alphas[:, 1:]), (alphas[:-1], alphas[1:])]:
        pairs = one[..., 0].size
        correlations = np.einsum("kni,knj->ij", one, other) / pairs
        assert (np.abs(correlations) < 5 * pairs**-0.5).all(), correlations * pairs**0.5


def test_the_centre_crop_is_the_centre():
    centred = IMAGES.astype(np.float32) - MEAN
    crop = augment.centre_crop(IMAGES, MEAN, CROP)
    np.testing.assert_array_equal(crop, centred[:, 2:10, 2:10])


def test_ten_crops_are_the_corners_the_centre_and_their_reflections():
    centred = IMAGES.astype(np.float32) - MEAN
    crops = np.asarray(augment.evaluation_crops(IMAGES, MEAN, _fields()))
    corners = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    for i, (y, x) in enumerate(corners):
        window = centred[:, y : y + CROP, x : x + CROP]
        np.testing.assert_array_equal(crops[i], window)
        np.testing.assert_array_equal(crops[i + 5], window[:, :, ::-1])
    unreflected = augment.evaluation_crops(IMAGES, MEAN, _fields(flip=False))
    np.testing.assert_array_equal(unreflected, crops[:5])


def _windows(images, number):
    """Return what the test nets see of `images`, as float32."""
    nine = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)]
    corners = nine if number == "nine" else [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    windows = [images[:, y : y + CROP, x : x + CROP] for y, x in corners]
    reflected = [] if number == "nine" else [window[:, :, ::-1] for window in windows]
    return np.stack(windows + reflected).astype(np.float32)


@pytest.mark.parametrize("flip", [False, True])
def test_nine_crops_are_a_grid_without_reflections(flip):
    crops = augment.evaluation_crops(IMAGES, MEAN, _fields(flip=flip, test_crops="nine"))
    np.testing.assert_array_equal(crops, _windows(IMAGES.astype(np.float32) - MEAN, "nine"))


@pytest.mark.parametrize("number", ["nine", "ten"])
def test_the_centre_of_the_mean_is_subtracted_from_every_test_crop(number):
    crops = augment.evaluation_crops(IMAGES, MEAN, _fields(mean_crop="centre", test_crops=number))
    np.testing.assert_array_equal(crops, _windows(IMAGES, number) - MEAN[2:10, 2:10])


def test_a_crop_of_the_full_size_is_the_image():
    crop = _crops(crop=SIZE, flip=False)
    np.testing.assert_array_equal(crop, IMAGES.astype(np.float32) - MEAN)


@pytest.mark.parametrize("odd", [7, 9])
def test_crops_with_odd_margins_lie_within_the_image(odd):
    assert augment.centre_crop(IMAGES, MEAN, odd).shape == (64, odd, odd, 3)
    assert augment.evaluation_crops(IMAGES, MEAN, _fields(crop=odd)).shape == (
        10,
        64,
        odd,
        odd,
        3,
    )
