"""Exact sums over images, from which the mean image and the colour statistics follow."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class PixelSums:
    """Integer sums over uint8 images, from which mean and covariance follow exactly.

    With integers, one pass has no cancellation, and parts added in any order give the same bits.
    int64 is enough for 2e9 images of 256 x 256.

    Attributes:
      pixels: uint64 (S, S, 3), sum over images.
      products: int64 (3, 3), sum of the outer products of the RGB of all pixels.
      count: number of images.
    """

    pixels: np.ndarray
    products: np.ndarray
    count: int = 0

    @classmethod
    def zeros(cls, size: int) -> "PixelSums":
        """Return the sums over no images, of size x size."""
        return cls(np.zeros((size, size, 3), np.uint64), np.zeros((3, 3), np.int64))

    def add(self, image: np.ndarray) -> None:
        """Add one image, uint8 (S, S, 3)."""
        self.pixels += image
        planes = np.ascontiguousarray(image.reshape(-1, 3).T)
        for i in range(3):
            for j in range(i, 3):
                # A product of two bytes fits 16 bits. This takes half the time of a matrix product
                # in float64, and starts no BLAS threads beside the processes that prepare.
                product = np.multiply(planes[i], planes[j], dtype=np.uint16)
                self.products[i, j] += product.sum(dtype=np.int64)
                self.products[j, i] = self.products[i, j]
        self.count += 1

    def merge(self, other: "PixelSums") -> None:
        """Add all images of `other`."""
        self.pixels += other.pixels
        self.products += other.products
        self.count += other.count

    def mean_image(self) -> np.ndarray:
        """Return the mean over images, float32 (S, S, 3)."""
        return (self.pixels / self.count).astype(np.float32)

    def covariance(self) -> np.ndarray:
        """Return the population covariance of RGB over all pixels, float64 (3, 3), 0..255 scale."""
        number = self.count * self.pixels[..., 0].size
        sums = self.pixels.sum((0, 1)).astype(object)  # Python integers: no overflow below
        scatter = number * self.products.astype(object) - np.outer(sums, sums)
        return (scatter / number**2).astype(np.float64)

    def principal_axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return eigenvalues (3,), ascending, and eigenvectors (3, 3), columns, of the covariance.

        The largest component of each vector is positive, because LAPACK may return either sign.
        """
        values, vectors = np.linalg.eigh(self.covariance())
        largest = np.abs(vectors).argmax(axis=0)
        return np.maximum(values, 0.0), vectors * np.sign(vectors[largest, range(3)])
