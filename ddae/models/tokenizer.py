"""VQ-KD, BEiT-v2's tokenizer (Peng et al. 2022): patches to ids of a codebook."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddae.models.blocks import Blocks, through_blocks
from ddae.models.linear import Dense, LayerNorm
from ddae.models.vit import Encoder, Features

SCORED = 4096
"""Patches compared with the codebook at a time."""

MOMENTUM = 0.99
"""Of the codebook's moving average."""


class Quantiser(nn.Module):
    """Linear-Tanh-Linear of the encoder's patches, and the nearest code; float32.

    Latents and codes have length 1, so the nearest code is that of largest cosine. The
    codebook learns by a moving average alone (`averaged`).
    """

    codes: int
    code_dim: int

    @nn.compact
    def __call__(
        self, features: Features
    ) -> tuple[Float[Array, "b n c"], Int[Array, "b n"]]:
        """(latents of length 1, ids of their codes)."""
        x = features.patches.astype(jnp.float32)
        x = jnp.tanh(nn.Dense(x.shape[-1], name="down_hidden")(x))
        z = unit(nn.Dense(self.code_dim, name="down")(x))
        codebook = Codebook(self.codes, self.code_dim, name="codebook")()
        return z, nearest(z, codebook)


class Codebook(nn.Module):
    """codes [k, c] of length 1, and counts [k], how often each is taken."""

    codes: int
    code_dim: int

    @nn.compact
    def __call__(self) -> Float[Array, "k c"]:
        shape = (self.codes, self.code_dim)
        self.param("counts", nn.initializers.zeros, (self.codes,))
        return self.param(
            "codes", lambda key, shape: unit(jax.random.normal(key, shape)), shape
        )


class TokenDecoder(nn.Module):
    """Codes -> Linear, positions, blocks, Linear-Tanh-Linear: teacher's features.

    encoder: the tokenizer's own, for its width, grid and how it computes.
    """

    encoder: Encoder
    depth: int
    outputs: int

    @nn.compact
    def __call__(self, codes: Float[Array, "b n c"]) -> Float[Array, "b n k"]:
        spec, dtype = self.encoder.spec, self.encoder.dtype
        h, w = self.encoder.grid
        x = Dense(spec.width, dtype=dtype, name="embedding")(codes)
        shape = (1, h * w, spec.width)
        positions = self.param("positions", nn.initializers.normal(0.02), shape)
        x = x + positions.astype(dtype)
        blocks = Blocks(
            spec=spec,
            dtype=dtype,
            activation=self.encoder.gelu,
            kernel=self.encoder.kernel,
        )
        x = through_blocks(self, blocks, range(1, self.depth + 1), x)[self.depth]
        x = LayerNorm(dtype=dtype, name="norm")(x)
        x = jnp.tanh(Dense(spec.width, dtype=dtype, name="up_hidden")(x))
        return Dense(self.outputs, dtype=dtype, name="up")(x)


def unit(x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
    """Rows of length 1."""
    return x * jax.lax.rsqrt((x**2).sum(axis=-1, keepdims=True) + 1e-12)


def nearest(
    z: Float[Array, "b n c"], codebook: Float[Array, "k c"]
) -> Int[Array, "b n"]:
    """The code of largest cosine, in float32 on every device (a TPU left to itself
    multiplies in bfloat16).

    About SCORED are compared at once, some of every image: none leaves its device.
    """

    def best(z: Float[Array, "b m c"]) -> Int[Array, "b m"]:
        cosine = jnp.matmul(z, codebook.T, precision="highest")
        return cosine.argmax(axis=-1).astype(jnp.int32)

    b, n, c = z.shape
    each = max(1, SCORED // b)
    if n <= each:
        return best(z)
    padded = jnp.pad(z, ((0, 0), (0, -n % each), (0, 0)))
    ids = jax.lax.map(best, padded.reshape(b, -1, each, c).swapaxes(0, 1))
    return ids.swapaxes(0, 1).reshape(b, -1)[:, :n]


def sums_of(
    z: Float[Array, "n c"], ids: Int[Array, " n"], codes: int
) -> dict[str, Array]:
    """For each code, the sum and the number of the latents whose nearest code it is."""
    return {
        "sums": jax.ops.segment_sum(z, ids, codes),
        "counts": jax.ops.segment_sum(jnp.ones(len(ids)), ids, codes),
    }


def averaged(codebook: dict[str, Array], seen: dict[str, Array]) -> dict[str, Array]:
    """The codebook after a batch; a code that no latent took stays where it is."""
    taken = seen["counts"][:, None] > 0
    mean = unit(seen["sums"] / jnp.maximum(seen["counts"][:, None], 1.0))
    moved = unit(MOMENTUM * codebook["codes"] + (1 - MOMENTUM) * mean)
    return {
        "codes": jnp.where(taken, moved, codebook["codes"]),
        "counts": MOMENTUM * codebook["counts"] + (1 - MOMENTUM) * seen["counts"],
    }


def k_means(
    z: Float[Array, "n c"], codes: int, iterations: int = 10
) -> Float[Array, "k c"]:
    """A first codebook: spherical k-means, begun with latents evenly spaced in `z`.

    Fewer latents than codes are taken over and over; a cluster left empty keeps its
    centre.
    """
    first = z[np.arange(codes, dtype=np.int64) * len(z) // codes % len(z)]

    def step(_: int, centres: Float[Array, "k c"]) -> Float[Array, "k c"]:
        seen = sums_of(z, nearest(z[None], centres)[0], codes)
        mean = unit(seen["sums"])
        return jnp.where(seen["counts"][:, None] > 0, mean, centres)

    return jax.lax.fori_loop(0, iterations, step, first)
