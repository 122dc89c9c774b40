"""Attention probabilities of an encoder, from what enters its blocks.

`Attention` fuses its softmax into one call, so nothing can be read out of it: here
queries and keys are computed again, from the block's input and its parameters.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddae.models.blocks import block_key
from ddae.models.positions import relative_index
from ddae.models.vit import Encoder


def attention_probabilities(
    encoder: Encoder, params: Mapping[str, Any], images: Float[Array, "b h w c"]
) -> Iterator[Float[Array, "b heads t t"]]:
    """Of every block, the first one first: how much query token i reads key token j.

    params: of the encoder. images: standardised; all patches are seen. Token 0 is cls.
    """
    depth = encoder.spec.depth
    inputs: Any = encoder.apply({"params": params}, images, taps=tuple(range(depth)))
    shared = params.get("relative_bias")
    for layer in range(depth):
        block = params[block_key(layer + 1)]
        tokens = inputs[layer]
        x = jnp.concatenate([tokens.prefix, tokens.patches], axis=1)
        table = block.get("relative_bias", shared)
        bias = 0.0
        if table is not None:
            bias = table["table"][relative_index(encoder.grid)].transpose(2, 0, 1)
        yield _probabilities(block, x, encoder.spec.num_heads, bias)


def _probabilities(
    block: Mapping[str, Any], x: Float[Array, "b t d"], heads: int, bias: Any
) -> Float[Array, "b heads t t"]:
    x = x.astype(jnp.float32)
    b, t, d = x.shape
    norm, qkv = block["norm_attention"], block["attention"]["qkv"]
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / jnp.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
    x = x * norm["scale"] + norm["bias"]
    x = (x @ qkv["kernel"] + qkv["bias"]).reshape(b, t, 3, heads, d // heads)
    scores = jnp.einsum("bqhd,bkhd->bhqk", x[:, :, 0], x[:, :, 1])
    return jax.nn.softmax(scores / math.sqrt(d // heads) + bias, axis=-1)
