"""Study 6: what of DDAE works in a long run under random masks, as its defaults are?

python -m ddae.study configs/studies/long.py:scale=small --workdir=runs/study_long \\
  --set data.name=npz --set data.dir=DIR

The teacher's weight is 1 and masks are random, where studies 1 to 5 mostly have .1 and
blockwise ones. pixels is MAE with a decoder as deep as each of DDAE's; beta=0 weighs
all patches alike; one-tap does so too and supervises the last block only. mae,longer
has half as many steps more: it costs what DDAE does. All are fine-tuned too, at small
scale for two epochs. DIR as in configs/studies/beta.py.
"""

from configs.studies import common

STEPS = 6400
"""Of small scale."""

ALIKE = common.beta("constant", 0.0)
LAST = {"method.taps": (4,)}
"""Of small scale: the last block's tap alone."""

AGAIN = ("ddae", "ddae,beta=0")
"""At small scale: rows whose difference by kNN five seeds showed, and small; of as few
seeds configs/studies/grid.py had shown one that five more did not have."""

ROWS = {
    "mae": {},
    "mae,longer": {},
    "ddae": {},
    "ddae,beta=0": ALIKE,
    "ddae,one-tap": ALIKE | LAST,
    "pixels": ALIKE | LAST | {"method.features.weight": 0.0},
    "untrained": {"total_steps": 0},
}


def get_study(text=None, mask="random"):
    chosen = common.arguments(
        text, scale="full", epochs=400, beta="near-far", tilt=-0.5, mask=mask
    )
    small = chosen["scale"] == "small"
    rows = []
    for name, changes in ROWS.items():
        method = "ddae" if name.startswith(("ddae", "pixels")) else "mae"
        longer = 1.5 if name == "mae,longer" else 1
        epochs = int(chosen["epochs"] * longer)
        row = common.pretraining(chosen["scale"], method, epochs=epochs)
        row["set"] |= {"method.mask.kind": chosen["mask"]}
        if method == "ddae":
            row["set"] |= {"method.features.weight": 1.0}
            row["set"] |= common.beta(chosen["beta"], chosen["tilt"])
        if small:
            row["set"] |= {"total_steps": int(STEPS * longer)}
            row |= {"seeds": tuple(range(10))} if name in AGAIN else {}
        last = {} if small else {"method.taps": (12,)}
        row["set"] |= changes | (last if "method.taps" in changes else {})
        rows.append({"name": name} | row)
    return {
        "about": "parts of DDAE in a long run, its teacher at weight 1",
        "rows": rows,
        "seeds": (0, 1, 2, 3, 4),
        "scores": common.scores(chosen["scale"]),
        "follow_ups": common.follow_ups(chosen["scale"])
        or common.finetuning(tuple(ROWS), steps=1600),
        "control": "mae",
    }
