"""Draws docs/architecture.png: ddae's pretraining as one figure.

    python docs/architecture.py

The mask, the distances, the weights and beta are computed, not drawn by hand.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import FancyBboxPatch, Rectangle
from scipy.ndimage import distance_transform_edt

WIDTH, HEIGHT, DPI = 16.0, 9.9, 100
GRID, PIXELS, VISIBLE, SEED = 8, 24, 16, 10
DEPTH, TAPS = 12, (6, 8, 10, 12)
START, END, TILT, LIMIT = -1.0, 1.0, -0.5, 2.0

INK, GREY, HIDDEN = "#222222", "#6b6f76", "#d3d6db"
BLUE, MID_BLUE, PALE_BLUE = "#2b64a8", "#a9c6e8", "#eaf2fb"
ORANGE, MID_ORANGE, PALE_ORANGE = "#c2641a", "#f3c193", "#fdf2e6"
GREEN, MID_GREEN, PALE_GREEN = "#2e7d4f", "#b5dcc3", "#ecf7f0"
GREENS = LinearSegmentedColormap.from_list("greens", ["#dcf1e3", "#5fb382", "#12502e"])
LINES = ("#9bd0b0", "#5fae80", GREEN, "#123f26")
SMALL, TEXT, HEAD = 12.5, 13.5, 15.5

# Rows, from the top: teacher, losses, predictions, decoders, student, difficulty.
TEACHER, STUDENT = 8.8, 3.42
BLOCK_HEIGHT, BLOCK_WIDTH = 0.84, 0.72
COLUMNS = ("1", "2", "···", "6", "7", "8", "9", "10", "11", "12")
CENTRES = {label: 4.6 + 0.92 * i for i, label in enumerate(COLUMNS)}
PANEL = (4.08, 13.42)


def beta(t, u):
    """The preset's exponent at progress t and relative depth u."""
    return np.clip(START + (END - START) * t + TILT * (2 * u - 1), -LIMIT, LIMIT)


def landscape():
    """A small picture in [0, 1]: sky, sun, two ranges of hills and a lake."""
    n = GRID * PIXELS
    y, x = np.mgrid[0:n, 0:n] / n
    sky = np.stack([0.42 + 0.5 * y, 0.64 + 0.22 * y, 0.90 - 0.12 * y], -1)
    image = sky + 0.35 * np.exp(-((x - 0.7) ** 2 + (y - 0.26) ** 2) / 0.02)[..., None]
    image[(x - 0.7) ** 2 + (y - 0.26) ** 2 < 0.0075] = (1.0, 0.93, 0.66)
    far = 0.46 - 0.15 * np.abs(np.sin(5.2 * x + 0.5)) - 0.03 * np.sin(23 * x)
    near = 0.62 - 0.10 * np.sin(4.1 * x + 2.4) - 0.015 * np.sin(31 * x)
    shade = 1.15 - 0.6 * (y - far)
    image = np.where((y > far)[..., None], np.array([0.42, 0.47, 0.60]), image)
    snow = (y > far) & (y < 0.365 + 0.012 * np.sin(40 * x))
    image[snow] = (0.93, 0.95, 0.98)
    lake = np.stack([0.25 + 0.3 * y, 0.45 + 0.25 * y, 0.62 + 0.2 * y], -1)
    ripples = 0.04 * np.sin(120 * y + 6 * np.sin(9 * x))[..., None]
    image = np.where((y > 0.80)[..., None], lake + ripples, image)
    wood = (y > near) & (y <= 0.80)
    green = np.array([0.24, 0.42, 0.26]) * shade[..., None]
    image = np.where(wood[..., None], green, image)
    return np.clip(image, 0, 1)


def random_mask():
    """Which patches are hidden: 75 % of them, at random."""
    hidden = np.ones(GRID * GRID, bool)
    hidden[np.random.default_rng(SEED).permutation(GRID * GRID)[:VISIBLE]] = False
    return hidden.reshape(GRID, GRID)


def box(ax, x0, y0, x1, y1, face, edge, radius=0.08, width=1.3, **options):
    """A rounded box by its corners."""
    ax.add_patch(
        FancyBboxPatch(
            (x0 + radius, y0 + radius),
            x1 - x0 - 2 * radius,
            y1 - y0 - 2 * radius,
            boxstyle=f"round,pad={radius},rounding_size={radius}",
            facecolor=face,
            edgecolor=edge,
            linewidth=width,
            **options,
        )
    )


