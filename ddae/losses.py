"""Losses of one patch, [b, m] from [b, m, k], and their weighted mean, in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Values = Float[Array, "b m k"]
PerPatch = Float[Array, "b m"]


def mse(prediction: Values, target: Values) -> PerPatch:
    """Mean squared error over the k values of a patch."""
    return ((_f32(prediction) - _f32(target)) ** 2).mean(axis=-1)


def normalise_features(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """LayerNorm without affine over the last axis, eps 1e-6, float32.

    The variance is that of `nn.LayerNorm`, E[x^2] - E[x]^2. Computed from x - E[x], it
    has XLA on a GPU write all of x to memory, normalised, before a part of it is taken.
    """
    x = _f32(x)
    mean = x.mean(axis=-1, keepdims=True)
    variance = (x**2).mean(axis=-1, keepdims=True) - mean**2
    return (x - mean) * jax.lax.rsqrt(jnp.maximum(variance, 0.0) + 1e-6)


def normalised_mse(prediction: Values, target: Values) -> PerPatch:
    """`mse` of the prediction after LayerNorm without affine (feature distillation)."""
    return mse(normalise_features(prediction), target)


def l1(prediction: Values, target: Values) -> PerPatch:
    """Mean absolute error over the k values of a patch (SimMIM)."""
    return jnp.abs(_f32(prediction) - _f32(target)).mean(axis=-1)


def smooth_l1(prediction: Values, target: Values, beta: float = 2.0) -> PerPatch:
    """Huber's loss over beta, quadratic below |error| = beta (data2vec, beta = 2)."""
    error = jnp.abs(_f32(prediction) - _f32(target))
    small = 0.5 * error**2 / beta
    return jnp.where(error < beta, small, error - 0.5 * beta).mean(axis=-1)


def cosine(prediction: Values, target: Values) -> PerPatch:
    """1 - cosine similarity, in [0, 2]."""
    return 1.0 - (_unit(_f32(prediction)) * _unit(_f32(target))).sum(axis=-1)


def cross_entropy(logits: Values, ids: Int[Array, "b m"]) -> PerPatch:
    """Cross-entropy of k classes against integer ids in [0, k)."""
    log_probabilities = jax.nn.log_softmax(_f32(logits), axis=-1)
    return -jnp.take_along_axis(log_probabilities, ids[..., None], axis=-1)[..., 0]


def weighted_mean(
    values: PerPatch, weights: PerPatch | None = None
) -> Float[Array, ""]:
    """Mean over images and patches of weights * values; weights average 1 an image."""
    if weights is not None:
        values = values * weights
    # Patches first, then images: a fixed order of summation, so that weights of
    # exactly 1 give the unweighted mean to the bit.
    return values.mean(axis=-1).mean()


def _f32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x.astype(jnp.float32)


def _unit(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x / jnp.sqrt((x**2).sum(axis=-1, keepdims=True) + 1e-12)
