"""Heads: from features at taps to predictions at the masked patches, [b, m, k]."""

from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddae.masking import Mask, gather_patches
from ddae.models.positions import sincos
from ddae.models.vit import (
    Dense,
    Features,
    LayerNorm,
    Remat,
    ViTSpec,
    block_class,
    token_init,
)
from ddae.patches import Grid

Predictions = dict[str, Float[Array, "b m _"]]


class Head(Protocol):
    """A Flax module called as head(features at its taps, mask) -> Predictions.

    `outputs` names the predictions and gives their widths.
    """

    @property
    def outputs(self) -> Mapping[str, int]: ...

    def init(self, rngs: Any, features: Any, mask: Mask) -> Any: ...

    def apply(self, variables: Any, features: Any, mask: Mask) -> Any: ...

    def clone(self, **changes: Any) -> Any: ...


class TapDecoder(nn.Module):
    """MAE's light decoder, standing on one tap of the visible layout.

    (LayerNorm) -> Linear -> mask tokens and positions -> blocks -> LayerNorm -> one
    Linear an output. On the last tap `input_norm` is off, since the encoder's own final
    norm has been applied: with 8 blocks of width 512, 16 heads and the one output
    "pixels" that is MAE's decoder. Hidden patches stand behind the visible ones, since
    attention does not mind the order; only they reach the output layers.
    """

    decoder: ViTSpec
    grid: Grid
    outputs: Mapping[str, int]
    input_norm: bool
    dtype: Any = jnp.float32
    remat: Remat = "off"

    @nn.compact
    def __call__(self, features: tuple[Features, ...], mask: Mask) -> Predictions:
        (tap,) = features
        x = jnp.concatenate([tap.prefix, tap.patches], axis=1)
        if self.input_norm:
            x = LayerNorm(dtype=self.dtype, name="input_norm")(x)
        width = self.decoder.width
        x = Dense(width, dtype=self.dtype, name="embedding")(x)
        positions = jnp.asarray(sincos(width, self.grid), self.dtype)
        token = self.param("mask_token", token_init, (1, 1, width)).astype(self.dtype)
        p = tap.prefix.shape[1]
        hidden = token + positions[mask.ids_masked]
        visible = x[:, p:] + positions[mask.ids_visible]
        x = jnp.concatenate([x[:, :p], visible, hidden], axis=1)
        make_block = block_class(self.remat)
        for layer in range(self.decoder.depth):
            x = make_block(self.decoder, self.dtype, name=f"block_{layer:02d}")(x)
        x = x[:, p + visible.shape[1] :]
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        return {
            name: Dense(k, dtype=self.dtype, name=name)(x)
            for name, k in self.outputs.items()
        }


class MaskedLinear(nn.Module):
    """(LayerNorm) -> one Linear an output, on the masked patches of the tap."""

    outputs: Mapping[str, int]
    input_norm: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: tuple[Features, ...], mask: Mask) -> Predictions:
        (tap,) = features
        x = gather_patches(tap.patches, mask.ids_masked)
        if self.input_norm:
            x = LayerNorm(dtype=self.dtype, name="input_norm")(x)
        return {
            name: Dense(k, dtype=self.dtype, name=name)(x)
            for name, k in self.outputs.items()
        }
