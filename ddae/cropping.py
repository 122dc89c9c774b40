"""Random-resized crops and flips of images in memory, on the device.

The host cuts some ten thousand small images a second; a small network on a fast
accelerator asks for ten times that. One random key an example, static shapes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

ASPECT = (3 / 4, 4 / 3)
"""Width over height of a random-resized crop, of that of the image it becomes: so far
it is stretched."""

ATTEMPTS = 10
"""Windows drawn before the whole image is taken, as torchvision does."""


def crop_and_flip(
    images: Shaped[Array, "b h w c"],
    keys: Key[Array, " b"],
    scale: tuple[float, float] | None = None,
    pad: int = 0,
    flip: bool = False,
) -> Shaped[Array, "b h w c"]:
    """Images cut, and flipped left to right with probability one half; uint8 or
    float32 as given.

    scale: windows of area share U(scale), stretched by 3/4 to 4/3, at the images' own
    size; None cuts none. pad: shifts by up to so many pixels each way, zeros come in.
    """

    def one(image: Shaped[Array, "h w c"], key: Key[Array, ""]):
        key_window, key_flip = jax.random.split(key)
        if scale is not None:
            image = resized_window(image, random_window(image.shape, key_window, scale))
        if pad:
            corner = jax.random.randint(key_window, (2,), 0, 2 * pad + 1)
            padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            image = jax.lax.dynamic_slice(padded, (*corner, 0), image.shape)
        if flip:
            flips = jax.random.bernoulli(key_flip)
            image = jnp.where(flips, image[:, ::-1], image)
        return image

    return jax.vmap(one)(images, keys)


def random_window(
    shape: tuple[int, ...], key: Key[Array, ""], scale: tuple[float, float]
) -> Float[Array, "4"]:
    """(top, left, height, width) in pixels of an image (h, w, ...), not rounded."""
    h, w = shape[:2]
    key_area, key_aspect, key_place = jax.random.split(key, 3)
    share = jax.random.uniform(key_area, (ATTEMPTS,), minval=scale[0], maxval=scale[1])
    low, high = np.log(ASPECT)
    aspect = jnp.exp(
        jax.random.uniform(key_aspect, (ATTEMPTS,), minval=low, maxval=high)
    )
    aspect = w / h * aspect
    size = jnp.sqrt(h * w * share)[:, None] * jnp.stack(
        [1 / jnp.sqrt(aspect), jnp.sqrt(aspect)], axis=-1
    )
    whole = jnp.array([h, w], jnp.float32)
    fits = jnp.all(size <= whole, axis=-1)
    chosen = jnp.where(fits.any(), size[jnp.argmax(fits)], whole)
    corner = jax.random.uniform(key_place, (2,)) * (whole - chosen)
    return jnp.concatenate([corner, chosen])


def resized_window(
    image: Shaped[Array, "h w c"], window: Float[Array, "4"]
) -> Shaped[Array, "h w c"]:
    """The window at the image's size: bicubic with antialias, as Pillow resizes a box.

    window: (top, left, height, width).
    """
    corner, size = window[:2], window[2:]
    factor = jnp.array(image.shape[:2], jnp.float32) / size
    found = jax.image.scale_and_translate(
        image.astype(jnp.float32),
        image.shape,
        (0, 1),
        factor,
        -corner * factor,
        method="cubic",
        antialias=True,
    )
    if image.dtype == jnp.uint8:
        return jnp.clip(jnp.round(found), 0, 255).astype(jnp.uint8)
    return jnp.clip(found, 0.0, 1.0).astype(image.dtype)
