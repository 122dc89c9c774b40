"""What the README shows of the studies, for docs/results.py."""

from results_claims import EIGHTH, locality
from results_found import (
    DOCS,
    KEPT,
    paired,
    pooled_verdict,
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
    (RANDOM, "DDAE", "DDAE, even, last block", "long/ddae", "long/ddae,one-tap"),
    ("6400 steps", "DDAE, blockwise masks", "random masks", LONG, "long/ddae"),
    (BLOCKWISE, "DDAE", "MAE", LONG, "epochs/mae,6400"),
    (BLOCKWISE, "DDAE", WITH_ONE, LONG, "epochs/pixels,6400"),
    (BLOCKWISE, "DDAE", "DDAE, weights even", LONG, EVEN),
    (BLOCKWISE, "DDAE", "DDAE, even, last block", LONG, f"{AT_ONE},one-tap,6400"),
    (BLOCKWISE, "DDAE, 3200 steps", "MAE", f"{AT_ONE},3200", "epochs/mae,6400"),
    (GRID_LONG, "DDAE", "MAE", "grid/ddae,6400", "grid/mae,6400"),
    (GRID_LONG, "DDAE", "DDAE, weights even", *GRID_EVEN),
    (GRID, "DDAE", "its weights at other patches", "grid/ddae", "grid/elsewhere"),
)
"""Of the README: (runs, what is compared, with what, its STUDY/ROW, the other's)."""
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
    """The README's part: a table of differences, a figure, a sentence."""
    lines = [
        f"{scale()}; 12 x 12 is 24 px, patch 2. The teacher's weight is 1. kNN: top-1"
        " in % of frozen features, mean ± standard deviation (seeds that both have),"
        " and the difference paired by seed:",
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
    untrained = report.cell(list(values("parts/untrained").values()))
    weights = verdict(paired(LONG, EVEN, "linear_top1"))
    eighth = pooled_verdict(study("epochs"), EIGHTH)
    finer = study("grid"), "ddae", "ddae,beta=0"
    pairs = ("grid/ddae", "grid/ddae,beta=0"), GRID_EVEN
    short, long = (verdict(paired(*pair, "linear_top1")) for pair in pairs)
    tuned = [
        f"{what}: {verdict(study('long').difference('ddae', row, 'finetune'))}"
        for what, row in (("MAE", "mae"), (WITH_ONE, "pixels"))
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"![differences]({PICTURE.relative_to(DOCS.parent)})",
            "",
            f"Untrained: {untrained}. By a linear probe on the same features DDAE less"
            f" DDAE with even weights, 6400 steps, blockwise masks: {weights}; on the"
            f" grid of 12 x 12: {long}; there after 1600 steps: {short}; and then, in"
            " how far its last block's attention reaches:"
            f" {locality(*finer, 'attention_distance/block04')}. Fine-tuned for"
            " two epochs after 6400 steps under random masks: DDAE less"
            f" {'; less '.join(tuned)}. DDAE,"
            f" its teacher at weight .1, less MAE of eight times its steps: {eighth}."
            " What the rows are, other scores, all studies with their commands and"
            " verdicts: [docs/results.md](docs/results.md).",
            "",
        ]
    )
