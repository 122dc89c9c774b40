"""Difficulty of a hidden patch: its distance to the nearest visible one, and weights.

What we have of the paper states that difficulty varies with the distance to visible
patches and that the focus moves with the phase of pretraining and the depth of the
network. The metric, the power law and the schedule are our choices.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddae.masking import Mask
from ddae.patches import Grid

Metric = Literal["euclidean", "chebyshev", "manhattan"]

Phase = Literal["constant", "linear", "cosine", "steps"]
"""How the exponent goes from its start to its end."""

Law = Callable[
    [Float[Array, "b m"], Float[Array, ""], Float[Array, "b m"]], Float[Array, "b m"]
]
"""(distances, what the schedule says now, losses with no gradient) of masked patches ->
their weights, of mean 1 an image."""

DISTANCE_BINS: tuple[tuple[str, float, float], ...] = (
    ("d1", 0.5, 1.5),
    ("d2", 1.5, 2.5),
    ("d3", 2.5, 3.5),
    ("d4", 3.5, 4.5),
    ("d5+", 4.5, float("inf")),
)
"""Bins of distance in metrics: name, lower (inclusive) and upper edge, in patches."""


def nearest_visible_distance(
    mask: Mask, grid: Grid, metric: Metric = "euclidean"
) -> Float[Array, "b n"]:
    """Distance of every patch to its nearest visible patch, in patches, float32.

    0 where visible, at least 1 where masked. Exact, by the separable distance
    transform: minima over rows within each column, then over columns. Raises
    `ValueError` where the mask leaves nothing visible, or the metric is unknown.
    """
    h, w = grid
    if mask.ids_visible.shape[-1] == 0:
        raise ValueError(
            "no visible patch: the distance to the nearest one is undefined"
        )
    if metric not in get_args(Metric):
        raise ValueError(f"metric {metric!r} is not one of {get_args(Metric)}")
    rows = jnp.abs(jnp.arange(h)[:, None] - jnp.arange(h)[None, :]).astype(jnp.float32)
    columns = jnp.abs(jnp.arange(w)[:, None] - jnp.arange(w)[None, :]).astype(
        jnp.float32
    )
    if metric == "euclidean":
        rows, columns = rows**2, columns**2
    combine = jnp.maximum if metric == "chebyshev" else jnp.add
    blocked = jnp.where(mask.is_masked.reshape(-1, h, w), jnp.inf, 0.0)
    # [b, i, j]: the nearest visible patch within column j, seen from row i.
    within = (rows[None, :, :, None] + blocked[:, None, :, :]).min(axis=2)
    nearest = combine(columns[None, None], within[:, :, None, :]).min(axis=-1)
    if metric == "euclidean":
        nearest = jnp.sqrt(nearest)
    return nearest.reshape(-1, h * w)


def difficulty_weights(
    distance: Float[Array, "b m"], beta: Float[Array, ""] | float
) -> Float[Array, "b m"]:
    """Weights m * d^beta / sum d^beta of masked patches: mean 1 an image, float32.

    distance: at the masked patches, in patches, at least 1. beta > 0 looks at far
    (hard) patches, beta < 0 at near (easy) ones, and beta = 0 gives exactly 1.
    Raises `ValueError` where no patch is masked.
    """
    m = distance.shape[-1]
    if m == 0:
        raise ValueError("no masked patch: there is nothing to weigh")
    z = jnp.asarray(beta, jnp.float32) * jnp.log(distance.astype(jnp.float32))
    e = jnp.exp(z - z.max(axis=-1, keepdims=True))
    # Not a softmax times m: at beta = 0 this is 1 to the bit.
    return e * (m / e.sum(axis=-1, keepdims=True))


def power_law(
    distance: Float[Array, "b m"],
    beta: Float[Array, ""] | float,
    errors: Float[Array, "b m"],
) -> Float[Array, "b m"]:
    """`difficulty_weights`: the `Law` of every method here, whatever the losses are."""
    return difficulty_weights(distance, beta)


def effective_sample_size(weights: Float[Array, "b m"]) -> Float[Array, " b"]:
    """(sum w)^2 / sum w^2 over m, in (0, 1]: the share of masked patches that count."""
    m = weights.shape[-1]
    return weights.sum(axis=-1) ** 2 / (weights**2).sum(axis=-1) / m


@dataclasses.dataclass(frozen=True, kw_only=True)
class BetaSchedule:
    """The exponent over phase and depth.

    beta(t, u) = clip(b(t) + depth_tilt * (2u - 1), -limit, limit), where b(t) goes from
    `start` to `end` as t goes from 0 to 1: "constant" (stays at `start`), "linear",
    "cosine", or "steps" (`num_steps` equal stairs). depth_tilt < 0 makes deeper taps
    look nearer. Every default is ours and provisional.
    """

    start: float = -1.0
    end: float = 1.0
    phase: Phase = "linear"
    depth_tilt: float = -0.5
    num_steps: int = 4
    limit: float = 2.0

    def __post_init__(self):
        if self.phase not in get_args(Phase):
            raise ValueError(
                f"beta phase {self.phase!r} is not one of {get_args(Phase)}"
            )
        for name in ("start", "end"):
            if not abs(getattr(self, name)) <= self.limit:
                raise ValueError(
                    f"beta {name}={getattr(self, name)} lies beyond limit={self.limit}"
                )
        if self.phase == "steps" and self.num_steps < 2:
            raise ValueError("beta num_steps must be at least 2")

    def __call__(self, t: Float[Array, ""] | float, u: float) -> Float[Array, ""]:
        """beta at progress t in [0, 1] for a tap at relative depth u in (0, 1]."""
        t = jnp.clip(jnp.asarray(t, jnp.float32), 0.0, 1.0)
        if self.phase == "constant":
            share = jnp.zeros_like(t)
        elif self.phase == "linear":
            share = t
        elif self.phase == "cosine":
            share = 0.5 - 0.5 * jnp.cos(jnp.pi * t)
        else:
            stair = jnp.minimum(jnp.floor(t * self.num_steps), self.num_steps - 1)
            share = stair / (self.num_steps - 1)
        beta = (
            self.start + share * (self.end - self.start) + self.depth_tilt * (2 * u - 1)
        )
        return jnp.clip(beta, -self.limit, self.limit)
