"""Images as sequences of patches and back, and the statistics of a patch."""

import jax.numpy as jnp
from jaxtyping import Array, Float

Grid = tuple[int, int]
"""Patches down and across, (h, w); n = h * w, numbered row by row."""

PATCH_EPSILON = 1e-6


def patchify(
    images: Float[Array, "b height width c"], patch_size: int
) -> Float[Array, "b n k"]:
    """Cuts images into non-overlapping square patches, row by row.

    Inside a patch the order is (row, column, channel), as in MAE, so that
    k = patch_size * patch_size * c. Raises `ValueError` where the patch size does not
    divide the image.
    """
    b, height, width, c = images.shape
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"patch_size={patch_size} does not divide the image ({height}, {width})"
        )
    h, w = height // patch_size, width // patch_size
    x = images.reshape(b, h, patch_size, w, patch_size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * w, patch_size**2 * c)


def unpatchify(
    patches: Float[Array, "b n k"], grid: Grid, patch_size: int
) -> Float[Array, "b height width c"]:
    """The inverse of `patchify` for a grid of (h, w) patches."""
    h, w = grid
    b, _, k = patches.shape
    c = k // patch_size**2
    x = patches.reshape(b, h, w, patch_size, patch_size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * patch_size, w * patch_size, c)


def patch_statistics(
    patches: Float[Array, "b n k"],
) -> tuple[Float[Array, "b n 1"], Float[Array, "b n 1"]]:
    """Mean and standard deviation of each patch; the variance is the unbiased one.

    The deviation is sqrt(variance + 1e-6), the divisor of MAE's pixel target.
    """
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + PATCH_EPSILON)


def standardise_patches(patches: Float[Array, "b n k"]) -> Float[Array, "b n k"]:
    """Each patch less its mean over its unbiased deviation (MAE's pixel target)."""
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation
