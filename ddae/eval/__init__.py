"""Evaluators, built with their own data and run as run(params, step) -> {name: value}.

A value that is a number goes to the metrics, one of shape [height, width, 3] is a
figure. A new evaluator is a file and a row in EVALUATORS.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ddae import settings
from ddae.data import Splits
from ddae.eval.accuracy import make_accuracy
from ddae.eval.codes import make_codes
from ddae.eval.evaluator import Evaluator, OnDevices
from ddae.eval.knn import make_knn
from ddae.eval.locality import make_locality
from ddae.eval.miou import make_miou
from ddae.eval.reconstruct import make_reconstruct
from ddae.settings import UserError
from ddae.tasks import Task

EVALUATORS: dict[str, Callable[..., Evaluator]] = {
    "accuracy": make_accuracy,
    "codes": make_codes,
    "knn": make_knn,
    "locality": make_locality,
    "miou": make_miou,
    "reconstruct": make_reconstruct,
}

OF_HEADS = ("accuracy", "codes", "miou", "reconstruct")
"""Those that ask more than the encoder."""


def from_config(
    config: Mapping[str, Any], task: Task, splits: Splits, on_devices: OnDevices
) -> dict[str, Evaluator]:
    """The evaluators that config.evaluators names, each from its own section."""
    evaluators = {}
    for name, section in config["evaluators"].items():
        if name not in EVALUATORS:
            raise UserError(
                f"config.evaluators.{name} is not one of {sorted(EVALUATORS)}"
            )
        for key, value in section.items() if isinstance(section, Mapping) else ():
            # -1 of a slice would be all images but one.
            if key.startswith("num_") and isinstance(value, int) and value < 0:
                raise UserError(
                    f"config.evaluators.{name}.{key}={value} must not be negative"
                )
        evaluators[name] = settings.build(
            EVALUATORS[name], section, f"evaluators.{name}.", task, splits, on_devices
        )
    return evaluators
