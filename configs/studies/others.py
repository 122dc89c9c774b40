"""Study 4: deep dynamic supervision on SimMIM and BEiT-v2.

python -m ddae.study configs/studies/others.py:scale=small \\
  --workdir=runs/study_others --set data.name=npz --set data.dir=DIR

Each with and without `:dds`; `dds,beta=0` has the taps and no weights. BEiT-v2 wants a
tokenizer: `tokenizer=RUN`, a run of configs/vqkd_cifar10.py with `codes=` codes, and is
left out without. DIR as in configs/studies/beta.py.
"""

from configs.studies import common


def get_study(text=None):
    chosen = common.arguments(
        text,
        scale="full",
        epochs=100,
        beta="near-far",
        tilt=-0.5,
        tokenizer="",
        codes=512,
    )
    beta = common.beta(chosen["beta"], chosen["tilt"], "method.dds.beta")
    even = common.beta("constant", 0.0, "method.dds.beta")
    rows = []
    for method in ("simmim", "beit_v2") if chosen["tokenizer"] else ("simmim",):
        for name, dds, changes in (
            (method, "", {}),
            (f"{method}+dds", ":dds", beta),
            (f"{method}+dds,beta=0", ":dds", even),
        ):
            row = common.pretraining(
                chosen["scale"], method + dds, epochs=chosen["epochs"]
            )
            row["set"] |= changes
            if method == "beit_v2":
                row["set"] |= {
                    "method.tokenizer.workdir": chosen["tokenizer"],
                    "method.tokenizer.codes": chosen["codes"],
                }
            if chosen["scale"] == "small" and not name.endswith("beta=0"):
                row["seeds"] = (0, 1, 2, 3, 4)  # what claim (c) compares
            rows.append({"name": name} | row)
    return {
        "about": "deep dynamic supervision on other methods",
        "rows": rows,
        "seeds": (0, 1, 2),
        "scores": common.scores(chosen["scale"]),
        "follow_ups": common.follow_ups(chosen["scale"]),
        "control": "simmim",
    }
