"""What computes attention: XLA everywhere; on a GPU cuDNN's flash attention, and a
kernel in Pallas among few tokens."""

import math
import typing
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddae.models import short_attention

Computed = Literal["xla", "cudnn", "pallas"]
Kernel = Literal["auto", Computed]
"""What computes attention. xla: everywhere. cudnn: its flash attention, pallas:
`short_attention`, wherever they can run, XLA elsewhere. auto: on a GPU pallas where it
can run, cudnn elsewhere, from FLASH_FROM tokens on and where no bias is learned, whose
gradient was not compared on a GPU yet."""

FLASH_FROM = 50
"""Tokens from which those two are faster on an H100 (docs/performance.md); fewer were
not measured."""


def flash(
    q: Float[Array, "b t heads k"],
    k: Float[Array, "b t heads k"],
    v: Float[Array, "b t heads k"],
    tokens: int | None = None,
    bias: Float[Array, "_ heads _ _"] | None = None,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> Float[Array, "b t heads k"]:
    """softmax(q k' / sqrt(width) + bias) v by cuDNN's flash attention, on a GPU; by
    jax's own elsewhere, for tests.

    tokens: how many of t are looked at. jax takes the gradient of an even t alone, so
    an odd number of tokens comes with one more. bias: of these tokens; of several,
    which are the same, the first.
    """
    t = q.shape[1]
    tokens = t if tokens is None else tokens
    more = t - tokens
    if bias is not None:
        bias = jnp.pad(bias[:1], ((0, 0), (0, 0), (0, more), (0, 0)))
        unseen = ((0, 0), (0, 0), (0, 0), (0, more))
        bias = jnp.pad(bias, unseen, constant_values=-1e9)
    if bias is not None or not more:
        return jax.nn.dot_product_attention(
            q, k, v, bias, implementation=implementation
        )
    # The same of each example, but cut over devices as q is: a constant would not be.
    lengths = jnp.minimum(tokens, tokens + (q[:, 0, 0, 0] > 0))
    return jax.nn.dot_product_attention(
        *(q, k, v),
        query_seq_lengths=lengths + more,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )


def attend(
    q: Float[Array, "b t heads k"],
    k: Float[Array, "b t heads k"],
    v: Float[Array, "b t heads k"],
    bias: Float[Array, "s heads t t"] | None = None,
) -> Float[Array, "b t heads k"]:
    """softmax(q k' / sqrt(width) + bias) v, the softmax in float32.

    bias: one for each of s equal parts of the batch, or the first for all.

    Heads go before tokens, in memory too: on a CPU a third less time than
    `jax.nn.dot_product_attention`, which leaves them where they are.
    """
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    scores = jnp.einsum("bhqk,bhtk->bhqt", q, k, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(q.shape[-1])
    if bias is not None:
        if len(scores) % len(bias):
            bias = bias[:1]
        parts = scores.reshape(len(bias), -1, *scores.shape[1:])
        scores = (parts + bias[:, None]).reshape(scores.shape)
    shares = jax.nn.softmax(scores).astype(v.dtype)
    return jnp.einsum("bhqt,bhtk->bhqk", shares, v).swapaxes(1, 2)


def attention_kernel(
    chosen: Kernel, tokens: int, head_width: int, dtype: Any, biased: bool
) -> Computed:
    """What computes attention in a stack on this machine.

    In half precision, on a GPU of compute capability 8 or more, cuDNN's runs with heads
    of a width divisible by 8 up to 128, and the gradient of a bias from 9 on; Pallas's
    without a bias, where `short_attention.fits`: auto takes that on 9, where it was
    measured.
    """
    names = typing.get_args(Kernel)
    if chosen not in names:
        raise ValueError(f"attention {chosen!r} is not one of {', '.join(names)}")
    device = jax.devices()[0]
    half = dtype in (jnp.bfloat16, jnp.float16)
    if chosen == "xla" or device.platform != "gpu" or not half:
        return "xla"
    capability = float(getattr(device, "compute_capability", 0))
    can = {
        "pallas": capability >= 8.0
        and not biased
        and short_attention.fits(tokens, head_width),
        "cudnn": capability >= (9.0 if biased else 8.0)
        and head_width % 8 == 0
        and head_width <= 128,
    }
    if chosen != "auto":
        return chosen if can[chosen] else "xla"
    if tokens < FLASH_FROM or biased:
        return "xla"
    if can["pallas"] and 9.0 <= capability < 10.0:
        return "pallas"
    return "cudnn" if can["cudnn"] else "xla"
