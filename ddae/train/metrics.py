"""What a run says: metrics.jsonl, TensorBoard, figures, and a line on the terminal."""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image

from ddae.commands import before_tensorflow
from ddae.data.decode import tensorflow
from ddae.objective import Metrics
from ddae.storage import Mirror, is_remote
from ddae.train.state import SO_FAR

PUSH_SECONDS = 60.0
"""How old what a bucket has of a log may become, from row to row."""

EVENTS_BYTES = 2**24
"""Size from which a bucket's TensorBoard events go on in another file: each push is of
whole files."""


class Report:
    """Writes of one run into `workdir`; only the first process writes.

    metrics.jsonl holds one object a logged step. Rows after the step resumed at are
    dropped: those steps are about to be taken again. At a fresh start (None) it is put
    aside, for the checkpoints of a long run may only have been moved.

    A bucket has what was written before the last `push`, which `write` calls every
    PUSH_SECONDS.
    """

    def __init__(self, workdir: str, resumed_at: int | None):
        self.active = jax.process_index() == 0
        self.path = epath.Path(workdir) / "metrics.jsonl"
        self._board = self._mirror = None
        if not self.active:
            return
        rows = read_metrics(self.path)
        if resumed_at is None and rows:
            self._put_aside()
        last = -1 if resumed_at is None else resumed_at
        kept = [row for row in rows if row.get("step", math.inf) <= last]
        self._folder = epath.Path(workdir)
        if is_remote(workdir):
            self._mirror = Mirror(self._folder)
            self._folder = self._mirror.here
            self.path = self._folder / self.path.name
        self.figures = self._folder / "figures"
        self.figures.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text("".join(json.dumps(row) + "\n" for row in kept))
        part.replace(self.path)
        self._board = _tensorboard(self._folder)

    def _put_aside(self) -> None:
        names = (f"{self.path.name}.{number}" for number in itertools.count(1))
        aside = next(p for p in map(self.path.with_name, names) if not p.exists())
        self.path.rename(aside)
        self.say(f"no checkpoint to resume; the log of an earlier start is now {aside}")

    def say(self, line: str) -> None:
        """A line on the terminal."""
        if self.active:
            print(line, flush=True)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers to metrics.jsonl, pictures to figures/, both to TensorBoard."""
        if not self.active:
            return
        scalars = {k: float(v) for k, v in values.items() if np.ndim(v) == 0}
        pictures = {k: v for k, v in values.items() if np.ndim(v) == 3}
        if scalars:
            row = {"step": step} | {
                k: v if math.isfinite(v) else None for k, v in scalars.items()
            }
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        for name, picture in pictures.items():
            name = name.rsplit("/", 1)[-1]
            with (self.figures / f"{name}.png").open("wb") as file:
                Image.fromarray(picture).save(file, "PNG")
        if self._board is not None:
            # Numbers that are Python's TensorFlow would keep for ever, 33 KB a row.
            at, scalars = np.int64(step), {k: np.float32(scalars[k]) for k in scalars}
            self._board.write_scalars(at, scalars)
            if pictures:
                self._board.write_images(at, {k: v[None] for k, v in pictures.items()})
            self._board.flush()
        if self._mirror is not None and self._mirror.age() >= PUSH_SECONDS:
            self.push()

    def push(self) -> None:
        """Has a bucket hold all that was written so far; a disk does in any case."""
        if self._mirror is None:
            return
        if refused := self._mirror.push():
            self.say(f"the log could not be uploaded, and will be later: {refused}")
            return
        for events in (self._folder / "tensorboard").glob("*"):
            if self._board is not None and events.stat().length >= EVENTS_BYTES:
                self._board.close()
                events.unlink()
                self._board = _tensorboard(self._folder)

    def rows(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl so far; none in a process that does not write."""
        return read_metrics(self.path) if self.active else []

    def evaluation(self, step: int | None) -> dict[str, float]:
        """What the log has of the evaluation of `step` already, or of the last one that
        there was; {} for nothing."""
        found = {}
        for row in self.rows():
            values = {k: v for k, v in row.items() if k.startswith("eval/")}
            if values and step in (None, row["step"]):
                found = values
        return {k: float("nan") if v is None else v for k, v in found.items()}

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._mirror is not None and (refused := self._mirror.close()):
            self.say(f"the log, in {self._folder}, could not be uploaded: {refused}")


