"""Writes docs/results.md from the studies' own numbers: python docs/results.py.

python docs/results.py --collect STUDY=WORKDIR ... first takes over what a study found
into docs/results/studies/, beside what was found before: results.csv and, of each run,
its log with five digits a number and its config; no weights.
python docs/results.py --analysis NAME=RUN/analysis ... does so for pages of
python -m ddae.analyse. Every number and every verdict of the page is computed here from
those files.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import platform
import shutil
import sys

import jax
import numpy as np
from PIL import Image
from scipy import stats

DOCS = pathlib.Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))
KEPT = DOCS / "results" / "studies"

from ddae.eval.locality import patch_distances  # noqa: E402
from ddae.study import report  # noqa: E402
from ddae.study.table import read_study, runs_of  # noqa: E402

NAMES = {
    "knn20_top1": "kNN",
    "linear_top1": "linear",
    "finetune": "fine-tuned",
    "attention_distance": "attention distance",
}
"""Scores of the tables, as they are called there."""

TRANSFER = ("knn20_top1", "linear_top1", "finetune")
"""What a frozen or a fine-tuned encoder is good for."""


def collect(workdir, folder):
    """Takes over what a study found, numbers and logs; the runs of earlier workdirs
    stay, but where they were run again."""
    folder.mkdir(parents=True, exist_ok=True)
    path, records = folder / "results.csv", {}
    for source in (path, workdir / "results.csv"):
        for record in report.read_csv(str(source)) if source.exists() else []:
            records[record["row"], record["seed"]] = record
    report.write_csv([records[key] for key in sorted(records)], str(path))
    for done in sorted(workdir.glob("runs/*/seed*/done.json")):
        row, seed = done.parts[-3:-1]
        config = json.loads(done.read_text())["config"]
        config["data"]["dir"] = ""
        if "tokenizer" in config["method"]:
            config["method"]["tokenizer"]["workdir"] = ""
        logs = folder / "logs"
        logs.mkdir(exist_ok=True)
        rows = (done.parent / "metrics.jsonl").read_text().splitlines()
        short = [{"config": config}, *map(json.loads, rows)]
        text = "".join(json.dumps(rounded(row)) + "\n" for row in short)
        (logs / f"{row}.{seed}.jsonl").write_text(text)


def rounded(value):
    """Numbers with five digits, wherever they lie."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


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

    def difference(self, row, control, score="knn20_top1"):
        """(mean, standard error, pairs) or None."""
        return report.difference(self.records, row, control, score)

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


def verdict(found, ahead="ahead", behind="behind", unit=" points", digits=2):
    """What a paired difference (mean, standard error, pairs) allows to be said: by
    Student's t, two-sided, at 95 %."""
    if found is None:
        return "not run"
    mean, error, pairs = found
    value = f"{mean:+.{digits}f}{unit}"
    if pairs < 2:
        return f"{value} (one seed): no verdict"
    spread = f"{value} (s.e. {error:.{digits}f}, {pairs} seeds)"
    if abs(mean) <= error * stats.t.ppf(0.975, pairs - 1) or math.isclose(mean, 0.0):
        # Of two seeds even a large difference is rarely shown, nor is there none.
        return f"{spread}: {'no difference shown' if pairs > 2 else 'no verdict'}"
    return f"{spread}: **{ahead if mean > 0 else behind}**"


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
        (values,) = by_seed.values()
        each = ", ".join(f"{value:+.2f}" for value in values)
        return f"{each} points (one seed): no verdict"
    mean, deviation = report.mean_and_deviation([np.mean(v) for v in by_seed.values()])
    return verdict((mean, deviation / math.sqrt(len(by_seed)), len(by_seed)))


ARGUMENTS = json.loads((KEPT / "arguments.json").read_text()) if KEPT.exists() else {}
"""Study to the text that --collect was given: the configs' arguments as they ran."""


def study(name):
    """The study of that name, with the arguments that it ran with."""
    text = ARGUMENTS.get(name, f"configs/studies/{name}.py:scale=small")
    return Found(name, text)


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


EIGHTH = tuple((f"ddae,{n}", f"mae,{8 * n}") for n in (200, 400, 800))
"""Of study 3: DDAE for an eighth of MAE's steps, as 100 epochs are of 800."""


def longer(epochs, other):
    """DDAE less the row `other`, at each length of study 3 that has both."""
    return "; ".join(
        f"of {n} steps {verdict(epochs.difference(f'ddae,{n}', f'{other},{n}'))}"
        for n in (3200, 6400)
    )


def claim_a():
    """As much in fewer epochs than MAE."""
    parts, epochs = study("parts"), study("epochs")
    lines = [
        "## (a) DDAE learns in 100 epochs what MAE learns in 800",
        "",
        "Not tested at its scale, where MAE's curve is nearly flat. Here study 3 gives"
        " DDAE an eighth of MAE's steps, half of them, and as many.",
        "",
    ]
    if epochs.records:
        lines += [*epochs.section(), "kNN, first less second:", ""]
        for what, pairs in (
            ("an eighth of the steps", EIGHTH),
            *(
                (what, tuple((f"ddae,{n // of}", f"mae,{n}") for n in longer))
                for what, of, longer in (
                    ("half the steps", 2, (400, 800, 1600, 3200, 6400)),
                    ("as many steps", 1, (200, 400, 800, 1600, 3200, 6400)),
                )
            ),
        ):
            pairs = [pair for pair in pairs if epochs.difference(*pair)]
            together = pooled_verdict(epochs, pairs)
            lines.append(f"- DDAE for {what}, over all pairs: {together}.")
            for first, second in pairs:
                found = verdict(epochs.difference(first, second))
                lines.append(f"  - `{first}` less `{second}`: {found}.")
        lines.append("")
    return [
        *lines,
        "Less MAE with a decoder of one block, as each of DDAE's, `ddae,3200` less"
        f" `pixels,6400`: {verdict(epochs.difference('ddae,3200', 'pixels,6400'))};"
        " `ddae,6400` less `pixels,6400`:"
        f" {verdict(epochs.difference('ddae,6400', 'pixels,6400'))}.",
        "",
        "What DDAE's teacher adds to deep dynamic supervision alone (`ddae,STEPS` less"
        f" `taps+weights,STEPS`): {longer(epochs, 'taps+weights')}.",
        "",
        "And in study 2, kNN:",
        "",
        "- At equal steps, `ddae` less `mae`:"
        f" {verdict(parts.difference('ddae', 'mae'))}.",
        "- At equal cost of training, found on one machine, `ddae` less"
        " `mae,cost-of-ddae`:"
        f" {verdict(parts.difference('ddae', 'mae,cost-of-ddae'))}.",
        "",
    ]


def more_teacher(epochs):
    """DDAE with a larger weight of its teacher less itself, of 6400 steps."""
    return "; ".join(
        f"`{row}` {verdict(epochs.difference(f'ddae,{row},6400', 'ddae,6400'))}"
        for row in ("features=.25", "features=1")
    )


def claim_b():
    """DDS improves MAE."""
    parts = study("parts")
    lines = [
        "## (b) Deep dynamic supervision improves MAE",
        "",
        *parts.section(TRANSFER),
        "Blockwise masks but where a row says otherwise. MAE's decoder has two blocks,"
        " each tap of DDAE's one (`pixels` is MAE with that one), so `ddae` against"
        " `mae` compares whole recipes of about equal cost, not DDS alone. First less"
        " second, kNN:",
        "",
    ]
    pairs = (
        ("ddae", "mae", "all of DDAE"),
        ("taps+weights", "mae", "DDS without a teacher"),
        ("taps+weights", "taps", "the weights alone, without a teacher"),
        ("ddae", "ddae,beta=0", "the weights alone, with a teacher"),
        ("taps", "pixels", "the taps alone"),
        ("ddae", "taps+weights", "the teacher alone"),
        ("ddae,random-masks", "mae,random-masks", "all of DDAE, random masks"),
        ("ddae,features=1", "mae", "all of DDAE, its teacher at weight 1"),
        (*AT_ONE, "the weights alone, with a teacher at weight 1"),
        ("mae", "mae,random-masks", "blockwise masks, for MAE"),
        ("mae", "untrained", "pretraining at all"),
    )
    lines += compared(parts, pairs)
    for score, what in (("linear_top1", "linear probe"), ("finetune", "fine-tuning")):
        for first in ("ddae", "taps+weights"):
            found = verdict(parts.difference(first, "mae", score))
            lines.append(f"- `{first}`, `mae` by the {what}: {found}.")
    epochs = study("epochs")
    lines += ["", "Of 6400 steps (study 3), where differences are larger, kNN:", ""]
    lines += compared(epochs, OF_6400)
    lines += ["", "By the linear probe:", ""]
    lines += compared(epochs, OF_6400, "linear_top1")
    return [*lines, ""]


