"""The one train step."""

import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key, Shaped

from ddae.cropping import crop_and_flip
from ddae.data.augment import Augment
from ddae.objective import Metrics
from ddae.settings import UserError
from ddae.tasks import Task
from ddae.tasks.backbone import stream
from ddae.tasks.task import Batch, Params
from ddae.train.cluster import PreemptedError
from ddae.train.optimizer import Optimizer, merge
from ddae.train.sharding import (
    batch_sharding,
    flag_devices,
    gathered,
    host_rows,
    replicated,
    to_devices,
)
from ddae.train.signals import Signals
from ddae.train.state import SO_FAR, TrainState

Step = Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Metrics]]

CHUNK = 256
"""Images evaluated at a time, over all devices."""

WHOLE = ("stop", "images")
"""Parts of a batch that have no row for each example: `images`, the whole training set,
which `index` points into, and `stop`, a flag of each device."""

BRANCHING = ("cpu",)
"""Platforms on which `lax.cond`, not `jnp.where`, keeps the old state when a step is
not finite. There XLA writes the new state over the old one in a branch, and would copy
all of it for a `where`. On a GPU it is the other way round (tests/test_cuda.py), and
the host would wait for the branch."""


def make_step(
    task: Task,
    optimizer: Optimizer,
    mesh: Mesh,
    total_steps: int,
    augment: Augment = Augment(),
) -> Step:
    """(state, batch, root key) -> (state, metrics); jit it with the state donated.

    Everything that moves (learning rate, momentum, beta) is a function of the traced
    step. A step whose loss or gradient is not finite changes nothing but its counters.
    batch may hold `stop`, a flag of each device; the metric so named is its maximum.
    For `image` it may hold `index`, rows of its `images`. augment: done here where it
    says on_device, else by who made the batch.
    """

    def step(state: TrainState, batch: Batch, root: Key[Array, ""]):
        stop = batch.get("stop", jnp.zeros(1)).max()
        batch = rows_of(batch)
        progress = state.step.astype(jnp.float32) / total_steps
        key = jax.random.fold_in(root, state.step)
        rows = batch, jax.random.split(key, batch["image"].shape[0])

        # Frozen parameters are no variables: nothing is spent on their gradients.
        trained, frozen = optimizer.split(state.params)

        def loss(trained: Params, batch: Batch, rngs: Key[Array, " b"]):
            params = gathered(merge(trained, frozen), mesh, task.dtype_of)
            ema_params = gathered(state.ema_params, mesh, task.dtype_of)
            if augment.on_device:
                batch = _cropped(batch, stream(rngs, "augment"), augment)
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                value, *rest = task.loss(params, ema_params, batch, progress, rngs)
            return value, tuple(rest)

        accumulate = optimizer.settings.accumulate
        (metrics, observed), grads = _gradient(loss, trained, rows, accumulate, mesh)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"][0]) & jnp.isfinite(norm)
        momentum = task.momentum(progress, total_steps)

        def updated():
            new, optimizer_state = optimizer.update(
                grads, state.optimizer, trained, state.step
            )
            params = task.absorb(merge(new, frozen), observed)
            ema_params = optax.incremental_update(
                task.ema_of(params), state.ema_params, 1.0 - momentum
            )
            return params, optimizer_state, ema_params

        new_state = state.after(finite, *_kept(finite, updated, state, mesh))
        own = {"learning_rate": optimizer.schedule(state.step), "stop": stop}
        if jax.tree.leaves(state.ema_params):
            own["teacher_momentum"] = momentum
        return new_state, _reported(metrics, norm, finite, new_state, own)

    return step


def _reported(
    metrics: Metrics,
    norm: Array,
    finite: Array,
    state: TrainState,
    own: dict[str, Array],
) -> Metrics:
    """A step's metrics: the loss's and the gradient's norm, zeros where these are not
    finite; how many steps were not, as the new `state` knows; and the step's own."""
    own = own | {
        "nonfinite_steps": state.nonfinite,
        "nonfinite_in_row": state.nonfinite_in_row,
    }
    one = jnp.ones((), jnp.float32)
    counted = metrics | {"gradient_norm": (norm, one)}
    metrics = jax.tree.map(lambda value: jnp.where(finite, value, 0.0), counted)
    return metrics | {name: (x.astype(jnp.float32), one) for name, x in own.items()}


def rows_of(batch: Batch) -> Batch:
    """What a batch has of each example, its image looked up where it has an index."""
    rows = {name: array for name, array in batch.items() if name not in WHOLE}
    if "index" in rows:
        rows["image"] = batch["images"][rows.pop("index")]
    return rows


def first_of(batches: Batch) -> Batch:
    """The first of several batches, as `make_steps` takes them."""
    return {name: x if name in WHOLE else x[0] for name, x in batches.items()}


def make_steps(step: Step) -> Step:
    """`step` for as many batches as are stacked along a new first axis of all that is
    not WHOLE. Metrics are summed over the steps; of SO_FAR and `stop` it is the last
    one's.

    Their number is known to XLA, so that a GPU need not ask the host between steps.
    """

    def steps(state: TrainState, batches: Batch, root: Key[Array, ""]):
        whole = {name: batches[name] for name in WHOLE if name in batches}
        stacked = {name: x for name, x in batches.items() if name not in WHOLE}

        def one(state: TrainState, batch: Batch):
            return step(state, {**batch, **whole}, root)

        state, each = jax.lax.scan(one, state, stacked)
        metrics = jax.tree.map(lambda x: x.sum(axis=0), each)
        last = {name: each[name] for name in (*SO_FAR, "stop")}
        return state, metrics | jax.tree.map(lambda x: x[-1], last)

    return steps


