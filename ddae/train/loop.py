"""The training loop: one function that turns a config into a workdir."""

import collections
import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from ddae.eval import OF_HEADS
from ddae.eval.figures import distance_curves
from ddae.settings import UserError
from ddae.storage import absolute, unusable
from ddae.tasks.task import Batch
from ddae.train.checkpoint import Checkpoints
from ddae.train.cluster import (
    PreemptedError,
    Watchdog,
    check_together,
    forget_failure,
)
from ddae.train.feed import cut, feed
from ddae.train.metrics import (
    Meter,
    Report,
    duration,
    progress_line,
    summary,
    write_config,
)
from ddae.train.optimizer import rules_of
from ddae.train.partial import load_frozen, load_pretrained, rest_of
from ddae.train.plan import Job, as_begun, overview, plan, said_change, spelled_out
from ddae.train.processes import agree, of_first, together
from ddae.train.sharding import flag_devices
from ddae.train.signals import Signals
from ddae.train.speed import Profile, keep_memory
from ddae.train.state import NonFiniteError, TrainState, make_init
from ddae.train.step import first_of, jit_step, rows_of

STOP, FAILED = 1, 2
"""What a process may ask of all: to save and stop, or to end, as a save has failed."""

LAG = 2
"""A step's outcome is looked at this many steps later, so the loop never waits."""


def run(
    config: Mapping[str, Any], workdir: str, signals: Signals | None = None
) -> None:
    """Trains what `config` says in `workdir`, from its newest checkpoint if it has one.

    Raises `UserError` for wrong configuration or data, before anything compiles,
    `NonFiniteError` after `max_nonfinite_steps` bad steps in a row, and after a SIGTERM
    `PreemptedError`, with the state saved. signals: of a caller with more to do.
    """
    keep_memory()  # all that follows asks jax for devices
    signals = signals or Signals()
    with together(UserError):
        workdir = _open(workdir)
    with signals.listening():
        check_together(config, workdir)
        with contextlib.closing(Watchdog(workdir, signals)) as watchdog:
            with together(UserError):
                job = plan(config, signals)
            watchdog.allow(job.options.watchdog_seconds)
            check_data(job)
            _run(job, workdir)


def check_data(job: Job) -> None:
    """Raises `UserError` where a process has other data than process 0."""
    if jax.process_count() > 1:
        data = (job.data_state, job.splits.held_out.identity, job.total_steps)
        agree(
            data,
            "other data than process 0; config.data.dir must hold the same for all",
        )


