"""Study 3: does DDAE learn in few epochs what MAE learns in many?

python -m ddae.study configs/studies/epochs.py:scale=small \\
  --workdir=runs/study_epochs --set data.name=npz --set data.dir=DIR

MAE for 50 to 800 epochs, DDAE for 50 to 200, each with its own schedules drawn out; at
small scale 200 to 6400 steps of both, and long ones of DDAE's parts, called as in
parts.py, and of DDAE with decoders as deep as MAE's or more of its teacher. DIR as in
configs/studies/beta.py.
"""

from configs.studies import common

EPOCHS = {"mae": (50, 100, 200, 400, 800), "ddae": (50, 100, 200)}
STEPS = {
    "mae": (200, 400, 800, 1600, 3200, 6400),
    "ddae": (200, 400, 800, 1600, 3200, 6400),
    "ddae,beta=0": (3200, 6400),
    "taps+weights": (3200, 6400),
    "ddae,decoder-twice": (6400,),
    "ddae,features=.25": (6400,),
    "ddae,features=1": (1600, 3200, 6400),
    "ddae,features=1,beta=0": (6400,),
    "ddae,features=1,far-near": (6400,),
    "ddae,features=1,one-tap": (6400,),
    "taps": (6400,),
    "pixels": (6400,),
}
FEATURES = {
    **{name: 0.0 for name in ("taps+weights", "taps", "pixels")},
    "ddae,features=.25": 0.25,
    "ddae,features=1": 1.0,
    "ddae,features=1,beta=0": 1.0,
    "ddae,features=1,far-near": 1.0,
    "ddae,features=1,one-tap": 1.0,
}
"""Series with another weight of the teacher's features than DDAE's."""

ONE_TAP = ("ddae,features=1,one-tap", "pixels")
"""Series that supervise the last block alone."""

EVEN = ("ddae,beta=0", "ddae,features=1,beta=0", "taps", *ONE_TAP)
"""Series in which all hidden patches weigh alike."""

AGAIN = ("ddae,features=1,6400", "ddae,features=1,beta=0,6400")
"""Rows whose difference five seeds left open: five more seeds test it anew."""

FEW = ("mae,200", "ddae,200", "mae,400", "mae,800", "ddae,800")
"""Rows of small scale with three seeds; those that the claims compare have five."""


def get_study(text=None):
    chosen = common.arguments(
        text, scale="full", beta="near-far", tilt=-0.5, mask="block"
    )
    small = chosen["scale"] == "small"
    rows = []
    for series, lengths in (STEPS if small else EPOCHS).items():
        method = "mae" if series == "mae" else "ddae"
        for length in lengths:
            epochs = 100 if small else length
            row = common.pretraining(chosen["scale"], method, epochs=epochs)
            row["set"] |= {"method.mask.kind": chosen["mask"]}
            if method == "ddae":
                even = series in EVEN
                phase = "constant" if even else chosen["beta"]
                phase = "far-near" if series.endswith("far-near") else phase
                row["set"] |= common.beta(phase, 0.0 if even else chosen["tilt"])
            if series in FEATURES:
                row["set"] |= {"method.features.weight": FEATURES[series]}
            if series in ONE_TAP:
                row["set"] |= {"method.taps": (4,)}
            if series == "ddae,decoder-twice":
                row["set"] |= {"method.decoder.depth": 2}
            if small:
                row["set"] |= {"total_steps": length}
            row |= {"name": f"{series},{length}", "series": series, "x": length}
            row["panel"] = "steps" if small else "epochs"
            if small and row["name"] not in FEW:
                row["seeds"] = tuple(range(10 if row["name"] in AGAIN else 5))
            rows.append(row)
    return {
        "about": "length of pretraining, MAE against DDAE",
        "rows": sorted(rows, key=lambda row: row["x"]),
        "seeds": (0, 1, 2),
        "scores": common.scores(chosen["scale"]),
        "follow_ups": common.follow_ups(chosen["scale"]),
        "control": f"mae,{STEPS['mae'][2] if small else EPOCHS['mae'][1]}",
    }
