"""What studies found, for docs/results.py: their kept numbers, tables and verdicts."""

import json
import math
import pathlib
import sys

import numpy as np
from scipy import stats

DOCS = pathlib.Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))
KEPT = DOCS / "results" / "studies"

from ddae.study import report  # noqa: E402
from ddae.study.table import read_study  # noqa: E402

NAMES = {
    "knn20_top1": "kNN",
    "linear_top1": "linear",
    "finetune": "fine-tuned",
    "attention_distance": "attention distance",
}
"""Scores of the tables, as they are called there."""

TRANSFER = ("knn20_top1", "linear_top1", "finetune")
"""What a frozen or a fine-tuned encoder is good for."""


KEEPS = ("parts", "epochs")
"""Studies whose weights others read: docs/runs.md's tokenizer, and `ddae.analyse`."""


FIGURES = {}
"""Path of every plot that the page shows, to what `report.draw` takes."""


class Found:
    """A study's table and what its runs came to."""

    def __init__(self, name, text):
        self.name, self.text = name, text
        self.study = read_study(text)
        path = KEPT / name / "results.csv"
        known = {row.name for row in self.study.rows}
        records = report.read_csv(str(path)) if path.exists() else []
        # Seeds ran on machines of different speed: their costs compare nothing.
        self.records = [
            {key: value for key, value in r.items() if not key.startswith("cost")}
            for r in records
            if r["row"] in known
        ]

    def difference(self, row, control, score="knn20_top1", first_seed=0):
        """(mean, standard error, pairs) or None, of seeds from `first_seed` on."""
        records = [r for r in self.records if r["seed"] >= first_seed]
        return report.difference(records, row, control, score)

    def seeds(self):
        """Seeds that some run of the study has."""
        return sorted({r["seed"] for r in self.records})

    def table(self, scores=("knn20_top1", "linear_top1")):
        """The Markdown table of the rows that were run, with readable heads."""
        have = [s for s in scores if s in report.scores_of(self.records)]
        text = report.markdown(self.study, self.records, have)
        head, rest = text.split("\n", 1)
        for score in have:
            head = head.replace(score, NAMES[score])
        return f"{head}\n{rest}"

    def figure(self, score="knn20_top1"):
        """The Markdown of the study's plot of a score, which `main` draws."""
        path = KEPT / self.name / f"{score}.png"
        FIGURES[path] = (self.study, self.records, score)
        return f"![{self.name}: {NAMES[score]}]({path.relative_to(DOCS)})"

    def command(self):
        """What was run."""
        return (
            f"```sh\npython -m ddae.study {self.text} --workdir=runs/study_{self.name}"
            " \\\n  --set data.name=npz --set data.dir=DIR"
            f"{' --keep_weights' * (self.name in KEEPS)}\n```"
        )

    def section(self, scores=("knn20_top1", "linear_top1"), figure="knn20_top1"):
        """Command, table and plot."""
        have = [s for s in scores if s in report.scores_of(self.records)]
        lines = [self.command(), "", self.table(have), ""]
        if figure in have:
            lines += [self.figure(figure), ""]
        return lines


def standing(mean, error, pairs):
    """ "ahead" or "behind", where Student's t, two-sided, shows it at 95 %, else ""."""
    shown = pairs > 1 and abs(mean) > error * stats.t.ppf(0.975, pairs - 1)
    if not shown or math.isclose(mean, 0.0):
        return ""
    return "ahead" if mean > 0 else "behind"


def verdict(found, ahead="ahead", behind="behind", unit=" points", digits=2):
    """What a paired difference (mean, standard error, pairs) allows to be said."""
    if found is None:
        return "not run"
    mean, error, pairs = found
    value = f"{mean:+.{digits}f}{unit}"
    if pairs < 2:
        return f"{value} (one seed): no verdict"
    spread = f"{value} (s.e. {error:.{digits}f}, {pairs} seeds)"
    if word := standing(*found):
        return f"{spread}: **{ahead if word == 'ahead' else behind}**"
    # Of two seeds even a large difference is rarely shown, nor is there none.
    return f"{spread}: {'no difference shown' if pairs > 2 else 'no verdict'}"


def compared(found, pairs, score="knn20_top1"):
    """A line for each (first row, second row, what their difference is)."""
    return [
        f"- {what} (`{first}`, `{second}`):"
        f" {verdict(found.difference(first, second, score))}."
        for first, second, what in pairs
    ]


def pooled_verdict(study, pairs, score="knn20_top1"):
    """What several pairs of rows allow to be said together. Each seed gives one mean
    over the pairs, since runs of a seed share their images and first weights."""
    by_seed = {}
    for row, control in pairs:
        a, b = (report.values_of(study.records, name, score) for name in (row, control))
        for seed in a.keys() & b.keys():
            by_seed.setdefault(seed, []).append(a[seed] - b[seed])
    if not by_seed:
        return "not run"
    if len(by_seed) == 1:
        (alone,) = by_seed.values()
        each = ", ".join(f"{value:+.2f}" for value in alone)
        return f"{each} points (one seed): no verdict"
    mean, deviation = report.mean_and_deviation([np.mean(v) for v in by_seed.values()])
    return verdict((mean, deviation / math.sqrt(len(by_seed)), len(by_seed)))


ARGUMENTS = json.loads((KEPT / "arguments.json").read_text()) if KEPT.exists() else {}
"""Study to the text that --collect was given: the configs' arguments as they ran."""


def study(name):
    """The study of that name, with the arguments that it ran with."""
    text = ARGUMENTS.get(name, f"configs/studies/{name}.py:scale=small")
    return Found(name, text)


def values(name, score="knn20_top1"):
    """Seed to score of a row called STUDY/ROW."""
    which, _, row = name.partition("/")
    return report.values_of(study(which).records, row, score)


def paired(first, second, score="knn20_top1"):
    """(mean, standard error, pairs) of two rows called STUDY/ROW, less each other: a
    seed has the same images and first weights in all studies. None without a pair."""
    found = [
        {"row": name, "seed": seed, score: value}
        for name in (first, second)
        for seed, value in values(name, score).items()
    ]
    return report.difference(found, first, second, score)


def scale():
    """What the runs had in common, read from a run's own log."""
    path = sorted((KEPT / "parts/logs").glob("mae.seed*.jsonl"))[0]
    config = json.loads(path.read_text().splitlines()[0])["config"]
    side = config["image_size"] // config["model"]["patch_size"]
    images = config["total_steps"] * config["batch_size"]
    return (
        f"CIFAR-10 at {config['image_size']} px, patch {config['model']['patch_size']}"
        f" (a grid of {side} x {side}), ViT-{config['model']['size']} (4 blocks of"
        f" width 64), {config['total_steps']} steps of {config['batch_size']} images,"
        f" {images / 50000:.2f} epochs, unless a row says otherwise"
    )


def over_shared(beta, own, first, second):
    """Of the rows `own`, those of the phase or tilt `first` less those of `second`,
    where all else is alike."""
    pairs = [
        (name, other)
        for name in own
        if first in name.split(",")
        if (other := name.replace(first, second)) in own
    ]
    return pooled_verdict(beta, pairs)
