"""What studies found beyond the paper's claims, a section each, for docs/results.py."""

import numpy as np
from results_claims import TAP_AT_ONE, of_new_seeds
from results_found import (
    NAMES,
    TRANSFER,
    compared,
    over_shared,
    paired,
    study,
    verdict,
)

from ddae.study import report

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


def by_scores(found, pairs, masks=()):
    """Lines of `compared` by each score that the study has of `TRANSFER`; after them
    runs under blockwise `masks` (study 3) less those under random ones (study 6)."""
    lines = []
    for score in [s for s in TRANSFER if s in report.scores_of(found.records)]:
        lines += [f"First less second, {NAMES[score]}:", ""]
        scored = [p for p in pairs if found.difference(*p[:2], score)]
        lines += compared(found, scored, score)
        for what, blockwise, random in masks:
            other = paired(f"epochs/{blockwise},6400", f"long/{random}", score)
            if other:
                lines.append(
                    f"- {what}, blockwise masks (study 3) less random ones:"
                    f" {verdict(other)}."
                )
        lines.append("")
    return lines


def asked(name, title, about, pairs, masks=()):
    """The section of a study: what it is, its table and plot, `by_scores`."""
    found = study(name)
    if not found.records:
        return [f"## {title}", "", "Not run.", ""]
    lines = [f"## {title}", "", about, "", *found.section(TRANSFER)]
    return lines + by_scores(found, pairs, masks)


def other_laws():
    """Study 5."""
    pairs = (
        ("power", "even", "weights by distance at all"),
        ("elsewhere", "even", "as uneven weights, without the distance"),
        ("power", "elsewhere", "the distance itself"),
        ("by-loss", "even", "each patch's own loss in its place"),
        ("power", "by-loss", "distance against loss"),
        ("exponential", "power", "exp(beta d) against d^beta"),
    )
    return asked(
        "laws",
        "Study 5: is it the distance, and is it the power law?",
        "DDAE with one schedule of beta under other laws of its weights. `power` is its"
        " own, `even` weighs all patches alike. `elsewhere` is the control: the weights"
        " that `power` gives an image, each at another of its hidden patches. `by-loss`"
        " weighs a patch by its own loss, `exponential` by exp(beta d).",
        pairs,
    )


def long_runs():
    """Study 6."""
    pairs = (
        ("ddae", "mae", "all of DDAE"),
        ("ddae", "mae,longer", "all of DDAE, MAE's steps half as many more"),
        ("ddae", "pixels", "decoders alike"),
        ("pixels", "mae", "a decoder of one block for MAE's two"),
        ("ddae,one-tap", "pixels", "the teacher, at the last block alone"),
        ("ddae,beta=0", "ddae,one-tap", "another tap, half way"),
        ("ddae", "ddae,beta=0", "the weights by distance"),
    )
    return [
        *asked(
            "long",
            "Study 6: what of DDAE works in a long run under random masks?",
            "6400 steps, the teacher's weight 1 and random masks, as the defaults are."
            " `pixels` is MAE with a decoder of one block, as each of DDAE's;"
            " `ddae,beta=0` weighs all patches alike, `ddae,one-tap` does so too and"
            " supervises the last block only; `mae,longer` has 9600 steps, which cost"
            " what DDAE's do. Fine-tuned for two epochs, with crops and flips alone.",
            pairs,
            MASKS,
        ),
        "Seeds 0 to 4 showed the weights by distance a little behind even ones by kNN,"
        " so five more were drawn to test it anew. Of these alone:"
        f" {of_new_seeds(study('long'), 'ddae', 'ddae,beta=0', TRANSFER)}.",
        "",
    ]


def finer_grid():
    """Study 7."""
    weighed = ("ddae", "ddae,beta=0")
    long_run = ("ddae,6400", "ddae,beta=0,6400")
    pairs = (
        ("ddae", "mae", "all of DDAE"),
        ("ddae", "pixels", "decoders alike"),
        ("pixels", "mae", "a decoder of one block for MAE's two"),
        (*weighed, "the weights by distance"),
        ("ddae", "elsewhere", "the distance itself"),
        ("elsewhere", "ddae,beta=0", "as uneven weights, without the distance"),
        ("ddae,6400", "mae,6400", "all of DDAE, 6400 steps"),
        ("ddae,6400", "pixels,6400", "decoders alike, 6400 steps"),
        (*long_run, "the weights by distance, 6400 steps"),
        ("ddae,fading,6400", "ddae,beta=0,6400", "weights that fade, 6400 steps"),
        ("ddae,fading,6400", "ddae,6400", "their fading, 6400 steps"),
        ("ddae,beta=0,6400", "mae,6400", "without weights, 6400 steps"),
        ("ddae,beta=0,6400", "pixels,6400", "the same, decoders alike, 6400 steps"),
        ("ddae", "mae,6400", "all of DDAE, for a quarter of the steps"),
        ("ddae,800", "mae,6400", "all of DDAE, for an eighth"),
    )
    return [
        *asked(
            "grid",
            "Study 7: does DDAE do more on a finer grid?",
            "The images at 24 px and patches of 2, a grid of 12 x 12, under blockwise"
            " masks: a hidden patch lies further from a visible one. 1600 steps"
            " (as many as a row says), the teacher's weight 1; rows as in study 6,"
            " fine-tuned as there; of shorter ones MAE and DDAE are, too. `fading` has"
            " a beta from -1 to 0, without tilt: near patches first, even weights in"
            " the end. DIR packed with `--image_size=24`.",
            pairs,
        ),
        "The weights by distance, 1600 steps: seeds 0 to 4 left it open by kNN, so five"
        " more were drawn to test it anew. Of these alone:"
        f" {of_new_seeds(study('grid'), *weighed)}.",
        "",
        "After 6400 steps seeds 0 to 4 showed them ahead where fine-tuned, by which the"
        " paper judges: five more were drawn to test that anew, too. Of these alone:"
        f" {of_new_seeds(study('grid'), *long_run, TRANSFER)}.",
        "",
    ]


MASKS = (
    ("DDAE", "ddae,features=1", "ddae"),
    ("MAE", "mae", "mae"),
    ("MAE with DDAE's decoder", "pixels", "pixels"),
    ("the teacher, at the last block alone", TAP_AT_ONE, "ddae,one-tap"),
)
"""Of runs that differ by their masks: what they are, and their rows in both studies."""
