"""Runs what of a study is not yet done, one run after another, in this process."""

import contextlib
import dataclasses
import fcntl
import glob
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from ddae import commands, data, eval, settings, tasks
from ddae.settings import UserError
from ddae.study.table import Row, Run, Study, config_of, runs_of
from ddae.train import loop
from ddae.train.cluster import PreemptedError
from ddae.train.loading import load_params
from ddae.train.metrics import duration, read_metrics
from ddae.train.plan import plan
from ddae.train.sharding import MeshSettings, make_mesh
from ddae.train.signals import Signals
from ddae.train.state import NonFiniteError
from ddae.train.step import OnDevices

DONE = "done.json"
WEIGHTS = ("checkpoints", "damaged_checkpoints", "tensorboard")


@dataclasses.dataclass(frozen=True)
class Runner:
    """A study in its workdir. changes: dotted keys for all runs; keep_weights: whether
    checkpoints stay when a run and what follows it are done; signals: of all runs, and
    of what is between them."""

    study: Study
    workdir: str
    changes: Mapping[str, str]
    keep_weights: bool = False
    signals: Signals = dataclasses.field(default_factory=Signals)

    def path(self, run: Run, *names: str) -> str:
        """A file of the run's own workdir."""
        return os.path.join(self.workdir, run.folder, *names)

    def result(self, run: Run) -> dict[str, Any] | None:
        """What the run came to: its scores and cost; None while it is not done."""
        try:
            with open(self.path(run, DONE)) as file:
                return json.load(file)
        except FileNotFoundError:
            return None

    def config(self, run: Run) -> dict[str, Any]:
        """The run's config, with its length where another row's cost gives it."""
        row, steps = run.row, None
        if row.repeats and not run.follow_up:
            own, other = (self.result(first) or {} for first in self._measured(row))
            if own and other and not own.get("failed") and not other.get("failed"):
                steps = round(own["steps"] * other["cost"] / own["cost"])
        return config_of(self.study, run, self.workdir, self.changes, steps)

    def _measured(self, row: Row) -> list[Run]:
        """The runs whose costs give the length of a row that repeats another."""
        names = (row.repeats, row.at_cost_of)
        return [Run(self.study.row(name), self.study.seeds[0]) for name in names]

    def ready(self, run: Run) -> bool:
        """Whether all that it builds on is done, and did not fail."""
        wanted = [run.parent] if run.follow_up else []
        if run.row.repeats:
            wanted += self._measured(run.row)
        found = [self.result(other) for other in wanted]
        return all(result and "failed" not in result for result in found)

    def check(self) -> None:
        """Builds the task of every row that is not done, and of what follows it, plans
        one run of each config file, with the study's scores, and one of each follow-up,
        and compares what is done with the table; compiles nothing.

        Raises `UserError`.
        """
        seen: set[str] = set()
        for run in runs_of(self.study):
            result = self.result(run)
            name = f"{run.row.name}/{run.follow_up}"
            if result is not None:
                self._check_same(run, result)
            elif name not in seen:
                config = self.config(run)
                tasks.from_config(config)
                source = run.follow_up or run.row.config
                if source not in seen:
                    job = plan(config)
                    scores = {} if run.follow_up else self.study.scores
                    given = (job.task, job.splits, OnDevices(job.mesh))
                    eval.from_config({"evaluators": scores}, *given)
                seen |= {name, source}

    def _check_same(self, run: Run, result: Mapping[str, Any]) -> None:
        config = known_to(self.config(run), result["config"])
        if run.follow_up:  # the study may have been moved since
            config["init"]["workdir"] = result["config"]["init"]["workdir"]
        if differs := settings.changed(config, result["config"]):
            raise UserError(
                f"{self.path(run)} is done with another config.{next(iter(differs))}"
                " than the study says; remove it, or take another --workdir"
            )

    def execute(self, run: Run) -> dict[str, Any]:
        """Trains from where it stands to the end, scores it, and keeps the numbers."""
        config = self.config(run)
        folder = self.path(run)
        result: dict[str, Any] = {"row": run.row.name, "seed": run.seed}
        result |= {"follow_up": run.follow_up, "config": config}
        try:
            with (
                open(os.path.join(folder, "log.txt"), "a", buffering=1) as log,
                contextlib.redirect_stdout(log),
            ):
                loop.run(config, folder, self.signals)
                result |= cost_of(folder)
                result["scores"] = self._scores(run, config)
        except NonFiniteError as error:
            result["failed"] = str(error)
        self._keep(run, result)
        if not self.keep_weights:
            self._tidy(run)
        return result

    def _keep(self, run: Run, result: Mapping[str, Any]) -> None:
        with commands.whole(self.path(run, DONE)) as file:
            file.write(json.dumps(result, indent=1).encode())

    def adopt(self, runs: list[Run], folder: str) -> Iterator[str]:
        """Takes over what another study's workdir has done with the same config, seed
        included: its log, its weights where they were kept, and its scores, those that
        it lacks given anew. Yields a line for each run. Left out is one whose weights
        were not kept, where something here begins with them. Raises `UserError` where
        `folder` is no such workdir."""
        if not os.path.isdir(os.path.join(folder, "runs")):
            raise UserError(f"--adopt={folder} is no study's workdir: it has no runs/")
        done: dict[str, dict[str, Any]] = {}
        for path in sorted(glob.glob("runs/*/seed*/" + DONE, root_dir=folder)):
            path = os.path.join(folder, path)
            with open(path) as file:
                result = json.load(file)
            if "failed" not in result:
                done[path] = result
        for run in runs:
            if self.result(run) is not None or run.follow_up or run.row.repeats:
                continue
            config = json.loads(json.dumps(self.config(run)))
            others = ((path, result["config"]) for path, result in done.items())
            same = (path for path, own in others if known_to(config, own) == own)
            path = next(same, None)
            if path and self._followed(run) and not _has_weights(os.path.dirname(path)):
                yield f"{run}: trained anew, as {path} is of a run without weights"
                continue
            with self.claimed(run) as mine:
                if path is None or not mine:
                    continue
                here = self.path(run)
                shutil.copytree(
                    os.path.dirname(path), here, ignore=_not_its_own, dirs_exist_ok=True
                )
                result = done[path] | {"row": run.row.name, "seed": run.seed}
                if _has_weights(here):
                    result["scores"] = self._score(here, self.study.scores)
                self._keep(run, result)
            yield f"{run}: the same as {os.path.dirname(path)}"

    def _followed(self, run: Run) -> bool:
        """Whether anything begins with the weights of a pretraining."""
        others = runs_of(self.study)
        return any(other.follow_up and other.parent == run for other in others)

    def rescore(self, runs: list[Run], names: list[str]) -> Iterator[str]:
        """Gives the scores `names` of the study to finished runs whose weights were
        kept; yields a line for each."""
        for name in names:
            if name not in self.study.scores:
                raise UserError(
                    f"--rescore={name}: {self.study.name} has scores"
                    f" {sorted(self.study.scores)}"
                )
        chosen = {name: self.study.scores[name] for name in names}
        for run in runs:
            result = self.result(run)
            kept = _has_weights(self.path(run))
            if result is None or "failed" in result or run.follow_up or not kept:
                continue
            found = self._score(self.path(run), chosen)
            self._keep(run, result | {"scores": result["scores"] | found})
            yield f"{run}: {_said(found)}"

    def _scores(self, run: Run, config: Mapping[str, Any]) -> dict[str, float]:
        if run.follow_up:
            score = self.study.follow_ups[run.follow_up].score
            rows = read_metrics(self.path(run, "metrics.jsonl"))
            found = [row[score] for row in rows if score in row]
            if not found:
                raise UserError(f"{self.path(run)}: no {score} in its evaluations")
            if found[-1] is None:  # as the log has what is not finite
                raise NonFiniteError(f"{score} is not finite")
            return {run.follow_up: found[-1]}
        return self._score(self.path(run), self.study.scores)

    def _score(self, workdir: str, scores: Mapping[str, Any]) -> dict[str, float]:
        return score_workdir(workdir, scores, self.signals)

    def _tidy(self, run: Run) -> None:
        """Removes weights that nothing waits for."""
        for one in (run, run.parent):
            waiting = any(
                other.parent == one and self.result(other) is None
                for other in runs_of(self.study)
                if other.follow_up and not one.follow_up
            )
            if self.result(one) is not None and not waiting:
                for name in WEIGHTS:
                    shutil.rmtree(self.path(one, name), ignore_errors=True)

    @contextlib.contextmanager
    def claimed(self, run: Run) -> Iterator[bool]:
        """Whether this process has the run: several may work on one study."""
        os.makedirs(self.path(run), exist_ok=True)
        with open(self.path(run, ".claim"), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError:  # a file system without locks: nobody else is to be there
                pass
            yield self.result(run) is None

    def work(self, runs: list[Run], until: float | None) -> Iterator[str]:
        """Executes those of `runs` that are not done, in order; yields a line for each.

        until: of time.monotonic(), after which no other run is begun. Raises
        `PreemptedError` once it is asked to stop.
        """
        elsewhere: set[Run] = set()
        took: list[float] = []
        while True:
            left = [r for r in runs if self.result(r) is None and r not in elsewhere]
            run = next((r for r in left if self.ready(r)), None)
            if run is None:
                if held := [r for r in elsewhere if self.result(r) is None]:
                    yield (
                        f"with other processes: {len(held)} runs; what they leave, the"
                        " same command takes up"
                    )
                elif left:
                    yield (
                        f"not begun: {len(left)} runs, {left[0]} among them, which"
                        " build on others that failed or are not done"
                    )
                return
            if self.signals.stop_requested:
                raise PreemptedError(
                    f"asked to stop; {len(left)} runs are left: run the same command"
                    " again"
                )
            if until is not None and time.monotonic() >= until:
                yield f"the budget is spent; {len(left)} runs are left"
                return
            with self.claimed(run) as mine:
                if not mine:
                    elsewhere.add(run)
                    continue
                begun = time.monotonic()
                result = self.execute(run)
                took.append(time.monotonic() - begun)
                yield self._line(run, result, runs, statistics.fmean(took))

    def _line(
        self, run: Run, result: Mapping[str, Any], runs: list[Run], seconds: float
    ) -> str:
        done = [other for other in runs if self.result(other) is not None]
        said = result.get("failed") or _said(result["scores"])
        cost = (
            f", {result['cost']:.0f} {result['cost_unit']}" if "cost" in result else ""
        )
        left = duration(seconds * (len(runs) - len(done)))
        return f"[{len(done)}/{len(runs)}] {run}: {said}{cost}; left {left}"


def _said(scores: Mapping[str, float]) -> str:
    shown = [f"{name} {value:.2f}" for name, value in scores.items() if "/" not in name]
    return ", ".join(shown)


def cost_of(workdir: str) -> dict[str, Any]:
    """Steps of a finished run and what they cost, evaluations and saves left out.

    The median step of its log times their number: a compilation, or a pause, counts
    little. On CPUs in CPU-seconds, since other work takes wall-clock; else in seconds.
    """
    rows = read_metrics(f"{workdir}/metrics.jsonl")
    train = [row for row in rows if "train/step_seconds" in row]
    if not train:
        return {"steps": 0, "cost": 0.0, "cost_unit": "s"}
    steps = train[-1]["step"]
    cpu = jax.default_backend() == "cpu"
    key = "train/cpu_seconds" if cpu else "train/step_seconds"
    return {
        "steps": steps,
        "cost": steps * statistics.median(row[key] for row in train),
        "cost_unit": "CPU-s" if cpu else "s",
    }


def score_workdir(
    workdir: str, evaluators: Mapping[str, Mapping[str, Any]], signals: Signals
) -> dict[str, float]:
    """What `evaluators` (as config.evaluators) say of the newest checkpoint; raises
    `PreemptedError` where it is asked to stop."""
    if not evaluators:
        return {}
    params, config = load_params(workdir)
    task = tasks.from_config(config)
    splits = data.from_config(config, task.image_shape)
    mesh = make_mesh(
        settings.build(MeshSettings, config["mesh"], "mesh."),
        config["batch_size"],
        accumulate=1,
    )
    on_devices = OnDevices(mesh, signals)
    built = eval.from_config({"evaluators": evaluators}, task, splits, on_devices)
    found: dict[str, Any] = {}
    for evaluator in built.values():
        found |= evaluator(params, 0)
    return {name: value for name, value in found.items() if isinstance(value, float)}


def _not_its_own(folder: str, names: list[str]) -> list[str]:
    """What adopting a run's folder leaves out: the file that says it is done (written
    last), locks, and the folders of its follow-ups."""
    return [
        name
        for name in names
        if name in (DONE, ".claim", ".lock")
        or os.path.isfile(os.path.join(folder, name, "config.json"))
    ]


def _has_weights(folder: str) -> bool:
    """Whether the run in `folder` has its checkpoints still."""
    return os.path.isdir(os.path.join(folder, WEIGHTS[0]))


def known_to(config: Any, older: Any) -> Any:
    """`config` without keys that the config of an `older` run lacks: one that is new
    since leaves things, at its default, as they were."""
    if not isinstance(config, dict) or not isinstance(older, dict):
        return config
    return {k: known_to(v, older[k]) for k, v in config.items() if k in older}
