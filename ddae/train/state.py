"""All that a run changes from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from ddae.tasks import Task
from ddae.train.optimizer import Optimizer, merge

SO_FAR = ("nonfinite_steps", "nonfinite_in_row")
"""Metrics that count up to their step: of several steps only the last one's is true."""


class NonFiniteError(RuntimeError):
    """Too many steps in a row, or the state itself, were not finite (exit code 3)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step counts batches consumed, skipped ones included; parameters are float32.

    ema_params: the moving average of `task.ema_of(params)`. nonfinite_in_row: batches
    skipped since the last good one; nonfinite: in all.
    """

    step: Int[Array, ""]
    params: Any
    optimizer: Any
    ema_params: Any
    nonfinite_in_row: Int[Array, ""]
    nonfinite: Int[Array, ""]

    def after(
        self, finite: Bool[Array, ""], params: Any, optimizer: Any, ema_params: Any
    ) -> "TrainState":
        """The state after a step that was finite or not."""
        bad = jnp.where(finite, 0, 1)
        return TrainState(
            self.step + 1,
            params,
            optimizer,
            ema_params,
            nonfinite_in_row=(self.nonfinite_in_row + 1) * bad,
            nonfinite=self.nonfinite + bad,
        )


def make_init(task: Task, optimizer: Optimizer):
    """A jittable function from a key to the state at step 0.

    Its second argument takes the place of fresh parameters where it is not None.
    """

    def init(rng: Key[Array, ""], known: Any = None) -> TrainState:
        params = task.init(rng)
        if known is not None:
            params = merge(known, params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            optimizer=optimizer.init(params),
            # A copy: a buffer shared with `params` could not be donated.
            ema_params=jax.tree.map(jnp.copy, task.ema_of(params)),
            nonfinite_in_row=jnp.zeros((), jnp.int32),
            nonfinite=jnp.zeros((), jnp.int32),
        )

    return init
