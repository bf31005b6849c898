"""Crops, reflections and colour: compared with slices and sums in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import augment

SIZE, CROP = 12, 8
PICTURES = np.random.default_rng(0).integers(0, 256, (64, SIZE, SIZE, 3), np.uint8)
MEAN = np.random.default_rng(1).uniform(0, 255, (SIZE, SIZE, 3)).astype(np.float32)
IDS = jnp.arange(len(PICTURES))


def _crops(pictures=PICTURES, ids=IDS, key=0, colour=None, flip=True, colour_std=0.0, crop=CROP):
    colour = jnp.zeros((3, 3)) if colour is None else colour
    return np.asarray(
        augment.random_crops(
            jax.random.key(key),
            ids,
            pictures,
            MEAN,
            colour,
            crop=crop,
            flip=flip,
            colour_std=colour_std,
        )
    )


def _place(picture, crop):
    """Return (y, x, reflected) of the crop of `picture` less MEAN that equals `crop`, or None."""
    centred = picture.astype(np.float32) - MEAN
    for y in range(SIZE - CROP + 1):
        for x in range(SIZE - CROP + 1):
            window = centred[y : y + CROP, x : x + CROP]
            for reflected in (False, True):
                if np.array_equal(window[:, ::-1] if reflected else window, crop):
                    return y, x, reflected
    return None


def test_every_crop_is_a_window_and_all_windows_come():
    pictures = np.tile(PICTURES[:1], (2000, 1, 1, 1))
    places = [_place(PICTURES[0], c) for c in _crops(pictures, jnp.arange(2000))]
    assert None not in places
    counts = np.zeros((5, 5, 2))
    for y, x, reflected in places:
        counts[y, x, int(reflected)] += 1
    expected = 2000 / counts.size
    # chi-squared with 49 degrees of freedom: mean 49, standard deviation 10
    assert ((counts - expected) ** 2 / expected).sum() < 49 + 4 * 10


def test_without_flip_nothing_is_reflected():
    places = [_place(p, c) for p, c in zip(PICTURES, _crops(flip=False), strict=True)]
    assert not any(reflected for _, _, reflected in places)


def test_augmentation_follows_the_example_not_its_row():
    whole = _crops(colour=jnp.eye(3), colour_std=1.0)
    order = np.random.default_rng(2).permutation(len(PICTURES))
    shuffled = _crops(PICTURES[order], IDS[order], colour=jnp.eye(3), colour_std=1.0)
    np.testing.assert_array_equal(shuffled, whole[order])


def test_another_step_crops_otherwise():
    assert not np.array_equal(_crops(key=0), _crops(key=1))


def test_colour_shifts_a_picture_as_a_whole_by_the_matrix():
    colour = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [3.0, 0.0, 1.0]], np.float32)
    pictures = np.tile(PICTURES[:1], (4000, 1, 1, 1))
    ids = jnp.arange(4000)
    plain = _crops(pictures, ids)
    shift = _crops(pictures, ids, colour=jnp.asarray(colour), colour_std=0.5) - plain
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1, :1], shift.shape), atol=1e-4)
    covariance = np.cov(shift[:, 0, 0].T.astype(np.float64))
    expected = 0.25 * colour @ colour.T
    np.testing.assert_allclose(covariance, expected, atol=0.1 * expected.max())


def test_colour_axes_have_the_published_size_on_imagenet():
    """Standard deviations 19.72, 37.09, 121.78 give shifts of .15, .54 and 5.8 grey levels."""
    axes = np.array([[0.418, -0.817, 0.397], [-0.713, -0.024, 0.701], [-0.564, -0.576, -0.592]])
    deviations = np.array([19.72, 37.09, 121.78])
    columns = np.asarray(augment.colour_axes(jnp.asarray(axes), jnp.asarray(deviations**2)))
    lengths = np.linalg.norm(0.1 * columns, axis=0)
    np.testing.assert_allclose(lengths, [0.1525, 0.5395, 5.816], rtol=2e-3)


def test_the_centre_crop_is_the_centre():
    centred = PICTURES.astype(np.float32) - MEAN
    crop = augment.centre_crop(PICTURES, MEAN, crop=CROP)
    np.testing.assert_array_equal(crop, centred[:, 2:10, 2:10])


def test_ten_crops_are_corners_centre_and_their_reflections():
    centred = PICTURES.astype(np.float32) - MEAN
    crops = np.asarray(augment.evaluation_crops(PICTURES, MEAN, crop=CROP, flip=True))
    corners = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    for i, (y, x) in enumerate(corners):
        window = centred[:, y : y + CROP, x : x + CROP]
        np.testing.assert_array_equal(crops[i], window)
        np.testing.assert_array_equal(crops[i + 5], window[:, :, ::-1])
    unreflected = augment.evaluation_crops(PICTURES, MEAN, crop=CROP, flip=False)
    np.testing.assert_array_equal(unreflected, crops[:5])


def test_a_crop_of_the_full_size_is_the_picture():
    crop = _crops(crop=SIZE, flip=False)
    np.testing.assert_array_equal(crop, PICTURES.astype(np.float32) - MEAN)


@pytest.mark.parametrize("odd", [7, 9])
def test_odd_margins_crop_within_the_picture(odd):
    assert augment.centre_crop(PICTURES, MEAN, crop=odd).shape == (64, odd, odd, 3)
    assert augment.evaluation_crops(PICTURES, MEAN, crop=odd, flip=True).shape == (
        10,
        64,
        odd,
        odd,
        3,
    )
