"""Which example stands at a global position: seeded, the same for any host count."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int

from ddae.settings import UserError


@dataclasses.dataclass(frozen=True)
class Order:
    """Epoch after epoch of a seeded permutation; each drops the remainder of a batch.

    batch_size: global. Position g = step * batch_size + row names an example of the
    whole run. Raises `UserError` where an epoch does not fill one batch.
    """

    num_examples: int
    batch_size: int
    seed: int

    def __post_init__(self):
        if self.batch_size > self.num_examples:
            raise UserError(
                f"config.batch_size={self.batch_size} is larger than the training set"
                f" of {self.num_examples} images; lower it"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_examples // self.batch_size

    def batch(self, step: int) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
        """(global positions, example indices) of the batch at `step`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.batch_size
        indices = _permutation(self.seed, epoch, self.num_examples)
        positions = step * self.batch_size + np.arange(self.batch_size)
        return positions, indices[start : start + self.batch_size]


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> Int[np.ndarray, " n"]:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)