class Meter:
    """Sums of metrics over a log interval, on the device, and where the time went."""

    def __init__(self):
        self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
        self._reset()

    def _reset(self) -> None:
        self._sums: Metrics | None = None
        self._steps, self._waited, self._start = 0, 0.0, time.monotonic()
        self._cpu_start = time.process_time()

    def add(self, metrics: Metrics, waited: float, steps: int = 1) -> None:
        """Metrics of `steps` steps, and the seconds the loop waited for batches."""
        sums = metrics if self._sums is None else self._add(self._sums, metrics)
        self._sums = sums | {name: metrics[name] for name in SO_FAR if name in metrics}
        self._steps, self._waited = self._steps + steps, self._waited + waited

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leaves time within (compiling, an evaluation, a save) out of the interval."""
        begun, cpu_begun = time.monotonic(), time.process_time()
        yield
        self.skip(time.monotonic() - begun, time.process_time() - cpu_begun)

    def skip(self, seconds: float, cpu_seconds: float) -> None:
        """Leaves as much time out of the interval."""
        self._start += seconds
        self._cpu_start += cpu_seconds

    def take(self, batch_size: int) -> dict[str, float]:
        """Means over the interval, of SO_FAR the last, with images_per_second,
        step_seconds, cpu_seconds (a step's, over all threads of this process) and
        data_wait."""
        sums = jax.device_get(self._sums) if self._sums is not None else {}
        elapsed = max(time.monotonic() - self._start, 1e-9)
        cpu = time.process_time() - self._cpu_start
        values = {
            f"train/{name}": float(total / count)
            for name, (total, count) in sums.items()
            if count > 0
        }
        values |= {
            "train/images_per_second": self._steps * batch_size / elapsed,
            "train/step_seconds": elapsed / max(self._steps, 1),
            "train/cpu_seconds": cpu / max(self._steps, 1),
            "train/data_wait": min(self._waited / elapsed, 1.0),
        }
        self._reset()
        return values


def progress_line(step: int, total_steps: int, values: Mapping[str, float]) -> str:
    """Step of total, loss, images/s, data-wait share, time left, and how many steps
    were skipped so far, if any: the loss is of the others alone, and looks well."""
    left = (total_steps - step) * values["train/step_seconds"]
    loss = values.get("train/loss", float("nan"))
    skipped = int(values.get("train/nonfinite_steps", 0))
    return (
        f"step {step:>{len(str(total_steps))}}/{total_steps}  loss {loss:.4f}"
        f"  {values['train/images_per_second']:,.0f} images/s"
        f"  data wait {100 * values['train/data_wait']:.0f} %  eta {duration(left)}"
        + (f"  {skipped} skipped, not finite" if skipped else "")
    )


def duration(seconds: float) -> str:
    """Seconds as 1h02m, 3m05s or 7s."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; lines that are none are left out, such as a last one
    cut short by a kill, or what a failing disk has made of one."""
    path = epath.Path(path)
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # no JSON, or no text
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def write_config(
    workdir: str, config: Mapping[str, Any], class_names: Sequence[str]
) -> None:
    """config.json, and the names of the classes, a line each, where they have some."""
    folder = epath.Path(workdir)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if class_names:
        text = "".join(f"{name}\n" for name in class_names)
        data = text.encode(errors="backslashreplace")  # a name may be no text
        (folder / "classes.txt").write_bytes(data)


def _tensorboard(workdir: epath.Path) -> Any:
    """clu's writer, or None with a line saying so where TensorFlow is not installed."""
    before_tensorflow()
    try:
        tensorflow()
        from clu import metric_writers
    except ModuleNotFoundError as error:
        print(f"no TensorBoard events: {error.name} is not installed", flush=True)
        return None
    return metric_writers.SummaryWriter(os.path.join(workdir, "tensorboard"))


def summary(report: Report) -> str:
    """The last evaluation beside the first."""
    rows = report.rows()
    first = next((r for r in rows if r["step"] == 0), {})
    last = rows[-1] if rows else {}
    shown = [
        f"{key.removeprefix('eval/')} {last[key]:.4g}"
        + (f", {first[key]:.4g} at the start" if last["step"] else "")
        for key in last
        if key.startswith("eval/")
        and key.count("/") == 1
        and first.get(key) is not None
        and last[key] is not None
    ]
    return "done: " + "; ".join(shown) if shown else "done"
