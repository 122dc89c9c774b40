"""Where images come from. A new source is a file and a row in SOURCES."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

import numpy as np

from ddae import settings
from ddae.data.arrays import digits_source, npz_source
from ddae.data.augment import Augment
from ddae.data.folder import folder_source
from ddae.data.order import Order
from ddae.settings import UserError

Batch = dict[str, np.ndarray]
"""image: uint8, or float32 in [0, 1], [b, height, width, c]; label: int32 [b]."""


class Source(Protocol):
    """A labelled set of images, all read at one size."""

    num_classes: int

    def __len__(self) -> int: ...

    def train_batches(
        self, order: Order, first_step: int, rows: slice, augment: Augment
    ) -> Iterator[Batch]:
        """Endless augmented batches from `first_step` on: these rows of each batch.

        Everything random is a function of (seed, global position of the example), so a
        run restarted at a step sees what it would have seen.
        """
        ...

    def batches(self, indices: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """The examples at `indices`, in order; the last batch may be short."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """name: a row of SOURCES. dir: its folder. mean, std: by channel, in [0, 1]."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dir: str = ""
    train_split: str = "train"
    eval_split: str = "test"
    augment: Augment = Augment()


@dataclasses.dataclass(frozen=True)
class Splits:
    """The training set, the held-out set, and how training images are augmented."""

    train: Source
    held_out: Source
    augment: Augment


SourceBuilder = Callable[
    [DataSettings, Literal["train", "held_out"], tuple[int, int, int]], Source
]

SOURCES: dict[str, SourceBuilder] = {
    "digits": digits_source,
    "npz": npz_source,
    "folder": folder_source,
}


def from_config(config: Mapping[str, Any], image_shape: tuple[int, int, int]) -> Splits:
    """Both splits of config.data at (height, width, channels).

    Raises `UserError` for an unknown name, a missing or empty folder, or images of
    another shape.
    """
    data = settings.build(DataSettings, config["data"], "data.")
    if min(data.std) <= 0:
        raise UserError(f"config.data.std={data.std} must be positive")
    if data.name not in SOURCES:
        raise UserError(
            f"config.data.name={data.name!r} is not one of {sorted(SOURCES)}"
        )
    source = SOURCES[data.name]
    return Splits(
        train=source(data, "train", image_shape),
        held_out=source(data, "held_out", image_shape),
        augment=data.augment,
    )
