"""How a tokenizer uses its codebook on held-out images, and what it gives back."""

from typing import Any

import numpy as np

from ddae.data import Splits, sample
from ddae.eval.evaluator import OnDevices, over
from ddae.settings import UserError
from ddae.tasks import Task
from ddae.tasks.tokenize import Tokenize


def make_codes(
    task: Task, splits: Splits, on_devices: OnDevices, *, num_held_out: int = 0
):
    """An evaluator: codes_used, the share of codes that some patch takes, in %;
    code_perplexity, the exponential of the entropy of their shares, of at most as many
    as there are codes; code_cosine, of decoded codes and the teacher's features.

    num_held_out: how many images, drawn once at random; 0 takes all.
    """
    if not isinstance(task, Tokenize):
        raise UserError("config.evaluators.codes wants config.task=tokenize; remove it")
    tokens = on_devices(task.tokens)

    def run(params: Any, step: int) -> dict[str, float | np.ndarray]:
        indices = sample(splits.held_out, num_held_out)
        found, _ = over(splits.held_out, indices, tokens, params, "codes")
        ids = found["ids"].astype(int).reshape(-1)
        counts = np.bincount(ids, minlength=task.settings.codes)
        shares = counts[counts > 0] / counts.sum()
        return {
            "codes_used": 100.0 * float((counts > 0).mean()),
            "code_perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
            "code_cosine": float(found["cosine"].mean()),
        }

    return run
