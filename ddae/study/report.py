"""Numbers of a study as CSV, Markdown and plots; all from finished runs alone."""

import csv
import math
import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ddae.eval.figures import new_figure, to_array
from ddae.study.table import Row, Study, runs_of

FIXED = ("row", "seed", "steps", "cost", "cost_unit", "failed")
Records = list[dict[str, Any]]
"""One for each row and seed: FIXED, and a number for each score."""
UNITS = {r"top\d+\b|miou|accuracy": "%", "attention_distance": "patches"}
"""Of scores whose name has the pattern."""


def collect(study: Study, results: Iterable[Mapping[str, Any] | None]) -> Records:
    """Finished runs by row and seed, follow-ups beside the run they follow."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for result in results:
        if result is None:
            continue
        key = (result["row"], result["seed"])
        record = found.setdefault(key, {"row": key[0], "seed": key[1]})
        if not result["follow_up"]:
            record |= {k: result[k] for k in FIXED if k in result}
        elif "failed" in result:
            record["failed"] = f"{result['follow_up']}: {result['failed']}"
        record |= result.get("scores", {})
    order = {row.name: number for number, row in enumerate(study.rows)}
    return sorted(found.values(), key=lambda r: (order[r["row"]], r["seed"]))


def scores_of(records: Records) -> list[str]:
    """Names of the scores, in the order in which they first appear."""
    names = dict.fromkeys(name for record in records for name in record)
    return [name for name in names if name not in FIXED]


def write_csv(records: Records, path: str) -> None:
    """One line a row and seed."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*FIXED, *scores_of(records)], restval="")
        writer.writeheader()
        writer.writerows(records)


