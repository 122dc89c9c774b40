"""Study 1: where deep dynamic supervision should look, and when.

python -m ddae.study configs/studies/beta.py:scale=small --workdir=runs/study_beta \\
  --set data.name=npz --set data.dir=DIR

beta {far to near, constant 0, near to far} x depth tilt {-.5, 0, +.5}, with blockwise
and with random masks, and with the teacher at its default weight, 1, in place of .1.
DIR as python -m ddae.data.pack makes it.
"""

from configs.studies import common

KINDS = {
    "block": {"method.mask.kind": "block"},
    "random": {"method.mask.kind": "random"},
    "features=1": {"method.mask.kind": "block", "method.features.weight": 1.0},
}
"""Of each phase and tilt: masks, and the teacher's weight."""


def get_study(text=None):
    chosen = common.arguments(text, scale="full", epochs=100)
    rows = []
    for kind, keys in KINDS.items():
        for phase in common.PHASES:
            for tilt in (-0.5, 0.0, 0.5):
                row = common.pretraining(
                    chosen["scale"], "ddae", epochs=chosen["epochs"]
                )
                row["set"] |= common.beta(phase, tilt) | keys
                row |= {
                    "name": f"{kind},{phase},tilt{tilt:+g}",
                    "panel": kind,
                    "x": phase,
                    "series": f"tilt {tilt:+g}",
                }
                rows.append(row)
    return {
        "about": "beta's direction over training, and its tilt over depth",
        "rows": rows,
        "seeds": (0, 1, 2),
        "scores": common.scores(chosen["scale"]),
        "follow_ups": common.follow_ups(chosen["scale"]),
        "control": "block,constant,tilt+0",
    }
