"""The Vision Transformer: one encoder for student and teacher, both token layouts."""

import math
import re
import zlib
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ddae.masking import Mask, gather_patches
from ddae.models.blocks import (
    Blocks,
    RelativePositionBias,
    Remat,
    ViTSpec,
    through_blocks,
    token_init,
)
from ddae.models.gelu import Activation, Gelu
from ddae.models.kernels import Kernel
from ddae.models.linear import Dense, LayerNorm
from ddae.models.positions import resize_positions, sincos
from ddae.patches import Grid, patchify
from ddae.settings import UserError

Layout = Literal["visible", "mask_token"]
"""visible: only visible patches enter (MAE). mask_token: hidden ones enter as a learned
token in their place (SimMIM, BEiT)."""

Positions = Literal["sincos", "learned", "none"]
"""sincos: MAE's fixed ones. learned: a parameter, for cls too (ViT). none: BEiT's."""

RelativeBias = Literal["none", "shared", "block"]
"""A learned bias of attention by offset, one for all blocks or one for each (BEiT)."""

Style = Literal["vit", "clip"]
"""clip: CLIP's encoder has a norm before the first block, and a GELU of a sigmoid."""


@flax.struct.dataclass
class Features:
    """Tokens of one layer: prefix (cls) and patches; t = v or n by the layout."""

    prefix: Float[Array, "b p d"]
    patches: Float[Array, "b t d"]

    def pooled(self, pool: Literal["mean", "cls"]) -> Float[Array, "b d"]:
        """The mean of the patches, or the cls token: one row an image."""
        if pool not in ("mean", "cls"):
            raise UserError(f"pool={pool!r} is neither 'mean' nor 'cls'")
        return self.patches.mean(axis=1) if pool == "mean" else self.prefix[:, 0]


VIT_SPECS: dict[str, ViTSpec] = {
    "Pico": ViTSpec(64, 4, 2),  # scanned digits, CIFAR in studies on a CPU
    "Nano": ViTSpec(128, 6, 4),  # CIFAR and CamVid on a CPU
    "Ti": ViTSpec(192, 12, 3),
    "S": ViTSpec(384, 12, 6),
    "B": ViTSpec(768, 12, 12),
    "L": ViTSpec(1024, 24, 16),
    "H": ViTSpec(1280, 32, 16),
}


