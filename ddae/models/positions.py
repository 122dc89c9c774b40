"""Position embeddings, and the same on another grid."""

import numpy as np
from jaxtyping import Float, Int

from ddae.patches import Grid


def sincos(width: int, grid: Grid) -> Float[np.ndarray, "n width"]:
    """MAE's fixed 2-D sine-cosine embedding of a grid (h, w), float32.

    The first half of the channels encodes the column (w first), the second half the
    row; each half is sines then cosines at frequencies 10000^-(i / (width / 4)).
    Raises `ValueError` where 4 does not divide the width.
    """
    if width % 4:
        raise ValueError(
            f"sine-cosine positions need a width divisible by 4, not {width}"
        )
    h, w = grid
    frequencies = 10000.0 ** -(np.arange(width // 4, dtype=np.float64) / (width / 4))
    rows, columns = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")

    def encode(coordinate: np.ndarray) -> np.ndarray:
        angles = coordinate.reshape(-1, 1) * frequencies[None, :]
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    return np.concatenate([encode(columns), encode(rows)], axis=1).astype(np.float32)


def relative_index(grid: Grid) -> Int[np.ndarray, "t t"]:
    """Row of BEiT's bias table for each query and key; token 0 is cls.

    Offsets come first, row-major from (1 - h, 1 - w); then cls to patch, patch to cls,
    and cls to itself.
    """
    h, w = grid
    rows, columns = (x.reshape(-1) for x in np.indices(grid))
    down = rows[:, None] - rows[None, :] + h - 1
    right = columns[:, None] - columns[None, :] + w - 1
    entries = (2 * h - 1) * (2 * w - 1)
    index = np.empty((1 + h * w, 1 + h * w), np.int32)
    index[1:, 1:] = down * (2 * w - 1) + right
    index[0, :], index[:, 0], index[0, 0] = entries, entries + 1, entries + 2
    return index


def resize_positions(
    positions: Float[np.ndarray, "n d"], old: Grid, new: Grid
) -> Float[np.ndarray, "m d"]:
    """Patch positions of grid `old` on grid `new`: bicubic, without antialias.

    As PyTorch's interpolate does it (a = -0.75, pixel centres), which MAE and
    transformers use. The same grid gives the same array.
    """
    return _resized(positions, old, new, _cubic)


def resize_relative_bias(
    table: Float[np.ndarray, "entries heads"], old: Grid, new: Grid
) -> Float[np.ndarray, "new_entries heads"]:
    """BEiT's bias table of grid `old` for grid `new`: bilinear over the offsets, as in
    transformers; the three entries of cls stay."""
    offsets, cls = table[:-3], table[-3:]
    spans = [(2 * h - 1, 2 * w - 1) for h, w in (old, new)]
    return np.concatenate([_resized(offsets, spans[0], spans[1], _linear), cls])


def _resized(values: np.ndarray, old: Grid, new: Grid, kernel) -> np.ndarray:
    if old == new:
        return values
    rows, columns = (_weights(a, b, kernel) for a, b in zip(old, new, strict=True))
    on_grid = values.astype(np.float64).reshape(*old, -1)
    resized = np.einsum("yh,xw,hwd->yxd", rows, columns, on_grid)
    return resized.reshape(new[0] * new[1], -1).astype(values.dtype)


def _weights(old: int, new: int, kernel) -> Float[np.ndarray, "new old"]:
    """A matrix that interpolates `old` samples at `new` places; edges are repeated."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for offset in range(-1, 3):
        near = np.floor(centres).astype(int) + offset
        places = np.clip(near, 0, old - 1)
        np.add.at(weights, (np.arange(new), places), kernel(centres - near))
    return weights


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
