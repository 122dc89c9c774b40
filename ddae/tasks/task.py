"""The Task protocol: all that the train step, checkpoints and evaluators know."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Key, Shaped

from ddae.models.vit import Encoder, Features
from ddae.networks import FrozenNetwork
from ddae.objective import Metrics, Scalar
from ddae.tasks.backbone import Standardisation, features_of

Params = dict[str, Any]
Batch = Mapping[str, Array]
"""image: uint8, or float in [0, 1], [b, height, width, c]; label: int32 [b]."""


class Task(Protocol):
    """A differentiable loss over parameters; pure functions of what they are given.

    encoder: every task has one; standardise: what its images go through before it.
    What has a body here is what most tasks do.
    """

    encoder: Encoder
    standardise: Standardisation

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images that it takes."""
        return self.encoder.image_shape

    def dtype_of(self, path: str) -> Any:
        """What the transformer block whose weights are at "encoder/block_00/..." or
        another `path` computes in."""
        return self.encoder.dtype

    def init(self, rng: Key[Array, ""]) -> Params:
        """Fresh parameters: nested dicts of float32 arrays."""
        ...

    def meaning(self) -> Mapping[str, Any]:
        """What the shapes of its heads' parameters do not tell, and without which they
        are others: settings by their keys in the config, "classifier.pool"."""
        return {}

    def frozen(self) -> Mapping[str, FrozenNetwork]:
        """Networks that are asked and never trained: their weights, of workdirs of
        their own, lie at params["frozen"][name]."""
        return {}

    def begin(self, params: Params, batch: Batch) -> Params:
        """`params` made ready for the first step by its batch; traced."""
        return params

    def ema_of(self, params: Params) -> Params:
        """The part of `params` that has a moving average; {} where there is none."""
        return {}

    def momentum(self, progress: Scalar, total_steps: int) -> Scalar:
        """Momentum of that average at progress t in [0, 1] of so many steps."""
        return jnp.zeros((), jnp.float32)

    def loss(
        self,
        params: Params,
        ema_params: Params,
        batch: Batch,
        progress: Scalar,
        rngs: Key[Array, " b"],
    ) -> tuple[Scalar, Metrics, Params]:
        """The loss to descend, metrics as (sum, count), and what `absorb` takes.

        rngs: one random key an example. The metric `loss` is the loss to descend; its
        count is what a micro-batch weighs where gradients are accumulated.
        """
        ...

    def absorb(self, params: Params, observed: Params) -> Params:
        """`params` with those that learn by averaging, not by gradients, updated.

        observed: what `loss` gave third, summed over micro-batches.
        """
        return params

    def evaluated(self, params: Params, ema_params: Params) -> Params:
        """The parameters that evaluations see."""
        return params

    def encode(
        self,
        params: Params,
        images: Shaped[Array, "b height width c"],
        tap: int = 0,
    ) -> Features:
        """Features of block `tap`, 0 for the last, never masked."""
        return features_of(self.encoder, self.standardise, params, images, tap)
