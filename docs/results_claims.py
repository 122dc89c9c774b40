"""What studies say of the paper's claims, for docs/results.py."""

from results_found import (
    DOCS,
    KEPT,
    NAMES,
    TRANSFER,
    compared,
    pooled_verdict,
    study,
    verdict,
)

from ddae.eval.locality import patch_distances
from ddae.study import report

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
    return [
        *lines,
        "",
        "The weights alone, with a teacher at weight 1: seeds 0 to 4 left it open, so"
        " five more were drawn to test it anew. Of these alone:"
        f" {of_new_seeds(epochs, *LONG_AT_ONE)}.",
        "",
    ]


NEW_SEED = 5
"""The first of the seeds that were drawn after those before it had been looked at."""


def of_new_seeds(found, first, second, scores=TRANSFER[:2]):
    """What these alone say of two rows, by kNN and by the linear probe or by `scores`
    of TRANSFER."""
    return "; ".join(
        f"{NAMES[score]} {verdict(found.difference(first, second, score, NEW_SEED))}"
        for score in scores
    )


AT_ONE = ("ddae,features=1", "ddae,features=1,beta=0")
"""The teacher's weight 1: with and without weights by distance."""
TAP_AT_ONE = "ddae,features=1,one-tap"
LONG_AT_ONE = tuple(f"{row},6400" for row in AT_ONE)

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
        ("ddae,features=1", "ddae,features=1,far-near", "near to far for far to near"),
        ("ddae,features=1,beta=0", TAP_AT_ONE, "another tap, half way, at weight 1"),
        (TAP_AT_ONE, "pixels", "the teacher at weight 1, at the last block alone"),
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
            words = locality(parts, first, second, block)
            lines.append(
                f"- {block.rsplit('/')[1]}, `{first}` less `{second}`: {words}."
            )
    lines += ["", "In longer runs, and on a finer grid, each block and their mean:", ""]
    for name, first, second, what in LOCAL:
        if name != "parts":
            lines.append(f"- {what} (`{first}`, `{second}`):")
            for block, head in zip(blocks, heads, strict=True):
                words = locality(study(name), first, second, block)
                lines.append(f"  - {head}: {words}.")
    for name in sorted(p.parent.name for p in KEPT.glob("analysis/*/analysis.json")):
        folder = KEPT / "analysis" / name
        lines += ["", f"### `{name}`, seed 0, by `python -m ddae.analyse`", ""]
        for picture in sorted(folder.glob("*.png")):
            lines.append(f"![{name}: {picture.stem}]({picture.relative_to(DOCS)})")
    return [*lines, "", "How to read them: [reading_a_run.md](reading_a_run.md).", ""]


def locality(found, first, second, block):
    """What a difference of attention distances allows to be said."""
    difference = found.difference(first, second, block)
    return verdict(difference, "less local", "more local", " patches")


EIGHT = "(a) as good in 100 epochs as MAE in 800"
MORE = "(a) as good in fewer epochs"
BETTER = "(b) DDS improves MAE"
DECODERS = "(b) and not by its decoders"
DISTANCE = "difficulty by distance matters"
ONE = "MAE with a decoder of one block, as each of DDAE's"
GRID = "on a grid of 12 x 12, blockwise masks, 1600 steps (study 7)"
GRID_LONG = GRID.replace("1600", "6400")

FEWER = (
    (EIGHT, f"DDAE, 800 steps, against MAE, {GRID_LONG}", "ddae,800"),
    (MORE, f"DDAE, 1600 steps, against MAE, {GRID_LONG}", "ddae"),
)
"""(what is claimed, how it was tested, row) beside MAE's longest of study 7."""

