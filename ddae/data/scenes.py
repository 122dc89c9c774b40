"""Images with a label for every pixel, in the layout of the SceneParsing benchmark.

ADEChallengeData2016 has images/{training,validation}/X.jpg beside
annotations/{training,validation}/X.png, whose values are 0 for no label and k for
class k of 1 to 150. Any set of that layout is read, from its folder or its zip.
"""

from __future__ import annotations

import collections
import io
import itertools
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from PIL import Image, UnidentifiedImageError

from ddae.data.augment import Augment
from ddae.data.images import PAUSES, RecordError, pass_over
from ddae.data.order import Order
from ddae.data.scene_augment import (
    IGNORED,
    Labels,
    Pixels,
    SceneSettings,
    augmented,
    resized,
    resized_labels,
)
from ddae.data.scene_files import Place, by_stem, set_at
from ddae.settings import UserError
from ddae.storage import StorageError, patiently, unusable

if TYPE_CHECKING:
    from ddae.data import Batch, DataSettings, Identity, Rows

AHEAD = 2
"""Batches made ahead of the one that is taken."""

UNREADABLE = (
    EOFError,
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What Pillow and zipfile raise for damaged files."""


class SceneSource:
    """A `Source` whose labels are int32 [b, h, w]: 0 to num_classes - 1, or IGNORED.

    Training crops are a function of (seed, global position). A record that cannot be
    decoded, whose image and labels differ in size, or with a label above num_classes,
    is *bad*: with on_error "raise" it stops the run by name; with "skip" the next good
    one stands in for it in training, and evaluations leave it out.

    Raises `UserError` for an image without labels or labels without an image.
    """

    def __init__(
        self,
        root: Place,
        split: str,
        image_shape: tuple[int, int, int],
        data: DataSettings,
        scenes: SceneSettings,
    ):
        self.root, self.split = root, split
        self.image_shape, self.data, self.scenes = image_shape, data, scenes
        self.num_classes = scenes.num_classes
        self.class_names = scenes.names or _class_names(root, scenes.num_classes)
        keys = [name.replace(" ", "_") for name in self.class_names]  # of the log
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise UserError(f"two classes are called {min(twice)!r} in the log")
        self.fill = np.asarray(np.round(255.0 * np.asarray(data.mean)), np.uint8)
        self.pairs = _pairs(root, split)
        names = "\n".join(itertools.chain.from_iterable(self.pairs))
        self.identity: Identity = {
            "name": "scenes",
            "split": split,
            "examples": len(self.pairs),
            "fingerprint": zlib.crc32(os.fsencode(names)),
        }
        self.bad: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.pairs)

    def key(self, index: int) -> str:
        image, labels = self.pairs[index]
        text = f"{self.root / image} with {self.root / labels}"
        return text.encode(errors="backslashreplace").decode()  # a name may be no text

    def train_batches(
        self, order: Order, first_step: int, rows: Rows, augment: Augment
    ) -> Iterator[Batch]:
        def example(position: int, index: int) -> tuple[Pixels, Labels]:
            image, labels = self._good(index)
            random = np.random.Generator(np.random.Philox(key=[order.seed, position]))
            crop = self.image_shape[:2]
            return augmented(
                image, labels, crop, self.scenes, augment.flip, self.fill, random
            )

        pool = ThreadPoolExecutor(os.cpu_count())
        ahead: collections.deque[list[Any]] = collections.deque()
        try:
            for step in itertools.count(first_step):
                positions, indices = (ids[rows].tolist() for ids in order.batch(step))
                ahead.append(
                    [
                        pool.submit(example, position, index)
                        for position, index in zip(positions, indices, strict=True)
                    ]
                )
                if len(ahead) > AHEAD:
                    yield _stacked([part.result() for part in ahead.popleft()])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def batches(
        self, indices: Int[np.ndarray, " k"], batch_size: int
    ) -> Iterator[Batch]:
        """Central crops of images that are resized to cover `image_shape`."""
        left = [int(index) for index in indices]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while left:
                taken, left = left[:batch_size], left[batch_size:]
                found = [scene for scene in pool.map(self.scene, taken) if scene]
                if found:
                    yield _stacked([self._centre(*scene) for scene in found])

    def scene(self, index: int) -> tuple[Pixels, Labels] | None:
        """An image and its labels at their own size; None where it is bad and passed
        over."""
        if index in self.bad:
            return None
        try:
            return self._read(index)
        except RecordError as error:
            self._condemn(index, error)
            return None

    def shape(self, index: int) -> tuple[int, int] | None:
        """(height, width) of an image, from its header, as its labels have it; None
        where it is bad and passed over."""
        try:
            image, labels = (self._size(path) for path in self.pairs[index])
            self._check_sizes(image, labels)
            return image[1], image[0]
        except RecordError as error:
            self._condemn(index, error)
            return None

    def _good(self, index: int) -> tuple[Pixels, Labels]:
        """The example at `index`, or the first good one after it."""
        for step in range(len(self)):
            scene = self.scene((index + step) % len(self))
            if scene is not None:
                return scene
        raise UserError(f"{self.root / 'images' / self.split}: all are bad")

    def _read(self, index: int) -> tuple[Pixels, Labels]:
        opened = [self._open(path) for path in self.pairs[index]]
        self._check_sizes(opened[0].size, opened[1].size)
        try:
            image, values = _rgb(opened[0]), np.asarray(opened[1])
        except UNREADABLE as error:
            raise RecordError(f"cannot be decoded ({error})") from error
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
            raise RecordError(f"labels are {opened[1].mode}, not one whole number each")
        labels = values.astype(np.int32)
        if labels.max() > self.num_classes:
            row, column = np.argwhere(labels > self.num_classes)[0]
            raise RecordError(
                f"label {labels[row, column]} at row {row}, column {column} is above"
                f" config.data.scenes.num_classes={self.num_classes}"
            )
        return image, np.where(labels == 0, IGNORED, labels - 1).astype(np.int32)

    def _open(self, path: str) -> Image.Image:
        """With its header read; `RecordError` where it has none."""
        return self._of_file(path, lambda file: Image.open(io.BytesIO(file.read())))

    def _size(self, path: str) -> tuple[int, int]:
        """(width, height); no more than the header is read."""

        def size(file: Any) -> tuple[int, int]:
            with Image.open(file) as image:
                return image.size

        return self._of_file(path, size)

    def _of_file(self, path: str, read: Callable[[Any], Any]) -> Any:
        """What `read` makes of the file; `RecordError` where that is no image. Where
        the storage fails it is read again after each of `PAUSES`; then it is bad if
        such records are passed over, and else `StorageError`."""
        said = f"{self.root / path} cannot be read"

        def opened() -> Any:
            with (self.root / path).open("rb") as file:
                return read(file)

        def failing(error: Exception) -> str:
            return said if isinstance(unusable(said, error), StorageError) else ""

        try:
            return patiently(opened, PAUSES, failing)
        except UNREADABLE as error:
            if not failing(error):
                raise RecordError(f"{path} is no image that can be read") from error
            if self.data.on_error == "raise":
                raise unusable(said, error) from error
            raise RecordError(f"{path} cannot be read ({error})") from error

    def _check_sizes(self, image: tuple[int, int], labels: tuple[int, int]) -> None:
        if image != labels:
            raise RecordError(
                f"the image is {image[0]} x {image[1]}, its labels are"
                f" {labels[0]} x {labels[1]}"
            )

    def _condemn(self, index: int, error: RecordError) -> None:
        why = str(error).encode(errors="backslashreplace").decode()  # it names files
        with self._lock:
            pass_over(self, self.data, index, why, error)

    def _centre(self, image: Pixels, labels: Labels) -> tuple[Pixels, Labels]:
        size = self.image_shape[:2]
        scale = max(want / have for want, have in zip(size, labels.shape, strict=True))
        shape = tuple(
            max(want, round(have * scale))
            for want, have in zip(size, labels.shape, strict=True)
        )
        top, left = ((have - want) // 2 for have, want in zip(shape, size, strict=True))
        window = (slice(top, top + size[0]), slice(left, left + size[1]))
        return resized(image, shape)[window], resized_labels(labels, shape)[window]


def scene_sources(
    data: DataSettings, image_shape: tuple[int, int, int]
) -> tuple[SceneSource, SceneSource]:
    """Both splits of the set at `data.dir`, of the classes of `data.scenes`."""
    if data.scenes is None:
        raise UserError("config.data.scenes is missing; it needs num_classes")
    if image_shape[2] != 3:
        raise UserError("scenes are read with 3 channels; set config.model.channels=3")
    augment = data.augment
    if augment.crop != "none" or augment.colours or data.eval_crop != 1.0:
        raise UserError(
            "scenes are cut and coloured as config.data.scenes says: set"
            " config.data.augment.crop=none, rand_augment=0, color_jitter=0 and"
            " config.data.eval_crop=1"
        )
    root = set_at(data.dir)
    train, held_out = (
        SceneSource(root, split, image_shape, data, data.scenes)
        for split in (data.train_split, data.eval_split)
    )
    return train, held_out


def _pairs(root: Place, split: str) -> list[tuple[str, str]]:
    """(image, labels) of each scene, in alphabetical order."""
    folders = (f"images/{split}", f"annotations/{split}")
    places = [root / folder for folder in folders]
    images, labels = map(by_stem, places)
    if not images and not labels:
        raise UserError(
            f"no images under {places[0]}; expected {places[0]}/X.jpg with"
            f" {places[1]}/X.png"
        )
    for have, others, at, missing in (
        (images, labels, *places),
        (labels, images, *reversed(places)),
    ):
        alone = sorted(have.keys() - others.keys())
        if alone:
            what = "labels" if have is images else "image"
            raise UserError(
                f"{at}/{have[alone[0]]} has no {what} in {missing} ({len(alone)} such"
                " files); add or remove"
            )
    return [
        (f"{folders[0]}/{images[stem]}", f"{folders[1]}/{labels[stem]}")
        for stem in sorted(images)
    ]


def _class_names(root: Place, num_classes: int) -> tuple[str, ...]:
    """The first name of each class in the release's table, or class 1, class 2, ..."""
    table = root / "objectInfo150.txt"
    if table.is_file():
        try:
            text = table.read_text(encoding="utf-8", errors="replace")
        except UNREADABLE as error:
            raise unusable(f"{table} cannot be read", error) from error
        lines = text.strip().splitlines()[1:]
        if len(lines) == num_classes:
            return tuple(line.split("\t")[-1].split(",")[0].strip() for line in lines)
    return tuple(f"class {number}" for number in range(1, num_classes + 1))


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off, not scale
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        image = Image.fromarray(grey)
    return np.asarray(image.convert("RGB"))


def _stacked(examples: list[tuple[Pixels, Labels]]) -> Batch:
    images, labels = zip(*examples, strict=True)
    return {"image": np.stack(images), "label": np.stack(labels)}
