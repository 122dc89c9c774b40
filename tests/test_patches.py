import jax.numpy as jnp
import numpy as np
import pytest

from ddae.patches import patch_statistics, patchify, standardise_patches, unpatchify


@pytest.mark.parametrize("grid", [(4, 4), (2, 5), (3, 1)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_round_trip_on_any_grid_and_channel_count(grid, channels):
    images = np.random.default_rng(0).random((2, grid[0] * 4, grid[1] * 4, channels))
    patches = patchify(jnp.asarray(images, jnp.float32), 4)
    assert patches.shape == (2, grid[0] * grid[1], 16 * channels)
    np.testing.assert_array_equal(
        unpatchify(patches, grid, 4), images.astype(np.float32)
    )


def test_a_patch_is_row_column_channel():
    images = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    patches = patchify(jnp.asarray(images), 2)
    # Patch 4 of a (2, 3) grid is row 1, column 1.
    np.testing.assert_array_equal(patches[1, 4], images[1, 2:4, 2:4].reshape(-1))


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (8, 9)])
def test_patch_size_that_does_not_divide_is_an_error(size):
    with pytest.raises(ValueError, match="patch_size=3 does not divide"):
        patchify(jnp.zeros((1, *size, 1)), 3)


@pytest.mark.parametrize("scale", [1.0, 1e-3])  # of the latter half is the epsilon
def test_variance_is_unbiased(scale):
    patches = np.random.default_rng(1).normal(0, scale, (1, 2, 12)).astype(np.float32)
    expected = patches - patches.mean(axis=-1, keepdims=True)
    expected /= np.sqrt(patches.var(axis=-1, keepdims=True, ddof=1) + 1e-6)
    patches = jnp.asarray(patches)
    np.testing.assert_allclose(standardise_patches(patches), expected, rtol=1e-5)
    mean, deviation = patch_statistics(patches)
    restored = standardise_patches(patches) * deviation + mean
    np.testing.assert_allclose(restored, patches, atol=1e-6)
