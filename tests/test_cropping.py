"""Crops on the device, against Pillow and against what they are said to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddae.cropping import ASPECT, crop_and_flip, random_window, resized_window


def test_a_window_is_resized_as_pillow_resizes_a_box():
    random = np.random.default_rng(0)
    image = random.random((40, 24, 1), np.float32).astype(np.float32)
    resize = jax.jit(resized_window)
    for _ in range(20):
        height, width = random.uniform(8, 40), random.uniform(5, 24)
        top, left = random.uniform(0, 40 - height), random.uniform(0, 24 - width)
        window = jnp.array([top, left, height, width], jnp.float32)
        box = (left, top, left + width, top + height)
        theirs = Image.fromarray(image[..., 0]).resize(
            (24, 40), Image.Resampling.BICUBIC, box
        )
        np.testing.assert_allclose(
            resize(image, window)[..., 0], np.clip(theirs, 0, 1), atol=1e-4
        )


def test_windows_have_the_area_and_the_stretch_that_were_asked_for():
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(jax.vmap(lambda key: random_window((32, 48, 3), key, (0.2, 0.6))))
    top, left, height, width = np.asarray(draw(keys)).T
    share = height * width / (32 * 48)
    assert 0.2 <= share.min() < 0.21 and 0.59 < share.max() <= 0.6001
    np.testing.assert_allclose(share.mean(), 0.4, atol=0.01)
    aspect = (width / 48) / (height / 32)
    assert ASPECT[0] - 1e-4 <= aspect.min() and aspect.max() <= ASPECT[1] + 1e-4
    np.testing.assert_allclose(np.log(aspect).mean(), 0.0, atol=0.02)
    assert min(top.min(), left.min()) >= 0
    assert (top + height).max() <= 32.001 and (left + width).max() <= 48.001


def test_an_image_too_small_for_any_window_is_taken_whole():
    key = jax.random.key(0)
    window = random_window((8, 64, 1), key, (1.0, 1.0))
    np.testing.assert_array_equal(window, [0, 0, 8, 64])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_nothing_asked_for_changes_nothing(dtype):
    images = np.random.default_rng(0).integers(0, 2, (4, 8, 8, 3)).astype(dtype)
    keys = jax.random.split(jax.random.key(0), 4)
    np.testing.assert_array_equal(crop_and_flip(images, keys), images)
    whole = crop_and_flip(images, keys, scale=(1.0, 1.0))
    assert whole.dtype == dtype


def test_flips_and_shifts_by_each_images_own_key():
    images = np.zeros((200, 9, 9, 1), np.uint8)
    images[:, 4, 2] = 255
    keys = jax.random.split(jax.random.key(1), 200)
    flipped = np.asarray(crop_and_flip(images, keys, flip=True))
    places = set(map(tuple, np.argwhere(flipped)[:, 1:3]))
    assert places == {(4, 2), (4, 6)}
    assert 70 < (flipped[:, 4, 6] == 255).sum() < 130
    shifted = np.asarray(crop_and_flip(images, keys, pad=1))
    places = set(map(tuple, np.argwhere(shifted)[:, 1:3]))
    assert places == {(y, x) for y in (3, 4, 5) for x in (1, 2, 3)}
    half = crop_and_flip(images[:100], keys[:100], pad=1)
    np.testing.assert_array_equal(half, shifted[:100])


def test_ten_windows_are_drawn_before_the_whole_image_is_taken():
    """One fits where it is stretched by no more than its share allows: 18 in 100."""
    keys = jax.random.split(jax.random.key(0), 3000)
    draw = jax.jit(jax.vmap(lambda key: random_window((16, 64, 1), key, (0.95, 0.95))))
    windows = np.asarray(draw(keys))
    assert (windows[:, 2:] <= [16, 64]).all() and (windows >= 0).all()
    whole = windows[:, 3] == 64
    fits = 2 * np.log(1 / 0.95) / np.log(16 / 9)
    # Binomial deviation is .006; four of them.
    np.testing.assert_allclose(whole.mean(), (1 - fits) ** 10, atol=0.025)


def test_what_is_drawn_of_a_window_says_nothing_of_the_rest():
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.jit(jax.vmap(lambda key: random_window((32, 48, 3), key, (0.2, 0.4))))
    top, left, height, width = np.asarray(draw(keys), np.float64).T
    down, across = top / (32 - height), left / (48 - width)
    for share in (down, across):
        np.testing.assert_allclose([share.min(), share.max()], [0, 1], atol=0.01)
    drawn = [down, across, height * width, np.log(width / height)]
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.1


def test_a_window_of_whole_levels_is_rounded_and_clipped_as_pillows():
    random = np.random.default_rng(0)
    image = (random.random((1, 16, 16, 1)) < 0.5).astype(np.uint8) * 255
    keys = jax.random.split(jax.random.key(0), 1)
    found = np.asarray(crop_and_flip(image, keys, scale=(0.3, 0.5)))[0, ..., 0]
    floats = crop_and_flip(image / np.float32(255), keys, scale=(0.3, 0.5))
    expected = 255 * np.asarray(floats)[0, ..., 0]
    assert np.abs(found - expected).max() <= 0.501
    assert (found == 0).any() and (found == 255).any()