def _open(workdir: str) -> str:
    """The absolute path of `workdir`, made where it is not; gs:// as it is."""
    path = absolute(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except Exception as error:  # a bucket's are TensorFlow's own
        raise unusable(f"--workdir={workdir} cannot be made", error) from error
    return str(path)


def _run(job: Job, workdir: str) -> None:
    options = job.options
    with Checkpoints(
        workdir,
        keep=options.keep_checkpoints,
        keep_every_steps=options.keep_every_steps,
        keep_best=options.keep_best,
    ) as checkpoints:
        forget_failure(workdir)  # it has the workdir now, and no other run
        changes = checkpoints.check(job.shapes, job.data_state, job.config, spelled_out)
        job = dataclasses.replace(job, config=as_begun(job.config, changes))
        known, origin = None, []
        if checkpoints.latest() is None:
            known, origin = _known_params(job)
        state = checkpoints.restore(_targets(job))
        job.signals.beat()
        step = None if state is None else int(state.step)
        if step is None or step < job.total_steps:
            if jax.process_index() == 0:
                write_config(workdir, job.config, job.splits.train.class_names)
        with contextlib.closing(Report(workdir, resumed_at=step)) as report:
            report.say(overview(job))
            if state is None:
                report.say("\n".join(origin))
                state = _first_state(job, known)
                job.signals.beat()
            else:
                report.say(f"resuming at step {step} of {checkpoints.folder}")
                if changes:
                    said = map(said_change, changes.items())
                    report.say("\n  ".join(["with other settings:", *said]))
            _from_step(job, state, step or 0, checkpoints, report, workdir)
            checkpoints.wait()
            report.say(summary(report))


def _known_params(job: Job) -> tuple[Any, list[str]]:
    """(parameters that come from other runs, None elsewhere; where they are from)."""
    params = job.shapes.params
    known = jax.tree.map(lambda _: None, params)
    pretrained = load_pretrained(job.options.init, job.config, params)
    origin = [str(pretrained or "all weights that learn begin fresh")]
    if pretrained is not None:
        known["encoder"] = pretrained.encoder
        if not job.total_steps and any(name in OF_HEADS for name in job.evaluators):
            rest, said = rest_of(pretrained, job.config, params)
            known |= rest
            origin.append(said)
    else:
        rules = rules_of(params, job.optimizer.settings)["encoder"]
        if not job.total_steps or all(rule.frozen for rule in jax.tree.leaves(rules)):
            origin.append(
                "warning: the encoder is random and stays so;"
                " --config.init.workdir=RUN begins with that of a run"
            )
    if networks := job.task.frozen():
        known["frozen"], lines = load_frozen(networks, job.config, params)
        origin += lines
    return known, origin


def _first_state(job: Job, known: Any) -> TrainState:
    """Fresh parameters, but the `known` ones."""
    init = make_init(job.task, job.optimizer)
    init = jax.jit(init, out_shardings=job.shardings)
    return init(jax.random.key(job.options.seed), known)


def _from_step(
    job: Job,
    state: TrainState,
    step: int,
    checkpoints: Checkpoints,
    report: Report,
    workdir: str,
) -> None:
    """Evaluates, where `step` is due and the log has nothing of it yet, then trains on
    to the end, or to the step at which all processes agree to stop."""
    due = job.evaluates(step)
    found = of_first(report.evaluation(step if due else None))
    # Not due, but a name that no evaluation gives is to be found before the next steps.
    unknown = job.options.keep_best not in ("", *found)
    if due and not found or unknown:
        found = _evaluated(job, state, step, checkpoints, report)
    if due or unknown:
        checkpoints.evaluated(step, found)
    if step >= job.total_steps:
        report.say(f"nothing to train: step {step} is the last")
        _save(job, state, step, checkpoints, report)
        return
    profile = Profile(job.options.profile, workdir)
    with contextlib.closing(profile):
        train(job, state, step, checkpoints, report, profile)


def _evaluated(
    job: Job, state: TrainState, step: int, checkpoints: Checkpoints, report: Report
) -> dict[str, float]:
    """As `evaluate`; asked to stop in it, a run saves first."""
    try:
        return evaluate(job, state, step, report)
    except PreemptedError:
        _save_and_stop(job, state, step, checkpoints, report)


def _save(
    job: Job, state: TrainState, step: int, checkpoints: Checkpoints, report: Report
) -> None:
    """Saves; first the log, whose rows up to here no resumed run writes again."""
    report.push()
    checkpoints.save(state, step, job.config, job.data_state)


def _save_and_stop(
    job: Job, state: TrainState, step: int, checkpoints: Checkpoints, report: Report
) -> NoReturn:
    _save(job, state, step, checkpoints, report)
    checkpoints.close()
    raise PreemptedError(
        f"asked to stop; saved at step {step} of {job.total_steps}: run the same"
        " command again"
    )


def _targets(job: Job) -> TrainState:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        job.shapes,
        job.shardings,
    )


def train(
    job: Job,
    state: TrainState,
    first_step: int,
    checkpoints: Checkpoints,
    report: Report,
    profile: Profile,
) -> None:
    """Steps `first_step` + 1 to the last, with logs, checkpoints and evaluations."""
    options, last_step = job.options, job.total_steps
    most = options.steps_per_dispatch
    root = jax.random.key(options.seed)
    every = (options.log_every_steps, options.checkpoint_every_steps)
    every += (options.eval_every_steps,)
    spans = functools.partial(cut, first_step, last_step, most, every)
    batches = feed(job.splits, job.order, first_step, spans(), most, job.mesh)
    meter = Meter()
    take_steps = _compiling(_jitted(job), meter, report)
    outcomes: collections.deque[tuple[int, Any]] = collections.deque()
    for steps in spans():
        waiting = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - waiting
        if steps.start == 1:
            state = _begun(job, state, batch, meter)
        asked = FAILED if checkpoints.failed() else STOP * job.signals.stop_requested
        batch["stop"] = flag_devices(asked, job.mesh)
        profile.before(steps)
        state, metrics = take_steps(state, batch, root)
        profile.after(steps, metrics)
        step = steps[-1]
        stop, _ = metrics.pop("stop")
        meter.add(metrics, waited, len(steps))
        outcomes.append((step, (metrics["nonfinite_in_row"][0], stop)))
        last = step == last_step
        saves = step % options.checkpoint_every_steps == 0 or last
        asked = 0
        while len(outcomes) > (0 if saves else LAG):
            past, (in_row, stop) = outcomes.popleft()
            check_finite(job, past, int(in_row), checkpoints)
            asked = max(asked, int(stop))
        if asked == FAILED:
            checkpoints.give_up()
        job.signals.beat()
        if step % options.log_every_steps == 0 or last:
            values = meter.take(options.batch_size)
            values["data/bad_records"] = job.splits.num_bad
            report.write(step, values)
            report.say(progress_line(step, last_step, values))
        if asked == STOP and not last:
            _save_and_stop(job, state, step, checkpoints, report)
        with meter.aside():
            # First: a run that dies in an evaluation takes it again, and no step.
            if saves:
                _save(job, state, step, checkpoints, report)
            if job.evaluates(step):
                found = _evaluated(job, state, step, checkpoints, report)
                checkpoints.evaluated(step, found)


