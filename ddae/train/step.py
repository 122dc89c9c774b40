"""The one train step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key, Shaped

from ddae.models.vit import Features
from ddae.objective import Metrics
from ddae.tasks import Task
from ddae.tasks.task import Batch, Params
from ddae.train.cluster import PreemptedError, Signals
from ddae.train.optimizer import Optimizer
from ddae.train.sharding import (
    batch_sharding,
    flag_devices,
    host_rows,
    replicated,
    to_devices,
)
from ddae.train.state import TrainState

Step = Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Metrics]]

ENCODE_IMAGES = 256
"""Images encoded at a time in evaluations, over all devices."""


def make_step(
    task: Task, optimizer: Optimizer, mesh: Mesh, total_steps: int, accumulate: int
) -> Step:
    """(state, batch, root key) -> (state, metrics); jit it with the state donated.

    Everything that moves (learning rate, momentum, beta) is a function of the traced
    step. A step whose loss or gradient is not finite changes nothing but its counters.
    batch may hold `stop`, a flag of each device; the metric so named is its maximum.
    """

    def step(state: TrainState, batch: Batch, root: Key[Array, ""]):
        stop = batch.get("stop", jnp.zeros(1))
        batch = {name: rows for name, rows in batch.items() if name != "stop"}
        progress = state.step.astype(jnp.float32) / total_steps
        rngs = jax.random.split(
            jax.random.fold_in(root, state.step), batch["image"].shape[0]
        )

        def loss(params: Params, batch: Batch, rngs: Key[Array, " b"]):
            return task.loss(params, state.ema_params, batch, progress, rngs)

        gradient = jax.value_and_grad(loss, has_aux=True)
        if accumulate == 1:
            (_, metrics), grads = gradient(state.params, batch, rngs)
        else:
            micro = _micro_batches((batch, rngs), accumulate, mesh)
            metrics, grads = _accumulate(gradient, state.params, micro, accumulate)
        norm = optax.tree.norm(grads)
        params, optimizer_state = optimizer.update(
            grads, state.optimizer, state.params, state.step
        )
        momentum = task.momentum(progress)
        ema_params = optax.incremental_update(
            task.ema_of(params), state.ema_params, 1.0 - momentum
        )
        finite = jnp.isfinite(metrics["loss"][0]) & jnp.isfinite(norm)
        kept = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, optimizer_state, ema_params),
            (state.params, state.optimizer, state.ema_params),
        )
        bad = jnp.where(finite, 0, 1)
        new_state = TrainState(
            state.step + 1,
            *kept,
            nonfinite_in_row=(state.nonfinite_in_row + 1) * bad,
            nonfinite=state.nonfinite + bad,
        )
        metrics = jax.tree.map(lambda value: jnp.where(finite, value, 0.0), metrics)
        one = jnp.ones((), jnp.float32)
        metrics |= {
            "learning_rate": (optimizer.schedule(state.step), one),
            "gradient_norm": (
                jnp.where(finite, norm, 0.0),
                jnp.where(finite, one, 0.0),
            ),
            "nonfinite_steps": (new_state.nonfinite.astype(jnp.float32), one),
            "nonfinite_in_row": (new_state.nonfinite_in_row.astype(jnp.float32), one),
            "stop": (stop.max().astype(jnp.float32), one),
        }
        if jax.tree.leaves(state.ema_params):
            metrics["teacher_momentum"] = (momentum, one)
        return new_state, metrics

    return step


def make_encode(
    task: Task, mesh: Mesh, signals: Signals | None = None
) -> Callable[[Params, Shaped[np.ndarray, "b h w c"]], Features]:
    """(params, any number of images on the host) -> their last features, in NumPy.

    Images go through in chunks of one size, so that one compiled function serves all.
    Raises `PreemptedError` in every process where one of them was asked to stop.
    """
    signals = signals or Signals()
    sharding = batch_sharding(mesh)
    size = jax.device_count() * max(1, ENCODE_IMAGES // jax.device_count())

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def encode_chunk(params: Params, images: Array, stop: Array):
        return task.encode(params, images), stop.max()

    def chunk(params: Params, images: np.ndarray) -> Features:
        padded = np.pad(images, ((0, size - len(images)), (0, 0), (0, 0), (0, 0)))
        rows = to_devices({"image": padded[host_rows(size, sharding)]}, sharding)
        flags = flag_devices(signals.stop_requested, mesh)
        features, stop = encode_chunk(params, rows["image"], flags)
        if int(stop):
            raise PreemptedError("in an evaluation")
        signals.beat()
        return jax.tree.map(
            lambda x: np.asarray(x, np.float32)[: len(images)], features
        )

    def encode(params: Params, images: np.ndarray) -> Features:
        starts = range(0, len(images), size)
        chunks = [chunk(params, images[start : start + size]) for start in starts]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)

    return encode


def _micro_batches(batch: Any, accumulate: int, mesh: Mesh) -> Any:
    """[b, ...] to [accumulate, b / accumulate, ...], each spread over all devices."""

    def cut(x: Array) -> Array:
        # Neighbouring rows go to different micro-batches, so no row changes its device.
        x = x.reshape(-1, accumulate, *x.shape[1:])
        x = jax.lax.with_sharding_constraint(x, batch_sharding(mesh))
        return jnp.swapaxes(x, 0, 1)

    return jax.tree.map(cut, batch)


def _accumulate(gradient: Any, params: Params, micro: Any, accumulate: int):
    """Summed metrics and mean gradient over micro-batches, one in memory at a time."""

    def add(carry: Any, batch: Any):
        (_, metrics), grads = gradient(params, *batch)
        return jax.tree.map(jnp.add, carry, (metrics, grads)), None

    shapes = jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], micro))
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0][1], shapes[1])
    )
    (metrics, grads), _ = jax.lax.scan(add, zeros, micro)
    return metrics, jax.tree.map(lambda g: g / accumulate, grads)
