"""Heads: from features at taps to predictions at the masked patches, [b, m, k]."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float

from ddae.masking import Mask, gather_patches
from ddae.models.blocks import (
    Blocks,
    RelativePositionBias,
    through_blocks,
    token_init,
)
from ddae.models.linear import Dense, LayerNorm
from ddae.models.positions import sincos
from ddae.models.vit import Encoder, Features
from ddae.patches import Grid

Predictions = dict[str, Float[Array, "b m _"]]

Observed = dict[str, Any]
"""What batch norms saw of a batch, at their paths; {} outside training."""


class Head(Protocol):
    """A Flax module called as head(features at its taps, mask) -> Predictions.

    `outputs` names the predictions and gives their widths. `shared`: parts whose
    weights are another's, and the paths of those: {"tokens": "heads/block12/tokens"}.
    `at_tap(last)` is this head, which stands on the last layer under the key `last`,
    for an earlier one.
    """

    @property
    def outputs(self) -> Mapping[str, int]: ...

    @property
    def shared(self) -> Mapping[str, str]: ...

    def at_tap(self, last: str) -> "Head": ...

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

    blocks: Blocks
    grid: Grid
    outputs: Mapping[str, int]
    input_norm: bool
    shared: Mapping[str, str] = FrozenDict()

    @property
    def dtype(self) -> Any:
        """What it computes in."""
        return self.blocks.dtype

    def at_tap(self, last: str) -> "TapDecoder":
        return self.clone(input_norm=True)

    @nn.compact
    def __call__(self, features: tuple[Features, ...], mask: Mask) -> Predictions:
        (tap,) = features
        x = jnp.concatenate([tap.prefix, tap.patches], axis=1)
        if self.input_norm:
            x = LayerNorm(dtype=self.dtype, name="input_norm")(x)
        width, depth = self.blocks.spec.width, self.blocks.spec.depth
        x = Dense(width, dtype=self.dtype, name="embedding")(x)
        positions = jnp.asarray(sincos(width, self.grid), self.dtype)
        token = self.param("mask_token", token_init, (1, 1, width)).astype(self.dtype)
        p = tap.prefix.shape[1]
        hidden = token + positions[mask.ids_masked]
        visible = x[:, p:] + positions[mask.ids_visible]
        x = jnp.concatenate([x[:, :p], visible, hidden], axis=1)
        x = through_blocks(self, self.blocks, range(1, depth + 1), x)[depth]
        x = x[:, p + visible.shape[1] :]
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        return _predicted(self.outputs, x, self.dtype)


class MaskedLinear(nn.Module):
    """(LayerNorm) -> one Linear an output, on the masked patches of the tap.

    one_classifier: heads at other taps have a norm of their own, and these outputs.
    """

    outputs: Mapping[str, int]
    input_norm: bool
    dtype: Any = jnp.float32
    one_classifier: bool = False
    shared: Mapping[str, str] = FrozenDict()

    def at_tap(self, last: str) -> "MaskedLinear":
        shared = {name: f"heads/{last}/{name}" for name in self.outputs}
        return self.clone(input_norm=True, shared=shared if self.one_classifier else {})

    @nn.compact
    def __call__(self, features: tuple[Features, ...], mask: Mask) -> Predictions:
        (tap,) = features
        x = gather_patches(tap.patches, mask.ids_masked)
        if self.input_norm:
            x = LayerNorm(dtype=self.dtype, name="input_norm")(x)
        return _predicted(self.outputs, x, self.dtype)


class ClsAggregate(nn.Module):
    """BEiT-v2's patch aggregation: the final cls token among patches of an earlier tap.

    They go through blocks of their own, numbered on from the tap's, `early`; norm,
    classifier and relative position bias are shared with the rest. So what the patches
    lack has to come through cls. These blocks drop no path.
    """

    encoder: Encoder
    early: int
    outputs: Mapping[str, int]
    shared: Mapping[str, str]
    num_blocks: int = 2

    def at_tap(self, last: str) -> "ClsAggregate":
        return self

    @nn.compact
    def __call__(self, features: tuple[Features, ...], mask: Mask) -> Predictions:
        early, final = features
        x = jnp.concatenate([final.prefix, early.patches], axis=1)
        dtype, bias = self.encoder.dtype, None
        if self.encoder.relative_bias == "shared":
            heads, grid = self.encoder.spec.num_heads, self.encoder.grid
            bias = RelativePositionBias(heads, grid, dtype, name="relative_bias")()
        last = self.early + self.num_blocks
        layers = range(self.early + 1, last + 1)
        x = through_blocks(self, self.encoder.blocks, layers, x, bias)[last]
        x = gather_patches(x[:, final.prefix.shape[1] :], mask.ids_masked)
        x = LayerNorm(dtype=dtype, name="input_norm")(x)
        return _predicted(self.outputs, x, dtype)


def _predicted(
    outputs: Mapping[str, int], x: Float[Array, "b m d"], dtype: Any
) -> Predictions:
    """One Linear an output; called inside a compact method, which owns them."""
    return {name: Dense(k, dtype=dtype, name=name)(x) for name, k in outputs.items()}


Pool = Literal["mean", "cls", "attention"]
"""What of the features is classified: the mean of the patches, the cls token, or what
one learned query gathers from all tokens (an attentive probe)."""


class Classifier(nn.Module):
    """Pool -> norm -> Linear: class scores of an image, float32.

    norm: "layer" (fine-tuning, where the encoder has no norm of its own), "batch"
    (probes: MAE's BatchNorm without affine, eps 1e-6), or "none". kernel_deviation: of
    the initial normal weights.
    """

    num_classes: int
    pool: Pool
    norm: Literal["layer", "batch", "none"]
    num_heads: int
    kernel_deviation: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Features, training: bool = False
    ) -> tuple[Float[Array, "b k"], Observed]:
        """(logits, what `absorb` takes: {} unless `norm` is "batch")."""
        if self.pool == "attention":
            x = AttentivePool(self.num_heads, self.dtype, name="attention")(features)
        else:
            x = features.pooled(self.pool)
        observed: Observed = {}
        if self.norm == "layer":
            x = LayerNorm(dtype=self.dtype, name="norm")(x)
        elif self.norm == "batch":
            x, observed = BatchNorm(name=BATCH_NORM)(x, training)
        init = nn.initializers.normal(self.kernel_deviation)
        linear = nn.Dense(self.num_classes, kernel_init=init, name="linear")
        return linear(x.astype(jnp.float32)), observed


class AttentivePool(nn.Module):
    """One learned query attends to all tokens, after a LayerNorm: [b, d]."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, features: Features) -> Float[Array, "b d"]:
        x = jnp.concatenate([features.prefix, features.patches], axis=1)
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        b, t, d = x.shape
        query = self.param("query", token_init, (1, 1, d)).astype(self.dtype)
        kv = Dense(2 * d, dtype=self.dtype, name="kv")(x)
        kv = kv.reshape(b, t, 2, self.num_heads, d // self.num_heads)
        q = jnp.broadcast_to(query, (b, 1, d)).reshape(b, 1, self.num_heads, -1)
        pooled = jax.nn.dot_product_attention(q, kv[:, :, 0], kv[:, :, 1])
        return Dense(d, dtype=self.dtype, name="out")(pooled.reshape(b, d))


BATCH_NORM = "batch_norm"
"""What every batch norm is called by the module that has it."""

MOMENTUM = 0.9
"""Of the running statistics of batch norms."""


class BatchNorm(nn.Module):
    """Normalisation of each channel over the whole batch, wherever its rows lie.

    The batch's own mean and variance normalise in training, running ones elsewhere:
    parameters that only `absorb` changes. affine: with scale and shift.
    """

    affine: bool = False
    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *places d"], training: bool
    ) -> tuple[Float[Array, "b *places d"], Observed]:
        x = x.astype(jnp.float32)
        d = x.shape[-1:]
        mean = self.param("mean", nn.initializers.zeros, d)
        variance = self.param("variance", nn.initializers.ones, d)
        observed = {}
        if training:
            axes, rows = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            mean, variance = x.mean(axis=axes), x.var(axis=axes)
            unbiased = variance * (rows / max(1, rows - 1))
            seen = {"mean": mean, "variance": unbiased, "count": jnp.ones(())}
            observed = {BATCH_NORM: seen}
        x = (x - mean) * jax.lax.rsqrt(variance + self.epsilon)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, d)
            x = x * scale + self.param("bias", nn.initializers.zeros, d)
        return x.astype(self.dtype), observed


def absorb(params: Mapping[str, Any], observed: Observed) -> dict[str, Any]:
    """`params` with the running statistics moved towards what was `observed`, of one
    batch or summed over several."""
    updated = dict(params)
    for name, seen in observed.items():
        if name != BATCH_NORM:
            updated[name] = absorb(params[name], seen)
            continue
        old = params[name]
        updated[name] = old | {
            key: old[key] + (1.0 - MOMENTUM) * (seen[key] / seen["count"] - old[key])
            for key in ("mean", "variance")
        }
    return updated
