"""Study 6: does distance count for more on a finer grid?

python -m ddae.study configs/studies/grid.py:scale=small --workdir=runs/study_grid \\
  --set data.name=npz --set data.dir=DIR

Patch 2, a grid of 16 x 16, nearly ImageNet's 14 x 14, where patches lie twice as far
from what is visible as in the other studies: DDAE, and DDAE with all hidden patches
alike, with blockwise masks. DIR as in configs/studies/beta.py.
"""

from configs.studies import common


def get_study(text=None):
    chosen = common.arguments(
        text, scale="full", epochs=100, beta="near-far", tilt=-0.5
    )
    scale = chosen["scale"]
    weights = common.beta(chosen["beta"], chosen["tilt"])
    rows = []
    for name, changes in (
        ("ddae", weights),
        ("ddae,beta=0", common.beta("constant", 0.0)),
    ):
        row = common.pretraining(scale, "ddae", epochs=chosen["epochs"])
        row["set"] |= {"model.patch_size": 2, "method.mask.kind": "block"} | changes
        if scale == "small":
            row["set"]["total_steps"] = 2 * common.SMALL_STEPS
        rows.append({"name": name} | row)
    return {
        "about": "the weights of DDAE on a grid of 16 x 16",
        "rows": rows,
        "seeds": (0, 1, 2, 3, 4),
        "scores": common.scores(scale),
        "follow_ups": common.follow_ups(scale),
        "control": "ddae,beta=0",
    }
