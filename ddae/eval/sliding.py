"""Class scores of images larger than a network's input: windows, averaged.

Windows begin every `stride` pixels; the last of a row or column ends with the image.
An image smaller than the window is padded below and to the right. Where windows
overlap, the mean of their scores counts (mmsegmentation's slide inference).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from ddae.models.segmenter import resize

Pair = tuple[int, int]
"""(down, across)."""


def window_grid(size: Pair, crop: Pair, stride: Pair) -> Pair:
    """How many windows cover an image of `size`, down and across."""
    down, across = (
        1 + max(0, -(-(have - side) // step))
        for have, side, step in zip(size, crop, stride, strict=True)
    )
    return down, across


def windows(
    image: UInt8[np.ndarray, "h w c"],
    crop: Pair,
    stride: Pair,
    fill: UInt8[np.ndarray, " c"],
) -> UInt8[np.ndarray, "n ch cw c"]:
    """All windows, row by row; `fill` stands where the image does not reach."""
    size = (image.shape[0], image.shape[1])
    down, across = window_grid(size, crop, stride)
    found = np.empty((down * across, *crop, image.shape[2]), np.uint8)
    found[:] = fill
    for number in range(down * across):
        top, left = (
            max(0, min(at * step, have - side))
            for at, step, have, side in zip(
                divmod(number, across), stride, size, crop, strict=True
            )
        )
        part = image[top : top + crop[0], left : left + crop[1]]
        found[number, : part.shape[0], : part.shape[1]] = part
    return found


def averaged(
    scores: Float[Array, "n a b k"],
    size: Int[Array, "2"],
    *,
    crop: Pair,
    stride: Pair,
    grid: Pair,
) -> Float[Array, "height width k"]:
    """Mean scores of each pixel of an image of `size`, from those of its windows.

    scores: of the windows of one image, at any resolution; resized to `crop`. The
    result is as large as the largest image with such a `grid`; what lies outside `size`
    means nothing.
    """
    k = scores.shape[-1]
    canvas = [c + (n - 1) * s for c, n, s in zip(crop, grid, stride, strict=True)]
    total = jnp.zeros((*canvas, k + 1), jnp.float32)
    one = jnp.ones((*crop, 1), jnp.float32)
    room = jnp.maximum(size - jnp.asarray(crop), 0)

    def add(total: Array, window: tuple[Array, Array]) -> tuple[Array, None]:
        small, number = window
        place = jnp.stack([number // grid[1], number % grid[1]])
        top, left = jnp.minimum(place * jnp.asarray(stride), room)
        own = resize(small[None].astype(jnp.float32), crop)[0]
        own = jnp.concatenate([own, one], axis=-1)
        old = jax.lax.dynamic_slice(total, (top, left, 0), own.shape)
        return jax.lax.dynamic_update_slice(total, old + own, (top, left, 0)), None

    numbers = jnp.arange(grid[0] * grid[1])
    total, _ = jax.lax.scan(add, total, (scores, numbers))
    return total[..., :k] / jnp.maximum(total[..., k:], 1.0)


def resized_part(
    x: Float[Array, "height width k"],
    size: Int[Array, "2"],
    shape: Int[Array, "2"],
    canvas: Pair,
) -> Float[Array, "ch cw k"]:
    """The part of `x` that is `size` large as `shape`, bilinear, in the corner of a
    `canvas`; both sizes may be traced."""
    for axis in (0, 1):
        have, want = size[axis], shape[axis]
        at = (jnp.arange(canvas[axis]) + 0.5) * (have / want) - 0.5
        at = jnp.clip(at, 0.0, have - 1.0)
        low = jnp.floor(at).astype(jnp.int32)
        high = jnp.minimum(low + 1, have - 1)
        share = jnp.expand_dims(at - low, (1 - axis, 2))
        one, other = jnp.take(x, low, axis), jnp.take(x, high, axis)
        x = one + (other - one) * share
    return x


def confusion_of(
    predicted: Int[Array, "h w"], labels: Int[Array, "h w"], num_classes: int
) -> Int[Array, "k k"]:
    """Pixels of each true class (rows) by predicted class (columns); labels < 0 are
    left out."""
    cells = num_classes * num_classes
    cell = jnp.where(labels >= 0, labels * num_classes + predicted, cells)
    counts = jnp.bincount(cell.reshape(-1), length=cells + 1)[:cells]
    return counts.reshape(num_classes, num_classes).astype(jnp.int32)


Stitch = Callable[..., tuple[Int[Array, "k k"], Int[Array, "rows ch cw"]]]


def make_stitch(
    mesh: Mesh, *, crop: Pair, stride: Pair, grid: Pair, canvas: Pair
) -> Stitch:
    """(scores of each window [rows, a, b, k] ..., sizes, shapes, labels) -> (confusion
    matrix of all rows, predictions of each).

    sizes: [rows, 2] of the images that were cut into windows; shapes: [rows, 2] of
    their labels, to which scores are resized before the highest is taken. labels: int32
    [rows, *canvas], negative where there is none. Each device works on its own rows.
    """

    def of_row(
        row: tuple[Array, Array, Array, Array],
    ) -> tuple[Int[Array, "k k"], Int[Array, "ch cw"]]:
        scores, size, shape, labels = row
        mean = averaged(scores, size, crop=crop, stride=stride, grid=grid)
        full = resized_part(mean, size, shape, canvas)
        predicted = full.argmax(axis=-1).astype(jnp.int32)
        return confusion_of(predicted, labels, scores.shape[-1]), predicted

    def of_device(
        scores: tuple[Array, ...], sizes: Array, shapes: Array, labels: Array
    ) -> tuple[Int[Array, "k k"], Int[Array, "rows ch cw"]]:
        rows = (jnp.stack(scores, axis=1), sizes, shapes, labels)
        # Row after row: the scores of one image at full size may be a gigabyte.
        confusions, predicted = jax.lax.map(of_row, rows)
        total = jax.lax.psum(confusions.sum(axis=0), mesh.axis_names)
        return total, jax.lax.all_gather(predicted, mesh.axis_names, tiled=True)

    whole, parts = PartitionSpec(), PartitionSpec(mesh.axis_names)
    return jax.jit(
        jax.shard_map(
            of_device,
            mesh=mesh,
            in_specs=(parts, parts, parts, parts),
            out_specs=(whole, whole),
            check_vma=False,  # psum and all_gather make them equal
        )
    )
