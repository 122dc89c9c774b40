"""The Vision Transformer: one encoder for student and teacher, both token layouts."""

import dataclasses
import functools
import itertools
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ddae.masking import Mask, gather_patches
from ddae.models.kernels import Kernel, attend, attention_kernel, flash
from ddae.models.positions import relative_index, resize_positions, sincos
from ddae.patches import Grid, patchify

Layout = Literal["visible", "mask_token"]
"""visible: only visible patches enter (MAE). mask_token: hidden ones enter as a learned
token in their place (SimMIM, BEiT)."""

Remat = Literal["off", "dots", "full"]

Positions = Literal["sincos", "learned", "none"]
"""sincos: MAE's fixed ones. learned: a parameter, for cls too (ViT). none: BEiT's."""

Style = Literal["vit", "clip"]
"""clip: CLIP's encoder has a norm before the first block, and a GELU of a sigmoid."""

RelativeBias = Literal["none", "shared", "block"]
"""A learned bias of attention by offset, one for all blocks or one for each (BEiT)."""


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


def flat_dot(lhs: Array, rhs: Array, dimensions: Any, **options: Any) -> Array:
    """`jax.lax.dot_general` of a Linear, all leading dimensions of lhs made one.

    The same products; XLA on a CPU takes a fifth less time, most of it in the gradient
    of the kernel.
    """
    rows = lhs.reshape(-1, lhs.shape[-1])
    out = jax.lax.dot_general(rows, rhs, (((1,), (0,)), ((), ())), **options)
    return out.reshape(*lhs.shape[:-1], rhs.shape[-1])


# MAE initialises every Linear, the fused qkv and the patch embedding seen as a Linear
# included, with Xavier's uniform rule.
Dense = functools.partial(
    nn.Dense, kernel_init=nn.initializers.xavier_uniform(), dot_general=flat_dot
)
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6)


@jax.custom_vjp
def gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """x times the normal distribution's function at x, in float32 within.

    By erf, as PyTorch has it, and its gradient is computed from x alone: jax.nn.gelu
    takes erfc, which costs a GPU three times as much, and keeps it for the gradient.
    """
    return _gelu_forward(x)[0]


def _normal_cdf(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype), x


def _gelu_backward(x: Array, gradient: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide**2) / math.sqrt(2.0 * math.pi)
    slope = _normal_cdf(wide) + wide * density
    return ((gradient.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)
token_init = nn.initializers.normal(0.02)


class Attention(nn.Module):
    """Multi-head self-attention with one fused qkv projection; softmax in float32.

    BEiT has no key bias, which makes no difference: softmax takes it out again.
    """

    num_heads: int
    dtype: Any
    kernel: Kernel = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], bias: Float[Array, "1 heads t t"] | None = None
    ) -> Float[Array, "b t d"]:
        b, t, d = x.shape
        qkv = Dense(3 * d, dtype=self.dtype, name="qkv")(x)
        qkv = qkv.reshape(b, t, 3, self.num_heads, d // self.num_heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        kernel = attention_kernel(
            self.kernel, t, q.shape[-1], q.dtype, bias is not None
        )
        x = flash(q, k, v) if kernel == "cudnn" else attend(q, k, v, bias)
        x = x.reshape(b, t, d)
        return Dense(d, dtype=self.dtype, name="out")(x)


class RelativePositionBias(nn.Module):
    """BEiT's bias of attention, by offset on the grid; three more entries for cls."""

    num_heads: int
    grid: Grid
    dtype: Any

    @nn.compact
    def __call__(self) -> Float[Array, "1 heads t t"]:
        h, w = self.grid
        entries = (2 * h - 1) * (2 * w - 1) + 3
        zeros = nn.initializers.zeros
        table = self.param("table", zeros, (entries, self.num_heads))
        bias = table.astype(self.dtype)[relative_index(self.grid)]
        return bias.transpose(2, 0, 1)[None]


class Mlp(nn.Module):
    """Two Linear layers around an exact (erf) GELU, or CLIP's x sigmoid(1.702 x)."""

    hidden: int
    dtype: Any
    style: Style = "vit"

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        d = x.shape[-1]
        x = Dense(self.hidden, dtype=self.dtype, name="up")(x)
        quick = self.style == "clip"
        x = x * nn.sigmoid(1.702 * x) if quick else gelu(x)
        return Dense(d, dtype=self.dtype, name="down")(x)


class Block(nn.Module):
    """A pre-norm transformer block; LayerNorm statistics in float32.

    layer_scale: initial value of a learned factor of each channel of both branches; 0
    is none. bias_grid: the grid of a relative position bias of its own.
    """

    spec: ViTSpec
    dtype: Any
    layer_scale: float = 0.0
    bias_grid: Grid | None = None
    style: Style = "vit"
    kernel: Kernel = "auto"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        bias: Float[Array, "1 heads t t"] | None = None,
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
        y = LayerNorm(dtype=self.dtype, name="norm_attention")(x)
        y = Attention(heads, self.dtype, self.kernel, name="attention")(y, bias)
        x = x + self._branch("scale_attention", y, keys, 0, drop_path)
        hidden = int(self.spec.width * self.spec.mlp_ratio)
        y = LayerNorm(dtype=self.dtype, name="norm_mlp")(x)
        y = Mlp(hidden, self.dtype, self.style, name="mlp")(y)
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


