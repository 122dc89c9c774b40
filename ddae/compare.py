"""Is a run as it should be? python -m ddae.compare RUN OTHER [OTHER ...]

RUN and OTHER are workdirs, or logs (metrics.jsonl) as docs/results/ keeps them; several
OTHERs are best one config's seeds. Prints each metric at the last step that all have
logged up to, beside the OTHERs', and the settings that differ; draws the curves. In
training an OTHER's value between two rows is taken as on a line between them. With two
OTHERs or more "as expected" is said in the interval that holds one more such run in 95
of 100 (Student's t: from two it is wide); of twenty metrics one may be out by chance.
Exit codes: 0; 2 no such log, or nothing in common.
"""

import json
import math
import os
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image
from scipy import stats

from ddae import commands
from ddae.eval.figures import new_figure, to_array
from ddae.settings import UserError, changed
from ddae.train.metrics import read_metrics
from ddae.train.plan import spelled_out

METRICS = r"train/loss|train/gradient_norm|eval/[^/]+$"
"""Losses and evaluations; not what depends on the machine."""
PER_ROW = 4

Curves = dict[str, dict[int, float]]
"""Of each metric, step to value."""


def read_curves(path: str, metrics: str = METRICS) -> Curves:
    """The metrics of a workdir, or of a metrics.jsonl, whose name has the regular
    expression `metrics` at its start; `UserError` where there is no log."""
    log = _log(path)
    rows = read_metrics(log)
    if not rows:
        raise UserError(f"no rows in {log}; name a run's workdir, or its metrics.jsonl")
    curves: Curves = {}
    for row in rows:
        for key, value in row.items() if isinstance(row.get("step"), int) else ():
            number = isinstance(value, int | float)  # None is one that was not finite
            if number and key != "step" and re.match(metrics, key):
                curves.setdefault(key, {})[row["step"]] = value
    return curves


def _log(path: str) -> epath.Path:
    log = epath.Path(path)
    return log / "metrics.jsonl" if log.is_dir() else log


def compare(
    run: Curves, others: Sequence[Curves]
) -> dict[str, tuple[int, float, list[float]]]:
    """{metric: (step, the run's value, the others' there)} at the last step of `run`
    that each of `others` has come to, or of an evaluation has, too; metrics that have
    none are left out."""
    found = {}
    for name, curve in run.items():
        if any(name not in other for other in others):
            continue
        theirs = [other[name] for other in others]
        first, last = max(map(min, theirs)), min(map(max, theirs))
        steps = [step for step in curve if first <= step <= last]
        if name.startswith("eval/"):  # far apart, and no line from one to the next
            steps = [step for step in steps if all(step in other for other in theirs)]
        if steps:
            step = max(steps)
            values = [float(np.interp(step, *_points(other))) for other in theirs]
            found[name] = step, curve[step], values
    return found


def lines(
    found: Mapping[str, tuple[int, float, list[float]]], number: int
) -> Iterator[str]:
    """The table of what `compare` found of `number` others."""
    width = max(map(len, found))
    others = "other" if number == 1 else f"mean of {number}"
    yield f"{'metric':<{width}}  {'step':>8}  {'this run':>9}  {others:>10}"
    for name, (step, value, theirs) in found.items():
        mean = statistics.fmean(theirs)
        yield (
            f"{name:<{width}}  {step:>8}  {value:>9.4g}  {mean:>10.4g}"
            f"  {_said(value, theirs)}"
        )


def _said(value: float, theirs: Sequence[float]) -> str:
    """How far from the others' mean; of several, whether another would lie there."""
    mean, number = statistics.fmean(theirs), len(theirs)
    by = f"{100 * (value / mean - 1):+.1f} %" if mean > 0 else f"{value - mean:+.3g}"
    if number == 1:
        return by
    reach = stats.t.ppf(0.975, number - 1) * math.sqrt(1 + 1 / number)
    reach *= statistics.stdev(theirs)
    if math.isclose(value, mean, abs_tol=reach, rel_tol=1e-6):
        return f"{by}, as expected"
    return f"{by}, {'above' if value > mean else 'below'} what is expected"