def _cropped(batch: Batch, keys: Key[Array, " b"], augment: Augment) -> Batch:
    """The batch with its images cut and flipped as `augment` says."""
    scale = augment.scale if augment.crop == "random_resized" else None
    pad = augment.pad if augment.crop == "shift" else 0
    images = crop_and_flip(batch["image"], keys, scale, pad, augment.flip)
    return {**batch, "image": images}


def jit_step(
    task: Task,
    optimizer: Optimizer,
    mesh: Mesh,
    total_steps: int,
    shardings: TrainState,
    augment: Augment = Augment(),
    several: bool = False,
) -> Any:
    """`make_step`, or where `several` are taken at once `make_steps`, jitted as a run
    takes it: state donated, laid out as `shardings`."""
    step = make_step(task, optimizer, mesh, total_steps, augment)
    return jax.jit(
        make_steps(step) if several else step,
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
    )


class OnDevices:
    """Makes a function of parameters and images, to a tree of arrays [b, ...], run over
    all devices on any number of images of the host, to NumPy, float32.

    Images go through in chunks of one size, so that one compiled function serves all;
    every image counts once, whatever the number of devices. Raises `PreemptedError` in
    every process where one of them was asked to stop.
    """

    def __init__(self, mesh: Mesh, signals: Signals | None = None):
        self.mesh = mesh
        self._signals = signals or Signals()

    def __call__(
        self, function: Callable[[Params, Array], Any]
    ) -> Callable[[Params, Shaped[np.ndarray, "b h w c"]], Any]:
        mesh, signals = self.mesh, self._signals
        sharding = batch_sharding(mesh)
        size = mesh.size * max(1, CHUNK // mesh.size)

        @functools.partial(jax.jit, out_shardings=replicated(mesh))
        def compiled(params: Params, images: Array, stop: Array, seen: Array):
            return function(params, images), stop.max(), seen.max() - seen.min()

        def chunk(params: Params, images: np.ndarray) -> Any:
            padded = np.pad(images, ((0, size - len(images)), (0, 0), (0, 0), (0, 0)))
            rows = to_devices({"image": padded[host_rows(size, sharding)]}, sharding)
            flags = flag_devices(signals.stop_requested, mesh)
            # Every process has read all of them, and gives its own rows.
            seen = flag_devices(_checksum(images), mesh)
            found, stop, others = compiled(params, rows["image"], flags, seen)
            if int(others):
                raise UserError(
                    "the processes have read different images for an evaluation; each"
                    " must find the same files in config.data.dir"
                )
            if int(stop):
                raise PreemptedError("in an evaluation")
            signals.beat()
            return jax.tree.map(
                lambda x: np.asarray(x, np.float32)[: len(images)], found
            )

        def over(params: Params, images: np.ndarray) -> Any:
            starts = range(0, len(images), size)
            chunks = [chunk(params, images[start : start + size]) for start in starts]
            return jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)

        return over

    def meanwhile(self, work: Callable[[], Any]) -> Any:
        return self._signals.meanwhile(work)


def _checksum(images: np.ndarray) -> int:
    """Of 30 bits; 0 where there is no other process to compare with."""
    return zlib.crc32(images.tobytes()) >> 2 if jax.process_count() > 1 else 0


def _kept(finite: Array, updated: Any, state: TrainState, mesh: Mesh) -> Any:
    """What `updated` gives where the step is finite, else what `state` has of it."""

    def unchanged():
        return state.params, state.optimizer, state.ema_params

    if mesh.devices.flat[0].platform in BRANCHING:
        return jax.lax.cond(finite, updated, unchanged)
    choose = functools.partial(jnp.where, finite)
    return jax.tree.map(choose, updated(), unchanged())


def _gradient(
    loss: Any, trained: Params, rows: tuple[Batch, Any], accumulate: int, mesh: Mesh
) -> tuple[tuple[Metrics, Params], Params]:
    """((metrics, what was observed), gradient) of `rows`, all at once or by parts."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        (_, rest), grads = gradient(trained, *rows)
    else:
        micro = _micro_batches(rows, accumulate, mesh)
        rest, grads = _accumulate(gradient, trained, micro)
    return rest, grads


def _micro_batches(batch: Any, accumulate: int, mesh: Mesh) -> Any:
    """[b, ...] to [accumulate, b / accumulate, ...], each spread over all devices."""

    def cut(x: Array) -> Array:
        # Neighbouring rows go to different micro-batches, so no row changes its device.
        x = x.reshape(-1, accumulate, *x.shape[1:])
        x = jax.lax.with_sharding_constraint(x, batch_sharding(mesh))
        return jnp.swapaxes(x, 0, 1)

    return jax.tree.map(cut, batch)


def _accumulate(gradient: Any, params: Params, micro: Any):
    """Summed metrics and observations, and mean gradient, over micro-batches, one in
    memory at a time; each weighs as much as its loss counts (of a scene: its pixels
    with a label), so that the mean is the whole batch's."""

    def add(carry: Any, batch: Any):
        (_, (metrics, observed)), grads = gradient(params, *batch)
        _, count = metrics["loss"]
        grads = jax.tree.map(lambda g: g * count.astype(g.dtype), grads)
        found = ((metrics, observed), grads)
        return jax.tree.map(jnp.add, carry, found), None

    shapes = jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], micro))
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0][1], shapes[1])
    )
    (rest, grads), _ = jax.lax.scan(add, zeros, micro)
    _, count = rest[0]["loss"]
    count = jnp.where(count > 0, count, 1.0)
    return rest, jax.tree.map(lambda g: g / count.astype(g.dtype), grads)
