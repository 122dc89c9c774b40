"""Images in memory, with no TensorFlow; scikit-learn's scanned digits among them."""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, Shaped

from ddae.data.augment import Augment, of_arrays
from ddae.data.files import BROKEN
from ddae.data.order import Order
from ddae.settings import UserError

if TYPE_CHECKING:
    from ddae.data import Batch, DataSettings, Identity, Rows


class ArraySource:
    """A `Source` of images, uint8 or float32 in [0, 1], with int labels from 0 on."""

    def __init__(
        self,
        images: Shaped[np.ndarray, "n h w c"],
        labels: Int[np.ndarray, " n"],
        name: str,
        split: str,
        class_names: tuple[str, ...] = (),
    ):
        if len(images) != len(labels):
            raise UserError(f"{name}: {len(images)} images but {len(labels)} labels")
        if not len(images):
            raise UserError(f"{name} {split}: there is no image in it")
        if labels.min() < 0:
            at = int(np.argmin(labels))
            raise UserError(f"{name} {split}: label {labels[at]} of record {at} is < 0")
        if labels.max() >= 2**31 - 1:
            at = int(np.argmax(labels))
            raise UserError(
                f"{name} {split}: label {labels[at]} of record {at} is no class number;"
                " count the classes from 0 on"
            )
        self.images, self.labels = images, labels.astype(np.int32)
        self.num_classes = max(int(labels.max()) + 1, len(class_names))
        self.class_names = class_names
        self.identity: Identity = {
            "name": name,
            "split": split,
            "examples": len(images),
            "fingerprint": zlib.crc32(_memory(labels), zlib.crc32(_memory(images))),
        }
        self.bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        return f"record {index} of {self.identity['split']}"

    def train_batches(
        self, order: Order, first_step: int, rows: Rows, augment: Augment
    ) -> Iterator[Batch]:
        for step in itertools.count(first_step):
            positions, indices = (ids[rows] for ids in order.batch(step))
            images = of_arrays(self.images[indices], positions, order.seed, augment)
            yield {"image": images, "label": self.labels[indices]}

    def index_batches(
        self, order: Order, first_step: int, rows: Rows
    ) -> Iterator[Batch]:
        """`train_batches` with the `index` of every image in its place."""
        for step in itertools.count(first_step):
            indices = order.batch(step)[1][rows].astype(np.int32)
            yield {"index": indices, "label": self.labels[indices]}

    def batches(
        self, indices: Int[np.ndarray, " k"], batch_size: int
    ) -> Iterator[Batch]:
        for start in range(0, len(indices), batch_size):
            taken = indices[start : start + batch_size]
            yield {"image": self.images[taken], "label": self.labels[taken]}


def _memory(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).data


def digits_sources(
    data: DataSettings, image_shape: tuple[int, int, int]
) -> tuple[ArraySource, ArraySource]:
    """scikit-learn's 1797 scanned digits, 8 x 8 grey; every fifth one is held out."""
    from sklearn.datasets import load_digits

    refuse_colours(data)
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16.0).astype(np.float32)
    if images.shape[1:] != image_shape:
        raise UserError(
            f"the scanned digits are (8, 8, 1), not {image_shape}; set"
            " config.image_size=8 and config.model.channels=1"
        )
    held_out = np.arange(len(images)) % 5 == 0
    names = tuple("0123456789")
    return (
        ArraySource(images[~held_out], labels[~held_out], "digits", "train", names),
        ArraySource(images[held_out], labels[held_out], "digits", "held out", names),
    )


def npz_sources(
    data: DataSettings, image_shape: tuple[int, int, int]
) -> tuple[ArraySource, ArraySource]:
    """`data.dir`/SPLIT.npz with images [n, h, w, c], uint8 or float32, and labels [n];
    class_names [k], where it has them.

    Raises `UserError` where a file is missing, is no such archive, or holds images of
    another shape or labels, or names of them, that the training set has not.
    """
    refuse_colours(data)
    train = _npz(data, data.train_split, image_shape)
    held_out = _npz(data, data.eval_split, image_shape)
    if held_out.labels.max() >= train.num_classes:
        at = int(np.argmax(held_out.labels))
        raise UserError(
            f"{data.eval_split}.npz: label {held_out.labels[at]} of record {at} is not"
            f" below the {train.num_classes} classes of the training set"
        )
    names = zip(train.class_names, held_out.class_names, strict=False)
    for number, (one, two) in enumerate(names):
        if one != two:
            raise UserError(
                f"{data.eval_split}.npz: class {number} is {two!r}, and {one!r} in the"
                " training set; number the labels alike"
            )
    return train, held_out


def _npz(
    data: DataSettings, name: str, image_shape: tuple[int, int, int]
) -> ArraySource:
    path = os.path.join(data.dir, f"{name}.npz")
    if not os.path.isfile(path):
        raise UserError(
            f"no file {path}; config.data.train_split and eval_split name the files, of"
            " arrays images and labels"
        )
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            images, labels = np.asarray(file["images"]), np.asarray(file["labels"])
            names = np.asarray(file["class_names"] if "class_names" in file else [])
            names = names.astype(str)
    except (OSError, *BROKEN) as error:
        raise UserError(
            f"{path} is not an archive of images and labels: {error}"
        ) from error
    if images.ndim == 3:
        raise UserError(
            f"{path} holds images of {images.shape[1:]}, without channels; save"
            " images[..., None]"
        )
    if images.shape[1:] != image_shape:
        raise UserError(
            f"{path} holds images of {images.shape[1:]}, not {image_shape}; set"
            " config.image_size and config.model.channels"
        )
    if images.dtype != np.uint8 and not _in_unit_range(images):
        numbers = images.size and images.dtype.kind in "biuf"
        span = f", from {images.min()} to {images.max()}" if numbers else ""
        raise UserError(
            f"{path} holds images of {images.dtype}{span}; give uint8, or float32 in"
            " [0, 1]"
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path}: labels must be a row of whole numbers")
    if names.ndim != 1:
        raise UserError(f"{path}: class_names must be a row of names")
    if len(names) and len(names) <= labels.max(initial=0):
        raise UserError(
            f"{path}: class_names has {len(names)} names, the labels go up to"
            f" {labels.max()}"
        )
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
    return ArraySource(images, labels, "npz", name, tuple(names.tolist()))


def _in_unit_range(images: np.ndarray) -> bool:
    floats = np.issubdtype(images.dtype, np.floating)
    return floats and (not images.size or 0.0 <= images.min() <= images.max() <= 1.0)


def refuse_colours(data: DataSettings) -> None:
    """Raises `UserError` for augmentation that wants image files."""
    if data.augment.colours:
        raise UserError(
            "colours are augmented of image files, not of arrays in memory: give"
            " --config.data.augment.rand_augment=0, or color_jitter=0, where it is set"
        )
