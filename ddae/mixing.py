"""Mixup, cutmix and random erasing of a standardised batch, on the device.

One random key an example for what is done to one image, one a batch for what mixes two;
shapes are static, so all of it runs inside the jitted step on a sharded batch.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """How images and labels of a batch are mixed; the defaults are MAE's fine-tuning.

    mixup, cutmix: a batch's lambda is drawn from Beta(a, a) with this a; 0 is never.
    probability: that a batch is mixed. switch: that cutmix is taken where both are on.
    smoothing: of the labels. erasing: probability that an image loses a rectangle.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1
    erasing: float = 0.25

    def __post_init__(self):
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("probability", "switch", "smoothing", "erasing"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)} is not in [0, 1]")


def mix(
    images: Float[Array, "b h w c"],
    labels: Int[Array, " b"],
    num_classes: int,
    mixing: Mixing,
    key: Key[Array, ""],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """(mixed images, float32 targets that sum to 1).

    The partner of an image is the one at its place in the reversed batch. Mixup (Zhang
    et al. 2018): lambda x + (1 - lambda) partner. Cutmix (Yun et al. 2019): a box of
    area 1 - lambda comes from the partner; the targets go by what the image keeps.
    """
    _, h, w, _ = images.shape
    on = 1.0 - mixing.smoothing
    targets = on * jax.nn.one_hot(labels, num_classes) + mixing.smoothing / num_classes
    if not (mixing.mixup or mixing.cutmix) or mixing.probability == 0:
        return images, targets
    key_any, key_which, key_mixup, key_cutmix, key_box = jax.random.split(key, 5)
    taken = jax.random.bernoulli(key_any, mixing.probability)
    only = 1.0 if mixing.cutmix else 0.0
    switch = mixing.switch if mixing.mixup and mixing.cutmix else only
    cuts = jax.random.bernoulli(key_which, switch)
    from_image = jnp.where(cuts, 0.0, 1.0) * _beta(key_mixup, mixing.mixup)
    box = _box(key_box, (h, w), 1.0 - _beta(key_cutmix, mixing.cutmix))
    # The share of each pixel that the image itself keeps.
    share = jnp.where(cuts, 1.0 - box, from_image)
    share = jnp.where(taken, share, 1.0)
    kept = share.mean()
    share = share[None, :, :, None].astype(images.dtype)
    return (
        share * images + (1 - share) * images[::-1],
        kept * targets + (1 - kept) * targets[::-1],
    )


def erase(
    images: Float[Array, "b h w c"], keys: Key[Array, " b"], probability: float
) -> Float[Array, "b h w c"]:
    """With `probability`, a rectangle of each image becomes noise, N(0, 1) each value.

    Random erasing (Zhong et al. 2020; the numbers are timm's): an area share U(.02,
    1/3), an aspect log-uniform between .3 and 1/.3; a side that is longer than the
    image is cut to it, where timm draws anew.
    """
    _, h, w, _ = images.shape

    def one(image: Float[Array, "h w c"], key: Key[Array, ""]):
        key_any, key_area, key_aspect, key_place, key_noise = jax.random.split(key, 5)
        low, high = ERASED_AREA
        area = h * w * jax.random.uniform(key_area, (), minval=low, maxval=high)
        low, high = np.log(ERASED_ASPECT)
        ratio = jnp.exp(jax.random.uniform(key_aspect, (), minval=low, maxval=high))
        height = jnp.clip(jnp.round(jnp.sqrt(area * ratio)), 1, h)
        width = jnp.clip(jnp.round(jnp.sqrt(area / ratio)), 1, w)
        place = jax.random.uniform(key_place, (2,))
        # Each place that the rectangle fits is as likely.
        top = jnp.floor(place[0] * (h - height + 1))
        left = jnp.floor(place[1] * (w - width + 1))
        inside = _inside((h, w), top, left, height, width)
        inside &= jax.random.bernoulli(key_any, probability)
        noise = jax.random.normal(key_noise, image.shape, image.dtype)
        return jnp.where(inside[..., None], noise, image)

    return jax.vmap(one)(images, keys)


def _beta(key: Key[Array, ""], a: float) -> Float[Array, ""]:
    return jax.random.beta(key, a, a) if a else jnp.ones(())


def _box(
    key: Key[Array, ""], size: tuple[int, int], area: Float[Array, ""]
) -> Float[Array, "h w"]:
    """1 in a box of sides sqrt(area) about a uniform centre, clipped to the image."""
    h, w = size
    height, width = jnp.round(jnp.sqrt(area) * h), jnp.round(jnp.sqrt(area) * w)
    y, x = jnp.floor(jax.random.uniform(key, (2,)) * jnp.array([h, w]))
    top, left = y - jnp.floor(height / 2), x - jnp.floor(width / 2)
    return _inside(size, top, left, height, width).astype(jnp.float32)


def _inside(
    size: tuple[int, int],
    top: Float[Array, ""],
    left: Float[Array, ""],
    height: Float[Array, ""],
    width: Float[Array, ""],
) -> Bool[Array, "h w"]:
    rows, columns = jnp.arange(size[0])[:, None], jnp.arange(size[1])
    within = (rows >= top) & (rows < top + height)
    return within & (columns >= left) & (columns < left + width)
