"""What the studies on CIFAR-10 share: two scales, and how rows are scored.

`scale=full` is what the studies are meant for, a GPU: ViT-Ti, patch 4, a hundred epochs
or more, kNN on all images, linear probe and fine-tuning. `scale=small` is what two CPU
cores bear: 4 blocks of width 64, half an epoch, kNN and a logistic regression, and
fine-tuning for rows of parts.py (half an epoch), long.py and grid.py (two).
"""

from configs.common import arguments

__all__ = ["arguments"]

PHASES = {
    "far-near": {"start": 1.0, "end": -1.0, "phase": "linear"},
    "constant": {"start": 0.0, "end": 0.0, "phase": "constant"},
    "near-far": {"start": -1.0, "end": 1.0, "phase": "linear"},
}
"""beta over training, before the tilt of depth: what a schedule is called here."""

SMALL_STEPS = 800


def small() -> dict:
    """Keys of a run that one CPU core does in a minute or two."""
    return {
        "dtype": "float32",
        "batch_size": 32,
        "total_steps": SMALL_STEPS,
        "optimizer.base_lr": 8e-3,
        "log_every_steps": 25,
        "checkpoint_every_steps": 400,
        "keep_checkpoints": 1,
    }


def full() -> dict:
    """Keys of a run at the scale that is meant: images, crops and many steps at once
    on the device, which a small network would otherwise wait for."""
    return {
        "keep_checkpoints": 1,
        "data.on_device": True,
        "data.augment.on_device": True,
        "steps_per_dispatch": 25,
    }


def pretraining(scale: str, name: str, *, epochs: int = 100, **changes) -> dict:
    """A row's `config` and `set` for configs/NAME_cifar10.py; changes: dotted keys with
    __ for the dots."""
    check(scale)
    method, _, dds = name.partition(":")
    size = "Pico" if scale == "small" else "Ti"
    text = f"configs/{method}_cifar10.py:size={size},epochs={epochs}"
    keys = small() if scale == "small" else full()
    if scale == "small" and method in ("mae", "ddae"):
        keys |= {
            "method.decoder.width": 64,
            "method.decoder.num_heads": 2,
            "method.decoder.depth": 2 if method == "mae" else 1,
        }
    if scale == "small" and method == "ddae":
        keys |= {
            "method.taps": (2, 4),
            # A few hundred steps want a teacher that follows at once.
            "method.momentum.start": 0.98,
            "method.momentum.middle": 0.99,
            "method.momentum.end": 0.999,
        }
    if dds:
        text += ",dds"
        if scale == "small":
            keys["method.dds.taps"] = (2, 4)
    if method == "ddae":  # what hundreds of steps bear; rows say where it is more
        keys["method.features.weight"] = 0.1
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    return {"config": text, "set": keys}


def beta(phase: str, tilt: float, section: str = "method.beta") -> dict:
    """Dotted keys of a schedule of PHASES and a depth tilt."""
    if phase not in PHASES:
        raise ValueError(f"beta {phase!r} is not one of {sorted(PHASES)}")
    values = PHASES[phase] | {"depth_tilt": tilt}
    return {f"{section}.{key}": value for key, value in values.items()}


def scores(scale: str) -> dict:
    """Evaluators of a row's frozen encoder: its features on the 10,000 test images, and
    how far its attention looks on some of them."""
    check(scale)
    knn = {"k": 20, "linear": True}
    return {
        "knn": knn | ({"num_train": 5000} if scale == "small" else {}),
        "locality": {"num_held_out": 512},
    }


def finetuning(rows: tuple[str, ...], steps: int = 400) -> dict:
    """Fine-tuning of what `rows` have pretrained at small scale, half an epoch unless
    there are more `steps`, with crops and flips alone."""
    keys = small() | {"batch_size": 64, "total_steps": steps}
    keys |= {"optimizer.base_lr": 1.6e-2}
    keys |= {"eval_every_steps": 0, "data.augment.rand_augment": 0}
    keys |= {"model.drop_path": 0.0}
    keys |= {f"mixing.{key}": 0.0 for key in ("mixup", "cutmix", "erasing")}
    return {
        "finetune": {
            "config": "configs/finetune_cifar10.py:size=Pico,epochs=50",
            "set": keys,
            "rows": rows,
            "score": "eval/top1",
        }
    }


def follow_ups(scale: str) -> dict:
    """Linear probe and fine-tuning of every row, at full scale."""
    check(scale)
    if scale == "small":
        return {}
    return {
        "linear": {
            "config": "configs/linear_cifar10.py:size=Ti,epochs=20",
            "score": "eval/top1",
        },
        "finetune": {
            "config": "configs/finetune_cifar10.py:size=Ti,epochs=50",
            "set": {"data.augment.rand_augment": 0},  # it wants files of images
            "score": "eval/top1",
        },
    }


def check(scale: str) -> None:
    """Raises `ValueError` for another scale."""
    if scale not in ("small", "full"):
        raise ValueError(f"scale {scale!r} is not small or full")
