"""The training loop: one function that turns a config into a workdir."""

import collections
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from ddae import data, eval, settings, tasks
from ddae.data.order import Order
from ddae.eval.figures import distance_curves
from ddae.settings import UserError
from ddae.train.checkpoint import Checkpoints
from ddae.train.metrics import Meter, Report, progress_line
from ddae.train.optimizer import OptimizerSettings, group_table, make_optimizer
from ddae.train.sharding import (
    MeshSettings,
    batch_sharding,
    host_rows,
    make_mesh,
    replicated,
    state_sharding,
    to_devices,
)
from ddae.train.state import TrainState, make_init
from ddae.train.step import make_encode, make_step

SECTIONS = ("data", "model", "method", "optimizer", "mesh", "evaluators")
"""Read by the rooms that they name; `image_size`, `dtype` and `task` by the task."""

LAG = 2
"""A step's outcome is looked at this many steps later, so the loop never waits."""


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient (exit code 3)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The config's plain keys. `total_steps` wins over `epochs` when it is set.

    max_nonfinite_steps: how many in a row are skipped before the run stops.
    """

    task: str
    image_size: int | tuple[int, int]
    dtype: str
    batch_size: int
    epochs: float
    seed: int = 0
    total_steps: int | None = None
    log_every_steps: int = 50
    checkpoint_every_steps: int = 1000
    eval_every_steps: int = 5000
    keep_checkpoints: int = 3
    max_nonfinite_steps: int = 10

    def __post_init__(self):
        for name in (
            "batch_size",
            "epochs",
            "log_every_steps",
            "checkpoint_every_steps",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")

    def steps(self, steps_per_epoch: int) -> int:
        """The length of the run in optimiser steps."""
        return self.total_steps or max(1, round(self.epochs * steps_per_epoch))


def run(config: Mapping[str, Any], workdir: str) -> None:
    """Trains what `config` says in `workdir`, from its newest checkpoint if it has one.

    Raises `UserError` for wrong configuration or data, before anything compiles, and
    `NonFiniteError` after `max_nonfinite_steps` bad steps in a row.
    """
    plain = {key: value for key, value in config.items() if key not in SECTIONS}
    options = settings.build(RunSettings, plain, "")
    task = tasks.from_config(config)
    splits = data.from_config(config, task.image_shape)
    optimizer_settings = settings.build(
        OptimizerSettings, config["optimizer"], "optimizer."
    )
    mesh_settings = settings.build(MeshSettings, config["mesh"], "mesh.")
    mesh = make_mesh(mesh_settings, options.batch_size, optimizer_settings.accumulate)
    order = Order(len(splits.train), options.batch_size, options.seed)
    total_steps = options.steps(order.steps_per_epoch)
    warmup_steps = round(
        total_steps * optimizer_settings.warmup_epochs / options.epochs
    )
    optimizer = make_optimizer(
        optimizer_settings, options.batch_size, warmup_steps, total_steps
    )
    encode = make_encode(task, mesh)
    evaluators = eval.from_config(config, task, splits, encode)

    init = make_init(task, optimizer)
    root = jax.random.key(options.seed)
    shapes = jax.eval_shape(init, root)
    shardings = state_sharding(shapes, mesh)
    checkpoints = Checkpoints(workdir, keep=options.keep_checkpoints)
    checkpoints.check(shapes)
    _write_config(config, workdir)

    first_step = checkpoints.latest() or 0
    report = Report(workdir, first_step)
    report.say(_overview(shapes, options, optimizer_settings, mesh, total_steps, order))
    targets = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        shardings,
    )
    state = checkpoints.restore(targets)
    if state is None:
        state = jax.jit(init, out_shardings=shardings)(root)
    else:
        report.say(f"resuming {workdir} at step {first_step}")

    step_function = jax.jit(
        make_step(task, optimizer, mesh, total_steps, optimizer_settings.accumulate),
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
    )

    def evaluate(state: TrainState, step: int) -> None:
        _evaluate(evaluators, state, step, report)

    if first_step == 0 and not any(row["step"] == 0 for row in report.rows()):
        evaluate(state, 0)
    batches = _prefetch(
        splits.train.train_batches(
            order, first_step, host_rows(options.batch_size), splits.augment
        ),
        batch_sharding(mesh),
    )
    meter = Meter()
    outcomes: collections.deque[tuple[int, jax.Array]] = collections.deque()
    for step in range(first_step + 1, total_steps + 1):
        waiting = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - waiting
        state, metrics = step_function(state, batch, root)
        meter.add(metrics, waited)
        outcomes.append((step, metrics["nonfinite_in_row"][0]))
        last = step == total_steps
        while len(outcomes) > (0 if last else LAG):
            _check_finite(*outcomes.popleft(), options.max_nonfinite_steps, checkpoints)
        if step % options.log_every_steps == 0 or last:
            values = meter.take(options.batch_size)
            report.write(step, values)
            report.say(progress_line(step, total_steps, values))
        aside = time.monotonic()
        if step % options.checkpoint_every_steps == 0 or last:
            checkpoints.save(state, step, config)
        if last or (
            options.eval_every_steps > 0 and step % options.eval_every_steps == 0
        ):
            evaluate(state, step)
        meter.skip(time.monotonic() - aside)
    if first_step < total_steps:
        report.say(_closing(report))
    else:
        report.say(f"nothing to do: {workdir} is at step {first_step} of {total_steps}")
    checkpoints.close()
    report.close()


def _prefetch(batches: Iterator[Any], sharding: Any) -> Iterator[Any]:
    """Batches on the devices, two ahead of the step that reads them."""
    queue: collections.deque[Any] = collections.deque()
    while True:
        while len(queue) < 2:
            batch = next(batches)
            queue.append(
                to_devices({"image": batch["image"], "label": batch["label"]}, sharding)
            )
        yield queue.popleft()


def _check_finite(
    step: int, in_row: jax.Array, limit: int, checkpoints: Checkpoints
) -> None:
    bad = int(in_row)
    if bad >= limit:
        checkpoints.close()
        raise NonFiniteError(
            f"the loss or gradient was not finite in steps {step - bad + 1} to {step}"
            f" (config.max_nonfinite_steps={limit}); the last good checkpoint is step"
            f" {checkpoints.latest() or 'none'} in {checkpoints.folder}"
        )


def _evaluate(
    evaluators: Mapping[str, eval.Evaluator],
    state: TrainState,
    step: int,
    report: Report,
) -> None:
    report.say(f"step {step}: evaluating")
    values: dict[str, Any] = {}
    for evaluator in evaluators.values():
        values |= {f"eval/{k}": v for k, v in evaluator(state.params, step).items()}
    curves = distance_curves(report.rows()) if report.active else None
    if curves is not None:
        values["eval/loss_by_distance"] = curves
    report.write(step, values)
    shown = [
        f"{k.removeprefix('eval/')} {v:.4g}"
        for k, v in values.items()
        if np.ndim(v) == 0
    ]
    report.say(f"step {step}: {', '.join(shown)}")


def _overview(
    shapes: TrainState,
    options: RunSettings,
    optimizer: OptimizerSettings,
    mesh: jax.sharding.Mesh,
    total_steps: int,
    order: Order,
) -> str:
    """What is about to run: parameters, optimiser groups, length, devices."""
    peak = optimizer.base_lr * options.batch_size / optimizer.lr_batch
    lines = [
        parameter_overview.get_parameter_overview(shapes.params, include_stats=False),
        *group_table(shapes.params),
        f"learning rate {peak:.3g} = {optimizer.base_lr:.3g}"
        f" x batch {options.batch_size} / {optimizer.lr_batch}",
        f"{total_steps} steps of {options.batch_size} images,"
        f" {order.steps_per_epoch} an epoch of {order.num_examples} images",
        f"{jax.device_count()} {jax.devices()[0].device_kind} devices in"
        f" {jax.process_count()} processes, mesh {dict(mesh.shape)}",
    ]
    return "\n".join(lines)


def _closing(report: Report) -> str:
    """The last evaluation beside that of the untrained encoder."""
    rows = report.rows()
    first = next((r for r in rows if r["step"] == 0), {})
    last = rows[-1] if rows else {}
    shown = [
        f"{key.removeprefix('eval/')} {first[key]:.4g} untrained,"
        f" {last[key]:.4g} pretrained"
        for key in last
        if key.startswith("eval/")
        and first.get(key) is not None
        and last[key] is not None
    ]
    return "done: " + "; ".join(shown) if shown else "done"


def _write_config(config: Mapping[str, Any], workdir: str) -> None:
    if jax.process_index() == 0:
        with open(os.path.join(workdir, "config.json"), "w") as file:
            json.dump(config, file, indent=2)


__all__ = ["NonFiniteError", "RunSettings", "UserError", "run"]
