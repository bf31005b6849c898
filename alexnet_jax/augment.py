"""Stored images to network inputs, on the device: crops, reflections, colour, mean (section 4.1).

Images arrive as uint8 (batch, size, size, 3) and leave as float32 (batch, crop, crop, 3), RGB of
0 to 255 minus the training set's mean image. What is random depends on the key and on an example's
id alone, so that sharding a batch over devices changes nothing.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict


class Statistics(NamedTuple):
    """What is subtracted from images and added to them, of the training set.

    Attributes:
      mean_image: (size, size, 3) float32.
      colour: (3, 3) float32, its `colour_axes`.
    """

    mean_image: jax.Array
    colour: jax.Array


def statistics_of(of: Any, augment: ConfigDict) -> Statistics:
    """Return the Statistics of a training set for `config.augment`.

    `of` has its `mean_image`, and `eigenvectors` and `eigenvalues` as `colour_axes` takes them: a
    data.Dataset.
    """
    vectors, values = jnp.asarray(of.eigenvectors), jnp.asarray(of.eigenvalues)
    return Statistics(jnp.asarray(of.mean_image), colour_axes(vectors, values, augment.colour_rule))


def random_crops(
    key: jax.Array,
    example_ids: jax.Array,
    images: jax.Array,
    statistics: Statistics,
    augment: ConfigDict,
    colour_on: bool | jax.Array = True,
) -> jax.Array:
    """Return one random crop of each image, reflected left to right with probability 1/2.

    Args:
      key: the PRNG key of this step.
      example_ids: (batch,) integers, distinct within the step.
      images: (batch, size, size, 3) uint8.
      statistics: of the training set.
      augment: `config.augment`, whose fields are

        * `crop`: side of the result, at most `size`.
        * `flip`: whether to reflect.
        * `shared_by`: number of consecutive ids that share crop and reflection.
        * `mean_crop`: 'same': each pixel loses its own mean. 'centre': every crop loses the centre
          crop of the mean image, after its reflection, as in the released code.
        * `colour_std`: standard deviation of the three factors alpha, drawn once per image and
          step.
        * `colour_rule`: with 'released' the shifted image is divided by 1 + colour_std.
      colour_on: whether colours are shifted in this step.

    Returns:
      (batch, crop, crop, 3) float32.
    """
    crop = augment.crop
    offsets = images.shape[1] - crop + 1, images.shape[2] - crop + 1
    centre_mean = _centre(statistics.mean_image, crop)
    colour_std = augment.colour_std
    if colour_on is not True and colour_std:
        colour_std = jnp.where(colour_on, colour_std, 0.0)
    place_key, shade_key = jax.random.split(key)

    def one(example_id: jax.Array, image: jax.Array) -> jax.Array:
        first_of_group = example_id // augment.shared_by
        where, mirror = jax.random.split(jax.random.fold_in(place_key, first_of_group))
        y, x = jax.random.randint(where, (2,), 0, jnp.array(offsets))
        mean = statistics.mean_image if augment.mean_crop == "same" else None
        reflected = jax.random.bernoulli(mirror) if augment.flip else None
        ways = {"tpu": partial(_crop_and_reflect, crop=crop), "default": partial(_crop, crop=crop)}
        out = jax.lax.platform_dependent(image, mean, (y, x), reflected, **ways)
        if augment.mean_crop == "centre":
            out -= centre_mean
        if isinstance(colour_std, jax.Array) or colour_std:
            shade = jax.random.normal(jax.random.fold_in(shade_key, example_id), (3,))
            out += statistics.colour @ (colour_std * shade)
        return out / (1 + colour_std) if augment.colour_rule == "released" else out

    return jax.vmap(one)(example_ids, images)


def _crop(
    image: jax.Array, mean: jax.Array | None, corner: Any, reflected: Any, *, crop: int
) -> jax.Array:
    """Return the square of side `crop` at `corner` less its mean, then reflected, float32."""
    corner, shape = (*corner, 0), (crop, crop, 3)
    out = jax.lax.dynamic_slice(image, corner, shape).astype(jnp.float32)
    if mean is not None:
        out -= jax.lax.dynamic_slice(mean, corner, shape)
    return out if reflected is None else jnp.where(reflected, out[:, ::-1], out)


def _crop_and_reflect(
    image: jax.Array, mean: jax.Array | None, corner: Any, reflected: Any, *, crop: int
) -> jax.Array:
    """Return what `_crop` returns, to the bit.

    A TPU reverses in passes over memory of their own: here of bytes, not of float32.
    """
    if reflected is None:
        return _crop(image, mean, corner, None, crop=crop)
    out = jax.lax.dynamic_slice(image, (*corner, 0), (crop, crop, 3))
    out = jnp.where(reflected, out[:, ::-1], out).astype(jnp.float32)
    if mean is None:
        return out
    # The mean is reflected once for the batch: a crop is cut from one of the two.
    y, x = corner
    x = jnp.where(reflected, image.shape[1] - crop - x, x)
    means, place = jnp.stack([mean, mean[:, ::-1]]), (reflected.astype(jnp.int32), y, x, 0)
    return out - jax.lax.dynamic_slice(means, place, (1, crop, crop, 3))[0]


def colour_axes(eigenvectors: jax.Array, eigenvalues: jax.Array, rule: str = "paper") -> jax.Array:
    """Return the matrix that turns the paper's (alpha1, alpha2, alpha3) into an RGB shift.

    The paper adds [p1, p2, p3] [alpha1 l1, alpha2 l2, alpha3 l3]^T, with p and l the eigenvectors
    and eigenvalues of the covariance of RGB values. That is not homogeneous: the shift grows with
    the square of the unit of the pixels. With pixels of 0 to 1 it is about 6 of 255 grey levels
    on ImageNet, with 0 to 255 it would be 1,500. Here l is taken for pixels of 0 to 1 and the shift
    scaled to 0 to 255. The code released in 2012 has the square root of l, a standard deviation,
    in place of l: homogeneous, and on ImageNet twice as far along the main axis (12 grey levels),
    7 and 13 times along the others.

    Args:
      eigenvectors: (3, 3), one a column.
      eigenvalues: (3,), of the covariance of pixels of 0 to 255.
      rule: 'paper' or 'released'.

    Returns:
      (3, 3), the columns p_i l_i / 255, or p_i sqrt(l_i).
    """
    if rule == "released":
        return eigenvectors * jnp.sqrt(eigenvalues)
    return eigenvectors * (eigenvalues / 255.0)


def centre_crop(images: jax.Array, mean_image: jax.Array, crop: int) -> jax.Array:
    """Return the centre (batch, crop, crop, 3) of uint8 `images` minus `mean_image`, float32."""
    return _centre(images.astype(jnp.float32) - mean_image, crop)


def evaluation_crops(images: jax.Array, mean_image: jax.Array, augment: ConfigDict) -> jax.Array:
    """Return the crops whose softmax outputs are averaged.

    Ten of them (section 4.1) are the four corner crops, the centre crop, and the reflections of the
    five. Nine, as for Krizhevsky's CIFAR-10 nets, lie on a 3 x 3 grid and are not reflected.

    Args:
      images: (batch, size, size, 3) uint8.
      mean_image: (size, size, 3) float32.
      augment: `config.augment`: `test_crops` is 'ten' or 'nine', and without `flip` there are no
        reflections; `crop` and `mean_crop` are as for `random_crops`.

    Returns:
      (10, batch, crop, crop, 3) float32; (5, ...) without `flip`; (9, ...).
    """
    crop, nine = augment.crop, augment.test_crops == "nine"
    bottom, right = images.shape[1] - crop, images.shape[2] - crop
    if nine:
        corners = [(y, x) for y in (0, bottom // 2, bottom) for x in (0, right // 2, right)]
    else:
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]

    def at_corners(pixels: jax.Array) -> jax.Array:
        return jnp.stack([pixels[..., y : y + crop, x : x + crop, :] for y, x in corners])

    def reflected_too(crops: jax.Array) -> jax.Array:
        if nine or not augment.flip:
            return crops
        return jnp.concatenate([crops, crops[..., ::-1, :]])

    if augment.mean_crop == "centre":
        crops = reflected_too(at_corners(images)).astype(jnp.float32)
        return crops - _centre(mean_image, crop)
    return reflected_too(at_corners(images.astype(jnp.float32) - mean_image))


def _centre(pixels: jax.Array, crop: int) -> jax.Array:
    y, x = (pixels.shape[-3] - crop) // 2, (pixels.shape[-2] - crop) // 2
    return pixels[..., y : y + crop, x : x + crop, :]
