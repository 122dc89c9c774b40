"""Quantities that move during a run: plain functions of a traced step or progress.

`step` counts optimiser updates from 0; progress `t` is step / total_steps in [0, 1].
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

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


def warmup_poly(
    step: Int[Array, ""],
    *,
    start: float,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    final: float = 0.0,
) -> Scalar:
    """A line from `peak` at step 0 to `final`; over the warmup a blend from `start`
    into it (mmsegmentation's poly schedule of power 1)."""
    step = jnp.asarray(step, jnp.float32)
    line = final + (peak - final) * (1.0 - step / max(total_steps, 1))
    share = jnp.clip(step / max(warmup_steps, 1), 0.0, 1.0)
    return start + (line - start) * share if warmup_steps else line


def warmup_step(
    step: Int[Array, ""],
    *,
    at: float,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    final: float = 0.0,
) -> Scalar:
    """Linear to `peak` over the warmup; from `at` of the run on a tenth of it (SimMIM),
    or `final` where that is more."""
    step = jnp.asarray(step, jnp.float32)
    rising = jnp.minimum(step / max(warmup_steps, 1), 1.0) if warmup_steps else 1.0
    last = jnp.maximum(0.1 * peak, final)
    return rising * jnp.where(step < at * total_steps, peak, last)


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


def mean_lag(momentum: Shaped[Array, " steps"]) -> float:
    """How many steps old, on average, is what a moving average is made of at the end of
    a run whose steps had this `momentum`; what it began with is as old as the run."""
    with np.errstate(divide="ignore"):
        newest_first = np.log(np.asarray(momentum, np.float64))[::-1]
    return float(np.exp(np.cumsum(newest_first)).sum())
