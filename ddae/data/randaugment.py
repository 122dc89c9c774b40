"""RandAugment and colour jitter of one image in tf.data graphs, as with Pillow.

Images are uint8 [h, w, 3] in and out, h and w at least 2. Geometry is within one level
of Pillow's, everything else is equal to it. What is random is a function of `seeds`, an
int64 pair.
"""

import functools
import math
from typing import Any

from ddae.data.decode import tensorflow

FILL = (124, 116, 104)
"""What comes in from outside an image: ImageNet's mean colour."""

GREY = (19595.0, 38470.0, 7471.0)
"""Pillow's luma, 65536 times .299, .587 and .114."""


def rand_augment(
    image: Any, seeds: Any, *, num_ops: int, magnitude: float, magnitude_std: float
) -> Any:
    """`image` after `num_ops` operations of OPERATIONS, each left out half the time.

    magnitude (0 to 10) and magnitude_std: as in `draw`. Nine, one half and two
    operations are timm's "rand-m9-n2-mstd0.5-inc1" (Cubuk et al. 2019, arXiv
    1909.13719, with increasing operations), geometry always bilinear.
    """
    tf = tensorflow()
    numbers, levels, signs = draw(seeds, num_ops, magnitude, magnitude_std)
    for i in range(num_ops):
        part = levels[i] / 10.0
        branches = [
            functools.partial(operation, image, part, signs[i] * part)
            for operation in OPERATIONS.values()
        ]
        branches.append(functools.partial(tf.identity, image))
        image = tf.ensure_shape(tf.switch_case(numbers[i], branches), image.shape)
    return image


def draw(
    seeds: Any, num_ops: int, magnitude: float, magnitude_std: float
) -> tuple[Any, Any, Any]:
    """Which operations, how strong, and which way: [num_ops] each.

    numbers: int32 rows of OPERATIONS, with replacement; their count, with probability
    one half, leaves the image alone. levels: N(magnitude, magnitude_std), clipped to
    [0, 10]. signs: -1 or 1.
    """
    tf = tensorflow()
    uniform, normal = tf.unstack(tf.random.split(seeds, 2))
    which, whether, way = tf.unstack(tf.random.stateless_uniform((3, num_ops), uniform))
    count = len(OPERATIONS)
    numbers = tf.where(whether < 0.5, tf.cast(which * count, tf.int32), count)
    levels = tf.random.stateless_normal((num_ops,), normal, magnitude, magnitude_std)
    return numbers, tf.clip_by_value(levels, 0.0, 10.0), tf.where(way < 0.5, -1.0, 1.0)


def color_jitter(image: Any, seeds: Any, strength: float) -> Any:
    """Brightness, contrast and saturation, in this order, times U(1 - s, 1 + s).

    strength: s, at least 0; no factor is drawn below 0. BEiT's draws the order too, and
    comes before the crop.
    """
    tf = tensorflow()
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    factors = tf.random.stateless_uniform((3,), seeds, low, high)
    image = brightness(image, factors[0])
    image = contrast(image, factors[1])
    return color(image, factors[2])


def autocontrast(image: Any) -> Any:
    """Each channel stretched to [0, 255]; one of a single value is left alone."""
    tf = tensorflow()
    low = tf.cast(tf.reduce_min(image, (0, 1)), tf.float64)[:, None]
    high = tf.cast(tf.reduce_max(image, (0, 1)), tf.float64)[:, None]
    values = tf.range(256, dtype=tf.float64)
    scale = 255.0 / tf.maximum(high - low, 1.0)
    # Pillow's order of operations; another rounds differently.
    stretched = values * scale + -low * scale
    return _look_up(image, tf.where(high > low, stretched, values))


