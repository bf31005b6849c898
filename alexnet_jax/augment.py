"""Stored pictures to network inputs, on the device: crops, reflections, colour, mean (section 4.1).

Pictures arrive as uint8 (batch, size, size, 3) and leave as float32 (batch, crop, crop, 3), RGB of
0 to 255 less the training set's mean image. What is random depends on the key and on an example's
id alone, so that sharding a batch over devices changes nothing.
"""

import jax
import jax.numpy as jnp


def random_crops(
    key: jax.Array,
    example_ids: jax.Array,
    images: jax.Array,
    mean_image: jax.Array,
    colour: jax.Array,
    *,
    crop: int,
    flip: bool,
    colour_std: float,
) -> jax.Array:
    """Return one random crop of each picture, reflected left to right with probability 1/2.

    Args:
      key: the random key of this step.
      example_ids: (batch,) integers, distinct within the step.
      images: (batch, size, size, 3) uint8.
      mean_image: (size, size, 3) float32; each pixel loses its own mean, so the crop of a picture
        loses the same crop of the mean image.
      colour: (3, 3) float32, `colour_axes` of the training set.
      crop: side of the result, at most `size`.
      flip: whether to reflect.
      colour_std: standard deviation of the three factors alpha, drawn once an image and step.

    Returns:
      (batch, crop, crop, 3) float32.
    """
    offsets = images.shape[1] - crop + 1, images.shape[2] - crop + 1

    def one(example_id: jax.Array, image: jax.Array) -> jax.Array:
        where, mirror, shade = jax.random.split(jax.random.fold_in(key, example_id), 3)
        y, x = jax.random.randint(where, (2,), 0, jnp.array(offsets))
        corner, shape = (y, x, 0), (crop, crop, 3)
        out = jax.lax.dynamic_slice(image, corner, shape).astype(jnp.float32)
        out -= jax.lax.dynamic_slice(mean_image, corner, shape)
        if flip:
            out = jnp.where(jax.random.bernoulli(mirror), out[:, ::-1], out)
        if colour_std:
            out += colour @ (colour_std * jax.random.normal(shade, (3,)))
        return out

    return jax.vmap(one)(example_ids, images)


def colour_axes(eigenvectors: jax.Array, eigenvalues: jax.Array) -> jax.Array:
    """Return the matrix that turns the paper's (alpha1, alpha2, alpha3) into an RGB shift.

    The paper adds [p1, p2, p3] [alpha1 l1, alpha2 l2, alpha3 l3]^T, with p and l the eigenvectors
    and eigenvalues of the covariance of RGB values. That is not homogeneous: the shift grows with
    the square of the unit of the pixels. With pixels of 0 to 1 it is about 6 of 255 grey levels
    on ImageNet, with 0 to 255 it would be 1,500. Here l is taken for pixels of 0 to 1 and the shift
    scaled to 0 to 255.

    Args:
      eigenvectors: (3, 3), one a column.
      eigenvalues: (3,), of the covariance of pixels of 0 to 255.

    Returns:
      (3, 3), the columns p_i l_i / 255.
    """
    return eigenvectors * (eigenvalues / 255.0)


def centre_crop(images: jax.Array, mean_image: jax.Array, *, crop: int) -> jax.Array:
    """Return the centre (batch, crop, crop, 3) of uint8 `images` less `mean_image`, float32."""
    y, x = (images.shape[1] - crop) // 2, (images.shape[2] - crop) // 2
    centred = images.astype(jnp.float32) - mean_image
    return centred[:, y : y + crop, x : x + crop]


def ten_crops(images: jax.Array, mean_image: jax.Array, *, crop: int, flip: bool) -> jax.Array:
    """Return the four corner crops, the centre crop, and the reflections of the five.

    Args:
      images: (batch, size, size, 3) uint8.
      mean_image: (size, size, 3) float32.
      crop: side of the results.
      flip: False leaves the reflections out, for a network that was trained without any.

    Returns:
      (10, batch, crop, crop, 3) float32; (5, ...) without `flip`.
    """
    bottom, right = images.shape[1] - crop, images.shape[2] - crop
    centred = images.astype(jnp.float32) - mean_image
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = jnp.stack([centred[:, y : y + crop, x : x + crop] for y, x in corners])
    return jnp.concatenate([crops, crops[:, :, :, ::-1]]) if flip else crops
