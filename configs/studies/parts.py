"""Study 2: what each part of DDAE adds, against MAE at equal steps and at equal cost.

python -m ddae.study configs/studies/parts.py:scale=small --workdir=runs/study_parts \\
  --set data.name=npz --set data.dir=DIR

pixels: one decoder on the last block, as in MAE (whose own is deeper). taps: pixels at
several blocks, all patches alike. weights: those weighed by distance. ddae: all of it,
feature self-distillation too, at weight .1; features=1: that weighs as much as the
pixels, as it does by default. The schedule of beta is `beta=`, `tilt=`; masks are
blockwise, with MAE and DDAE under MAE's own random masks too. DIR as in
configs/studies/beta.py.
"""

from configs.studies import common

CLAIMS = ("mae", "ddae", "ddae,beta=0", "taps+weights")
"""Rows that the claims compare."""


def get_study(text=None):
    chosen = common.arguments(
        text, scale="full", epochs=100, beta="near-far", tilt=-0.5, mask="block"
    )
    scale, epochs, kind = chosen["scale"], chosen["epochs"], chosen["mask"]
    last = 4 if scale == "small" else 12
    beta = common.beta(chosen["beta"], chosen["tilt"])
    even = common.beta("constant", 0.0)
    without = {"method.features.weight": 0.0}
    whole = {"method.features.weight": 1.0}
    random = {"method.mask.kind": "random"}

    def row(name, method, **changes):
        made = common.pretraining(scale, method, epochs=epochs)
        made["set"] |= {"method.mask.kind": kind} | changes
        # What the claims rest on has five seeds at small scale, where spread is large.
        more = {"seeds": (0, 1, 2, 3, 4)} if name in CLAIMS and scale == "small" else {}
        return {"name": name} | made | more

    rows = [
        row("mae", "mae"),
        row("ddae", "ddae", **beta),
        row("ddae,beta=0", "ddae", **even),
        row("taps+weights", "ddae", **beta, **without),
        row("taps", "ddae", **even, **without),
        row("pixels", "ddae", **even, **without, **{"method.taps": (last,)}),
        {"name": "mae,cost-of-ddae", "repeats": "mae", "at_cost_of": "ddae"},
        row("mae,random-masks", "mae", **random),
        row("ddae,random-masks", "ddae", **beta, **random),
        row("ddae,features=1", "ddae", **beta, **whole),
        row("ddae,features=1,beta=0", "ddae", **even, **whole),
        row("ddae,features=1,random-masks", "ddae", **beta, **whole, **random),
        row("untrained", "mae", total_steps=0),
    ]
    return {
        "about": "what taps, weights and teacher add to pixels",
        "rows": rows,
        "seeds": (0, 1, 2),
        "scores": common.scores(scale),
        "follow_ups": common.follow_ups(scale)
        or common.finetuning(("mae", "ddae", "taps+weights", "untrained")),
        "control": "mae",
    }