def _points(curve: Mapping[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(curve)
    return steps, [curve[step] for step in steps]


def draw(run: Curves, others: Mapping[str, Curves], names: Sequence[str]) -> np.ndarray:
    """A panel for each of `names`, the run's curve over the others', uint8 [h, w, 3].

    As far as the run has come and a quarter more; the height is of what follows its
    first tenth, where losses fall by far more than they ever part, and of what each
    has at the run's end, or its own where that comes first.
    """
    labels = dict(zip(others, _labels(list(others)), strict=True))
    columns = min(len(names), PER_ROW)
    rows = -(-len(names) // columns)
    figure, axes = new_figure(rows, columns, 3.2 * columns + 1.8, 2.6 * rows + 0.3)
    for axis, name in zip(axes.flat, names, strict=False):
        for path, curves in others.items():
            points, label = _points(curves[name]), labels[path]
            axis.plot(*points, label=label, linewidth=1, alpha=0.6)
        axis.plot(*_points(run[name]), label="this run", linewidth=1.6, color="black")
        last = max(run[name])
        late = []
        for curves in (run, *others.values()):
            shown = [s for s in curves[name] if last / 10 <= s <= 1.25 * last]
            late += [curves[name][step] for step in shown]
            late.append(float(np.interp(last, *_points(curves[name]))))
        margin = 0.08 * (max(late) - min(late)) or 0.5
        axis.set_ylim(min(late) - margin, max(late) + margin)
        farthest = max(step for c in (run, *others.values()) for step in c[name])
        axis.set_xlim(0, min(1.25 * last, farthest) or None)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    named = axes[0, 0].get_legend_handles_labels()
    figure.legend(*named, fontsize=7, loc="outside right upper")
    return to_array(figure)


def _labels(paths: Sequence[str]) -> list[str]:
    """The paths without the folders that all of them lie in."""
    paths = [path.rstrip("/") for path in paths]
    shared = os.path.commonprefix(paths).rfind("/") + 1
    # matplotlib leaves what begins with _ out of a legend.
    return [re.sub("^_", "./_", path[shared:]) for path in paths]


def _has(path: str, curves: Curves) -> str:
    """What there is to compare of a run, in a few words."""
    steps = [step for curve in curves.values() for step in curve]
    if not steps:
        return f"{path} has none"
    names = ", ".join(sorted(curves)[:4]) + ", ..." * (len(curves) > 4)
    return f"{path} has {names}, of steps {min(steps)} to {max(steps)}"


def _settings(path: str) -> dict[str, Any] | None:
    """The config of a workdir, or one that a log begins with; None where there is
    neither, or where it was cut short."""
    file = epath.Path(path) / "config.json"
    if not file.exists():
        return read_metrics(_log(path))[0].get("config")
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = commands.parser("ddae.compare", __doc__)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("others", metavar="OTHER", nargs="+")
    parser.add_argument(
        "--metrics",
        default=METRICS,
        help="regular expression that their names begin with (%(default)s)",
    )
    parser.add_argument("--output", default="compare.png", help="the figure")
    return commands.run(_compare, parser, argv)


def _compare(args: Any) -> None:
    if not args.output.endswith(".png"):
        raise UserError(f"--output={args.output} does not end in .png")
    try:
        re.compile(args.metrics)
    except re.error as error:
        raise UserError(f"--metrics={args.metrics}: {error}") from error
    run = read_curves(args.run, args.metrics)
    others = {path: read_curves(path, args.metrics) for path in args.others}
    found = compare(run, list(others.values()))
    if not found:
        each = "; ".join(_has(*pair) for pair in ((args.run, run), *others.items()))
        raise UserError(
            f"{args.run} and the others have no metric {args.metrics} at a step of"
            f" both; {each}"
        )
    for line in lines(found, len(others)):
        print(line)
    settings = {path: _settings(path) for path in (args.run, *others)}
    for path, theirs in settings.items():
        if theirs is None:
            print(f"settings of {path} are not known: it has no config.json to read")
    own = settings.pop(args.run)
    for path, theirs in settings.items():
        if own is not None and theirs is not None:
            both = spelled_out(own), spelled_out(theirs)
            for key, (here, there) in changed(*both).items():
                print(f"config.{key} is {here}, in {path} {there}")
    with commands.whole(args.output) as file:
        Image.fromarray(draw(run, others, list(found))).save(file, "PNG")
    print(f"curves      {args.output}")


if __name__ == "__main__":
    sys.exit(main())