def read_csv(path: str) -> Records:
    """What `write_csv` wrote: numbers as numbers, what is missing left out."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    text = ("row", "cost_unit", "failed")
    return [
        {
            k: v if k in text else int(v) if k in ("seed", "steps") else float(v)
            for k, v in row.items()
            if v != ""
        }
        for row in rows
    ]


def values_of(records: Records, row: str, score: str) -> dict[int, float]:
    """Seed to value, of the runs of `row` that have it."""
    return {r["seed"]: r[score] for r in records if r["row"] == row and score in r}


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and sample standard deviation (n - 1), nan for a single value."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return statistics.fmean(values), deviation


def difference(
    records: Records, row: str, control: str, score: str
) -> tuple[float, float, int] | None:
    """(mean, standard error, number) of row minus control over the seeds of both.

    Paired by seed, which fixes the order of the images and the first weights; nan for
    the error of a single pair; None without one.
    """
    a, b = (values_of(records, name, score) for name in (row, control))
    pairs = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    if not pairs:
        return None
    mean, deviation = mean_and_deviation(pairs)
    return mean, deviation / math.sqrt(len(pairs)), len(pairs)


def markdown(study: Study, records: Records, scores: Sequence[str]) -> str:
    """The table: mean ± sample standard deviation (seeds), and against the control."""
    unit = next((r["cost_unit"] for r in records if r.get("cost")), None)
    heads = ["row", "steps", *([f"cost, {unit}"] if unit else []), *scores]
    if study.control and scores:
        heads.append(f"{scores[0]} against {study.control}")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in study.rows:
        own = [r for r in records if r["row"] == row.name]
        if not own:
            continue
        failed = next((r["failed"] for r in own if "failed" in r), None)
        steps = sorted({r["steps"] for r in own if "steps" in r})
        cost = [r["cost"] for r in own if "cost" in r]
        cells = [row.name, " to ".join(map(str, dict.fromkeys(steps[:1] + steps[-1:])))]
        if unit:
            cells.append(f"{statistics.fmean(cost):.0f}" if cost else "")
        cells += [cell(list(values_of(records, row.name, s).values())) for s in scores]
        if failed:
            cells[-1] += f" failed: {failed}"
        if len(heads) > len(cells):
            cells.append(against(study, records, row, scores[0]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(values: Sequence[float]) -> str:
    """mean ± deviation (number of seeds)."""
    if not values:
        return ""
    mean, deviation = mean_and_deviation(values)
    if math.isnan(deviation):
        return f"{mean:.2f} (1)"
    return f"{mean:.2f} ± {deviation:.2f} ({len(values)})"


def against(study: Study, records: Records, row: Row, score: str) -> str:
    """The paired difference and its standard error; the control itself is blank."""
    if row.name == study.control:
        return ""
    found = difference(records, row.name, study.control, score)
    if found is None:
        return ""
    mean, error, number = found
    return f"{mean:+.2f}" + ("" if number < 2 else f" (s.e. {error:.2f})")


def write_report(runner: Any) -> None:
    """results.csv, results.md and figures/*.png in the study's workdir."""
    study, folder = runner.study, runner.workdir
    records = collect(study, (runner.result(run) for run in runs_of(study)))
    write_csv(records, os.path.join(folder, "results.csv"))
    scores = scores_of(records)
    text = f"# {study.name}: {study.about}\n\n{markdown(study, records, scores)}\n"
    with open(os.path.join(folder, "results.md"), "w") as file:
        file.write(text)
    figures = os.path.join(folder, "figures")
    os.makedirs(figures, exist_ok=True)
    for score in scores:
        name = score.replace("/", "_")
        picture = draw(study, records, score)
        Image.fromarray(picture).save(os.path.join(figures, f"{name}.png"))


def draw(study: Study, records: Records, score: str) -> np.ndarray:
    """The study's plot of a score, uint8 [height, width, 3].

    Lines over x where rows have one, a panel for each `panel`; else all rows as means
    with their seeds, beside their cost where it is known. Bars of error are one sample
    standard deviation.
    """
    if any(row.x is not None for row in study.rows):
        return to_array(_lines(study, records, score))
    return to_array(_points(study, records, score))


def _lines(study: Study, records: Records, score: str) -> Any:
    rows = [row for row in study.rows if row.x is not None]
    rows = [r for r in rows if values_of(records, r.name, score)] or rows
    panels = list(dict.fromkeys(row.panel for row in rows))
    series_of_all = dict.fromkeys(row.series for row in rows)  # not all in each panel
    colours = {name: f"C{number % 10}" for number, name in enumerate(series_of_all)}
    figure, axes = new_figure(1, len(panels), width=3.6 * len(panels) + 1.6, height=3.2)
    for axis, panel in zip(axes.flat, panels, strict=True):
        inside = [row for row in rows if row.panel == panel]
        ticks = list(dict.fromkeys(row.x for row in inside))
        words = any(isinstance(x, str) for x in ticks)
        for series in dict.fromkeys(row.series for row in inside):
            points = []
            for row in inside:
                values = list(values_of(records, row.name, score).values())
                if row.series == series and values and row.x is not None:
                    at = ticks.index(row.x) if words else float(row.x)
                    points.append((at, *mean_and_deviation(values), values))
            if points:
                at, means, *_ = zip(*points, strict=True)
                colour = colours[series]
                axis.plot(at, means, marker="o", label=series, color=colour)
                for x, mean, deviation, values in points:
                    bar = np.nan_to_num(deviation)
                    axis.errorbar(x, mean, yerr=bar, color=colour, capsize=3)
                    axis.plot([x] * len(values), values, ".", color=colour, alpha=0.4)
        if words:
            axis.set_xticks(range(len(ticks)), ticks)
            axis.set_xlim(-0.4, len(ticks) - 0.6)
        name = axis.set_title if len(panels) > 1 else axis.set_xlabel
        name(panel, fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0, 0].set_ylabel(labelled(study, score))
    named = [axis.get_legend_handles_labels() for axis in axes.flat]
    lines = {name: line for pair in named for line, name in zip(*pair, strict=True)}
    if lines:
        figure.legend(lines.values(), lines, fontsize=8, loc="outside right upper")
    return figure


def _points(study: Study, records: Records, score: str) -> Any:
    rows = [r for r in study.rows if values_of(records, r.name, score)]
    unit = next((r["cost_unit"] for r in records if r.get("cost")), None)
    panels = 2 if unit else 1
    figure, axes = new_figure(
        1, panels, width=0.5 + 4.25 * panels, height=0.32 * len(rows) + 1.6
    )
    left, points = axes[0, 0], []
    for number, row in enumerate(rows):
        values = list(values_of(records, row.name, score).values())
        mean, deviation = mean_and_deviation(values)
        bar = np.nan_to_num(deviation)
        colour = f"C{number % 10}"
        left.errorbar(mean, number, xerr=bar, fmt="o", color=colour, capsize=3)
        left.plot(values, [number] * len(values), "|", color=colour, alpha=0.7)
        costs = [r["cost"] for r in records if r["row"] == row.name and r.get("cost")]
        if costs:
            cost = statistics.fmean(costs)
            points.append((mean, bar, cost, number + 1, colour))
    numbers = [f"  {n}" if unit else "" for n in range(1, len(rows) + 1)]
    names = [row.name + number for row, number in zip(rows, numbers, strict=True)]
    left.set_yticks(range(len(rows)), names, fontsize=8)
    left.invert_yaxis()
    left.set_xlabel(labelled(study, score))
    if unit:
        _costs(axes[0, 1], points, unit)
        axes[0, 1].set_ylabel(labelled(study, score))
    return figure


def labelled(study: Study, score: str) -> str:
    """`score` with its unit, where it is known."""
    after = study.follow_ups.get(score)
    named = after.score if after else score
    for pattern, unit in UNITS.items():
        if re.search(pattern, named):
            return f"{score}, {unit}"
    return score


def _costs(axis: Any, points: list[Any], unit: str) -> None:
    """(mean, bar, cost, number, colour) of every row, its number to the right of its
    point, no two at one height."""
    for mean, bar, cost, _, colour in points:
        axis.errorbar(cost, mean, yerr=bar, fmt="o", color=colour, capsize=3)
    axis.set_xlabel(f"cost of a run, {unit}")
    axis.margins(x=0.15)
    low, high = axis.get_ylim()
    height = low
    for mean, _, cost, number, colour in sorted(points):
        height = max(mean, height + (high - low) / 25)
        text = axis.text(cost, height, f"   {number}", fontsize=8, color=colour)
        text.set_verticalalignment("center")
