"""The Task protocol: all that the train step, checkpoints and evaluators know."""

from collections.abc import Mapping
from typing import Any, Protocol

from jaxtyping import Array, Float, Key

from ddae.models.vit import Features
from ddae.objective import Metrics, Scalar

Params = dict[str, Any]
Batch = Mapping[str, Array]
"""image: uint8, or float in [0, 1], [b, height, width, c]; label: int32 [b]."""


class Task(Protocol):
    """A differentiable loss over parameters; pure functions of what they are given."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images that it takes."""
        ...

    def init(self, rng: Key[Array, ""]) -> Params:
        """Fresh parameters: nested dicts of float32 arrays."""
        ...

    def ema_of(self, params: Params) -> Params:
        """The part of `params` that has a moving average; {} where there is none."""
        ...

    def momentum(self, progress: Scalar) -> Scalar:
        """Momentum of that average at progress t in [0, 1]."""
        ...

    def loss(
        self,
        params: Params,
        ema_params: Params,
        batch: Batch,
        progress: Scalar,
        rngs: Key[Array, " b"],
    ) -> tuple[Scalar, Metrics, Params]:
        """The loss to descend, metrics as (sum, count), and what `absorb` takes.

        rngs: one random key an example.
        """
        ...

    def absorb(self, params: Params, observed: Params) -> Params:
        """`params` with those that learn by averaging, not by gradients, updated.

        observed: what `loss` gave third, summed over micro-batches.
        """
        ...

    def evaluated(self, params: Params, ema_params: Params) -> Params:
        """The parameters that evaluations see."""
        ...

    def encode(
        self,
        params: Params,
        images: Float[Array, "b height width c"],
        tap: int = 0,
    ) -> Features:
        """Features of block `tap`, 0 for the last, never masked."""
        ...
