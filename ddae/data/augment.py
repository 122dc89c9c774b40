"""Augmentation settings, and the operations on arrays in memory."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Int, Shaped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """How a training image is cut and flipped.

    crop: "random_resized" (area share U(scale), aspect 3/4 to 4/3, bicubic), "shift"
    (by up to `pad` pixels each way, zeros come in), or "none". flip: left to right,
    with probability one half.
    """

    crop: Literal["random_resized", "shift", "none"] = "none"
    scale: tuple[float, float] = (0.2, 1.0)
    pad: int = 0
    flip: bool = False

    def __post_init__(self):
        if self.crop not in ("random_resized", "shift", "none"):
            raise ValueError(f"crop {self.crop!r} is not random_resized, shift or none")


def shift_and_flip(
    images: Shaped[np.ndarray, "b h w c"],
    positions: Int[np.ndarray, " b"],
    seed: int,
    augment: Augment,
) -> Shaped[np.ndarray, "b h w c"]:
    """`augment` ("shift" or "none"), seeded by (seed, global position of the image)."""
    if augment.crop == "none" and not augment.flip:
        return images
    pad = augment.pad if augment.crop == "shift" else 0
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    h, w = images.shape[1:3]
    out = np.empty_like(images)
    for row, position in enumerate(positions):
        random = np.random.Generator(np.random.Philox(key=[seed, position]))
        top, left = random.integers(0, 2 * pad + 1, size=2)
        image = padded[row, top : top + h, left : left + w]
        flipped = augment.flip and random.random() < 0.5
        out[row] = image[:, ::-1] if flipped else image
    return out
