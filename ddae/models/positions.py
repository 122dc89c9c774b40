"""Position embeddings."""

import numpy as np
from jaxtyping import Float

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
