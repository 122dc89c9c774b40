"""Top-1 and top-5 of a classifier, every held-out image counted once."""

from typing import Any

import numpy as np

from ddae.data import Splits, sample
from ddae.eval.evaluator import OnDevices, over
from ddae.settings import UserError
from ddae.tasks import Task
from ddae.tasks.classify import Classify


def make_accuracy(
    task: Task, splits: Splits, on_devices: OnDevices, *, num_held_out: int = 0
):
    """An evaluator: top1, and top5 where there are more classes, in %.

    Where a probe has several heads, the value of each by name, and of the best one:
    chosen on these same images, as is usual for a sweep of learning rates.
    num_held_out: how many images, drawn once at random; 0 takes all.
    """
    if not isinstance(task, Classify):
        raise UserError(
            "config.evaluators.accuracy wants config.task=classify; remove it"
        )
    classes = splits.train.num_classes
    if classes != task.num_classes:
        raise UserError(
            f"config.classifier.num_classes={task.num_classes}, but the data has"
            f" {classes} classes"
        )
    logits = on_devices(task.logits)

    def run(params: Any, step: int) -> dict[str, float | np.ndarray]:
        indices = sample(splits.held_out, num_held_out)
        scores, labels = over(splits.held_out, indices, logits, params, "accuracy")
        values: dict[str, float | np.ndarray] = {}
        for k in (1, 5):
            if k > 1 and k >= classes:
                continue
            found = {name: topk(rows, labels, k) for name, rows in scores.items()}
            values[f"top{k}"] = max(found.values())
            if len(found) > 1:
                values |= {f"top{k}/{name}": value for name, value in found.items()}
        return values

    return run


def topk(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of rows whose label is among the `k` highest scores, in %."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    # Ties, and what is not a number, count against the label: equal scores for all
    # classes are no success.
    above = (~(scores < own)).sum(axis=1) - 1
    return 100.0 * float((above < k).mean())
