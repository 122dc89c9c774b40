"""Writes docs/results.md from the studies' own numbers: python docs/results.py.

python docs/results.py --collect STUDY=WORKDIR ... first takes over what a study found
into docs/results/studies/, beside what was found before: results.csv and, of each run,
its log with five digits a number and its config; no weights.
python docs/results.py --analysis NAME=RUN/analysis ... does so for pages of
python -m ddae.analyse. Every number and every verdict of the page is computed here from
those files.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import sys

import jax
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from results_claims import (  # noqa: E402
    AT_ONE,
    claim_a,
    claim_b,
    claim_c,
    claim_d,
    claims,
    longer,
    more_teacher,
)
from results_found import (  # noqa: E402
    ARGUMENTS,
    DOCS,
    FIGURES,
    KEPT,
    over_shared,
    paired,
    scale,
    study,
    verdict,
)
from results_front import (  # noqa: E402
    BEGIN,
    END,
    PICTURE,
    draw,
    front,
    of_the_figure,
)
from results_studies import (  # noqa: E402
    direction,
    finer_grid,
    long_runs,
    other_laws,
)

from ddae.study import report  # noqa: E402
from ddae.study.table import runs_of  # noqa: E402


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
        "Masks are random, as MAE's are. After 6400 steps blockwise ones"
        " (`config.method.mask.kind=block`) less random ones have, for DDAE,"
        f" {verdict(paired('epochs/ddae,features=1,6400', 'long/ddae'))}, for MAE"
        f" {verdict(paired('epochs/mae,6400', 'long/mae'))}; the weights by distance,"
        " under random ones:"
        f" {verdict(study('long').difference('ddae', 'ddae,beta=0'))}. On images of"
        " 224 px neither was tried, and MAE's own recipe stays.",
        "",
    ]


STUDIES = ("beta", "parts", "epochs", "others", "laws", "long", "grid", "tries")


def not_run():
    """What the page does not show."""
    lines = ["## What was not run", ""]
    for name in STUDIES:
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
        "- the LARS probe, and fine-tuning but in `parts`, `long` and `grid`, which the"
        " studies at `scale=full` take as follow-ups of every row",
        "- ViT-Ti; everything at `scale=full`",
        "",
    ]


def page():
    """docs/results.md."""
    machine = json.loads((KEPT / "machine.json").read_text())
    lines = [
        "# Results of the studies",
        "",
        "Generated by `docs/results.py` from the numbers and logs under"
        " `docs/results/studies/`; no figure and no verdict is typed by hand.",
        "",
        f"**A toy scale.** {scale()}. A few seeds. Nothing here says how the methods"
        " compare on ImageNet. kNN: top-1 in % of frozen features on all 10,000 test"
        " images among 5,000 training ones (k = 20). linear: a logistic regression on"
        " the same. fine-tuned: the whole encoder, in half an epoch or two. Run on"
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
        "| the paper says | tested as | verdict, by kNN unless it says otherwise |",
        "|---|---|---|",
        *claims(),
        "",
    ]
    for part in (
        of_the_figure,
        claim_a,
        claim_b,
        claim_c,
        claim_d,
        direction,
        other_laws,
        long_runs,
        finer_grid,
        defaults,
        tried,
        not_run,
    ):
        lines += part()
    return "\n".join(lines)


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
    Image.fromarray(draw()).save(PICTURE)
    readme = DOCS.parent / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text(before + BEGIN + front() + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