def through_blocks(
    owner: nn.Module,
    settings: Mapping[str, Any],
    layers: Sequence[int],
    x: Float[Array, "b t d"],
    bias: Float[Array, "1 heads t t"] | None = None,
    keys: Key[Array, " b"] | None = None,
    drop_path: Sequence[float] = (),
    *,
    remat: Remat,
    scan: bool,
) -> Float[Array, "b t d"]:
    """x after the blocks of `owner` (called in its compact method) numbered `layers`.

    settings: of `Block`, the same for all; drop_path: one for each. remat: keep all
    activations, matmul outputs ("dots") or none ("full"). scan: one compiled block goes
    over their weights, which are stacked for it: they are named and stored as without.
    """
    rates = drop_path or [0.0] * len(layers)
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    policy = {"off": None, "full": None, "dots": policy}[remat]
    names = [f"block_{layer - 1:02d}" for layer in layers]
    if not scan or len(layers) < 2 or owner.is_initializing():
        make = Block if remat == "off" else nn.remat(Block, policy=policy)
        for name, layer, rate in zip(names, layers, rates, strict=True):
            own = _folded(keys, layer) if keys is not None and rate else None
            x = make(**settings, name=name)(x, bias, own, rate)
        return x
    params = [owner.variables["params"][name] for name in names]
    block = Block(**settings, parent=None)

    def one(x: Array, inputs: Any) -> tuple[Any, None]:
        params, layer, rate = inputs
        own = None if keys is None else _folded(keys, layer)
        return block.apply({"params": params}, x, bias, own, rate), None

    if remat != "off":
        one = jax.checkpoint(one, policy=policy, prevent_cse=False)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    return jax.lax.scan(
        one, x, (stacked, jnp.array(layers), jnp.array(rates, jnp.float32))
    )[0]


class Encoder(nn.Module):
    """ViT encoder over a grid (h, w) of square patches, with one cls token.

    Layers are numbered 1 to depth by the block that made them; the last one is read
    after the final LayerNorm, as in MAE, where there is one. drop_path: of the last
    block; the others' rise to it linearly from 0. position_grid: where the fixed
    positions were learned with, if not at `grid`; they are resized to it. remat, scan:
    of `through_blocks`, from tap to tap.
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
    kernel: Kernel = "auto"

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
        width, depth = self.spec.width, self.spec.depth
        taps = (depth,) if taps is None else taps
        if mask is not None and layout == "visible" and self.relative_bias != "none":
            raise ValueError("a relative position bias wants layout mask_token")
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
        bias = None
        if self.relative_bias == "shared":
            shared = RelativePositionBias(
                self.spec.num_heads, self.grid, self.dtype, name="relative_bias"
            )
            bias = shared()
        block = {
            "spec": self.spec,
            "dtype": self.dtype,
            "layer_scale": self.layer_scale,
            "bias_grid": self.grid if self.relative_bias == "block" else None,
            "style": self.style,
            "kernel": self.kernel,
        }
        found = {}
        if 0 in taps:
            found[0] = Features(prefix=x[:, :1], patches=x[:, 1:])
        for before, layer in itertools.pairwise(sorted({0, *taps, depth})):
            layers = range(before + 1, layer + 1)
            rates = [self.drop_path * (i - 1) / max(1, depth - 1) for i in layers]
            x = through_blocks(
                *(self, block, layers, x, bias, keys, rates),
                remat=self.remat,
                scan=self.scan,
            )
            if layer == depth and self.final_norm:
                x = LayerNorm(dtype=self.dtype, name="norm")(x)
            if layer in taps:
                found[layer] = Features(prefix=x[:, :1], patches=x[:, 1:])
        return found

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


def _folded(keys: Key[Array, " b"], number: int) -> Key[Array, " b"]:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def small_init(params: Any, key: Key[Array, ""]) -> Any:
    """BEiT's first weights: every kernel from a normal of deviation .02 cut at one
    deviation, those at the end of block i's branches divided by sqrt(2 i)."""

    def draw(path: Any, x: Array) -> Array:
        name = "/".join(str(getattr(part, "key", part)) for part in path)
        if not name.endswith("/kernel"):
            return x
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        x = 0.02 * jax.random.truncated_normal(own, -1.0, 1.0, x.shape, x.dtype)
        branch = re.search(r"block_(\d+)/(attention/out|mlp/down)/", name)
        return x / math.sqrt(2 * (int(branch[1]) + 1)) if branch else x

    return jax.tree_util.tree_map_with_path(draw, params)