AT_ONE = ("ddae,features=1", "ddae,features=1,beta=0")
"""The teacher's weight 1: with and without weights by distance."""

OF_6400 = tuple(
    (f"{first},6400", f"{second},6400", what)
    for first, second, what in (
        ("ddae", "mae", "all of DDAE"),
        ("pixels", "mae", "a decoder of one block for MAE's two"),
        ("taps", "pixels", "the taps alone"),
        ("taps+weights", "taps", "the weights alone, without a teacher"),
        ("ddae", "ddae,beta=0", "the weights alone, with a teacher"),
        ("ddae,decoder-twice", "mae", "all of DDAE, its decoders of two blocks too"),
        ("ddae,beta=0", "taps", "the teacher alone, all patches alike"),
        ("ddae", "taps+weights", "the teacher alone, under weights"),
        ("ddae,features=1", "ddae", "its weight 1 for .1"),
        (*AT_ONE, "the weights alone, with a teacher at weight 1"),
        ("ddae,features=1", "pixels", "all of DDAE at weight 1, decoders alike"),
        ("ddae,features=1", "mae", "all of DDAE at weight 1"),
    )
)
"""What study 3 compares of DDAE's parts."""


def claim_c():
    """And BEiT-v2."""
    others = study("others")
    lines = ["## (c) Deep dynamic supervision improves BEiT-v2", ""]
    if not others.records:
        return [*lines, "Not reached: no evidence.", ""]
    lines += [
        "BEiT-v2, and SimMIM, whose layout is the same. RUN, the tokenizer, is"
        " `vqkd_cifar10` of [runs.md](runs.md): a toy too, with an encoder of MAE for"
        " a teacher.",
        "",
        *others.section(),
    ]
    for method in ("beit_v2", "simmim"):
        own = f"{method}+dds"
        for second in (method, f"{own},beta=0"):
            for score, name in list(NAMES.items())[:2]:
                found = verdict(others.difference(own, second, score))
                lines.append(f"- {name}, `{own}` less `{second}`: {found}.")
    return [*lines, ""]