def arrow(ax, start, end, colour, dashed=False, head=True, width=1.7):
    """A straight arrow, or a line."""
    style = "-|>,head_width=0.26,head_length=0.5" if head else "-"
    ax.annotate(
        "",
        end,
        start,
        arrowprops={
            "arrowstyle": style,
            "color": colour,
            "linewidth": width,
            "linestyle": (0, (4, 2.5)) if dashed else "-",
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 15,
            "joinstyle": "miter",
        },
        zorder=3,
    )


def label(ax, x, y, text, colour=INK, size=TEXT, ha="center", va="center", **options):
    """Text, centred unless told otherwise."""
    ax.text(x, y, text, color=colour, fontsize=size, ha=ha, va=va, **options)


def grid_image(ax, extent, image, **options):
    """An image with the patch grid over it and a thin frame."""
    x0, x1, y0, y1 = extent
    options = {"interpolation": "nearest", "zorder": 2} | options
    drawn = ax.imshow(image, extent=extent, aspect="auto", **options)
    for k in range(1, GRID):
        share = k / GRID
        ax.plot([x0 + share * (x1 - x0)] * 2, [y0, y1], color="white", lw=1, zorder=2.2)
        ax.plot([x0, x1], [y0 + share * (y1 - y0)] * 2, color="white", lw=1, zorder=2.2)
    frame = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=GREY, zorder=4)
    ax.add_patch(frame)
    return drawn


def encoder(ax, centre, title, note, pale, mid, dark):
    """A panel with the blocks 1 to L, the taps filled."""
    low, high = centre - BLOCK_HEIGHT / 2, centre + BLOCK_HEIGHT / 2
    box(ax, PANEL[0], low - 0.16, PANEL[1], high + 0.52, pale, dark, zorder=1)
    label(ax, PANEL[0] + 0.16, high + 0.27, title, dark, HEAD, "left", weight="bold")
    label(ax, 8.28, high + 0.27, note, dark, TEXT)
    last = None
    for text, x in CENTRES.items():
        if last is not None:
            arrow(ax, (last, centre), (x - BLOCK_WIDTH / 2, centre), dark, head=False)
        last = x + BLOCK_WIDTH / 2
        if text == "···":
            ax.add_patch(
                Rectangle((x - 0.36, low), 0.72, 0.84, facecolor=pale, zorder=2)
            )
            label(ax, x, centre, text, dark, 20, zorder=4)
            continue
        tap = text in map(str, TAPS)
        box(
            ax,
            x - BLOCK_WIDTH / 2,
            low,
            x + BLOCK_WIDTH / 2,
            high,
            mid if tap else "white",
            dark,
            radius=0.06,
            width=1.9 if tap else 1.1,
            zorder=3.5,
        )
        label(ax, x, centre, text, INK, 15, weight="bold" if tap else None, zorder=4)


