"""Attention among few tokens, on a GPU: a kernel in Pallas.

Masked image modelling attends among the visible patches, 50 tokens of ViT-B, and in
narrow decoders. Flash attention is made for long sequences: among few tokens it takes
several times as long as its bytes would to be moved. Here one program goes over one
head of one example, and the gradient needs nothing but what attention was given: all
keys are there, so softmax is computed again.

It takes queries, keys and values as the one product that they come from, and adds its
bias itself; their gradients are one array likewise.
"""

import contextlib
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jaxtyping import Array, Float

triton: Any = None
with contextlib.suppress(ImportError):  # jax 0.12 says that a later one has none
    from jax.experimental.pallas import triton

LOG2_E = math.log2(math.e)

QUERY, KEY, VALUE = (np.int32(i) for i in range(3))


class Tiles(NamedTuple):
    """How one kernel goes over a head: queries at a time, keys at a time, and Triton's
    warps a program and loads ahead."""

    queries: int
    keys: int
    warps: int
    stages: int


def fits(tokens: int, width: int) -> bool:
    """Whether scores of so many tokens, and heads of this width, fit the registers, and
    whether this jax can still compile it."""
    has_dot = hasattr(triton, "dot")  # from jax 0.10.2 on
    return has_dot and tokens <= {16: 256, 32: 256, 64: 64}.get(width, 0)


def forward_tiles(tokens: int) -> Tiles:
    """The fastest of those tried on an H100."""
    whole = _whole(tokens)
    return Tiles(whole, whole, 4, 1) if whole <= 64 else Tiles(128, 64, 8, 3)


def backward_tiles(tokens: int) -> Tiles:
    """The fastest of those tried on an H100."""
    whole = _whole(tokens)
    return Tiles(whole, whole, 4, 1) if whole <= 64 else Tiles(16, whole, 4, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def short_attention(
    qkv: Float[Array, "b t 3 heads k"],
    bias: Float[Array, "3 heads k"],
    interpret: bool = False,
) -> Float[Array, "b t heads k"]:
    """softmax(q k' / sqrt(width)) v of q, k, v = qkv + bias, the softmax in float32.

    interpret: without a GPU, for tests.
    """
    return _forward(qkv, bias, interpret)


def _kept(qkv: Array, bias: Array, interpret: bool) -> tuple[Array, Any]:
    return _forward(qkv, bias, interpret), (qkv, bias)


def _gradients(interpret: bool, kept: Any, out: Array) -> tuple[Array, Array]:
    gradient, of_bias = _backward(*kept, out, interpret)
    return gradient, of_bias.sum(0).astype(kept[1].dtype)


short_attention.defvjp(_kept, _gradients)


def _of_examples(rule: str) -> Any:
    """Makes a function of whole batches run on each device's own examples. rule: the
    names of the axes, b for examples; the rest are on every device."""

    def decorate(function: Any) -> Any:
        static = len(rule.split("->")[0].split(","))
        whole = custom_partitioning(function, static_argnums=(static,))

        def partition(interpret: bool, mesh: Any, given: Any, result: Any) -> Any:
            own = functools.partial(function, interpret=interpret)
            given = tuple(x.sharding for x in given)
            return mesh, own, jax.tree.map(lambda x: x.sharding, result), given

        whole.def_partition(
            partition=partition,
            sharding_rule=rule,
            need_replication_factors=("t", "c", "h", "k"),
        )
        return whole

    return decorate


@_of_examples("b t c h k, c h k -> b t h k")
def _forward(qkv: Array, bias: Array, interpret: bool) -> Array:
    b, t, _, heads, width = qkv.shape
    tiles = forward_tiles(t)
    whole, shifts, plain = _blocks(t, width)
    return pl.pallas_call(
        functools.partial(_forward_kernel, t=t, tiles=tiles),
        grid=(b, heads, pl.cdiv(t, tiles.queries)),
        in_specs=[whole, shifts],
        out_specs=plain,
        out_shape=jax.ShapeDtypeStruct((b, t, heads, width), qkv.dtype),
        compiler_params=_parameters(tiles),
        interpret=interpret,
        name="short_attention_forward",
    )(qkv, bias)


@_of_examples("b t c h k, c h k, b t h k -> b t c h k, b c h k")
def _backward(
    qkv: Array, bias: Array, out: Array, interpret: bool
) -> tuple[Array, Array]:
    """The gradient of qkv, and its sum over each example's tokens, in float32."""
    b, t, _, heads, width = qkv.shape
    tiles = backward_tiles(t)
    whole, shifts, plain = _blocks(t, width)
    sums = pl.BlockSpec((None, 3, None, width), lambda b, h, *_: (b, 0, h, 0))
    return pl.pallas_call(
        functools.partial(_backward_kernel, t=t, tiles=tiles),
        grid=(b, heads),
        in_specs=[whole, shifts, plain],
        out_specs=[whole, sums],
        out_shape=[
            jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
            jax.ShapeDtypeStruct((b, 3, heads, width), jnp.float32),
        ],
        compiler_params=_parameters(tiles),
        interpret=interpret,
        name="short_attention_backward",
    )(qkv, bias, out)


def _whole(tokens: int) -> int:
    """Triton's arrays have powers of two, and its products 16 rows or more."""
    return max(16, pl.next_power_of_2(tokens))


def _parameters(tiles: Tiles) -> Any:
    return triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages)


