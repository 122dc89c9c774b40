"""What the README shows of the studies, for docs/results.py."""

from results_claims import locality
from results_found import (
    DOCS,
    KEPT,
    NAMES,
    TRANSFER,
    paired,
    scale,
    standing,
    study,
    values,
    verdict,
)
from scipy import stats

from ddae.eval.figures import new_figure, to_array
from ddae.study import report

BLOCKWISE = "6400 steps, blockwise masks"
RANDOM = "6400 steps, random masks"
GRID = "1600 steps, blockwise masks, 12 x 12"
GRID_LONG = "6400 steps, blockwise masks, 12 x 12"
WITH_ONE = "MAE, decoder as DDAE's"
AT_ONE = "epochs/ddae,features=1"
LONG = f"{AT_ONE},6400"
EVEN = f"{AT_ONE},beta=0,6400"

GRID_EVEN = ("grid/ddae,6400", "grid/ddae,beta=0,6400")

FRONT = (
    (RANDOM, "DDAE", "MAE", "long/ddae", "long/mae"),
    (RANDOM, "DDAE", "MAE, 9600 steps", "long/ddae", "long/mae,longer"),
    (RANDOM, "DDAE", WITH_ONE, "long/ddae", "long/pixels"),
    (RANDOM, "DDAE", "DDAE, weights even", "long/ddae", "long/ddae,beta=0"),
    (BLOCKWISE, "DDAE", "MAE", LONG, "epochs/mae,6400"),
    (BLOCKWISE, "DDAE", WITH_ONE, LONG, "epochs/pixels,6400"),
    (BLOCKWISE, "DDAE", "DDAE, weights even", LONG, EVEN),
    (BLOCKWISE, "DDAE, 3200 steps", "MAE", f"{AT_ONE},3200", "epochs/mae,6400"),
    (GRID_LONG, "DDAE", "MAE", "grid/ddae,6400", "grid/mae,6400"),
    (GRID_LONG, "DDAE", WITH_ONE, "grid/ddae,6400", "grid/pixels,6400"),
    (GRID_LONG, "DDAE", "DDAE, weights even", *GRID_EVEN),
    (GRID_LONG, "DDAE, 800 steps", "MAE", "grid/ddae,800", "grid/mae,6400"),
    (GRID, "DDAE", "DDAE, weights even", "grid/ddae", "grid/ddae,beta=0"),
    (GRID, "DDAE", "its weights at other patches", "grid/ddae", "grid/elsewhere"),
)
"""Of the figure: (runs, what is compared, with what, its STUDY/ROW, the other's)."""
BEGIN, END = "<!-- from docs/results.py -->\n", "<!-- end -->"
PICTURE = KEPT / "differences.png"


def draw():
    """The differences of FRONT: each seed's, their mean and its interval of 95 %."""
    rows = [(paired(*row[3:]), row) for row in FRONT]
    rows = [(found, row) for found, row in rows if found and found[2] > 1]
    figure, axes = new_figure(1, 1, width=7.2, height=0.34 * len(rows) + 1.1)
    axis = axes[0, 0]
    axis.axvline(0.0, color="0.6", linewidth=1)
    for number, ((mean, error, count), row) in enumerate(rows):
        half = error * stats.t.ppf(0.975, count - 1)
        colour = {"ahead": "C2", "behind": "C3"}.get(standing(mean, error, count))
        shown = {"color": colour or "0.35"}
        axis.errorbar(mean, number, xerr=half, fmt="o", capsize=3, **shown)
        one, other = (values(name) for name in row[3:])
        seeds = [one[seed] - other[seed] for seed in one.keys() & other.keys()]
        axis.plot(seeds, [number] * count, "|", alpha=0.6, **shown)
    names = [f"{one}  less  {other}  ({runs})" for _, (runs, one, other, *_) in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("kNN, points: mean, 95 % interval, seeds", fontsize=8)
    return to_array(figure)


def front():
    """The README's part: a figure, and a table of differences."""
    (untrained,) = values("parts/untrained").values()
    lines = [
        f"![differences]({PICTURE.relative_to(DOCS.parent)})",
        "",
        f"{scale()}; 12 x 12 is a grid of 24 px, patch 2. The teacher's weight is 1."
        " Differences in points of top-1, their standard errors beside them, paired by"
        " seed (five or ten), **bold** where a t-test shows them at 95 %. kNN and the"
        f" linear probe are of frozen features (kNN {untrained:.1f} untrained);"
        " fine-tuned is for two epochs.",
        "",
        f"| runs | first | less | {' | '.join(NAMES[score] for score in TRANSFER)} |",
        f"|---|---|---|{'---|' * len(TRANSFER)}",
    ]
    for runs, one, other, *names in FRONT:
        cells = [_cell(paired(*names, score)) for score in TRANSFER]
        lines.append(f"| {runs} | {one} | {other} | {' | '.join(cells)} |")
    reach = locality(study("grid"), "ddae", "ddae,beta=0", "attention_distance/block04")
    return "\n".join(
        [
            *lines,
            "",
            "In the last row but one, how far the last block's attention reaches:"
            f" {reach}. The paper's first claim is of DDAE beside MAE of eight times"
            " its length. What the rows are, all studies with commands and verdicts:"
            " [docs/results.md](docs/results.md).",
            "",
        ]
    )


def _cell(found):
    """A difference and its standard error, bold where it is shown; nothing for none."""
    if found is None:
        return ""
    mean, error, _ = found
    value = f"{mean:+.2f}"
    return f"{f'**{value}**' if standing(*found) else value} ({error:.2f})"


def of_the_figure():
    """The README's figure as a table."""
    lines = [
        "## The README's figure in numbers",
        "",
        "Mean ± standard deviation (seeds that both have), and the difference paired by"
        " seed; the teacher's weight is 1.",
        "",
        "| runs | first | kNN | second | kNN | first less second |",
        "|---|---|---|---|---|---|",
    ]
    for runs, one, other, *names in FRONT:
        found = [values(name) for name in names]
        shared = sorted(found[0].keys() & found[1].keys())
        knn = [report.cell([own[seed] for seed in shared]) for own in found]
        told = verdict(paired(*names), unit="")
        lines.append(f"| {runs} | {one} | {knn[0]} | {other} | {knn[1]} | {told} |")
    return [*lines, ""]