def data_column(ax, image, hidden):
    """The image, the masked grid, and the patches that stay visible."""
    full, masked = (0.3, 2.4, 7.45, 9.55), (0.3, 2.4, 2.6, 4.7)
    grid_image(ax, full, image)
    label(ax, 1.35, 9.72, "Image as patches", GREY, HEAD, weight="bold")
    fog = np.kron(hidden, np.ones((PIXELS, PIXELS)))[..., None]
    covered = np.where(fog > 0, matplotlib.colors.to_rgb(HIDDEN), image)
    grid_image(ax, masked, covered)
    arrow(ax, (1.35, 7.45), (1.35, 5.12), GREY)
    label(ax, 1.52, 6.35, "random mask,\n75 % hidden", GREY, TEXT, "left")
    label(ax, 1.35, 4.9, "Masked", GREY, HEAD, weight="bold")

    patches = image.reshape(GRID, PIXELS, GRID, PIXELS, 3).swapaxes(1, 2)[~hidden]
    side, gap, x0 = 0.205, 0.035, 2.9
    top = STUDENT + 4 * (side + gap) - gap / 2
    for k, patch in enumerate(patches):
        x = x0 + (k % 2) * (side + gap)
        y = top - (k // 2) * (side + gap)
        extent = (x, x + side, y - side, y)
        ax.imshow(patch, extent=extent, aspect="auto", interpolation="nearest")
    arrow(ax, (2.4, STUDENT), (x0 - 0.04, STUDENT), BLUE)
    arrow(ax, (x0 + 2 * side + gap + 0.04, STUDENT), (PANEL[0], STUDENT), BLUE)
    label(ax, 3.12, top + 0.3, "visible\nonly", BLUE, SMALL, linespacing=1.0)
    arrow(ax, (2.4, TEACHER), (PANEL[0], TEACHER), ORANGE)
    label(ax, 3.24, TEACHER + 0.2, "all patches", ORANGE, TEXT)


def supervision(ax):
    """From each tap up through its decoder to its errors, from the teacher down."""
    block_top = STUDENT + BLOCK_HEIGHT / 2
    decoder, chips, errors, bus = (4.78, 5.48), (5.84, 6.24), (6.76, 7.26), 7.72
    box(ax, 6.36, 6.6, 13.78, 7.42, PALE_GREEN, GREEN, zorder=1)
    ax.plot([2.4, CENTRES["12"] - 0.42], [bus, bus], color=GREY, lw=1.7, zorder=2.4)
    for crossing in ("1", "6", "8", "10"):
        x = CENTRES[crossing]
        gap = [x - 0.1, x + 0.1]
        ax.plot(gap, [bus] * 2, "w", lw=4, zorder=2.6, solid_capstyle="butt")
    label(ax, 3.24, bus + 0.2, "pixel target", GREY, TEXT)
    label(ax, 3.24, bus - 0.22, "(standardised)", GREY, SMALL)

    arrow(
        ax,
        (CENTRES["1"], STUDENT + 0.94),
        (CENTRES["1"], TEACHER - 0.58),
        ORANGE,
        dashed=True,
    )
    label(ax, CENTRES["1"] - 0.13, 6.1, "EMA", ORANGE, HEAD, "right", weight="bold")
    side = 6.2
    label(ax, side, 8.0, "feature targets", ORANGE, TEXT, "right")
    label(ax, side, 7.02, "errors", GREEN, TEXT, "right")
    label(ax, side, 6.04, "predictions at\nhidden patches", BLUE, TEXT, "right")
    label(ax, side, 5.13, "tap decoders", BLUE, TEXT, "right")

    for tap in TAPS:
        x = CENTRES[str(tap)]
        left, right = x - 0.42, x + 0.42
        arrow(ax, (x, block_top), (x, decoder[0]), BLUE)
        box(ax, x - 0.83, decoder[0], x + 0.83, decoder[1], PALE_BLUE, BLUE, zorder=2)
        text = "mask tokens\n+ pos. → blocks"
        label(ax, x, sum(decoder) / 2, text, INK, SMALL, zorder=4, linespacing=1.15)
        for centre, name in ((left, "pixels"), (right, "features")):
            low, high = chips
            arrow(ax, (centre, decoder[1]), (centre, low), BLUE)
            box(ax, centre - 0.4, low, centre + 0.4, high, MID_BLUE, BLUE, 0.06)
            label(ax, centre, 6.03, name, INK, SMALL, zorder=4)
            arrow(ax, (centre, high), (centre, errors[0]), BLUE)
        low, high = errors
        box(ax, x - 0.76, low, x + 0.76, high, "white", GREEN, 0.06, zorder=3.2)
        formula = r"$e_{\rm pix} + \lambda(t)\, e_{\rm feat}$"
        label(ax, x, sum(errors) / 2, formula, INK, TEXT, zorder=4)
        arrow(ax, (left, bus), (left, high), GREY)
        start = (x, TEACHER - BLOCK_HEIGHT / 2)
        arrow(ax, start, (x, high), ORANGE)
        for y in (8.0, 8.07):
            ax.plot(
                [x - 0.13, x + 0.13],
                [y - 0.05, y + 0.05],
                color=ORANGE,
                lw=1.8,
                zorder=4,
            )
    label(ax, CENTRES["12"] + 0.24, 8.04, "stop-gradient", ORANGE, TEXT, "left")


def loss(ax):
    """The sum over taps."""
    x0, x1, y0, y1 = 14.1, 15.84, 5.3, 7.42
    box(ax, x0, y0, x1, y1, MID_GREEN, GREEN, zorder=2, width=1.9)
    x = (x0 + x1) / 2
    label(ax, x, 7.12, "Loss", GREEN, HEAD, weight="bold")
    label(ax, x, 6.6, r"$\sum_{{\rm taps}\ l}\ \,a_l$", INK, 15)
    label(ax, x, 6.08, r"$\times\ {\rm mean}_{\,i}\;\ w_i$", INK, 14)
    label(ax, x, 5.62, r"$(e_{\rm pix} + \lambda\, e_{\rm feat})$", INK, 14)
    arrow(ax, (13.78, 7.01), (x0, 7.01), GREEN)


def difficulty(ax, figure, hidden):
    """The distance map, beta over progress and depth, and the weights."""
    distance = distance_transform_edt(hidden)
    extent = (0.6, 2.4, 0.3, 2.1)
    shown = np.where(hidden, distance, np.nan)
    colours = GREENS.with_extremes(bad="white")
    drawn = grid_image(ax, extent, shown, cmap=colours, vmin=1, vmax=distance.max())
    bar_axes = figure.add_axes((0.4 / WIDTH, 0.3 / HEIGHT, 0.11 / WIDTH, 1.8 / HEIGHT))
    bar = figure.colorbar(drawn, cax=bar_axes, ticks=[1, 2, 3, 4])
    bar.outline.set_linewidth(0.6)
    bar_axes.yaxis.set_ticks_position("left")
    bar_axes.tick_params(labelsize=SMALL, length=2, pad=2, colors=GREY)
    arrow(ax, (0.9, 2.6), (0.9, 2.1), GREEN)
    label(ax, 1.06, 2.35, "from the mask", GREEN, SMALL, "left")

    low, high = 0.12, 2.3
    box(ax, PANEL[0], low, 8.98, high, PALE_GREEN, GREEN, zorder=1)
    arrow(ax, (2.4, 1.2), (PANEL[0], 1.2), GREEN)
    label(ax, 3.2, 1.42, "difficulty $d_i$", GREEN, TEXT)
    label(ax, 3.2, 0.82, "distance to\nnearest visible", GREEN, SMALL)
    plot = figure.add_axes((4.92 / WIDTH, 0.62 / HEIGHT, 2.3 / WIDTH, 1.5 / HEIGHT))
    t = np.linspace(0, 1, 50)
    for tap, colour in zip(TAPS, LINES, strict=True):
        plot.plot(t, beta(t, tap / DEPTH), color=colour, lw=2.2, label=f"tap {tap}")
    plot.axhline(0, color=GREY, lw=0.8, ls=(0, (3, 2)))
    plot.set(xlim=(0, 1), ylim=(-1.7, 1.2), xticks=[0, 1], yticks=[-1, 0, 1])
    plot.tick_params(labelsize=SMALL, length=3, pad=2, colors=GREY)
    plot.spines[["top", "right"]].set_visible(False)
    plot.spines[["left", "bottom"]].set_color(GREY)
    label(ax, 6.07, 0.42, "progress $t$", GREY, SMALL)
    label(ax, 4.34, 1.42, r"$\beta$", GREEN, 17)
    for k, (tap, colour) in enumerate(zip(TAPS, LINES, strict=True)):
        y = 1.26 - 0.25 * k
        ax.plot([7.5, 7.85], [y, y], color=colour, lw=2.6, zorder=3)
        label(ax, 7.97, y, f"tap {tap}", INK, SMALL, "left")
    label(ax, 8.13, 1.83, r"$w_i \propto d_i^{\,\beta(t,\,u)}$", INK, 17)

    top = 2.1
    weights = []
    for t in (0.0, 1.0):
        power = distance[hidden] ** beta(t, TAPS[0] / DEPTH)
        w = np.full(hidden.shape, np.nan)
        w[hidden] = power * power.size / power.sum()
        weights.append(w)
    largest = max(np.nanmax(w) for w in weights)
    box(ax, 9.45, low, 13.42, high, "white", GREEN, zorder=1)
    label(ax, 9.68, 1.1, "tap 6", GREEN, SMALL, rotation=90)
    for x0, w, text in zip(
        (9.9, 11.66), weights, ("$t=0$: near", "$t=1$: far"), strict=True
    ):
        extent = (x0, x0 + 1.6, 0.3, 1.9)
        grid_image(ax, extent, w, cmap=colours, vmin=0, vmax=largest)
        label(ax, x0 + 0.8, top, text, GREEN, TEXT)
    arrow(ax, (8.98, 1.2), (9.45, 1.2), GREEN)
    ax.plot([13.42, 14.97, 14.97], [1.2, 1.2, 5.0], color=GREEN, lw=1.7)
    arrow(ax, (14.97, 4.9), (14.97, 5.3), GREEN)
    label(ax, 14.84, 3.2, "weights $w_i$\n(mean 1)", GREEN, TEXT, "right")


def draw():
    """The whole figure."""
    figure = plt.figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    image, hidden = landscape(), random_mask()
    data_column(ax, image, hidden)
    encoder(ax, STUDENT, "Student encoder", "ViT blocks", PALE_BLUE, MID_BLUE, BLUE)
    encoder(
        ax,
        TEACHER,
        "Teacher encoder",
        "no gradient",
        PALE_ORANGE,
        MID_ORANGE,
        ORANGE,
    )
    supervision(ax)
    loss(ax)
    difficulty(ax, figure, hidden)
    # Last: imshow moves the limits.
    ax.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    ax.set_axis_off()
    return figure


def main():
    """Writes architecture.png beside this file."""
    plt.rcParams.update(
        {"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"}
    )
    path = Path(__file__).with_suffix(".png")
    draw().savefig(path, dpi=DPI, pil_kwargs={"optimize": True})
    print(f"{path}: {path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
