"""What the README shows of the studies, for docs/results.py."""

from results_claims import EIGHTH, KNN, LONG_AT_ONE
from results_found import DOCS, KEPT, pooled_verdict, scale, study, verdict
from scipy import stats

from ddae.eval.figures import new_figure, to_array
from ddae.study import report

BLOCKWISE = "6400 steps, blockwise masks"
RANDOM = "6400 steps, random masks"
SHORT = "800 steps, blockwise, teacher .1"
WITH_ONE = "MAE, decoder as DDAE's"

FRONT = (
    (RANDOM, "DDAE", "MAE", "long", "ddae", "mae"),
    (RANDOM, "DDAE", "MAE, 9600 steps", "long", "ddae", "mae,longer"),
    (RANDOM, "DDAE", WITH_ONE, "long", "ddae", "pixels"),
    (RANDOM, "DDAE", "DDAE, patches alike", "long", "ddae", "ddae,beta=0"),
    (BLOCKWISE, "DDAE", "MAE", "epochs", LONG_AT_ONE[0], "mae,6400"),
    (BLOCKWISE, "DDAE", WITH_ONE, "epochs", LONG_AT_ONE[0], "pixels,6400"),
    (BLOCKWISE, "DDAE", "DDAE, patches alike", "epochs", *LONG_AT_ONE),
    (
        BLOCKWISE,
        "DDAE, 3200 steps",
        "MAE",
        "epochs",
        "ddae,features=1,3200",
        "mae,6400",
    ),
    (SHORT, "DDAE", "MAE", "parts", "ddae", "mae"),
    (SHORT, "DDAE", "MAE, 1058 steps", "parts", "ddae", "mae,cost-of-ddae"),
    (SHORT, "DDAE", "its weights at other patches", "laws", "power", "elsewhere"),
)
"""Of the README: (runs, what is compared, with what, study, first row, second row)."""
BEGIN, END = "<!-- from docs/results.py -->\n", "<!-- end -->"


PICTURE = KEPT / "differences.png"


def pairs_of(name, first, second):
    """The differences of a row of FRONT, a seed each."""
    records = study(name).records
    one, other = (report.values_of(records, row, KNN) for row in (first, second))
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def draw():
    """The differences of FRONT: each seed's, their mean and its interval of 95 %."""
    rows = [row for row in FRONT if len(pairs_of(*row[3:])) > 1]
    figure, axes = new_figure(1, 1, width=7.2, height=0.34 * len(rows) + 1.1)
    axis = axes[0, 0]
    axis.axvline(0.0, color="0.6", linewidth=1)
    for number, (_, _, _, *compared) in enumerate(rows):
        values = pairs_of(*compared)
        mean, error, count = study(compared[0]).difference(*compared[1:])
        half = error * stats.t.ppf(0.975, count - 1)
        colour = "0.35" if abs(mean) <= half else "C2" if mean > 0 else "C3"
        axis.errorbar(mean, number, xerr=half, fmt="o", color=colour, capsize=3)
        axis.plot(values, [number] * count, "|", color=colour, alpha=0.6)
    names = [f"{one}  less  {other}  ({runs})" for runs, one, other, *_ in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("kNN top-1, points: mean, its 95 % interval, seeds", fontsize=8)
    return to_array(figure)


def front():
    """The README's part: a table of differences, a figure, a sentence."""
    lines = [
        f"{scale()}; the teacher's weight is 1, the default, or .1. kNN: top-1 in % of"
        " frozen features, mean ± standard deviation (seeds); differences are paired by"
        " seed:",
        "",
        "| runs | first | kNN | second | kNN | first less second |",
        "|---|---|---|---|---|---|",
    ]
    for runs, one, other, name, *rows in FRONT:
        found = study(name)
        knn = [
            report.cell(list(report.values_of(found.records, row, KNN).values()))
            for row in rows
        ]
        told = verdict(found.difference(*rows), unit="")
        lines.append(f"| {runs} | {one} | {knn[0]} | {other} | {knn[1]} | {told} |")
    untrained = report.values_of(study("parts").records, "untrained", KNN)
    eighth = pooled_verdict(study("epochs"), EIGHTH)
    return "\n".join(
        [
            *lines,
            "",
            f"![differences]({PICTURE.relative_to(DOCS.parent)})",
            "",
            f"Untrained: {report.cell(list(untrained.values()))}. DDAE, its teacher at"
            f" weight .1, less MAE of eight times its steps: {eighth}. What the rows"
            " are, other scores, all studies with their commands and verdicts:"
            " [docs/results.md](docs/results.md).",
            "",
        ]
    )
