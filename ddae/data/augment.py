"""How training images are cut, flipped and coloured: settings, and the two paths.

`of_bytes` works on encoded images in tf.data graphs, `of_arrays` on arrays in memory
with no TensorFlow. Both are functions of (seed, global position of the example).
"""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Shaped
from PIL import Image

from ddae.cropping import ASPECT, ATTEMPTS
from ddae.data.decode import (
    Kernel,
    centre,
    decode,
    decode_window,
    resize,
    tensorflow,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """How a training image is augmented, in the order of the fields.

    crop: "random_resized" (area share U(scale), stretched by 3/4 to 4/3), "shift" (by
    up to `pad` pixels each way, zeros come in), or "none" (a centred window). resize:
    the kernel of random-resized crops. flip: left to right, with probability one half.
    rand_augment: how many operations of RandAugment; 0 is none. magnitude (0 to 10) and
    magnitude_std: their strength. color_jitter: the range of brightness, contrast and
    saturation about 1. on_device: images in memory are cropped and flipped in the step.
    """

    crop: Literal["random_resized", "shift", "none"] = "none"
    scale: tuple[float, float] = (0.2, 1.0)
    resize: Kernel = "bicubic"
    pad: int = 0
    flip: bool = False
    rand_augment: int = 0
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    color_jitter: float = 0.0
    on_device: bool = False

    def __post_init__(self):
        if not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise ValueError(f"scale={self.scale} is not an increasing pair in (0, 1]")
        for name in ("pad", "rand_augment", "magnitude_std", "color_jitter"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not 0.0 <= self.magnitude <= 10.0:
            raise ValueError(f"magnitude={self.magnitude} is not between 0 and 10")

    @property
    def on_host(self) -> bool:
        """Whether images in memory are cut or flipped before they go to the devices."""
        return not self.on_device and (self.crop != "none" or self.flip)

    @property
    def colours(self) -> bool:
        """Whether the values of pixels change, which wants RGB."""
        return bool(self.rand_augment or self.color_jitter)


def of_bytes(
    data: Any,
    image_shape: tuple[int, int, int],
    augment: Augment,
    seed: int,
    position: Any,
) -> Any:
    """An encoded image (string scalar) as an augmented one, uint8 of `image_shape`."""
    tf = tensorflow()
    height, width, channels = image_shape

    def stream(number: int) -> Any:
        return tf.stack([tf.constant(seed + (number << 32), tf.int64), position])

    if augment.crop == "random_resized":
        image = decode_window(
            data,
            channels,
            (height, width),
            lambda shape: crop_window(shape, image_shape, augment, stream(0)),
        )
        image = resize(image, (height, width), augment.resize)
    else:
        image = centre(decode(data, channels), (height, width), 1.0)
    if augment.crop == "shift":
        pad = augment.pad
        image = tf.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        corner = tf.random.stateless_uniform((2,), stream(0), 0, 2 * pad + 1, tf.int32)
        image = tf.slice(image, tf.concat([corner, [0]], 0), image_shape)
    if augment.flip:
        flipped = tf.random.stateless_uniform((), stream(1)) < 0.5
        image = tf.cond(flipped, lambda: tf.reverse(image, [1]), lambda: image)
    if augment.colours:
        from ddae.data.randaugment import color_jitter, rand_augment

        if augment.rand_augment:
            image = rand_augment(
                image,
                stream(2),
                num_ops=augment.rand_augment,
                magnitude=augment.magnitude,
                magnitude_std=augment.magnitude_std,
            )
        if augment.color_jitter:
            image = color_jitter(image, stream(3), augment.color_jitter)
    return tf.ensure_shape(image, image_shape)


def crop_window(
    shape: Any, image_shape: tuple[int, ...], augment: Augment, seeds: Any
) -> Any:
    """[top, left, height, width] of a random-resized crop of an image of `shape`, which
    becomes one of `image_shape`.

    As `cropping.random_window` draws it, in whole pixels; where none of ten fits, the
    largest window in the middle that is stretched no further, as torchvision's.
    TensorFlow's own, of a distorted bounding box, has uniform sides and not areas:
    smaller crops.
    """
    tf = tensorflow()
    whole = tf.cast(shape[:2], tf.float32)
    draws = tf.random.stateless_uniform((4, ATTEMPTS), seeds)
    low, high = augment.scale
    area = (whole[0] * whole[1]) * (low + (high - low) * draws[0])
    unstretched = image_shape[1] / image_shape[0]
    low, high = np.log(ASPECT).astype(np.float32)
    aspect = unstretched * tf.exp(low + (high - low) * draws[1])
    sizes = tf.round(tf.sqrt(tf.stack([area / aspect, area * aspect], axis=1)))
    fits = tf.reduce_all((sizes >= 1.0) & (sizes <= whole), axis=1)
    first = sizes[tf.argmax(tf.cast(fits, tf.int32))]
    low, high = unstretched * np.array(ASPECT, np.float32)
    sides = [whole[1] / low, whole[0] * high]
    limited = tf.maximum(tf.round(tf.minimum(whole, tf.stack(sides))), 1.0)
    drawn = tf.reduce_any(fits)
    size = tf.where(drawn, first, limited)
    where = tf.where(drawn, draws[2:, 0], 0.5)
    corner = tf.floor(where * (whole - size + 1.0))
    return tf.cast(tf.concat([corner, size], axis=0), tf.int32)


def of_arrays(
    images: Shaped[np.ndarray, "b h w c"],
    positions: Int[np.ndarray, " b"],
    seed: int,
    augment: Augment,
) -> Shaped[np.ndarray, "b h w c"]:
    """`images` augmented, uint8 or float32 as given, of any number of channels.

    Random-resized crops are Pillow's bicubic with antialias, a channel at a time;
    what changes colours is left out. Nothing is done here where the step does it.
    """
    if not augment.on_host:
        return images
    pad = augment.pad if augment.crop == "shift" else 0
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    h, w = images.shape[1:3]
    out = np.empty_like(images)
    for row, position in enumerate(positions):
        random = np.random.Generator(np.random.Philox(key=[seed, position]))
        if augment.crop == "random_resized":
            image = _resized_window(images[row], random, augment)
        else:
            top, left = random.integers(0, 2 * pad + 1, size=2)
            image = padded[row, top : top + h, left : left + w]
        flipped = augment.flip and random.random() < 0.5
        out[row] = image[:, ::-1] if flipped else image
    return out


def _resized_window(
    image: Shaped[np.ndarray, "h w c"], random: np.random.Generator, augment: Augment
) -> Shaped[np.ndarray, "h w c"]:
    h, w, _ = image.shape
    for _ in range(ATTEMPTS):
        area = h * w * random.uniform(*augment.scale)
        aspect = w / h * np.exp(random.uniform(*np.log(ASPECT)))
        height, width = np.sqrt(area / aspect), np.sqrt(area * aspect)
        if height <= h and width <= w:
            break
    else:
        height, width = h, w
    top, left = random.uniform(0, h - height), random.uniform(0, w - width)
    box = (left, top, left + width, top + height)
    if image.dtype == np.uint8 and image.shape[-1] == 3:  # the same, in one call
        whole = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(whole.resize((w, h), Image.Resampling.BICUBIC, box))
    limits = (0, 255) if image.dtype == np.uint8 else (0.0, 1.0)
    channels = [
        np.asarray(
            Image.fromarray(channel).resize((w, h), Image.Resampling.BICUBIC, box)
        )
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.clip(np.stack(channels, axis=-1), *limits)