def equalize(image: Any) -> Any:
    """Each channel mapped to a flat histogram; one of a single value is left alone."""
    tf = tensorflow()
    channels = tf.cast(image, tf.int32) + [0, 256, 512]
    counts = tf.math.bincount(channels, minlength=768, maxlength=768)
    counts = tf.reshape(counts, (3, 256))
    highest = tf.cast(tf.reduce_max(image, (0, 1)), tf.int32)
    total = tf.reduce_sum(counts, axis=1)
    step = (total - tf.gather(counts, highest, batch_dims=1))[:, None] // 255
    below = tf.cumsum(counts, axis=1, exclusive=True)
    flat = (step // 2 + below) // tf.maximum(step, 1)
    return _look_up(image, tf.where(step > 0, flat, tf.range(256)))


def invert(image: Any) -> Any:
    """The negative."""
    return 255 - image


def posterize(image: Any, bits: Any) -> Any:
    """The highest `bits` of each value, 0 to 8; none is black."""
    tf = tensorflow()
    mask = 256 - tf.bitwise.left_shift(1, 8 - bits)
    return tf.bitwise.bitwise_and(image, tf.cast(mask, tf.uint8))


def solarize(image: Any, threshold: Any) -> Any:
    """Values from `threshold` (0 to 256) on inverted."""
    tf = tensorflow()
    return tf.where(tf.cast(image, tf.int32) < threshold, image, 255 - image)


def solarize_add(image: Any, addend: Any) -> Any:
    """Values below 128 plus `addend` (0 to 128)."""
    tf = tensorflow()
    return tf.where(image < 128, image + tf.cast(addend, tf.uint8), image)


def color(image: Any, factor: Any) -> Any:
    """Saturation times `factor`; 0 is grey."""
    return _blend(_grey(image), image, factor)


def contrast(image: Any, factor: Any) -> Any:
    """Distance from the mean grey times `factor`."""
    tf = tensorflow()
    mean = tf.reduce_mean(tf.cast(_grey(image), tf.float64))
    return _blend(tf.cast(tf.floor(mean + 0.5), tf.float32), image, factor)


def brightness(image: Any, factor: Any) -> Any:
    """Values times `factor`."""
    return _blend(0.0, image, factor)


def sharpness(image: Any, factor: Any) -> Any:
    """Distance from a 3 x 3 smoothed image times `factor`; the border stays as it is.

    The centre of the kernel counts five times.
    """
    tf = tensorflow()
    values = tf.cast(image, tf.float32)
    rows = values[:-2] + values[1:-1] + values[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    centre = values[1:-1, 1:-1]
    change = tf.floor((box + 4.0 * centre) / 13.0 + 0.5) - centre
    return _blend(values + tf.pad(change, ((1, 1), (1, 1), (0, 0))), image, factor)


def affine(image: Any, matrix: Any) -> Any:
    """The pixel at (x, y) taken from (a x + b y + c, d x + e y + f), bilinear.

    matrix: a to f. Coordinates are in pixels, the centre of the first at (.5, .5).
    What lies outside the image is FILL.
    """
    tf = tensorflow()
    a, b, c, d, e, f = tf.unstack(tf.cast(tf.stack(matrix), tf.float32))
    # To integers at the centres of pixels.
    c, f = c + (a + b - 1.0) / 2.0, f + (d + e - 1.0) / 2.0
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=tf.stack([a, b, c, d, e, f, 0.0, 0.0])[None],
        output_shape=tf.shape(image)[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )[0]
    height, width = tf.unstack(_size(image))
    y, x = tf.range(height)[:, None], tf.range(width)
    column, row = a * x + b * y + c, d * x + e * y + f
    inside = (column >= -0.5) & (column < width - 0.5)
    inside &= (row >= -0.5) & (row < height - 0.5)
    return tf.where(inside[..., None], moved, tf.constant(FILL, tf.uint8))


def rotate(image: Any, degrees: Any) -> Any:
    """Turned anticlockwise about the centre."""
    tf = tensorflow()
    angle = degrees * (math.pi / 180.0)
    cos, sin = tf.cos(angle), tf.sin(angle)
    y, x = tf.unstack(_size(image) / 2.0)
    right, down = x - cos * x + sin * y, y - sin * x - cos * y
    return affine(image, (cos, -sin, right, sin, cos, down))


def shear(image: Any, x: Any, y: Any) -> Any:
    """Row i moved left by `x` times i pixels, column j up by `y` times j."""
    return affine(image, (1.0, x, 0.0, y, 1.0, 0.0))


def translate(image: Any, x: Any, y: Any) -> Any:
    """Moved left by `x` of its width and up by `y` of its height."""
    height, width = tensorflow().unstack(_size(image))
    return affine(image, (1.0, 0.0, x * width, 0.0, 1.0, y * height))


def _look_up(image: Any, table: Any) -> Any:
    """`image` through a table [3, 256] of a row a channel, truncated and clipped."""
    tf = tensorflow()
    table = tf.cast(tf.clip_by_value(table, 0, 255), tf.uint8)
    return tf.gather(tf.reshape(table, [-1]), tf.cast(image, tf.int32) + [0, 256, 512])


def _grey(image: Any) -> Any:
    """Whole float32 values [h, w, 1]; exact, for sums stay below 2**24."""
    tf = tensorflow()
    luma = tf.tensordot(tf.cast(image, tf.float32), tf.constant(GREY)[:, None], 1)
    return tf.floor((luma + 32768.0) / 65536.0)


def _blend(degenerate: Any, image: Any, factor: Any) -> Any:
    """From `degenerate` (0) over `image` (1) and beyond; truncated, as Pillow does."""
    tf = tensorflow()
    blended = degenerate + factor * (tf.cast(image, tf.float32) - degenerate)
    return tf.cast(tf.clip_by_value(blended, 0.0, 255.0), tf.uint8)


def _size(image: Any) -> Any:
    """Height and width, float32 [2]."""
    tf = tensorflow()
    return tf.cast(tf.shape(image)[:2], tf.float32)


def _factor(signed: Any) -> Any:
    return tensorflow().maximum(0.1, 1.0 + 0.9 * signed)


def _whole(amount: Any) -> Any:
    tf = tensorflow()
    return tf.cast(amount, tf.int32)


OPERATIONS = {
    "AutoContrast": lambda x, part, signed: autocontrast(x),
    "Equalize": lambda x, part, signed: equalize(x),
    "Invert": lambda x, part, signed: invert(x),
    "Rotate": lambda x, part, signed: rotate(x, 30.0 * signed),
    "PosterizeIncreasing": lambda x, part, signed: posterize(x, 4 - _whole(4 * part)),
    "SolarizeIncreasing": lambda x, part, signed: solarize(x, 256 - _whole(256 * part)),
    "SolarizeAdd": lambda x, part, signed: solarize_add(x, _whole(110 * part)),
    "ColorIncreasing": lambda x, part, signed: color(x, _factor(signed)),
    "ContrastIncreasing": lambda x, part, signed: contrast(x, _factor(signed)),
    "BrightnessIncreasing": lambda x, part, signed: brightness(x, _factor(signed)),
    "SharpnessIncreasing": lambda x, part, signed: sharpness(x, _factor(signed)),
    "ShearX": lambda x, part, signed: shear(x, 0.3 * signed, 0.0),
    "ShearY": lambda x, part, signed: shear(x, 0.0, 0.3 * signed),
    "TranslateXRel": lambda x, part, signed: translate(x, 0.45 * signed, 0.0),
    "TranslateYRel": lambda x, part, signed: translate(x, 0.0, 0.45 * signed),
}
"""What is drawn from: of (image, level / 10, the same or its negative)."""
