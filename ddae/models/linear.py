"""Linear layers, and the norms before them."""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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


@flax.struct.dataclass
class Normed:
    """Tokens of mean 0 and variance 1, and the scale and shift of their LayerNorm,
    which a Linear takes into its own weights.

    So the Linear's input, which its gradient needs, is all that is kept of a norm: what
    came into the norm need not be, and a branch is added to it where it lies.
    """

    tokens: Float[Array, "b t d"]
    scale: Float[Array, " d"]
    shift: Float[Array, " d"]


class Norm(nn.Module):
    """LayerNorm, statistics in float32; its parameters are named as nn.LayerNorm's."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Normed:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        shift = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return Normed(tokens=standardised(x, self.dtype), scale=scale, shift=shift)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def standardised(x: Float[Array, "*s d"], dtype: Any) -> Float[Array, "*s d"]:
    """x less its mean, over the root of its variance plus 1e-6, along the last axis."""
    centred, scale = _centred_and_scale(x.astype(jnp.float32))
    return (centred * scale).astype(dtype)


def _standardised_forward(x: Array, dtype: Any) -> tuple[Array, Any]:
    centred, scale = _centred_and_scale(x.astype(jnp.float32))
    # Without a barrier XLA would compute them again, and keep x for that.
    y, scale = jax.lax.optimization_barrier(((centred * scale).astype(dtype), scale))
    return y, (y, scale, jnp.zeros((), x.dtype))


def _standardised_backward(dtype: Any, kept: Any, gradient: Array) -> tuple[Array]:
    y, scale, like_x = kept
    y, gradient = y.astype(jnp.float32), gradient.astype(jnp.float32)
    of_x = scale * _less_mean_and_share(gradient, y)
    return (of_x.astype(like_x.dtype),)


standardised.defvjp(_standardised_forward, _standardised_backward)


def sums_in_turn() -> bool:
    """Whether a norm's second sum is of what its first one gives. XLA for GPUs makes
    one kernel, in Triton, of such a chain, a norm's gradient and the addition to the
    branch beside it together; for TPUs two sums at once read less."""
    return jax.devices()[0].platform == "gpu"


def _centred_and_scale(
    x: Float[Array, "*s d"],
) -> tuple[Float[Array, "*s d"], Float[Array, "*s 1"]]:
    """x less its mean, and one over the root of its variance plus 1e-6."""
    mean = x.mean(-1, keepdims=True)
    if sums_in_turn():
        variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    else:
        squares = (x * x).mean(-1, keepdims=True)
        variance = jnp.maximum(squares - mean * mean, 0.0)
    return x - mean, jax.lax.rsqrt(variance + 1e-6)


def _less_mean_and_share(
    gradient: Float[Array, "*s d"], y: Float[Array, "*s d"]
) -> Float[Array, "*s d"]:
    """The gradient less its mean and its share along y, which is of mean 0."""
    centred = gradient - gradient.mean(-1, keepdims=True)
    along = ((centred if sums_in_turn() else gradient) * y).mean(-1, keepdims=True)
    return centred - y * along


def linear_weights(
    owner: nn.Module, normed: Normed, features: int, dtype: Any
) -> tuple[Float[Array, "d k"], Float[Array, " k"]]:
    """Kernel and bias of a Linear layer, parameters of `owner`, for `normed.tokens`."""
    shape = (normed.scale.size, features)
    kernel = owner.param("kernel", nn.initializers.xavier_uniform(), shape)
    bias = owner.param("bias", nn.initializers.zeros, (features,))
    bias = bias + (normed.shift[:, None] * kernel).sum(0)
    return (normed.scale[:, None] * kernel).astype(dtype), bias.astype(dtype)


class NormedLinear(nn.Module):
    """A Linear layer behind a norm."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, normed: Normed) -> Float[Array, "b t k"]:
        kernel, bias = linear_weights(self, normed, self.features, self.dtype)
        return flat_dot(normed.tokens, kernel, None) + bias
