"""Figures of segmentations: predictions beside the truth, and a table of classes."""

import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.patches import Patch

from ddae.eval.figures import new_figure, to_array

Scene = tuple[UInt8[np.ndarray, "h w 3"], Int[np.ndarray, "h w"]]

LEGEND = 36
"""Classes that a legend names; those of most pixels."""


def colours(num_classes: int) -> UInt8[np.ndarray, "k 3"]:
    """One colour a class: hues by the golden ratio, three saturations and values."""
    rows = [
        colorsys.hsv_to_rgb(
            (0.61 * number) % 1.0,
            (0.85, 0.55, 1.0)[number % 3],
            (0.95, 0.6, 0.8)[number // 5 % 3],
        )
        for number in range(num_classes)
    ]
    return np.asarray(np.round(255 * np.array(rows)), np.uint8)


def painted(
    labels: Int[np.ndarray, "h w"], num_classes: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Each pixel in the colour of its class; black where it has none."""
    table = np.concatenate([colours(num_classes), np.zeros((1, 3), np.uint8)])
    return table[np.where(labels < 0, num_classes, labels)]


def draw_scenes(
    scenes: Sequence[Scene],
    predicted: Sequence[Int[np.ndarray, "h w"]],
    names: Sequence[str],
    title: str,
) -> np.ndarray:
    """Image, prediction and truth, one row a scene, and which colour is which class.

    Predictions cover every pixel; the truth is black where it says nothing.
    """
    rows, k = len(scenes), len(names)
    shapes = [labels.shape for _, labels in scenes]
    tall = sum(3.1 * h / w for h, w in shapes)
    shown = np.concatenate(
        [part.reshape(-1) for part in (*predicted, *(t for _, t in scenes))]
    )
    counts = np.bincount(shown[shown >= 0], minlength=k)
    order = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]][:LEGEND]
    columns = 6
    lines = -(-len(order) // columns)
    figure, axes = new_figure(rows, 3, width=9.6, height=tall + 0.22 * lines + 0.8)
    for row, ((image, truth), own) in enumerate(zip(scenes, predicted, strict=True)):
        for column, picture in enumerate((image, painted(own, k), painted(truth, k))):
            axes[row, column].imshow(picture, interpolation="nearest")
            axes[row, column].set_axis_off()
    for column, heading in enumerate(("image", "prediction", "truth")):
        axes[0, column].set_title(heading, fontsize=9)
    palette = colours(k) / 255.0
    patches = [Patch(color=palette[c], label=names[c]) for c in sorted(order)]
    patches.append(Patch(color="black", label="no label"))
    figure.legend(
        handles=patches, loc="outside lower center", ncols=columns, fontsize=7
    )
    figure.suptitle(title, fontsize=10)
    return to_array(figure)


def draw_classes(
    names: Sequence[str],
    iou: Float[np.ndarray, " k"],
    accuracy: Float[np.ndarray, " k"],
    share: Float[np.ndarray, " k"],
    title: str,
) -> np.ndarray:
    """A table: IoU and accuracy of each class in %, and its share of the pixels.

    iou, accuracy: NaN where the class is nowhere.
    """
    columns = -(-len(names) // 50)
    lines = -(-len(names) // columns)
    figure, axes = new_figure(1, columns, width=5.4 * columns, height=0.2 * lines + 1.1)
    limit = 100.0
    for column, axis in enumerate(axes[0]):
        rows = np.arange(len(names))[column * lines : (column + 1) * lines]
        places = np.arange(len(rows))
        axis.barh(places, np.nan_to_num(iou[rows]), color="#4878a8", height=0.8)
        for place, row in zip(places, rows, strict=True):
            text = "nowhere" if np.isnan(iou[row]) else f"{iou[row]:.1f}"
            found = "-" if np.isnan(accuracy[row]) else f"{accuracy[row]:.1f}"
            text += f"   (accuracy {found}, {share[row]:.2f} % of pixels)"
            inside = np.nan_to_num(iou[row]) > 45
            at = 1.0 if inside else np.nan_to_num(iou[row]) + 1.0
            colour = "white" if inside else "black"
            axis.text(at, place, text, va="center", fontsize=6, color=colour)
        axis.set_yticks(places, [names[row] for row in rows], fontsize=7)
        axis.set_ylim(lines - 0.4, -0.6)
        axis.set_xlim(0, limit)
        axis.set_xlabel("IoU, %", fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
    figure.suptitle(title, fontsize=10)
    return to_array(figure)
