"""A config, read and checked as a whole before anything compiles."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from clu import parameter_overview
from jax.sharding import Mesh

from ddae import data, eval, settings, tasks
from ddae.data.order import Order
from ddae.data.scenes import SceneSource
from ddae.models.build import ModelSettings
from ddae.schedules import mean_lag
from ddae.settings import UserError
from ddae.storage import is_remote
from ddae.tasks import Task
from ddae.train.optimizer import (
    Optimizer,
    OptimizerSettings,
    check_patterns,
    make_optimizer,
    rule_table,
)
from ddae.train.partial import InitSettings
from ddae.train.sharding import (
    MeshSettings,
    bytes_a_device,
    make_mesh,
    state_sharding,
)
from ddae.train.signals import Signals
from ddae.train.speed import keep_compiled, keep_memory, parse_profile
from ddae.train.state import TrainState, make_init
from ddae.train.step import OnDevices

SLOW = 0.4
"""Share of a run by which its moving average may be behind without a warning."""

READ: dict[str, Callable[..., Any]] = {
    "data": data.DataSettings,
    "model": ModelSettings,
    "optimizer": OptimizerSettings,
    "mesh": MeshSettings,
}
"""The settings that sections are read into which every task has."""

SECTIONS = (*READ, "evaluators")
"""All sections that every task has; its own are those of `tasks.sections`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The config's plain keys. `total_steps` wins over `epochs` when it is set.

    max_nonfinite_steps: how many in a row are skipped before the run stops.
    keep_checkpoints: how many of the newest stay; of the others every
    keep_every_steps-th, and the one whose evaluation `keep_best` is largest; only what
    is saved, every checkpoint_every_steps, is kept.
    watchdog_seconds: a run that has done nothing for so long ends; 0 waits for ever.
    steps_per_dispatch: how many steps a device is given at once, for steps of a few
    milliseconds: best a divisor of the *_every_steps, for logs, saves and evaluations
    stay at their steps. Bad steps in a row are looked for once a dispatch.
    total_steps=0 trains nothing: the encoder of `init` is evaluated and saved.
    compile_cache: folder of compiled programs, "auto" or "" for none. profile: of steps
    "FIRST:LAST", "" for none; both as in `ddae.train.speed`.
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
    keep_every_steps: int = 0
    keep_best: str = ""
    max_nonfinite_steps: int = 10
    watchdog_seconds: float = 1800.0
    steps_per_dispatch: int = 1
    compile_cache: str = "auto"
    profile: str = ""
    init: InitSettings = InitSettings()

    def __post_init__(self):
        for name in (
            "batch_size",
            "epochs",
            "log_every_steps",
            "checkpoint_every_steps",
            "keep_checkpoints",
            "max_nonfinite_steps",
            "steps_per_dispatch",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name in (
            "total_steps",
            "eval_every_steps",
            "keep_every_steps",
            "watchdog_seconds",
        ):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.seed < 2**32:  # jax takes 32 bits of it
            raise ValueError(f"seed={self.seed} is not from 0 to 2**32 - 1")
        parse_profile(self.profile)

    def steps(self, steps_per_epoch: int) -> int:
        """The length of the run in optimiser steps."""
        if self.total_steps is not None:
            return self.total_steps
        return max(1, round(self.epochs * steps_per_epoch))

    def not_kept(self) -> list[str]:
        """A warning for what is to be kept at steps that are not saved."""
        every = self.checkpoint_every_steps
        asked = {"keep_every_steps": "checkpoints"}
        if self.keep_best:
            asked["eval_every_steps"] = "the best by keep_best"
        return [
            f"warning: {name}={getattr(self, name)} is no multiple of"
            f" checkpoint_every_steps={every}: of other steps {what} cannot be kept"
            for name, what in asked.items()
            if getattr(self, name) % every
        ]


@dataclasses.dataclass(frozen=True)
class Job:
    """A config, read and checked: all that a run needs, with nothing compiled yet."""

    config: Mapping[str, Any]
    options: RunSettings
    task: Task
    splits: data.Splits
    mesh: Mesh
    order: Order
    data_state: Mapping[str, Any]
    total_steps: int
    optimizer: Optimizer
    signals: Signals
    evaluators: Mapping[str, eval.Evaluator]
    shapes: TrainState
    shardings: TrainState

    def evaluates(self, step: int) -> bool:
        """Untrained, every eval_every_steps, and at the end."""
        every = self.options.eval_every_steps
        return step in (0, self.total_steps) or bool(every and step % every == 0)


def _sections(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of those that a run of this task reads; `UserError` where one is not
    there."""
    sections = SECTIONS + tasks.sections(config)
    for name in sections:
        if name not in config:
            raise UserError(f"config.{name} is missing")
        if not isinstance(config[name], Mapping):
            raise UserError(f"config.{name}={config[name]!r} is not a section of keys")
    return sections


def plan(config: Mapping[str, Any], signals: Signals | None = None) -> Job:
    """Reads the whole config. Raises `UserError`, and compiles nothing."""
    keep_memory()
    signals = signals or Signals()
    sections = _sections(config)
    plain = {key: value for key, value in config.items() if key not in sections}
    options = settings.build(RunSettings, plain, "")
    # First: the task looks whether its encoder is frozen.
    chosen = settings.build(OptimizerSettings, config["optimizer"], "optimizer.")
    task = tasks.from_config(config)
    mesh = make_mesh(
        settings.build(MeshSettings, config["mesh"], "mesh."),
        options.batch_size,
        chosen.accumulate,
    )
    keep_compiled(options.compile_cache)
    splits = _splits(config, task.image_shape, signals)
    order = Order(len(splits.train), options.batch_size, options.seed)
    if options.total_steps != 0:
        _check_classes(config, sections, splits.train)
    total_steps = options.steps(order.steps_per_epoch)
    warmup_steps = round(total_steps * chosen.warmup_epochs / options.epochs)
    optimizer = make_optimizer(chosen, options.batch_size, warmup_steps, total_steps)
    if total_steps and chosen.warmup_epochs > options.epochs:
        raise UserError(
            f"config.optimizer.warmup_epochs={chosen.warmup_epochs:g} is longer than"
            f" config.epochs={options.epochs:g}: the learning rate would never reach"
            " its peak; shorten it"
        )
    try:
        shapes = jax.eval_shape(make_init(task, optimizer), jax.random.key(0))
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        said = str(error).strip().partition("\n")[0]
        raise UserError(f"config.model and config.method: {said}") from error
    if total_steps:
        check_patterns(shapes.params, chosen)
    on_devices = OnDevices(mesh, signals)
    # With the step, all that says which example comes next, and how it is cut.
    data_state = {"seed": order.seed, "batch_size": order.batch_size}
    return Job(
        config=config,
        options=options,
        task=task,
        splits=splits,
        mesh=mesh,
        order=order,
        data_state={**splits.train.identity, **data_state},
        total_steps=total_steps,
        optimizer=optimizer,
        signals=signals,
        evaluators=eval.from_config(config, task, splits, on_devices),
        shapes=shapes,
        shardings=state_sharding(shapes, mesh),
    )


def _splits(
    config: Mapping[str, Any], image_shape: tuple[int, int, int], signals: Signals
) -> data.Splits:
    """The data; while files are copied first, however long, work is going on."""
    find = functools.partial(data.from_config, config, image_shape)
    return signals.meanwhile(find) if config["data"].get("copy_to") else find()


def _check_classes(
    config: Mapping[str, Any], sections: tuple[str, ...], source: data.Source
) -> None:
    """Raises `UserError` where fewer are to be told apart than the data has, or where
    it has one for each pixel and one an image is learned, or the other way round."""
    per_pixel, number = isinstance(source, SceneSource), source.num_classes
    for name, wanted in (("classifier", False), ("segmenter", True)):
        if name in sections and wanted != per_pixel:
            kinds = ("an image", "a pixel")
            raise UserError(
                f"config.task={config['task']} learns a class {kinds[wanted]},"
                f" config.data.name={config['data']['name']} has one {kinds[per_pixel]}"
            )
    for name in sections:
        known = config[name].get("num_classes", number)
        if known < number:
            raise UserError(
                f"config.{name}.num_classes={known}, but the data has {number} classes;"
                " give at least as many"
            )


def spelled_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the code's default at every key that it leaves out: what a run of
    it takes, whichever keys were there when it was written."""
    whole = settings.filled(RunSettings, config)
    for name, target in READ.items():
        if name in config:
            whole[name] = settings.filled(target, config[name])
    whole |= tasks.spelled_out(config)
    if "evaluators" in config:
        known = eval.EVALUATORS
        whole["evaluators"] = {
            name: settings.filled(known[name], section) if name in known else section
            for name, section in config["evaluators"].items()
        }
    return whole


def as_begun(
    config: Mapping[str, Any], changes: Mapping[str, tuple[Any, Any]]
) -> dict[str, Any]:
    """The config with its own `init` and the frozen networks' own workdirs: a run that
    goes on does not begin again."""
    config = copy.deepcopy(dict(config))
    for path, (old, _) in changes.items():
        if _of_beginning(path):
            *sections, name = path.split(".")
            section = config
            for key in sections:
                section = section.setdefault(key, {})
            section[name] = old
    return config


def said_change(change: tuple[str, tuple[Any, Any]]) -> str:
    """A key that a resumed run has otherwise, for its beginning."""
    path, (old, new) = change
    if _of_beginning(path):
        return f"config.{path}={new!r} is not read: the run has begun with {old!r}"
    return f"config.{path}: {old!r} -> {new!r}"


def _of_beginning(path: str) -> bool:
    """Whether a key says where weights come from; a checkpoint has them."""
    return path.startswith("init.") or path.endswith(".workdir")


def overview(job: Job) -> str:
    """What is about to run: parameters, optimiser groups, length, devices."""
    batch, params = job.options.batch_size, job.shapes.params
    chosen = job.optimizer.settings
    shard, whole = bytes_a_device(job.shapes, job.shardings)
    lines = [
        parameter_overview.get_parameter_overview(params, include_stats=False),
        *rule_table(params, chosen),
        f"peak learning rate {job.optimizer.peak:.3g}: {chosen.base_lr:g} x batch"
        f" {batch} / {chosen.lr_batch}",
        f"{job.total_steps} steps of {batch} images, {job.order.steps_per_epoch} steps"
        f" an epoch of {job.order.num_examples} images",
        f"state {shard / 2**20:,.1f} MiB a device, of {whole / 2**20:,.1f} MiB",
        f"{jax.device_count()} {jax.devices()[0].device_kind} devices in"
        f" {jax.process_count()} processes, mesh {dict(job.mesh.shape)}",
    ]
    place = job.config["data"]
    if is_remote(place.get("dir", "")) and not place.get("copy_to"):
        lines.append(
            f"each image is a request to {place['dir']}; config.data.copy_to=FOLDER has"
            " the files copied to every machine first, /dev/shm/ddae into its memory"
        )
    if job.total_steps > job.options.checkpoint_every_steps:
        lines += job.options.not_kept()
    if job.total_steps and jax.tree.leaves(job.shapes.ema_params):
        lines.append(_average(job))
    return "\n".join(lines)


def _average(job: Job) -> str:
    """How far the moving average, a teacher's or a classifier's, lags behind."""
    steps = job.total_steps
    momentum = jax.vmap(lambda t: job.task.momentum(t, steps))
    lag = mean_lag(momentum(jnp.arange(steps) / steps))
    said = f"the moving average ends {lag:,.0f} steps behind, {lag / steps:.0%} of all"
    if lag > SLOW * steps:
        return f"warning: {said}; a lower momentum suits so short a run"
    return said
