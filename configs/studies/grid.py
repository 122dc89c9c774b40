"""Study 7: does DDAE, or its weights by distance, do more on a finer grid?

python -m ddae.study configs/studies/grid.py:scale=small --workdir=runs/study_grid \\
  --set data.name=npz --set data.dir=DIR

Rows of configs/studies/long.py at 24 pixels and patch 2, a grid of 12 x 12 where the
others have 8 x 8, under blockwise masks: hidden patches lie further from visible ones.
DIR as in configs/studies/beta.py.
"""

from configs.studies import long

ROWS = ("mae", "pixels", "ddae", "ddae,beta=0")
STEPS = 1600
"""Of small scale."""


def get_study(text=None):
    study = long.get_study(text, ROWS, STEPS, patch=2, mask="block")
    for row in study["rows"]:
        row["set"] |= {"image_size": 24}
    return study | {"about": "DDAE and its weights by distance on a grid of 12 x 12"}
