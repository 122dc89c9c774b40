"""Figures as arrays [height, width, 3], uint8, drawn without a display."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def new_figure(
    rows: int, columns: int, width: float, height: float
) -> tuple[Figure, np.ndarray]:
    """An empty figure, in inches, and its axes [rows, columns]."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    return figure, figure.subplots(rows, columns, squeeze=False)


def to_array(figure: Figure) -> np.ndarray:
    """The drawn figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def distance_curves(rows: Iterable[Mapping[str, Any]]) -> np.ndarray | None:
    """Loss by distance bin over training, one panel a Term; None before the first log.

    rows: of metrics.jsonl, whose keys train/distance/TERM/BIN are plotted.
    """
    curves: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith("train/distance/"):
                term, label = key.removeprefix("train/distance/").rsplit("/", 1)
                steps, values = curves.setdefault(term, {}).setdefault(label, ([], []))
                steps.append(row["step"])
                values.append(value)
    if not curves:
        return None
    terms = sorted(curves)
    columns = min(len(terms), 4)
    height = -(-len(terms) // columns)
    figure, axes = new_figure(
        height, columns, width=3.2 * columns + 0.9, height=2.6 * height + 0.3
    )
    for axis, term in zip(axes.flat, terms, strict=False):
        labels = sorted(curves[term])
        # Of many, few patches are as far as the farthest: faint, and the axis is the
        # others'.
        usual = labels[:-1] if len(labels) > 2 else labels
        for label in labels:
            faint = {} if label in usual else {"alpha": 0.35}
            name = label.removeprefix("d")
            axis.plot(*curves[term][label], label=name, linewidth=1.2, **faint)
        values = np.concatenate([curves[term][label][1] for label in usual])
        margin = 0.08 * (values.max() - values.min() or 1.0)
        axis.set_ylim(values.min() - margin, values.max() + margin)
        axis.set_title(term, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(terms) :]:
        axis.set_axis_off()
    axes[0, 0].set_ylabel("loss of a masked patch", fontsize=8)
    # Beside the panels: a place among the curves, matplotlib's default, is searched for
    # longer the more of them there are.
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside right upper",
        title="patches away",
        fontsize=7,
        title_fontsize=7,
    )
    return to_array(figure)