def _blocks(t: int, width: int) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """What program (example, head) sees of qkv, of its bias and of one of the three."""
    rows = _whole(t)
    return (
        pl.BlockSpec((None, rows, 3, None, width), lambda b, h, *_: (b, 0, 0, h, 0)),
        pl.BlockSpec((3, None, width), lambda b, h, *_: (0, h, 0)),
        pl.BlockSpec((None, rows, None, width), lambda b, h, *_: (b, 0, h, 0)),
    )


def _rows(t: int, start: Any, number: int) -> tuple[Any, Any]:
    """A slice of tokens, and which of them there are."""
    return pl.ds(start, number), (start + jnp.arange(number) < t)[:, None]


def _read(qkv: Any, bias: Any, part: Any, t: int, start: Any, number: int) -> Array:
    """Queries, keys or values; what there is not is the bias alone."""
    rows, there = _rows(t, start, number)
    found = triton.load(qkv.at[rows, part], mask=there, other=0.0)
    return found + bias[part][None]


def _scores(q: Array, k: Array, t: int, start: Any) -> Array:
    """To base 2; of keys that there are not, as good as none."""
    there = start + jnp.arange(k.shape[0]) < t
    scores = triton.dot(q, k.T) * (LOG2_E / math.sqrt(q.shape[-1]))
    return jnp.where(there[None], scores, -1e30)


def _forward_kernel(qkv: Any, bias: Any, out: Any, *, t: int, tiles: Tiles) -> None:
    at = pl.program_id(2) * tiles.queries
    q = _read(qkv, bias, QUERY, t, at, tiles.queries)

    def one(i: Any, carry: Any) -> Any:
        highest, total, mean = carry
        start = i * tiles.keys
        k, v = (_read(qkv, bias, p, t, start, tiles.keys) for p in (KEY, VALUE))
        scores = _scores(q, k, t, start)
        top = jnp.maximum(highest, scores.max(1))
        shares, less = jnp.exp2(scores - top[:, None]), jnp.exp2(highest - top)
        found = triton.dot(shares.astype(v.dtype), v)
        return top, total * less + shares.sum(1), mean * less[:, None] + found

    none = jnp.zeros(tiles.queries, jnp.float32)
    carry = (none - 1e30, none, jnp.zeros(q.shape, jnp.float32))
    _, total, mean = _over(t, tiles.keys, one, carry)
    rows, there = _rows(t, at, tiles.queries)
    mean = (mean / total[:, None]).astype(out.dtype)
    triton.store(out.at[rows], mean, mask=there)


def _backward_kernel(
    qkv: Any, bias: Any, out: Any, gradient: Any, sums: Any, *, t: int, tiles: Tiles
) -> None:
    k, v = (_read(qkv, bias, part, t, 0, tiles.keys) for part in (KEY, VALUE))

    def one(i: Any, carry: Any) -> Any:
        sum_q, of_k, of_v = carry
        at = i * tiles.queries
        rows, there = _rows(t, at, tiles.queries)
        q = _read(qkv, bias, QUERY, t, at, tiles.queries)
        of_out = triton.load(out.at[rows], mask=there, other=0.0)
        scores = _scores(q, k, t, 0)
        shares = jnp.exp2(scores - scores.max(1, keepdims=True))
        shares = shares / shares.sum(1, keepdims=True)
        of_v += triton.dot(shares.astype(of_out.dtype).T, of_out)
        of_shares = triton.dot(of_out, v.T)
        mean = (shares * of_shares).sum(1, keepdims=True)
        of_scores = shares * (of_shares - mean) / math.sqrt(q.shape[-1])
        of_scores = of_scores.astype(q.dtype)
        of_q = triton.dot(of_scores, k)
        triton.store(gradient.at[rows, QUERY], of_q.astype(gradient.dtype), mask=there)
        return sum_q + of_q.sum(0), of_k + triton.dot(of_scores.T, q), of_v

    none = jnp.zeros(k.shape, jnp.float32)
    sum_q = jnp.zeros(k.shape[1], jnp.float32)
    sum_q, *found = _over(t, tiles.queries, one, (sum_q, none, none))
    triton.store(sums.at[QUERY], sum_q)
    rows, there = _rows(t, 0, tiles.keys)
    for part, of_part in zip((KEY, VALUE), found, strict=True):
        # Of keys that there are not the gradient is 0.
        triton.store(sums.at[part], of_part.sum(0))
        of_part = of_part.astype(gradient.dtype)
        triton.store(gradient.at[rows, part], of_part, mask=there)


def _over(t: int, tile: int, one: Any, carry: Any) -> Any:
    """`one` over all tiles of t tokens; without a loop where there is one."""
    number = pl.cdiv(t, tile)
    if number == 1:
        return one(0, carry)
    return jax.lax.fori_loop(0, number, one, carry)