CLAIMS = (
    (MORE, "DDAE, 3200 steps, against MAE, 6400", "epochs", "ddae,3200", "mae,6400"),
    *(
        (
            MORE,
            f"DDAE, its teacher at weight 1, {steps} steps, against MAE, 6400",
            "epochs",
            f"ddae,features=1,{steps}",
            "mae,6400",
        )
        for steps in (1600, 3200)
    ),
    *((*asked, "grid", row, "mae,6400") for *asked, row in FEWER),
    (BETTER, "taps and weights against MAE", "parts", "taps+weights", "mae"),
    (BETTER, "DDAE against MAE, 800 steps each (study 2)", "parts", "ddae", "mae"),
    *(
        (
            BETTER,
            f"DDAE against MAE, {steps} steps each (study 3)",
            "epochs",
            f"ddae,{steps}",
            f"mae,{steps}",
        )
        for steps in (1600, 3200, 6400)
    ),
    (
        BETTER,
        "DDAE, its teacher at weight 1, against MAE, 6400 steps each (study 3)",
        "epochs",
        LONG_AT_ONE[0],
        "mae,6400",
    ),
    (
        BETTER,
        "the same under random masks, MAE's and ours by default (study 6)",
        "long",
        "ddae",
        "mae",
    ),
    (BETTER, f"the same {GRID}", "grid", "ddae", "mae"),
    (BETTER, f"the same {GRID_LONG}", "grid", "ddae,6400", "mae,6400"),
    (
        DECODERS,
        f"DDAE against {ONE}, 800 steps each (study 2)",
        "parts",
        "ddae",
        "pixels",
    ),
    (
        DECODERS,
        f"DDAE against {ONE}, 6400 steps each (study 3)",
        "epochs",
        "ddae,6400",
        "pixels,6400",
    ),
    (
        DECODERS,
        "the same, its teacher at weight 1, 6400 steps each (study 3)",
        "epochs",
        LONG_AT_ONE[0],
        "pixels,6400",
    ),
    (DECODERS, "the same under random masks (study 6)", "long", "ddae", "pixels"),
    (DECODERS, f"the same {GRID}", "grid", "ddae", "pixels"),
    (DECODERS, f"the same {GRID_LONG}", "grid", "ddae,6400", "pixels,6400"),
    (
        DISTANCE,
        "DDAE against DDAE with beta = 0, 800 steps each (study 2)",
        "parts",
        "ddae",
        "ddae,beta=0",
    ),
    *(
        (
            DISTANCE,
            f"DDAE against DDAE with beta = 0, {steps} steps each (study 3)",
            "epochs",
            f"ddae,{steps}",
            f"ddae,beta=0,{steps}",
        )
        for steps in (3200, 6400)
    ),
    (
        DISTANCE,
        "the same, its teacher at weight 1, 6400 steps each (study 3)",
        "epochs",
        *LONG_AT_ONE,
    ),
    (
        DISTANCE,
        "the same under random masks (study 6)",
        "long",
        "ddae",
        "ddae,beta=0",
    ),
    (DISTANCE, f"the same {GRID}", "grid", "ddae", "ddae,beta=0"),
    (DISTANCE, f"the same {GRID_LONG}", "grid", "ddae,6400", "ddae,beta=0,6400"),
    (
        "and it is the distance that does",
        "DDAE against the same weights at other patches, 800 steps (study 5)",
        "laws",
        "power",
        "elsewhere",
    ),
    (
        "and it is the distance that does",
        f"the same {GRID}",
        "grid",
        "ddae",
        "elsewhere",
    ),
    (
        "(c) and BEiT-v2",
        "BEiT-v2, with and without DDS",
        "others",
        "beit_v2+dds",
        "beit_v2",
    ),
    (
        "(c) and others",
        "SimMIM, with and without DDS",
        "others",
        "simmim+dds",
        "simmim",
    ),
)
"""(what is claimed, how it was tested, study, first row, second row) of each."""


TUNED = (
    *((*asked, "grid", row, "mae,6400") for *asked, row in FEWER),
    (BETTER, "DDAE against MAE, random masks (study 6)", "long", "ddae", "mae"),
    (BETTER, f"the same {GRID_LONG}", "grid", "ddae,6400", "mae,6400"),
    (
        DISTANCE,
        "DDAE against DDAE with beta = 0, random masks (study 6)",
        "long",
        "ddae",
        "ddae,beta=0",
    ),
    (DISTANCE, f"the same {GRID_LONG}", "grid", "ddae,6400", "ddae,beta=0,6400"),
)
"""As `CLAIMS`, of encoders that were fine-tuned: the paper's own measure."""

LOCAL = (
    ("parts", "ddae", "mae", "DDAE against MAE, 800 steps (study 2)"),
    ("parts", "taps+weights", "mae", "taps and weights against MAE (study 2)"),
    (
        "epochs",
        LONG_AT_ONE[0],
        "mae,6400",
        "DDAE, its teacher at weight 1, against MAE, 6400 steps (study 3)",
    ),
    ("epochs", *LONG_AT_ONE, "the same against DDAE with beta = 0 (study 3)"),
    ("long", "ddae", "mae", "DDAE against MAE, random masks (study 6)"),
    ("long", "ddae", "ddae,beta=0", "the same against DDAE with beta = 0 (study 6)"),
    ("grid", "ddae", "mae", f"DDAE against MAE {GRID}"),
    ("grid", "ddae", "ddae,beta=0", "the same against DDAE with beta = 0 (study 7)"),
    ("grid", "ddae,6400", "mae,6400", f"DDAE against MAE {GRID_LONG}"),
    (
        "grid",
        "ddae,6400",
        "ddae,beta=0,6400",
        "the same against DDAE with beta = 0 (study 7)",
    ),
)
"""How claim (d) was tested: study, first row, second row, what they are."""


def claims():
    """The lines of the table of claims."""
    epochs = study("epochs")
    yield (
        f"| {EIGHT} | DDAE against MAE of eight times its steps (study 3) |"
        f" {pooled_verdict(epochs, EIGHTH)} |"
    )
    for claim, tested, name, first, second in CLAIMS:
        found = verdict(study(name).difference(first, second))
        yield f"| {claim} | {tested} | {found} |"
    for claim, tested, name, first, second in TUNED:
        found = verdict(study(name).difference(first, second, "finetune"))
        yield f"| {claim} | fine-tuned, {tested} | {found} |"
    last = "attention_distance/block04"
    for name, first, second, what in LOCAL:
        words = locality(study(name), first, second, last)
        yield f"| (d) deep layers more local | last block, {what} | {words} |"
