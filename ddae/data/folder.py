"""Any folder split/class/*.jpg through tf.data: CIFAR-10, ImageNet, your own images."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from ddae.data.augment import Augment
from ddae.data.order import Order
from ddae.settings import UserError

if TYPE_CHECKING:
    from ddae.data import Batch, DataSettings

EXTENSIONS = (".jpg", ".jpeg", ".png")


class FolderSource:
    """A `Source` of image files; classes are the sub-folders, in alphabetical order.

    Training images are cropped and resized to `image_shape` by the augmentation; others
    are resized so that the image covers it, and centre-cropped. Bicubic with antialias.
    """

    def __init__(self, root: str, image_shape: tuple[int, int, int]):
        self.image_shape = image_shape
        self.classes, files, labels = _scan(root)
        self.num_classes = len(self.classes)
        self.files = np.array(files)
        self.labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self.files)

    def train_batches(
        self, order: Order, first_step: int, rows: slice, augment: Augment
    ) -> Iterator[Batch]:
        def chosen() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for step in itertools.count(first_step):
                positions, indices = order.batch(step)
                yield positions[rows], indices[rows]

        def read(position: Any, index: Any) -> Any:
            image = _augment(
                self._read(index), self.image_shape, augment, order.seed, position
            )
            return self._example(image, index)

        return self._pipeline(chosen, read)

    def batches(
        self, indices: Int[np.ndarray, " k"], batch_size: int
    ) -> Iterator[Batch]:
        def chosen() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for start in range(0, len(indices), batch_size):
                taken = indices[start : start + batch_size]
                yield taken, taken

        def read(position: Any, index: Any) -> Any:
            return self._example(_centre(self._read(index), self.image_shape), index)

        return self._pipeline(chosen, read)

    def _pipeline(self, chosen: Any, read: Any) -> Iterator[Batch]:
        """Batches of `read(position, index)` over the rows that `chosen` yields."""
        tf = tensorflow()
        rows = tf.TensorSpec((None,), tf.int64)
        pairs = tf.data.Dataset.from_generator(chosen, output_signature=(rows, rows))
        parallel = tf.data.AUTOTUNE

        def one_batch(positions: Any, indices: Any) -> Any:
            examples = tf.data.Dataset.from_tensor_slices((positions, indices))
            examples = examples.map(
                read, num_parallel_calls=parallel, deterministic=True
            )
            return examples.batch(tf.size(indices, out_type=tf.int64))

        return pairs.flat_map(one_batch).prefetch(2).as_numpy_iterator()

    def _read(self, index: Any) -> Any:
        tf = tensorflow()
        data = tf.io.read_file(tf.gather(self.files, index))
        channels = self.image_shape[2]
        return tf.io.decode_image(data, channels=channels, expand_animations=False)

    def _example(self, image: Any, index: Any) -> Any:
        return {"image": image, "label": tensorflow().gather(self.labels, index)}


def folder_source(
    data: DataSettings, split: str, image_shape: tuple[int, int, int]
) -> FolderSource:
    """`data.dir`/SPLIT/CLASS/*.jpg (.jpeg, .png); `UserError` where there is none."""
    name = data.train_split if split == "train" else data.eval_split
    if not data.dir:
        raise UserError(
            "config.data.dir is empty; give the folder with --config.data.dir=..."
        )
    if image_shape[2] not in (1, 3):
        raise UserError(f"image files have 1 or 3 channels, not {image_shape[2]}")
    if split == "train" and data.augment.crop == "shift":
        raise UserError(
            "config.data.augment.crop='shift' is for arrays in memory; image files take"
            " 'random_resized' or 'none'"
        )
    return FolderSource(os.path.join(data.dir, name), image_shape)


def tensorflow() -> Any:
    """TensorFlow, imported when first needed and kept off the accelerator."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return tf


def _scan(root: str) -> tuple[list[str], list[str], list[int]]:
    expected = f"expected {os.path.join(root, 'CLASS', '*.jpg')}"
    if not os.path.isdir(root):
        raise UserError(f"no folder {root}; {expected}")
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    files, labels = [], []
    for label, name in enumerate(classes):
        for entry in sorted(os.listdir(os.path.join(root, name))):
            if entry.lower().endswith(EXTENSIONS):
                files.append(os.path.join(root, name, entry))
                labels.append(label)
    if not files:
        raise UserError(f"no images under {root}; {expected}")
    return classes, files, labels


def _augment(
    image: Any,
    image_shape: tuple[int, int, int],
    augment: Augment,
    seed: int,
    position: Any,
) -> Any:
    tf = tensorflow()
    seeds = tf.stack([tf.constant(seed, tf.int64), position])
    if augment.crop == "random_resized":
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(image),
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            seeds,
            min_object_covered=0.0,
            area_range=augment.scale,
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        image = _resize(tf.slice(image, begin, size), image_shape)
    else:
        image = _centre(image, image_shape)
    if augment.flip:
        image = tf.image.stateless_random_flip_left_right(image, seeds + [1, 0])
    return image


def _centre(image: Any, image_shape: tuple[int, int, int]) -> Any:
    """The largest centred crop of the right aspect, resized."""
    tf = tensorflow()
    height, width, _ = image_shape
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = tf.minimum(shape[0] / height, shape[1] / width)
    h = tf.cast(tf.round(height * scale), tf.int32)
    w = tf.cast(tf.round(width * scale), tf.int32)
    top, left = (tf.shape(image)[0] - h) // 2, (tf.shape(image)[1] - w) // 2
    return _resize(image[top : top + h, left : left + w], image_shape)


def _resize(image: Any, image_shape: tuple[int, int, int]) -> Any:
    tf = tensorflow()
    image = tf.image.resize(image, image_shape[:2], method="bicubic", antialias=True)
    image = tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)
    return tf.ensure_shape(image, image_shape)
