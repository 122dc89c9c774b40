"""Writes docs/results/segmentation from two runs of configs/segment_camvid.py.

python docs/segmentation_figures.py PRETRAINED_WORKDIR SCRATCH_WORKDIR

Curves of both, the last figures, and both logs; prints the table
that docs/segmentation.md shows.
"""

import argparse
import json
import pathlib
import shutil

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

OUT = pathlib.Path(__file__).parent / "results" / "segmentation"
COLOURS = {"pretrained": "#c44e52", "scratch": "#4878a8"}


def rows_of(workdir):
    """A run's log."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def curve(rows, key):
    """Steps and values of `key`."""
    return zip(*[(row["step"], row[key]) for row in rows if key in row], strict=True)


def draw(runs):
    """mIoU of held-out scenes and training loss, by step."""
    figure = Figure(figsize=(8.4, 3.2), layout="constrained", dpi=90)
    left, right = figure.subplots(1, 2)
    for name, rows in runs.items():
        style = {"label": name, "color": COLOURS[name], "linewidth": 1.4}
        left.plot(*curve(rows, "eval/miou"), marker=".", **style)
        right.plot(*curve(rows, "train/loss/segmenter"), **style)
    first = next(iter(runs.values()))
    constant = next(r["eval/constant_miou"] for r in first if "eval/miou" in r)
    left.axhline(
        constant, color="black", linewidth=0.8, label="best single class", dashes=(4, 3)
    )
    left.set_ylabel("mIoU, %, 101 validation images")
    right.set_ylabel("cross-entropy of a pixel, training")
    for axis in (left, right):
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
    left.legend(fontsize=8, loc="center right")
    FigureCanvasAgg(figure).print_png(OUT / "curves.png")


def table(runs):
    """Markdown: one row a value, one column a run, of the last evaluation."""
    last = {
        name: [r for r in rows if "eval/miou" in r][-1] for name, rows in runs.items()
    }
    print("| | " + " | ".join(f"{n}, step {r['step']}" for n, r in last.items()) + " |")
    print("|---" * (len(last) + 1) + "|")
    keys = [k for k in next(iter(last.values())) if k.startswith("eval/")]
    for key in keys:
        if key.startswith("eval/accuracy/"):
            continue
        cells = " | ".join(f"{r[key]:.1f}" if key in r else "-" for r in last.values())
        print(f"| {key.removeprefix('eval/')} | {cells} |")


def main():
    """Reads the two runs and writes what the page shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in COLOURS:
        parser.add_argument(name, type=pathlib.Path)
    given = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    runs = {name: rows_of(getattr(given, name)) for name in COLOURS}
    draw(runs)
    table(runs)
    for name in COLOURS:
        log = getattr(given, name) / "metrics.jsonl"
        shutil.copy(log, OUT / f"{name}.jsonl")
        figures = getattr(given, name) / "figures"
        shutil.copy(figures / "class_table.png", OUT / f"class_table_{name}.png")
        if name == "pretrained":
            with Image.open(figures / "segmentation.png") as figure:
                small = figure.reduce(2) if figure.width > 1000 else figure
                small.save(OUT / "segmentation.png", optimize=True)


if __name__ == "__main__":
    main()