def _jitted(job: Job) -> Any:
    """The job's step, or several of them at once."""
    return jit_step(
        job.task,
        job.optimizer,
        job.mesh,
        job.total_steps,
        job.shardings,
        job.splits.augment,
        several=job.options.steps_per_dispatch > 1,
    )


def _compiling(take_steps: Any, meter: Meter, report: Report) -> Any:
    """`take_steps`; that it compiles, at first and for another number of steps at once,
    is said, and is no time of a step."""
    compiled = set()

    def take(state: TrainState, batch: Batch, root: Any) -> Any:
        shapes = tuple(x.shape for x in batch.values())
        if shapes in compiled:
            return take_steps(state, batch, root)
        compiled.add(shapes)
        report.say("compiling the train step")
        begun = time.monotonic()
        with meter.aside():
            found = take_steps(state, batch, root)
        report.say(f"compiled in {duration(time.monotonic() - begun)}")
        return found

    return take


def _begun(job: Job, state: TrainState, batch: Any, meter: Meter) -> TrainState:
    """The state after the task has seen the first batch, in no time of a step."""
    begin = jax.jit(job.task.begin, out_shardings=job.shardings.params)
    first = batch if job.options.steps_per_dispatch == 1 else first_of(batch)
    with meter.aside():
        params = jax.block_until_ready(begin(state.params, rows_of(first)))
    return dataclasses.replace(state, params=params)


def check_finite(job: Job, step: int, bad: int, checkpoints: Checkpoints) -> None:
    """Raises `NonFiniteError` where as many steps in a row, up to `step`, were `bad` as
    the config allows; what they were trained on is named in nonfinite.json."""
    limit = job.options.max_nonfinite_steps
    if bad < limit:
        return
    steps = range(step - bad + 1, step + 1)
    path = checkpoints.folder.parent / "nonfinite.json"
    if jax.process_index() == 0:
        source, batch = job.splits.train, job.order.batch
        named = {s: [source.key(int(i)) for i in batch(s - 1)[1]] for s in steps}
        path.write_text(json.dumps(named, indent=1) + "\n")
    checkpoints.wait()
    raise NonFiniteError(
        f"the loss or gradient was not finite in steps {steps[0]} to {step}"
        f" (config.max_nonfinite_steps={limit}), whose images {path} names; in"
        f" {checkpoints.folder} {checkpoints.last_good()}"
    )


def evaluate(
    job: Job, state: TrainState, step: int, report: Report
) -> dict[str, float]:
    """Runs every evaluator on the parameters of `state`, and plots the loss so far.

    Gives the numbers they found.
    """
    report.say(f"step {step}: evaluating")
    values: dict[str, Any] = {}
    for evaluator in job.evaluators.values():
        found = evaluator(job.task.evaluated(state.params, state.ema_params), step)
        job.signals.beat()
        values |= {f"eval/{name}": value for name, value in found.items()}
    curves = distance_curves(report.rows()) if report.active else None
    if curves is not None:
        values["eval/loss_by_distance"] = curves
    report.write(step, values)
    numbers = {k: float(v) for k, v in values.items() if np.ndim(v) == 0}
    shown = [
        f"{k.removeprefix('eval/')} {v:.4g}"
        for k, v in numbers.items()
        if k.count("/") == 1  # not those of every class, or head
    ]
    if shown:
        report.say(f"step {step}: {', '.join(shown)}")
    return numbers
