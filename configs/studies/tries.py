"""What might make DDAE do better than it does: one change at a time.

python -m ddae.study configs/studies/tries.py:scale=small --workdir=runs/study_tries \\
  --set data.name=npz --set data.dir=DIR

Masking ratio, taps, decoder depth, the features' weight, ramp and target, the teacher's
momentum, the range of beta; some of them with the teacher at its default weight, 1,
too. DIR as in configs/studies/beta.py.
"""

from configs.studies import common

AT_ONE = ("ratio=.5", "ramp=1", "target=last", "tap-weight=1", "all-taps")
"""Changes that are made to a DDAE whose features weigh 1, too."""


def get_study(text=None):
    chosen = common.arguments(
        text, scale="full", epochs=100, beta="near-far", tilt=-0.5, mask="block"
    )
    small = chosen["scale"] == "small"
    beta = common.beta(chosen["beta"], chosen["tilt"])
    changes = {
        "ddae": {},
        "ratio=.5": {"method.mask.ratio": 0.5},
        "beta-range-doubled": {
            key: 2 * value
            for key, value in beta.items()
            if key.endswith(("start", "end"))
        },
        "features=1": {"method.features.weight": 1.0},
        "features=.25": {"method.features.weight": 0.25},
        "features=.025": {"method.features.weight": 0.025},
        "no-ramp": {"method.features.ramp": 0.01},
        "ramp=1": {"method.features.ramp": 1.0},
        "target=last": {"method.features.target": "last"},
        "slow-teacher": {
            "method.momentum.start": 0.996 if small else 0.999,
            "method.momentum.middle": 0.998 if small else 0.9999,
            "method.momentum.end": 0.9998 if small else 0.99999,
        },
        "tap-weight=1": {"method.tap_weight": 1.0},
        "all-taps": {"method.taps": (1, 2, 3, 4) if small else (3, 6, 9, 12)},
        "decoder-twice": {"method.decoder.depth": 2 if small else 4},
    }
    whole = changes["features=1"]
    changes |= {f"features=1,{name}": whole | changes[name] for name in AT_ONE}
    rows = []
    for name, changed in changes.items():
        row = common.pretraining(chosen["scale"], "ddae", epochs=chosen["epochs"])
        row["set"] |= {"method.mask.kind": chosen["mask"]} | beta | changed
        rows.append({"name": name} | row)
    return {
        "about": "DDAE with one thing changed",
        "rows": rows,
        "seeds": (0, 1, 2),
        "scores": common.scores(chosen["scale"]),
        "follow_ups": common.follow_ups(chosen["scale"]),
        "control": "ddae",
    }