class Encoder(nn.Module):
    """ViT encoder over a grid (h, w) of square patches, with one cls token.

    Layers are numbered 1 to depth by the block that made them; the last one is read
    after the final LayerNorm, as in MAE, where there is one. drop_path: of the last
    block; the others' rise to it linearly from 0. position_grid: where the fixed
    positions were learned with, if not at `grid`; they are resized to it. remat, scan:
    of `Blocks`, from tap to tap.
    """

    spec: ViTSpec
    grid: Grid
    patch_size: int
    channels: int = 3
    dtype: Any = jnp.float32
    remat: Remat = "off"
    scan: bool = False
    positions: Positions = "sincos"
    position_grid: Grid | None = None
    relative_bias: RelativeBias = "none"
    layer_scale: float = 0.0
    drop_path: float = 0.0
    final_norm: bool = True
    style: Style = "vit"
    gelu: Gelu = "erf"
    kernel: Kernel = "auto"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images that it takes."""
        h, w = self.grid
        return h * self.patch_size, w * self.patch_size, self.channels

    @property
    def activation(self) -> Activation:
        """What is between the Linear layers of a block's MLP."""
        return "sigmoid" if self.style == "clip" else self.gelu

    @property
    def blocks(self) -> Blocks:
        """What its blocks are, and how they are computed."""
        return Blocks(
            spec=self.spec,
            dtype=self.dtype,
            layer_scale=self.layer_scale,
            bias_grid=self.grid if self.relative_bias == "block" else None,
            activation=self.activation,
            kernel=self.kernel,
            remat=self.remat,
            scan=self.scan,
        )

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b height width c"],
        mask: Mask | None = None,
        layout: Layout = "visible",
        taps: tuple[int, ...] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> dict[int, Features]:
        """Features at `taps` (the last layer alone by default); tap 0 is what enters
        the first block.

        images: standardised. mask: None sees every patch, in either layout. keys: one
        an example, for drop path; None drops nothing.
        """
        depth = self.spec.depth
        taps = (depth,) if taps is None else taps
        if mask is not None and layout == "visible" and self.relative_bias != "none":
            raise ValueError("a relative position bias wants layout mask_token")
        x = self._embedded(images, mask, layout)
        bias = None
        if self.relative_bias == "shared":
            shared = RelativePositionBias(
                self.spec.num_heads, self.grid, self.dtype, name="relative_bias"
            )
            bias = shared()
        layers = range(1, depth + 1)
        rates = [self.drop_path * (i - 1) / max(1, depth - 1) for i in layers]
        tokens = through_blocks(self, self.blocks, layers, x, bias, keys, rates, taps)
        if self.final_norm:
            norm = LayerNorm(dtype=self.dtype, name="norm")
            tokens[depth] = norm(tokens[depth])
        return {
            tap: Features(prefix=tokens[tap][:, :1], patches=tokens[tap][:, 1:])
            for tap in sorted(taps)
        }

    def _embedded(
        self,
        images: Float[Array, "b height width c"],
        mask: Mask | None,
        layout: Layout,
    ) -> Float[Array, "b t d"]:
        """What enters the first block: cls and patches, with their positions."""
        width = self.spec.width
        embed = Dense(width, dtype=self.dtype, name="patch_embedding")
        cls_position, positions = self._positions()
        patches = patchify(images, self.patch_size)
        if mask is None:
            x = embed(patches) + positions
        elif layout == "visible":
            # Hidden patches are dropped before the embedding: nothing is spent on them.
            x = embed(gather_patches(patches, mask.ids_visible))
            x = x + positions[0][mask.ids_visible]
        else:
            token = self.param("mask_token", token_init, (1, 1, width))
            x = jnp.where(
                mask.is_masked[..., None], token.astype(self.dtype), embed(patches)
            )
            x = x + positions
        cls = self.param("cls_token", token_init, (1, 1, width)).astype(self.dtype)
        cls = jnp.broadcast_to(cls + cls_position, (x.shape[0], 1, width))
        x = jnp.concatenate([cls, x], axis=1)
        if self.layer_scale:
            # What a small factor leaves of a branch would be lost in half precision.
            x = x.astype(jnp.float32)
        if self.style == "clip":
            x = LayerNorm(dtype=self.dtype, name="norm_embedding")(x)
        return x

    def _positions(self) -> tuple[Any, Float[Array, "1 n d"]]:
        """Of cls and of the patches."""
        h, w = self.grid
        if self.positions == "none":
            return 0.0, jnp.zeros((1, h * w, self.spec.width), self.dtype)
        if self.positions == "learned":
            shape = (1, 1 + h * w, self.spec.width)
            both = self.param("positions", token_init, shape).astype(self.dtype)
            return both[:, :1], both[:, 1:]
        known = self.position_grid or self.grid
        fixed = resize_positions(sincos(self.spec.width, known), known, self.grid)
        return 0.0, jnp.asarray(fixed, self.dtype)[None]


def small_init(params: Any, key: Key[Array, ""]) -> Any:
    """BEiT's first weights: every kernel from a normal of deviation .02 cut at one
    deviation, those at the end of block i's branches divided by sqrt(2 i)."""

    def draw(path: Any, x: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith("/kernel"):
            return x
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        x = 0.02 * jax.random.truncated_normal(own, -1.0, 1.0, x.shape, x.dtype)
        branch = re.search(r"block_(\d+)/(attention/out|mlp/down)/", name)
        return x / math.sqrt(2 * (int(branch[1]) + 1)) if branch else x

    return jax.tree_util.tree_map_with_path(draw, params)
