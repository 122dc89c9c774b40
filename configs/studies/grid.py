"""Study 7: does DDAE, or its weights by distance, do more on a finer grid?

python -m ddae.study configs/studies/grid.py:scale=small --workdir=runs/study_grid \\
  --set data.name=npz --set data.dir=DIR

Rows of configs/studies/long.py at 24 pixels and patch 2, a grid of 12 x 12 where the
others have 8 x 8, under blockwise masks: hidden patches lie further from visible ones.
At small scale 1600 steps, or as many as a row says. Runs of as many steps as there
are fine-tuned as there, and beside them MAE's and DDAE's of a quarter of these steps
and DDAE's of an eighth; at full scale none is.
elsewhere is the control of configs/studies/laws.py: DDAE's weights, each at another
hidden patch. fading begins near and ends with even weights. DIR as in
configs/studies/beta.py, packed with --image_size=24.
"""

from configs.studies import common, laws, long

ROWS = ("mae", "pixels", "ddae", "ddae,beta=0")
"""Of configs/studies/long.py."""

FADING = "ddae,fading"
"""At small scale of long.py's steps alone, which ROWS have runs of too."""

AGAIN = ("ddae", "ddae,beta=0")
"""Rows whose difference five seeds left open at 1600 steps by kNN, and showed after
long.py's when fine-tuned: five more seeds test either anew."""

STEPS = 1600
"""Of small scale, but for rows whose names end in others."""

EIGHTH = long.STEPS // 8
"""Of DDAE alone: the paper has 100 epochs of it beside 800 of MAE, fine-tuned."""

FEWER = ("mae", "ddae", f"ddae,{EIGHTH}")
"""Rows that are fine-tuned, too, after fewer steps than long.py's."""


def get_study(text=None):
    laws.add_methods()
    study = long.get_study(text, mask="block")
    rows = [row for row in study["rows"] if row["name"] in ROWS]
    (own,) = (row for row in rows if row["name"] == "ddae")
    control = own["set"] | {"method.name": "ddae_elsewhere"}
    rows.append(own | {"name": "elsewhere", "set": control})
    fading = own["set"] | common.beta("near-far", 0.0) | {"method.beta.end": 0.0}
    rows.append(own | {"name": FADING, "set": fading})
    longer = []
    for row in rows:
        row["config"] += ",patch=2"
        row["set"] |= {"image_size": 24}
        if "total_steps" in row["set"]:
            row["seeds"] = tuple(range(10 if row["name"] in AGAIN else 5))
            if row["name"] in (*ROWS, FADING):
                name = f"{row['name']},{long.STEPS}"
                longer.append(row | {"name": name, "set": row["set"].copy()})
            row["set"] |= {"total_steps": STEPS}
    if longer:
        (own,) = (row for row in rows if row["name"] == "ddae")
        eighth = own | {"name": f"ddae,{EIGHTH}", "seeds": tuple(range(5))}
        longer.append(eighth | {"set": own["set"] | {"total_steps": EIGHTH}})
    named = (row["name"] for row in longer if row["name"] not in FEWER)
    tuned = common.finetuning((*FEWER, *named), steps=1600)
    tuned["finetune"]["config"] += ",patch=2"
    tuned["finetune"]["set"]["image_size"] = 24
    short = [row for row in rows if not longer or row["name"] != FADING]
    return study | {
        "about": "DDAE and its weights by distance on a grid of 12 x 12",
        "rows": short + longer,
        "follow_ups": tuned if longer else {},
    }
