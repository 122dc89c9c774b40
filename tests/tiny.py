"""The smallest config, and the smallest network."""

import copy

from ddae.difficulty import BetaSchedule
from ddae.models.vit import VIT_SPECS, ViTSpec

VIT_SPECS["Two"] = ViTSpec(32, 2, 2)
VIT_SPECS["Wide"] = ViTSpec(128, 2, 2)

TINY = {
    "task": "pretrain",
    "seed": 0,
    "batch_size": 16,
    "epochs": 100,
    "total_steps": 4,
    "image_size": 8,
    "dtype": "float32",
    "log_every_steps": 2,
    "checkpoint_every_steps": 2,
    "eval_every_steps": 0,
    "data": {"name": "digits", "mean": (0.3,), "std": (0.4,)},
    "model": {"size": "Two", "patch_size": 2, "channels": 1},
    "method": {
        "name": "ddae",
        "taps": (1, 2),
        "decoder": {"depth": 1, "width": 16, "num_heads": 2},
    },
    "optimizer": {"base_lr": 1e-2, "warmup_epochs": 10.0},
    "mesh": {"fsdp": 1},
    "evaluators": {},
}


def tiny_config(**changes):
    """A copy of TINY; dotted keys with __: data__name="folder"."""
    config = copy.deepcopy(TINY)
    for key, value in changes.items():
        section, parts = config, key.split("__")
        for part in parts[:-1]:
            section = section.setdefault(part, {})
        section[parts[-1]] = copy.deepcopy(value)
    return config


def wide_config(**changes):
    """One whose matrices FSDP cuts, in half precision, of 64 patches an image."""
    given = {"model__size": "Wide", "dtype": "bfloat16", "image_size": 16}
    config = tiny_config(**(given | changes))
    config["model"] |= {"remat": "off", "scan": False}
    config["optimizer"]["accumulate"] = 1
    return config


def constant_beta(value):
    """A schedule that is `value` at every phase and depth."""
    return BetaSchedule(start=value, end=value, phase="constant", depth_tilt=0.0)
