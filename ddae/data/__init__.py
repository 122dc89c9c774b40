"""Where images come from. A new source is a file and a row in SOURCES."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, Protocol, TypedDict

import numpy as np
from rich.console import Console
from rich.progress import track

from ddae import settings
from ddae.data.arrays import ArraySource, digits_sources, npz_sources
from ddae.data.augment import Augment
from ddae.data.folder import folder_sources
from ddae.data.order import Order
from ddae.data.scene_augment import SceneSettings
from ddae.data.scenes import scene_sources
from ddae.data.tar import tar_sources
from ddae.data.tfds import tfds_sources
from ddae.settings import UserError
from ddae.storage import is_remote

Batch = dict[str, np.ndarray]
"""image: uint8, or float32 in [0, 1], [b, height, width, c]; label: int32 [b],
of scenes [b, height, width]."""

CHUNK = 256
"""Images read at a time where a command goes through a whole set."""

Rows = slice | np.ndarray
"""Which rows of a global batch a host reads."""


class Identity(TypedDict):
    """What a set of images is, to tell it from another; fingerprint: a checksum."""

    name: str
    split: str
    examples: int
    fingerprint: int


class Source(Protocol):
    """A labelled set of images, all read at one size."""

    num_classes: int
    class_names: tuple[str, ...]  # () where nobody has named them
    identity: Identity
    bad: dict[int, str]  # records left out so far, and why

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """What a person would look for."""
        ...

    def train_batches(
        self, order: Order, first_step: int, rows: Rows, augment: Augment
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
    """Which images, and how they are read.

    name: a row of SOURCES, and after a slash the set: "tfds/imagenet2012". dir: its
    folder. copy_to: of tar and tfds/, a folder of this machine to which files are
    copied, to be read there. mean, std: by channel, in [0, 1]. eval_crop: side of the
    centre that is kept of a held-out image, .875 in MAE's recipe; digits and npz keep
    all. on_error: what a record that cannot be decoded does to the run; max_bad: how
    many may be skipped. scenes: of sets with a label for every pixel. on_device: all
    training images, of a set in memory, lie on every device; the host sends their
    indices.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dir: str = ""
    copy_to: str = ""
    train_split: str = "train"
    eval_split: str = "test"
    eval_crop: float = 1.0
    on_error: Literal["raise", "skip"] = "raise"
    max_bad: int = 100
    augment: Augment = Augment()
    scenes: SceneSettings | None = None
    on_device: bool = False

    def __post_init__(self):
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std} must be positive")
        if self.max_bad < 0:
            raise ValueError(f"max_bad={self.max_bad} must not be negative")
        if not 0.0 < self.eval_crop <= 1.0:
            raise ValueError(f"eval_crop={self.eval_crop} is not in (0, 1]")


@dataclasses.dataclass(frozen=True)
class Splits:
    """The training set, the held-out set, and how training images are augmented.

    images: all of the training set, where they are to lie on the devices.
    """

    train: Source
    held_out: Source
    augment: Augment
    images: np.ndarray | None = None

    @property
    def num_bad(self) -> int:
        """Records that this process has left out so far."""
        return len(self.train.bad) + len(self.held_out.bad)

    def train_batches(
        self, order: Order, first_step: int, rows: Rows
    ) -> Iterator[Batch]:
        """Endless batches from `first_step` on: these rows of each. Where the images
        lie on the devices, `index` stands for `image`."""
        if self.images is None:
            return self.train.train_batches(order, first_step, rows, self.augment)
        assert isinstance(self.train, ArraySource)
        return self.train.index_batches(order, first_step, rows)


SourceBuilder = Callable[[DataSettings, tuple[int, int, int]], tuple[Source, Source]]

SOURCES: dict[str, SourceBuilder] = {
    "digits": digits_sources,
    "npz": npz_sources,
    "folder": folder_sources,
    "scenes": scene_sources,
    "tar": tar_sources,
    "tfds": tfds_sources,
}

IN_MEMORY = ("digits", "npz")
"""Sources that take their images as they are."""

ON_DISK = ("folder", "npz", "scenes")
"""Sources that read no bucket."""

OF_FILES = ("tar", "tfds")
"""Those of few files with many images each, which can be copied first."""


def crop_of(section: Mapping[str, Any]) -> float:
    """The share of a side that evaluations of a run with this config.data keep."""
    if section["name"] in IN_MEMORY:
        return 1.0
    return section.get("eval_crop", DataSettings.eval_crop)  # imports may leave it out


def sample(source: Source, limit: int) -> np.ndarray:
    """Indices of all examples, or of `limit` drawn once at random, ascending; 0 takes
    all."""
    if not limit or limit >= len(source):
        return np.arange(len(source))
    return np.sort(np.random.default_rng(0).permutation(len(source))[:limit])


def shown_batches(source: Source, indices: np.ndarray, label: str) -> Iterable[Batch]:
    """The examples at `indices` in batches, with a bar on stderr of how far it is."""
    return track(
        source.batches(indices, CHUNK),
        label,
        total=-(-len(indices) // CHUNK),
        console=Console(stderr=True),
    )


def from_config(config: Mapping[str, Any], image_shape: tuple[int, int, int]) -> Splits:
    """Both splits of config.data at (height, width, channels).

    Raises `UserError` for an unknown name, a missing or empty folder, or images of
    another shape.
    """
    return from_settings(
        settings.build(DataSettings, config["data"], "data."), image_shape
    )


def from_settings(data: DataSettings, image_shape: tuple[int, int, int]) -> Splits:
    """The same, of settings that are built already."""
    kind = data.name.partition("/")[0]
    if kind not in SOURCES:
        raise UserError(
            f"config.data.name={data.name!r} is not one of {sorted(SOURCES)}"
        )
    if is_remote(data.dir) and kind in ON_DISK:
        raise UserError(
            f"config.data.name={kind} reads from a disk, not {data.dir}; tar and tfds/"
            " read from a bucket"
        )
    if data.copy_to and kind not in OF_FILES:
        raise UserError(
            f"config.data.copy_to={data.copy_to} is for tar and tfds/, whose files are"
            f" few, not for config.data.name={data.name}"
        )
    # train/ is train: the same images, and not to be compared as others.
    names = {"train_split": data.train_split, "eval_split": data.eval_split}
    names = {key: os.path.normpath(name) for key, name in names.items() if name}
    train, held_out = SOURCES[kind](dataclasses.replace(data, **names), image_shape)
    for key, on in (
        ("augment.on_device", data.augment.on_device),
        ("on_device", data.on_device),
    ):
        if on and not isinstance(train, ArraySource):
            raise UserError(
                f"config.data.{key}=True is for images in memory, not for"
                f" config.data.name={data.name}; use npz files"
            )
    if not data.on_device:
        return Splits(train, held_out, data.augment)
    if data.augment.on_host:
        raise UserError(
            "config.data.on_device=True leaves crops and flips to the device; set"
            " config.data.augment.on_device=True too"
        )
    assert isinstance(train, ArraySource)
    return Splits(train, held_out, data.augment, train.images)