def claim_d():
    """Locality."""
    parts = study("parts")
    lines = [
        "## (d) It makes deep layers more local",
        "",
        "Mean distance, in patches, from a patch to what it reads, over 512 whole test"
        " images: less is more local.",
        "",
    ]
    blocks = sorted(
        s for s in report.scores_of(parts.records) if s.startswith("attention_")
    )
    if not blocks:
        return [*lines, "Not measured.", ""]
    heads = [b.removeprefix("attention_distance").strip("/") or "mean" for b in blocks]
    lines += [f"| row | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for row in parts.study.rows:
        values = [
            list(report.values_of(parts.records, row.name, b).values()) for b in blocks
        ]
        if any(values):
            lines.append(f"| {row.name} | {' | '.join(map(report.cell, values))} |")
    uniform = patch_distances((8, 8)).mean()
    lines += [
        "",
        f"A head that reads all patches alike lies at {uniform:.2f}: where all rows lie"
        " near it, attention has not yet become local in any of them.",
        "",
        parts.figure("attention_distance"),
        "",
    ]
    for first, second in (
        ("ddae", "mae"),
        ("taps+weights", "mae"),
        ("taps+weights", "taps"),
        ("ddae", "ddae,beta=0"),
    ):
        for block in blocks[-2:]:
            found = parts.difference(first, second, block)
            words = verdict(found, "less local", "more local", " patches")
            lines.append(
                f"- {block.rsplit('/')[1]}, `{first}` less `{second}`: {words}."
            )
    for name in sorted(p.parent.name for p in KEPT.glob("analysis/*/analysis.json")):
        folder = KEPT / "analysis" / name
        lines += ["", f"### `{name}`, seed 0, by `python -m ddae.analyse`", ""]
        for picture in sorted(folder.glob("*.png")):
            lines.append(f"![{name}: {picture.stem}]({picture.relative_to(DOCS)})")
    return [*lines, "", "How to read them: [reading_a_run.md](reading_a_run.md).", ""]


KINDS = {
    "block": "`block`: blockwise masks, the teacher's weight .1",
    "random": "`random`: random masks, the teacher's weight .1",
    "features=1": "`features=1`: blockwise masks, the teacher's weight 1",
}
"""Of study 1's rows."""


def direction():
    """Study 1."""
    beta = study("beta")
    lines = ["## Study 1: beta over training and depth", "", *beta.section()]
    have = {r["row"] for r in beta.records}
    rows = [row.name for row in beta.study.rows if row.name in have]

    def where(part):
        return [name for name in rows if part in name]

    for kind, what in KINDS.items():
        own = [name for name in where(f"{kind},")]
        if not own:
            lines.append(f"- {what}: not run.")
            continue
        lines.append(f"- {what}; kNN, first less second, over what they share:")
        for first, second in (
            ("near-far", "far-near"),
            ("near-far", "constant"),
            ("far-near", "constant"),
            ("tilt-0.5", "tilt+0.5"),
            ("tilt-0.5", "tilt+0"),
            ("tilt+0.5", "tilt+0"),
        ):
            found = over_shared(beta, own, first, second)
            lines.append(f"  - {first} less {second}: {found}.")
        knn = [
            list(report.values_of(beta.records, n, "knn20_top1").values()) for n in own
        ]
        means = [np.mean(values) for values in knn]
        best, worst = own[int(np.argmax(means))], own[int(np.argmin(means))]
        lines.append(
            f"  - All {len(own)} rows lie within {max(means) - min(means):.2f} points,"
            f" from `{worst}` to `{best}`; the largest of so many means is high by"
            " chance too."
        )
    return [*lines, ""]


def other_laws():
    """Study 5."""
    laws = study("laws")
    lines = ["## Study 5: is it the distance, and is it the power law?", ""]
    if not laws.records:
        return [*lines, "Not run.", ""]
    lines += [
        "DDAE with one schedule of beta under other laws of its weights. `power` is its"
        " own, `even` weighs all patches alike. `elsewhere` is the control: the weights"
        " that `power` gives an image, each at another of its hidden patches. `by-loss`"
        " weighs a patch by its own loss, `exponential` by exp(beta d).",
        "",
        *laws.section(),
    ]
    pairs = (
        ("power", "even", "weights by distance at all"),
        ("elsewhere", "even", "as uneven weights, without the distance"),
        ("power", "elsewhere", "the distance itself"),
        ("by-loss", "even", "each patch's own loss in its place"),
        ("power", "by-loss", "distance against loss"),
        ("exponential", "power", "exp(beta d) against d^beta"),
    )
    for score in ("knn20_top1", "linear_top1"):
        lines += [f"First less second, {NAMES[score]}:", ""]
        lines += [*compared(laws, pairs, score), ""]
    return lines


def tried():
    """What was changed where a claim did not hold."""
    tries = study("tries")
    lines = ["## What was tried to make it hold", ""]
    if not tries.records:
        return [
            *lines,
            "Nothing yet, beyond beta in study 1: the time was spent on the rows above."
            " `configs/studies/tries.py` has the masking ratio, taps, decoder depth,"
            " weight, ramp and target of the features, momentum and range of beta.",
            "",
        ]
    lines += ["DDAE with one thing changed (configs/studies/tries.py):", ""]
    lines += tries.section()
    for row in tries.study.rows:
        other = "features=1" if row.name.startswith("features=1,") else "ddae"
        found = tries.difference(row.name, other)
        if row.name != other and found:
            lines.append(f"- `{row.name}` less `{other}`: {verdict(found)}.")
    return [*lines, ""]


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


def defaults():
    """What the studies say about the preset of beta and the teacher's weight."""
    beta, parts = study("beta"), study("parts")
    preset = "block,near-far,tilt-0.5"
    rows = {r["row"] for r in beta.records} - {preset}
    own = {row for row in rows if row.startswith("block,")}
    found = {name: beta.difference(preset, name) for name in sorted(own)}
    clear = [
        name for name, each in found.items() if verdict(each).endswith("**behind**")
    ]

    def shared(first, second, kind="block"):
        chosen = {row for row in rows | {preset} if row.startswith(f"{kind},")}
        return over_shared(beta, chosen, first, second)

    def weight(row):
        return verdict(study("tries").difference(row, "ddae"))

    said = "these rows of study 1 are ahead of it: " + ", ".join(clear)
    if not clear:
        said = "no row of study 1 is shown to be ahead of it"
    return [
        "## Defaults of `ddae`",
        "",
        "The preset of `configs/common.py` and `BetaSchedule` (b from -1 to +1, linear,"
        f" c = -.5) was chosen before these studies; {said}. In study 1 near to far"
        f" less constant has {shared('near-far', 'constant')}, less far to near"
        f" {shared('near-far', 'far-near')}; c = -.5 less 0"
        f" {shared('tilt-0.5', 'tilt+0')}, less +.5"
        f" {shared('tilt-0.5', 'tilt+0.5')}. Against beta = 0 at every"
        f" tap, in study 2: {verdict(parts.difference('ddae', 'ddae,beta=0'))}; in"
        f" study 3, {longer(study('epochs'), 'ddae,beta=0')}; with"
        " the teacher's weight 1:"
        f" {verdict(parts.difference(*AT_ONE))}. Under random masks, where few patches"
        " are far from a visible one, near to far less constant:"
        f" {shared('near-far', 'constant', 'random')}; c = -.5 less +.5:"
        f" {shared('tilt-0.5', 'tilt+0.5', 'random')}. Where that is no verdict the"
        " preset is kept as it was, and remains provisional: to choose by the largest"
        " of nine means of a few seeds would be to choose by chance.",
        "",
        "The weight of the teacher's features, lambda, is 1. `ddae` of these studies"
        " has .1, as the quickstart: runs of hundreds of steps end before their teacher"
        " has learned much. Of `tries`, 800 steps, less `ddae`: `features=1`"
        f" {weight('features=1')}; `features=.25` {weight('features=.25')};"
        f" `features=.025` {weight('features=.025')}. After 6400 steps more of it, less"
        f" `ddae`: {more_teacher(study('epochs'))}: 1 was chosen by these very runs,"
        " the most of three. Of .1 less none (`taps+weights`):"
        f" {longer(study('epochs'), 'taps+weights')}.",
        "",
    ]


def not_run():
    """What the page does not show."""
    lines = ["## What was not run", ""]
    for name in ("beta", "parts", "epochs", "others", "laws", "tries"):
        found = study(name)
        have = {(r["row"], int(r["seed"])): r for r in found.records}
        rows, runs = found.study.rows, runs_of(found.study)
        never = [row.name for row in rows if not any(r[0] == row.name for r in have)]
        said = []
        for kind in dict.fromkeys(run.follow_up for run in runs):
            wanted = [run for run in runs if run.follow_up == kind]
            records = [have.get((run.row.name, run.seed)) for run in wanted]
            done = [r for r in records if r and r.get(kind or "row") not in (None, "")]
            said.append(f"{len(done)} of {len(wanted)} {kind or 'runs'}")
        line = f"- study `{name}`: {' and '.join(said)} were done"
        if 0 < len(never) < len(rows):
            line += "; never " + ", ".join(f"`{row}`" for row in never)
        lines.append(line)
    return [
        *lines,
        "- the LARS probe, and fine-tuning but in `parts`, which the studies at"
        " `scale=full` take as follow-ups of every row",
        "- patch 2; ViT-Ti; everything at `scale=full`",
        "",
    ]


def claims():
    """(what is claimed, how it was tested, the paired difference) of each."""
    parts, epochs = study("parts"), study("epochs")
    return (
        (
            "(a) as good in fewer epochs",
            "DDAE, 3200 steps, against MAE, 6400",
            epochs.difference("ddae,3200", "mae,6400"),
        ),
        *(
            (
                "(a) as good in fewer epochs",
                f"DDAE, its teacher at weight 1, {steps} steps, against MAE, 6400",
                epochs.difference(f"ddae,features=1,{steps}", "mae,6400"),
            )
            for steps in (1600, 3200)
        ),
        (
            "(b) DDS improves MAE",
            "taps and weights against MAE",
            parts.difference("taps+weights", "mae"),
        ),
        (
            "(b) DDS improves MAE",
            "DDAE against MAE, 800 steps each (study 2)",
            parts.difference("ddae", "mae"),
        ),
        *(
            (
                "(b) DDS improves MAE",
                f"DDAE against MAE, {steps} steps each (study 3)",
                epochs.difference(f"ddae,{steps}", f"mae,{steps}"),
            )
            for steps in (1600, 3200, 6400)
        ),
        (
            "(b) DDS improves MAE",
            "DDAE, its teacher at weight 1, against MAE, 6400 steps each (study 3)",
            epochs.difference("ddae,features=1,6400", "mae,6400"),
        ),
        *(
            (
                "(b) and not by its decoders",
                "DDAE against MAE with a decoder of one block, as each of DDAE's,"
                f" {steps} steps each (study {number})",
                found.difference(f"ddae{row}", f"pixels{row}"),
            )
            for steps, number, found, row in (
                (800, 2, parts, ""),
                (6400, 3, epochs, ",6400"),
            )
        ),
        (
            "(b) and not by its decoders",
            "the same, its teacher at weight 1, 6400 steps each (study 3)",
            epochs.difference("ddae,features=1,6400", "pixels,6400"),
        ),
        (
            "difficulty by distance matters",
            "DDAE against DDAE with beta = 0, 800 steps each (study 2)",
            parts.difference("ddae", "ddae,beta=0"),
        ),
        *(
            (
                "difficulty by distance matters",
                f"DDAE against DDAE with beta = 0, {steps} steps each (study 3)",
                epochs.difference(f"ddae,{steps}", f"ddae,beta=0,{steps}"),
            )
            for steps in (3200, 6400)
        ),
        (
            "difficulty by distance matters",
            "the same, its teacher at weight 1, 6400 steps each (study 3)",
            epochs.difference(*(f"{row},6400" for row in AT_ONE)),
        ),
        (
            "and it is the distance that does",
            "DDAE against the same weights at other patches, 800 steps (study 5)",
            study("laws").difference("power", "elsewhere"),
        ),
        (
            "(c) and BEiT-v2",
            "BEiT-v2, with and without DDS",
            study("others").difference("beit_v2+dds", "beit_v2"),
        ),
        (
            "(c) and others",
            "SimMIM, with and without DDS",
            study("others").difference("simmim+dds", "simmim"),
        ),
    )


def page():
    """docs/results.md."""
    machine = json.loads((KEPT / "machine.json").read_text())
    parts, epochs = study("parts"), study("epochs")
    lines = [
        "# Results of the studies",
        "",
        "Generated by `docs/results.py` from the numbers and logs under"
        " `docs/results/studies/`; no figure and no verdict is typed by hand.",
        "",
        f"**A toy scale.** {scale()}. A few seeds. Nothing here says how the methods"
        " compare on ImageNet. kNN: top-1 in % of frozen features on all 10,000 test"
        " images among 5,000 training ones (k = 20). linear: a logistic regression on"
        " the same. fine-tuned: the whole encoder, in half an epoch. Run on"
        f" {machine['cores']} shared {machine['machine']} CPU cores, jax"
        f" {machine['jax']}, some seeds on days when these were twice as fast: no costs"
        " are given. Tables: mean"
        " ± sample standard deviation (seeds); in figures a dot, a bar, and a mark for"
        " each seed. Differences are paired by seed, s.e. is"
        " their standard error, and ahead or behind is said where a paired t-test"
        " says so at 95 %: of twenty such words one may be chance, and with two or"
        " three seeds only a large difference can earn one. DIR as"
        " `python -m ddae.data.pack` makes it.",
        "",
        "What is ours, not the paper's: the weights, their schedules, the decoders, the"
        " choice of taps, targets and momentum. A claim that fails here may fail by"
        " them.",
        "",
        "| the paper says | tested as | verdict, kNN |",
        "|---|---|---|",
        "| (a) as good in 100 epochs as MAE in 800 | DDAE against MAE of eight times"
        f" its steps | {pooled_verdict(epochs, EIGHTH)} |",
    ]
    for claim, tested, found in claims():
        lines.append(f"| {claim} | {tested} | {verdict(found)} |")
    last = "attention_distance/block04"
    for row, what in (("ddae", "DDAE"), ("taps+weights", "taps and weights")):
        found = parts.difference(row, "mae", last)
        local = verdict(found, "less local", "more local", " patches")
        lines.append(
            f"| (d) deep layers more local | last block, {what} against MAE | {local} |"
        )
    lines.append("")
    for part in (
        claim_a,
        claim_b,
        claim_c,
        claim_d,
        direction,
        other_laws,
        defaults,
        tried,
        not_run,
    ):
        lines += part()
    return "\n".join(lines)


KEEPS = ("parts", "epochs")
"""Studies whose weights others read: docs/runs.md's tokenizer, and `ddae.analyse`."""

FRONT = ("untrained", "mae", "ddae")
LONGEST = ("mae", "pixels", "ddae", "ddae,features=1")
"""What the README shows of studies 2 and 3."""
BEGIN, END = "<!-- from docs/results.py -->\n", "<!-- end -->"


def front():
    """The README's part: a table of a few rows, a figure, a sentence."""
    parts, epochs = study("parts"), study("epochs")
    rows, records = [], []
    for found, names in ((parts, FRONT), (epochs, [f"{row},6400" for row in LONGEST])):
        rows += [found.study.row(name) for name in names]
        records += [r for r in found.records if r["row"] in names]
    chosen = dataclasses.replace(parts.study, rows=tuple(rows), control="")
    scores = [s for s in TRANSFER if s in report.scores_of(records)]

    def longest(row, other):
        return verdict(epochs.difference(f"{row},6400", f"{other},6400"))

    table = report.markdown(chosen, records, scores)
    for score, name in NAMES.items():
        table = table.replace(score, name)
    said = [
        f"kNN, DDAE less MAE: {verdict(parts.difference('ddae', 'mae'))}.",
        f"At 6400 steps: {longest('ddae', 'mae')}; its teacher at weight 1, the default"
        f" for long runs, and not .1: {longest(AT_ONE[0], 'mae')}, and less MAE with a"
        " decoder of one block, as each of DDAE's (`pixels`):"
        f" {longest(AT_ONE[0], 'pixels')}; less itself with all hidden patches alike:"
        f" {longest(*AT_ONE)}.",
        "DDAE of 3200 steps, at weight 1, less MAE of 6400:"
        f" {verdict(epochs.difference('ddae,features=1,3200', 'mae,6400'))}; at .1,"
        f" less MAE of eight times its steps: {pooled_verdict(epochs, EIGHTH)}.",
        "At equal cost of training:"
        f" {verdict(parts.difference('ddae', 'mae,cost-of-ddae'))}.",
        "Deep dynamic supervision alone, without a teacher, less MAE:"
        f" {verdict(parts.difference('taps+weights', 'mae'))}.",
        "DDAE less DDAE with the same weights at other patches than theirs:"
        f" {verdict(study('laws').difference('power', 'elsewhere'))}.",
        "What the teacher adds, after 800 steps:"
        f" {verdict(parts.difference('ddae', 'taps+weights'))}; after 6400, all patches"
        f" alike: {verdict(epochs.difference('ddae,beta=0,6400', 'taps,6400'))}.",
        "All studies, their commands and verdicts: [docs/results.md](docs/results.md).",
    ]
    return "\n".join(
        [
            f"{scale()}; top-1 in % of frozen features, mean ± standard deviation"
            " (seeds):",
            "",
            table,
            "",
            "![kNN over steps](docs/results/studies/epochs/knn20_top1.png)",
            "",
            " ".join(said),
            "",
        ]
    )


def main():
    """Copies what is new, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collect", nargs="*", default=[], metavar="STUDY=WORKDIR")
    parser.add_argument("--analysis", nargs="*", default=[], metavar="NAME=DIR")
    args = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    for text in args.collect:
        config, _, workdir = text.rpartition("=")
        if not (pathlib.Path(workdir) / "results.csv").is_file():
            parser.error(f"--collect {text}: no study in {workdir}")
        name = pathlib.Path(config.partition(":")[0]).stem
        ARGUMENTS[name] = config
        collect(pathlib.Path(workdir), KEPT / name)
    for text in args.analysis:
        name, _, folder = text.partition("=")
        (KEPT / "analysis").mkdir(exist_ok=True)
        shutil.copytree(folder, KEPT / "analysis" / name, dirs_exist_ok=True)
        path = KEPT / "analysis" / name / "analysis.json"
        found = rounded(json.loads(path.read_text())) | {"workdir": name}
        path.write_text(json.dumps(found) + "\n")
    if args.collect:
        (KEPT / "arguments.json").write_text(json.dumps(ARGUMENTS, indent=1) + "\n")
        machine = {"cores": os.cpu_count(), "machine": platform.machine()}
        machine |= {"jax": jax.__version__}
        (KEPT / "machine.json").write_text(json.dumps(machine) + "\n")
    (DOCS / "results.md").write_text(page())
    for path, drawn in FIGURES.items():
        Image.fromarray(report.draw(*drawn)).save(path)
    readme = DOCS.parent / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text(before + BEGIN + front() + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
