"""Images in memory, with no TensorFlow; scikit-learn's scanned digits among them."""

from __future__ import annotations

import itertools
import os
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, Shaped

from ddae.data.augment import Augment, shift_and_flip
from ddae.data.order import Order
from ddae.settings import UserError

if TYPE_CHECKING:
    from ddae.data import Batch, DataSettings


class ArraySource:
    """A `Source` of images, uint8 or float32 in [0, 1], with int labels."""

    def __init__(
        self, images: Shaped[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"]
    ):
        if len(images) != len(labels):
            raise UserError(f"{len(images)} images but {len(labels)} labels")
        self.images, self.labels = images, labels.astype(np.int32)
        self.num_classes = int(labels.max()) + 1

    def __len__(self) -> int:
        return len(self.images)

    def train_batches(
        self, order: Order, first_step: int, rows: slice, augment: Augment
    ) -> Iterator[Batch]:
        if augment.crop == "random_resized":
            raise UserError(
                "config.data.augment.crop='random_resized' reads image files;"
                " arrays in memory take 'shift' or 'none'"
            )
        return self._train_batches(order, first_step, rows, augment)

    def _train_batches(
        self, order: Order, first_step: int, rows: slice, augment: Augment
    ) -> Iterator[Batch]:
        for step in itertools.count(first_step):
            positions, indices = (ids[rows] for ids in order.batch(step))
            images = shift_and_flip(
                self.images[indices], positions, order.seed, augment
            )
            yield {"image": images, "label": self.labels[indices]}

    def batches(
        self, indices: Int[np.ndarray, " k"], batch_size: int
    ) -> Iterator[Batch]:
        for start in range(0, len(indices), batch_size):
            taken = indices[start : start + batch_size]
            yield {"image": self.images[taken], "label": self.labels[taken]}


def digits_source(
    data: DataSettings, split: str, image_shape: tuple[int, int, int]
) -> ArraySource:
    """scikit-learn's 1797 scanned digits, 8 x 8 grey; every fifth one is held out."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16.0).astype(np.float32)
    if images.shape[1:] != image_shape:
        raise UserError(
            f"the scanned digits are (8, 8, 1), not {image_shape}; set"
            " config.image_size=8 and config.model.channels=1"
        )
    held_out = np.arange(len(images)) % 5 == 0
    chosen = held_out if split == "held_out" else ~held_out
    return ArraySource(images[chosen], labels[chosen])


def npz_source(
    data: DataSettings, split: str, image_shape: tuple[int, int, int]
) -> ArraySource:
    """`data.dir`/SPLIT.npz with images [n, h, w, c], uint8 or float32, and labels [n].

    Raises `UserError` where the file is missing, is no such archive, or holds images of
    another shape.
    """
    name = data.train_split if split == "train" else data.eval_split
    path = os.path.join(data.dir, f"{name}.npz")
    if not os.path.isfile(path):
        raise UserError(
            f"no file {path}; expected arrays named images and labels in it"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not an archive of images and labels: {error}"
        ) from error
    if images.shape[1:] != image_shape:
        raise UserError(
            f"{path} holds images of {images.shape[1:]}, not {image_shape}; set"
            " config.image_size and config.model.channels"
        )
    return ArraySource(images, labels)
