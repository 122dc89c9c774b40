"""An encoder from its settings."""

import dataclasses
import itertools
from typing import Any

import jax.numpy as jnp

from ddae.models.blocks import Remat
from ddae.models.gelu import Gelu
from ddae.models.kernels import Kernel
from ddae.models.vit import VIT_SPECS, Encoder, Positions, RelativeBias, Style
from ddae.settings import UserError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
"""What a network may compute in, as config.dtype has it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """size: a row of VIT_SPECS. channels: of the image. remat: off, dots or full.
    scan: of blocks between taps, where they are more than two, one is compiled and run
    in a loop (`blocks.Blocks`).

    positions: sincos, learned or none; position_grid: (h, w) of the pretraining, where
    sincos positions are to be resized from it. relative_bias: none, shared or block.
    layer_scale: its initial value, 0 is none. drop_path: of the last block; 0 where the
    whole encoder is frozen. style: vit, or clip for CLIP's weights, which have a GELU
    of their own. gelu: erf, or tanh, its approximation, as `gelu.Gelu` says.
    attention: auto, xla, cudnn or pallas, as `kernels.Kernel` says.
    """

    size: str = "B"
    patch_size: int = 16
    channels: int = 3
    remat: Remat = "off"
    scan: bool = False
    positions: Positions = "sincos"
    position_grid: tuple[int, int] | None = None
    relative_bias: RelativeBias = "none"
    layer_scale: float = 0.0
    drop_path: float = 0.0
    style: Style = "vit"
    gelu: Gelu = "erf"
    attention: Kernel = "auto"

    def __post_init__(self):
        if self.size not in VIT_SPECS:
            raise ValueError(f"size={self.size!r} is not one of {list(VIT_SPECS)}")
        if self.channels < 1:
            raise ValueError(f"channels={self.channels} is not 1 or more")
        if self.position_grid and min(self.position_grid) < 1:
            raise ValueError(
                f"position_grid={self.position_grid} is no grid of patches"
            )
        if self.layer_scale < 0:
            raise ValueError(f"layer_scale={self.layer_scale} must not be negative")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path={self.drop_path} is not in [0, 1)")


def _sizes_near(image_size: int | tuple[int, int], patch_size: int) -> list[str]:
    """Those that patches divide, next to each side; none where there is no patch."""
    if patch_size < 1:
        return []
    sides = (image_size,) if isinstance(image_size, int) else image_size
    p = patch_size
    near = [sorted({max(p, side // p * p), -(-side // p) * p}) for side in sides]
    found = itertools.product(*near)
    return [str(x[0] if isinstance(image_size, int) else x) for x in found]


def pair(size: Any) -> tuple[int, int]:
    """(height, width) of an image size that may be one number."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def make_encoder(
    model: ModelSettings,
    image_size: int | tuple[int, int],
    dtype: Any,
    final_norm: bool = True,
) -> Encoder:
    """The encoder of images of `image_size`; `UserError` where patches do not fit."""
    height, width = pair(image_size)
    if min(height, width) < 1:
        raise UserError(f"config.image_size={image_size} is not 1 pixel or more")
    p = model.patch_size
    if p < 1 or height % p or width % p:
        mend = " or ".join(_sizes_near(image_size, p)) or "a positive patch size"
        raise UserError(
            f"config.model.patch_size={p} does not divide config.image_size="
            f"{image_size}; use {mend}"
        )
    return Encoder(
        spec=VIT_SPECS[model.size],
        grid=(height // p, width // p),
        patch_size=p,
        channels=model.channels,
        dtype=dtype,
        remat=model.remat,
        scan=model.scan,
        positions=model.positions,
        position_grid=model.position_grid,
        relative_bias=model.relative_bias,
        layer_scale=model.layer_scale,
        drop_path=model.drop_path,
        final_norm=final_norm,
        style=model.style,
        gelu=model.gelu,
        kernel=model.attention,
    )
