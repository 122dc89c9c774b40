"""Quantities that move during a run: plain functions of a traced step or progress.

`step` counts optimiser updates from 0; progress `t` is step / total_steps in [0, 1].
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Scalar = Float[Array, ""]


def warmup_cosine(
    step: Int[Array, ""],
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    final: float = 0.0,
) -> Scalar:
    """Linear from 0 to `peak` over the warmup, then half a cosine to `final` (MAE)."""
    step = jnp.asarray(step, jnp.float32)
    rising = peak * step / max(warmup_steps, 1)
    t = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
    falling = final + (peak - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * t))
    return jnp.where(step < warmup_steps, rising, falling)


def linear_ramp(t: Scalar | float, *, until: float) -> Scalar:
    """0 at t = 0, 1 from t = `until` on; 1 throughout where `until` is 0."""
    t = jnp.asarray(t, jnp.float32)
    return jnp.clip(t / until, 0.0, 1.0) if until > 0 else jnp.ones_like(t)


def ema_momentum(
    t: Scalar | float, *, start: float, middle: float, end: float, rise: float
) -> Scalar:
    """Teacher momentum: linear `start` to `middle` by t = `rise`, then cosine to `end`.

    Ours; a function of progress, so that short and long runs see the same curve.
    """
    t = jnp.clip(jnp.asarray(t, jnp.float32), 0.0, 1.0)
    first = start + (middle - start) * linear_ramp(t, until=rise)
    share = jnp.clip((t - rise) / max(1.0 - rise, 1e-6), 0.0, 1.0)
    second = end - (end - middle) * 0.5 * (1.0 + jnp.cos(jnp.pi * share))
    return jnp.where(t < rise, first, second)
