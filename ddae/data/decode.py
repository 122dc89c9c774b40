"""Bytes to pixels in tf.data graphs.

Whether a record can be decoded hardly depends on how it is cut (see `decode_window`).
Images are uint8 [h, w, c] tensors, c in {1, 3}. Orientation tags (EXIF) are ignored.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

Kernel = Literal["bilinear", "bicubic", "bicubic_antialias"]
"""How images are resized. Only the last averages like Pillow, and so MAE's recipe, when
an image shrinks; it takes about twice the time. `decode_window` averages before the
others where an image shrinks more than twofold."""


@functools.cache
def tensorflow() -> Any:
    """TensorFlow, imported when first needed and kept off the accelerator."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return tf


def decode(data: Any, channels: int) -> Any:
    """The whole image: JPEG, PNG, GIF (first frame), BMP or WEBP, by its own bytes.

    16-bit PNG is scaled to 8 bits, CMYK turned to RGB, but not to grey; transparency is
    left out, as by Pillow's convert("RGB"), but black in a GIF. Anything else, a
    truncated file or a BMP of numbered colours included, is an InvalidArgumentError.
    """
    tf = tensorflow()

    def read(channels: int) -> Any:
        return tf.io.decode_image(data, channels, expand_animations=False)

    def of_rgb(image: Any) -> Any:
        return tf.image.rgb_to_grayscale(image) if channels == 1 else image

    def bmp() -> Any:
        with tf.control_dependencies([_colours_are_their_own(data)]):
            return of_rgb(read(3))

    def webp() -> Any:  # asked for 3 channels, it refuses those that have 4
        return of_rgb(tf.ensure_shape(read(0)[..., :3], (None, None, 3)))

    def other() -> Any:
        if channels != 1:
            return read(channels)
        grey = tf.reduce_any(tf.strings.substr(data, 0, 2) == [b"\xff\xd8", b"\x89P"])
        return tf.cond(grey, lambda: read(1), lambda: of_rgb(read(3)))

    def bmp_or_other() -> Any:
        return tf.cond(tf.strings.substr(data, 0, 2) == b"BM", bmp, other)

    image = tf.cond(
        tf.strings.regex_full_match(
            tf.strings.substr(data, 0, 12), r"(?s)RIFF\C{4}WEBP"
        ),
        webp,
        bmp_or_other,
    )
    image.set_shape((None, None, channels))
    return image


GREYS = np.arange(256, dtype=np.uint8)[:, None]
"""Of a BMP's table: blue, green and red of each number; a fourth byte means nothing."""


def _colours_are_their_own(data: Any) -> Any:
    """Asserts that a BMP's pixels are colours, or numbers of greys that are as bright:
    TensorFlow takes the numbers of others for their colours."""
    tf = tensorflow()
    start = 14 + tf.io.decode_raw(tf.strings.substr(data, 14, 4), tf.int32)[0]
    bits = tf.io.decode_raw(tf.strings.substr(data, 28, 2), tf.uint16)[0]

    def greys() -> Any:
        size = 4 * len(GREYS)
        table = tf.strings.substr(data, start, size) + bytes(size)  # it may be short
        rows = tf.reshape(tf.io.decode_raw(table, tf.uint8)[:size], (-1, 4))
        return tf.reduce_all(rows[:, :3] == GREYS)

    fine = tf.cond(tf.cast(bits, tf.int32) > 8, lambda: tf.constant(True), greys)
    return tf.debugging.assert_equal(
        fine, True, "BMP of numbered colours; save it as PNG"
    )


def decode_window(
    data: Any, channels: int, size: tuple[int, int], choose: Callable[[Any], Any]
) -> Any:
    """The window [top, left, height, width] that `choose` takes of a shape (h, w, _).

    A window of twice `size` or more is shrunk on the way: a JPEG is decoded at a half,
    quarter or eighth of its resolution where that still covers `size`.

    A JPEG is decoded and cut in one operation, which never looks at the rows below the
    window, so a truncated file would pass or fail by where it is cut: one that does not
    end as JPEGs do goes the long way, like other formats. The verdict is `decode`'s,
    but for damage in the middle, which a window above it does not meet.
    """
    tf = tensorflow()
    starts = tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"
    ends = tf.strings.substr(data, -2, 2) == b"\xff\xd9"

    def jpeg() -> Any:
        window = choose(tf.io.extract_jpeg_shape(data))
        shrink = tf.reduce_min(window[2:] // size)
        at = [
            functools.partial(_jpeg_window, data, channels, window, ratio)
            for ratio in (1, 2, 4, 8)
        ]
        number = tf.reduce_sum(tf.cast(shrink >= [2, 4, 8], tf.int32))
        return tf.switch_case(number, at)

    def other() -> Any:
        image = decode(data, channels)
        top, left, height, width = tf.unstack(choose(tf.shape(image)))
        image = image[top : top + height, left : left + width]
        twofold = tf.reduce_min(tf.stack([height, width]) // size) >= 2
        return tf.cond(
            twofold, lambda: resize(image, size, "bicubic_antialias"), lambda: image
        )

    image = tf.cond(starts & ends, jpeg, other)
    image.set_shape((None, None, channels))
    return image


def _jpeg_window(data: Any, channels: int, window: Any, ratio: int) -> Any:
    return tensorflow().io.decode_and_crop_jpeg(
        data, window // ratio, channels, ratio=ratio
    )


def resize(image: Any, size: Any, kernel: Kernel) -> Any:
    """`image` at (height, width), rounded to uint8."""
    tf = tensorflow()
    method, _, antialias = kernel.partition("_")
    image = tf.image.resize(image, size, method=method, antialias=bool(antialias))
    return _rounded(image, overshoots=method == "bicubic")


def _rounded(image: Any, overshoots: bool) -> Any:
    tf = tensorflow()
    image += 0.5
    if overshoots:  # tf.clip_by_value would take two passes
        image = tf.raw_ops.ClipByValue(
            t=image, clip_value_min=0.0, clip_value_max=255.5
        )
    return tf.cast(image, tf.uint8)


THIN = 4
"""A covering image that is more than so many times as long as it has to be is not made
as a whole: that of 1 x 9000 pixels would take gigabytes."""


def centre(image: Any, size: tuple[int, int], share: float) -> Any:
    """Resized to cover size / share, then the central window of `size`.

    share: the side of the window over that of the covering image; MAE and timm evaluate
    at 224 / 256 = .875.
    """
    tf = tensorflow()
    height, width = size
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    cover = [round(height / share), round(width / share)]
    scale = tf.reduce_max(tf.constant(cover, tf.float32) / shape)
    covering = tf.maximum(tf.cast(tf.round(shape * scale), tf.int32), cover)
    corner = (covering - [height, width]) // 2

    def of_whole() -> Any:
        whole = resize(image, covering, "bicubic_antialias")
        top, left = tf.unstack(corner)
        return whole[top : top + height, left : left + width]

    def alone() -> Any:  # what tf.image.resize does, of these pixels only
        window = tf.raw_ops.ScaleAndTranslate(
            images=tf.cast(image[None], tf.float32),
            size=(height, width),
            scale=tf.cast(covering, tf.float32) / shape,
            translation=-tf.cast(corner, tf.float32),
            kernel_type="keyscubic",
            antialias=True,
        )
        return _rounded(window[0], overshoots=True)

    channels = image.shape[2]
    image = tf.cond(
        tf.reduce_any(covering > THIN * tf.constant(cover)), alone, of_whole
    )
    return tf.ensure_shape(image, (height, width, channels))
