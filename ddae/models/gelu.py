"""GELU: x times the normal distribution's function at x, and what stands in for it."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Gelu = Literal["erf", "tanh"]
"""erf: as it is. tanh: its approximation by tanh, within 5e-4 of it (Hendrycks and
Gimpel 2016). In half precision a GPU's matrix product ends in that one, where the other
is read and written once more."""

Activation = Literal["erf", "tanh", "sigmoid"]
"""A GELU, or CLIP's stand-in for it, x sigmoid(1.702 x)."""

Values = Float[Array, "*s"]


def _with_slope(value: Callable[[Any], Any], slope: Callable[[Any], Any]) -> Any:
    """A function of each element whose gradient is computed from its input alone.

    slope: of the function, float32 to float32.
    """

    def backward(x: Array, gradient: Array) -> tuple[Array]:
        wide = gradient.astype(jnp.float32) * slope(x.astype(jnp.float32))
        return (wide.astype(x.dtype),)

    function = jax.custom_vjp(value)
    function.defvjp(lambda x: (value(x), x), backward)
    return function


def _normal_cdf(x: Values) -> Values:
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _by_erf(x: Values) -> Values:
    """By erf, as PyTorch has it, in float32 within: jax.nn.gelu takes erfc, which costs
    a GPU three times as much, and keeps it for the gradient."""
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _slope_by_erf(x: Values) -> Values:
    return _normal_cdf(x) + x * jnp.exp(-0.5 * x**2) / math.sqrt(2.0 * math.pi)


def _by_tanh(x: Values) -> Values:
    """XLA for GPUs knows it again behind a product, whose kernel then computes it, in
    float32 within, if it is written in the product's own precision."""
    known = jax.devices()[0].platform == "gpu"
    wide = x if known else x.astype(jnp.float32)
    return jax.nn.gelu(wide, approximate=True).astype(x.dtype)


def _slope_by_tanh(x: Values) -> Values:
    root = math.sqrt(2.0 / math.pi)
    tanh = jnp.tanh(root * (x + 0.044715 * x**3))
    within = root * (1.0 + 3 * 0.044715 * x**2)
    return 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh**2) * within


def _by_sigmoid(x: Values) -> Values:
    return x * jax.nn.sigmoid(1.702 * x)


gelu = _with_slope(_by_erf, _slope_by_erf)
ACTIVATIONS = {
    "erf": gelu,
    "tanh": _with_slope(_by_tanh, _slope_by_tanh),
    "sigmoid": _by_sigmoid,
}
