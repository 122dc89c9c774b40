"""Study 2: what each part of DDAE adds, against MAE at equal steps and at equal cost.

python -m ddae.study configs/studies/parts.py:scale=small --workdir=runs/study_parts \\
  --set data.name=npz --set data.dir=DIR

pixels: one decoder on the last block, as in MAE (whose own is deeper). taps: pixels at
several blocks, all patches alike. weights: those weighed by distance. teacher: DDAE,
with feature self-distillation too. The schedule of beta is `beta=`, `tilt=`; masks are
blockwise, with one MAE under its own random masks. DIR as in configs/studies/beta.py.
"""

from configs.studies import common


def get_study(text=None):
    chosen = common.arguments(
        text, scale="full", epochs=100, beta="near-far", tilt=-0.5, mask="block"
    )
    scale, epochs, kind = chosen["scale"], chosen["epochs"], chosen["mask"]
    last = 4 if scale == "small" else 12
    beta = common.beta(chosen["beta"], chosen["tilt"])
    even = common.beta("constant", 0.0)
    without = {"method.features.weight": 0.0}

    def row(name, method, **changes):
        made = common.pretraining(scale, method, epochs=epochs)
        made["set"] |= {"method.mask.kind": kind} | changes
        return {"name": name} | made

    rows = [
        row("mae", "mae"),
        row("ddae", "ddae", **beta),
        row("ddae,beta=0", "ddae", **even),
        row("taps+weights", "ddae", **beta, **without),
        row("taps", "ddae", **even, **without),
        row("pixels", "ddae", **even, **without, **{"method.taps": (last,)}),
        {"name": "mae,cost-of-ddae", "repeats": "mae", "at_cost_of": "ddae"},
        row("mae,random-masks", "mae", **{"method.mask.kind": "random"}),
        row("ddae,random-masks", "ddae", **beta, **{"method.mask.kind": "random"}),
        row("untrained", "mae", total_steps=0),
    ]
    return {
        "about": "what taps, weights and teacher add to pixels",
        "rows": rows,
        "seeds": (0, 1, 2),
        "scores": common.scores(scale),
        "follow_ups": common.follow_ups(scale) or common.finetuning(),
        "control": "mae",
    }
