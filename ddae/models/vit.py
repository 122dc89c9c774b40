"""The Vision Transformer: one encoder for student and teacher, both token layouts."""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddae.masking import Mask, gather_patches
from ddae.models.positions import sincos
from ddae.patches import Grid, patchify

Layout = Literal["visible", "mask_token"]
"""visible: only visible patches enter (MAE). mask_token: hidden ones enter as a learned
token in their place (SimMIM, BEiT)."""

Remat = Literal["off", "dots", "full"]


@flax.struct.dataclass
class Features:
    """Tokens of one layer: prefix (cls) and patches; t = v or n by the layout."""

    prefix: Float[Array, "b p d"]
    patches: Float[Array, "b t d"]


@dataclasses.dataclass(frozen=True)
class ViTSpec:
    """Width, number of blocks and of attention heads; the MLP is `mlp_ratio` wide."""

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0


VIT_SPECS: dict[str, ViTSpec] = {
    "Pico": ViTSpec(64, 4, 2),  # tests
    "Nano": ViTSpec(128, 6, 4),  # scanned digits, CIFAR on a CPU
    "Ti": ViTSpec(192, 12, 3),
    "S": ViTSpec(384, 12, 6),
    "B": ViTSpec(768, 12, 12),
    "L": ViTSpec(1024, 24, 16),
    "H": ViTSpec(1280, 32, 16),
}

# MAE initialises every Linear, the fused qkv and the patch embedding seen as a Linear
# included, with Xavier's uniform rule.
Dense = functools.partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform())
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6)
token_init = nn.initializers.normal(0.02)


class Attention(nn.Module):
    """Multi-head self-attention with one fused qkv projection; softmax in float32."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        b, t, d = x.shape
        qkv = Dense(3 * d, dtype=self.dtype, name="qkv")(x)
        qkv = qkv.reshape(b, t, 3, self.num_heads, d // self.num_heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        x = jax.nn.dot_product_attention(q, k, v).reshape(b, t, d)
        return Dense(d, dtype=self.dtype, name="out")(x)


class Mlp(nn.Module):
    """Two Linear layers around an exact (erf) GELU."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        d = x.shape[-1]
        x = Dense(self.hidden, dtype=self.dtype, name="up")(x)
        x = nn.gelu(x, approximate=False)
        return Dense(d, dtype=self.dtype, name="down")(x)


class Block(nn.Module):
    """A pre-norm transformer block; LayerNorm statistics in float32."""

    spec: ViTSpec
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        hidden = int(self.spec.width * self.spec.mlp_ratio)
        y = LayerNorm(dtype=self.dtype, name="norm_attention")(x)
        x = x + Attention(self.spec.num_heads, self.dtype, name="attention")(y)
        y = LayerNorm(dtype=self.dtype, name="norm_mlp")(x)
        return x + Mlp(hidden, self.dtype, name="mlp")(y)


def block_class(remat: Remat) -> type[nn.Module]:
    """`Block`, keeping all activations, matmul outputs ("dots") or none ("full")."""
    if remat == "off":
        return Block
    if remat not in ("dots", "full"):
        raise ValueError(f"remat {remat!r} is not off, dots or full")
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return nn.remat(Block, policy=policy if remat == "dots" else None)


class Encoder(nn.Module):
    """ViT encoder over a grid (h, w) of square patches, with one cls token.

    Layers are numbered 1 to depth by the block that made them; the last one is read
    after the final LayerNorm, as in MAE. Positions are MAE's fixed sine-cosine ones.
    """

    spec: ViTSpec
    grid: Grid
    patch_size: int
    channels: int = 3
    dtype: Any = jnp.float32
    remat: Remat = "off"

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b height width c"],
        mask: Mask | None = None,
        layout: Layout = "visible",
        taps: tuple[int, ...] | None = None,
    ) -> dict[int, Features]:
        """Features at `taps` (the last layer alone by default).

        images: standardised. mask: None sees every patch, in either layout.
        """
        taps = (self.spec.depth,) if taps is None else taps
        embed = Dense(self.spec.width, dtype=self.dtype, name="patch_embedding")
        positions = jnp.asarray(sincos(self.spec.width, self.grid), self.dtype)[None]
        patches = patchify(images, self.patch_size)
        if mask is None:
            x = embed(patches) + positions
        elif layout == "visible":
            # Hidden patches are dropped before the embedding: nothing is spent on them.
            x = embed(gather_patches(patches, mask.ids_visible))
            x = x + positions[0][mask.ids_visible]
        else:
            token = self.param("mask_token", token_init, (1, 1, self.spec.width))
            x = jnp.where(
                mask.is_masked[..., None], token.astype(self.dtype), embed(patches)
            )
            x = x + positions
        cls = self.param("cls_token", token_init, (1, 1, self.spec.width))
        cls = jnp.broadcast_to(cls.astype(self.dtype), (x.shape[0], 1, self.spec.width))
        x = jnp.concatenate([cls, x], axis=1)
        layers = {}
        make_block = block_class(self.remat)
        for layer in range(1, self.spec.depth + 1):
            x = make_block(self.spec, self.dtype, name=f"block_{layer - 1:02d}")(x)
            if layer == self.spec.depth:
                x = LayerNorm(dtype=self.dtype, name="norm")(x)
            if layer in taps:
                layers[layer] = Features(prefix=x[:, :1], patches=x[:, 1:])
        return layers
