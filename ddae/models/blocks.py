"""Transformer blocks, their parts, and the way through a stack of them."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Key

from ddae.models.gelu import ACTIVATIONS, Activation
from ddae.models.kernels import Computed, Kernel, attend, attention_kernel, flash
from ddae.models.linear import (
    Dense,
    Norm,
    Normed,
    NormedLinear,
    flat_dot,
    linear_weights,
)
from ddae.models.positions import relative_index
from ddae.models.short_attention import short_attention
from ddae.patches import Grid

Remat = Literal["off", "dots", "full"]


def _once(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether a loop without remat keeps the output of this primitive: all but reshapes
    and broadcasts, which would be stored a second time beside the array they show."""
    return primitive.name not in ("reshape", "broadcast_in_dim")


POLICIES = {
    "off": _once,
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What remat keeps for the backward pass; "off" is used in a scan alone."""

LOOPED = 2
"""So few blocks, or fewer, are not scanned: a loop of them compiles no faster, and a
GPU reserves at once what the loops of all heads of a step keep for their gradients."""


@dataclasses.dataclass(frozen=True)
class ViTSpec:
    """Width, number of blocks and of attention heads; the MLP is `mlp_ratio` wide."""

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0


token_init = nn.initializers.normal(0.02)


class QueryKeyValue(nn.Module):
    """Three Linear layers of width d, whose weights are one array, [d, 3 d].

    For flash attention as three products: cut from one, they would be written once
    more, and their gradients put together. Elsewhere one product compiles sooner, and
    is no slower; Pallas's kernel takes it whole, and its bias apart.
    """

    dtype: Any
    kernel: Computed

    @nn.compact
    def __call__(self, normed: Normed) -> list[Array]:
        """q, k and v, [b, t, d] each; for pallas their product, [b, t, 3 d], and its
        bias, [3 d]."""
        x, d = normed.tokens, normed.scale.size
        kernel, bias = linear_weights(self, normed, 3 * d, self.dtype)
        if self.kernel == "cudnn":
            pairs = zip(jnp.split(kernel, 3, axis=1), jnp.split(bias, 3), strict=True)
            return [flat_dot(x, own, None) + shift for own, shift in pairs]
        product = flat_dot(x, kernel, None)
        if self.kernel == "pallas":
            return [product, bias]
        y = (product + bias).reshape(*x.shape[:2], 3, d)
        return [y[:, :, i] for i in range(3)]


class Attention(nn.Module):
    """Multi-head self-attention; softmax in float32. kernel, tokens: as of `Block`.

    BEiT has no key bias, which makes no difference: softmax takes it out again.
    """

    num_heads: int
    dtype: Any
    kernel: Computed = "xla"
    tokens: int | None = None

    @nn.compact
    def __call__(
        self, normed: Normed, bias: Float[Array, "s heads t t"] | None = None
    ) -> Float[Array, "b t d"]:
        b, t, d = normed.tokens.shape
        heads = (self.num_heads, d // self.num_heads)
        found = QueryKeyValue(self.dtype, self.kernel, name="qkv")(normed)
        x: Any
        if self.kernel == "pallas":
            product, shift = found
            x = short_attention(
                product.reshape(b, t, 3, *heads), shift.reshape(3, *heads)
            )
        else:
            q, k, v = (y.reshape(b, t, *heads) for y in found)
            flashes = self.kernel == "cudnn"
            x = flash(q, k, v, self.tokens, bias) if flashes else attend(q, k, v, bias)
        return Dense(d, dtype=self.dtype, name="out")(x.reshape(b, t, d))


class RelativePositionBias(nn.Module):
    """BEiT's bias of attention, by offset on the grid; three more entries for cls.

    Within a train step, which names its mesh, s is the number of devices, and each has
    a bias of its own, the same for all: of its gradient they sum the table's, which of
    512 pixels is 264 times smaller than the bias's.
    """

    num_heads: int
    grid: Grid
    dtype: Any

    @nn.compact
    def __call__(self) -> Float[Array, "s heads t t"]:
        h, w = self.grid
        entries = (2 * h - 1) * (2 * w - 1) + 3
        zeros = nn.initializers.zeros
        table = self.param("table", zeros, (entries, self.num_heads))
        mesh = jax.sharding.get_abstract_mesh()
        tables = table[None]
        if set(mesh.axis_types) == {AxisType.Auto}:
            tables = jax.lax.with_sharding_constraint(
                jnp.broadcast_to(table, (mesh.size, *table.shape)),
                PartitionSpec(mesh.axis_names),
            )
        bias = tables[:, relative_index(self.grid)]  # whose gradient is summed as it is
        return bias.astype(self.dtype).transpose(0, 3, 1, 2)


class Mlp(nn.Module):
    """Two Linear layers around a GELU."""

    hidden: int
    dtype: Any
    activation: Activation = "erf"

    @nn.compact
    def __call__(self, normed: Normed) -> Float[Array, "b t d"]:
        d = normed.scale.size
        x = NormedLinear(self.hidden, self.dtype, name="up")(normed)
        x = ACTIVATIONS[self.activation](x)
        return Dense(d, dtype=self.dtype, name="down")(x)


class Block(nn.Module):
    """A pre-norm transformer block; LayerNorm statistics in float32.

    layer_scale: initial value of a learned factor of each channel of both branches; 0
    is none. bias_grid: the grid of a relative position bias of its own. kernel: what
    computes attention. tokens: how many of t count; the rest is padding for flash
    attention, which no token reads.
    """

    spec: ViTSpec
    dtype: Any
    layer_scale: float = 0.0
    bias_grid: Grid | None = None
    activation: Activation = "erf"
    kernel: Computed = "xla"
    tokens: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        bias: Float[Array, "s heads t t"] | None = None,
        keys: Key[Array, " b"] | None = None,
        drop_path: float | Float[Array, ""] = 0.0,
    ) -> Float[Array, "b t d"]:
        """drop_path: probability that an example skips a branch. keys: one an example,
        to draw by; None drops nothing."""
        heads = self.spec.num_heads
        if self.bias_grid is not None:
            own = RelativePositionBias(
                heads, self.bias_grid, self.dtype, name="relative_bias"
            )
            bias = own()
        y = Norm(self.dtype, name="norm_attention")(x)
        attention = Attention(
            heads, self.dtype, self.kernel, self.tokens, name="attention"
        )
        y = attention(y, bias)
        x = x + self._branch("scale_attention", y, keys, 0, drop_path)
        hidden = int(self.spec.width * self.spec.mlp_ratio)
        y = Norm(self.dtype, name="norm_mlp")(x)
        y = Mlp(hidden, self.dtype, self.activation, name="mlp")(y)
        return x + self._branch("scale_mlp", y, keys, 1, drop_path)

    def _branch(
        self,
        name: str,
        y: Float[Array, "b t d"],
        keys: Key[Array, " b"] | None,
        number: int,
        drop_path: float | Float[Array, ""],
    ) -> Float[Array, "b t d"]:
        if self.layer_scale:
            constant = nn.initializers.constant(self.layer_scale)
            y = y * self.param(name, constant, y.shape[-1:]).astype(self.dtype)
        if keys is None:
            return y
        keep = 1.0 - drop_path
        kept = jax.vmap(
            lambda key: jax.random.bernoulli(jax.random.fold_in(key, number), keep)
        )(keys)
        return jnp.where(kept[:, None, None], y / keep, 0.0).astype(y.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """What the blocks of a stack are, all alike, and how they are computed.

    layer_scale, bias_grid, activation: as of `Block`. kernel: the one asked for.
    remat: keep all activations, matmul outputs ("dots") or none ("full"). scan: between
    taps more than `LOOPED` blocks apart, one block is compiled and looped over their
    weights; these are stacked for it, but named and stored as without.
    """

    spec: ViTSpec
    dtype: Any
    layer_scale: float = 0.0
    bias_grid: Grid | None = None
    activation: Activation = "erf"
    kernel: Kernel = "auto"
    remat: Remat = "off"
    scan: bool = False


def through_blocks(
    owner: nn.Module,
    blocks: Blocks,
    layers: range,
    x: Float[Array, "b t d"],
    bias: Float[Array, "s heads t t"] | None = None,
    keys: Key[Array, " b"] | None = None,
    drop_path: Sequence[float] = (),
    taps: Sequence[int] = (),
) -> dict[int, Float[Array, "b t d"]]:
    """Sends x through the blocks numbered `layers`; {layer: x after it} of the last one
    and of `taps`, and x as given under the number before the first.

    owner: the module that has the blocks; call this in its compact method. drop_path:
    one for each block.
    """
    t, first = x.shape[1], layers.start
    found = {first - 1: x}
    x, settings = _for_attention(x, blocks, bias)
    rates = dict(zip(layers, drop_path or [0.0] * len(layers), strict=True))
    policy = POLICIES[blocks.remat]
    make = Block if blocks.remat == "off" else nn.remat(Block, policy=policy)

    def one_by_one(x: Array, part: Sequence[int]) -> Array:
        for layer in part:
            own = folded(keys, layer) if keys is not None and rates[layer] else None
            x = make(**settings, name=block_key(layer))(x, bias, own, rates[layer])
        return x

    def scanned(x: Array, part: Sequence[int]) -> Array:
        params = [owner.variables["params"][block_key(layer)] for layer in part]
        block = Block(**settings, parent=None)

        def one(x: Array, inputs: Any) -> tuple[Any, None]:
            params, layer, rate = inputs
            own = None if keys is None else folded(keys, layer)
            return block.apply({"params": params}, x, bias, own, rate), None

        one = jax.checkpoint(one, policy=policy, prevent_cse=False)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        own_rates = jnp.array([rates[layer] for layer in part], jnp.float32)
        return jax.lax.scan(one, x, (stacked, jnp.array(part), own_rates))[0]

    ends = sorted({*taps, layers.stop - 1} & {*layers})
    for before, end in itertools.pairwise([first - 1, *ends]):
        part = range(before + 1, end + 1)
        loop = blocks.scan and len(part) > LOOPED and not owner.is_initializing()
        x = (scanned if loop else one_by_one)(x, part)
        found[end] = x[:, :t]
    return found


def _for_attention(
    x: Float[Array, "b t d"], blocks: Blocks, bias: Any
) -> tuple[Float[Array, "b _ d"], dict[str, Any]]:
    """x, padded to an even number of tokens where flash attention computes it, and the
    settings of each `Block`, with the kernel that was chosen."""
    t, spec = x.shape[1], blocks.spec
    biased = bias is not None or blocks.bias_grid is not None
    width = spec.width // spec.num_heads
    chosen = attention_kernel(blocks.kernel, t, width, blocks.dtype, biased)
    if chosen == "cudnn":
        x = jnp.pad(x, ((0, 0), (0, t % 2), (0, 0)))
    return x, {
        "spec": spec,
        "dtype": blocks.dtype,
        "layer_scale": blocks.layer_scale,
        "bias_grid": blocks.bias_grid,
        "activation": blocks.activation,
        "kernel": chosen,
        "tokens": t,
    }


def block_key(layer: int) -> str:
    """Of its parameters: block_00 is layer 1."""
    return f"block_{layer - 1:02d}"


def folded(keys: Key[Array, " b"], number: int) -> Key[Array, " b"]:
    """Another random key for each example, by a number of what it is for."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
