"""What the README shows of the studies, for docs/results.py."""

from results_claims import EIGHTH, KNN, LONG_AT_ONE
from results_found import pooled_verdict, scale, study, verdict

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
            "![kNN over steps](docs/results/studies/epochs/knn20_top1.png)",
            "",
            f"Untrained: {report.cell(list(untrained.values()))}. DDAE, its teacher at"
            f" weight .1, less MAE of eight times its steps: {eighth}. What the rows"
            " are, other scores, all studies with their commands and verdicts:"
            " [docs/results.md](docs/results.md).",
            "",
        ]
    )
