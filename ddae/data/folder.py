"""A folder of image files, split/class/*.jpg: your own images, ImageNet, CIFAR."""

from __future__ import annotations

import collections
import os
import sys
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from rich.console import Console

from ddae.data.decode import tensorflow
from ddae.data.images import ImageSource
from ddae.settings import UserError

if TYPE_CHECKING:
    from ddae.data import DataSettings, Identity

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif"),
    *(".png", ".webp", ".bmp", ".gif"),
)

NO_IMAGES = frozenset(
    ".txt .text .md .rst .html .htm .xml .json .jsonl .csv .tsv .yaml .yml .toml .ini"
    " .cfg .log .cls .id .index .py .ipynb .sh .m .pdf .doc .docx .xls .xlsx .npy .npz"
    " .mat .pkl .pickle .pyd .pt .pth .ten .h5 .hdf5 .parquet .arrow .db .sqlite .zip"
    " .gz .tgz .tar .xz .bz2 .7z .rar .mp3 .mp4 .wav .flac .avi .mov .mkv .webm".split()
)
"""Endings of files that often lie beside images, and are passed over in silence. Files
of other endings are passed over with a warning."""


class FolderRecords:
    """`Records` of the image files under `root`, in alphabetical order.

    A record is a path; TensorFlow reads the file on the image's way.

    A file's class is the first folder on its way from `root`; files that lie directly
    in `root` have none, and share the label 0. `classes`: those of the training set,
    for a held-out one. Raises `UserError` for no images, a folder that cannot be read,
    or a class that is not one of `classes`.
    """

    def __init__(self, root: str, name: str, classes: tuple[str, ...] | None = None):
        self.root = root
        self.files = _scan(root)
        found = [
            file.partition(os.sep)[0] if os.sep in file else "" for file in self.files
        ]
        if "" in found and len(set(found)) > 1:
            print(
                f"warning: {found.count('')} images lie in {root} itself,"
                f" {self.files[found.index('')]} among them, and are a class of their"
                " own",
                file=sys.stderr,
                flush=True,
            )
        classes, self.labels = numbered(found, classes, f"{root} has a folder")
        self.num_classes, self.classes = len(classes), classes
        self.class_names = () if classes == ("",) else classes
        self.identity: Identity = {
            "name": "folder",
            "split": name,
            "examples": len(self.files),
            "fingerprint": zlib.crc32(os.fsencode("\n".join(self.files))),
        }

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> str:
        return self.read(index).decode(errors="backslashreplace")

    def read(self, index: int) -> bytes:
        return os.fsencode(os.path.join(self.root, self.files[index]))

    def read_many(self, indices: Int[np.ndarray, " k"]) -> list[bytes]:
        return [self.read(index) for index in indices]

    def parse(self, record: Any, index: Any) -> tuple[Any, Any]:
        tf = tensorflow()
        return tf.io.read_file(record), tf.gather(self.labels, index)


def folder_sources(
    data: DataSettings, image_shape: tuple[int, int, int]
) -> tuple[ImageSource, ImageSource]:
    """`data.dir`/SPLIT/CLASS/*.jpg or other image files; `UserError` for none."""
    if not data.dir:
        raise UserError(
            "config.data.dir is empty; give the folder with --config.data.dir=..."
        )
    folder, there = os.path.join(data.dir, data.train_split), _folders(data.dir)
    if there and not os.path.isdir(folder):
        raise UserError(
            f"no folder {folder}; {data.dir} has {there}; set config.data.dir to the"
            " folder that holds the splits, config.data.train_split to the name of one"
        )
    train = FolderRecords(folder, data.train_split)
    folder = os.path.join(data.dir, data.eval_split)
    if not os.path.isdir(folder):
        raise UserError(
            f"no folder {folder} of held-out images, {data.dir} has {there}; where"
            f" none are held out, --config.data.eval_split={data.train_split}"
        )
    held_out = train
    if data.eval_split != data.train_split:
        held_out = FolderRecords(folder, data.eval_split, train.classes)
    return (
        ImageSource(train, image_shape, data),
        ImageSource(held_out, image_shape, data),
    )


def _folders(root: str) -> str:
    """The names of the folders in `root`, the first few; empty for none."""
    try:
        names = sorted(os.listdir(root))
    except OSError:
        return ""
    found = [n for n in names if n[0] != "." and os.path.isdir(os.path.join(root, n))]
    return ", ".join(found[:6]) + ", ..." * (len(found) > 6)


def _unread(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def _check_link(folder: str, root: str) -> None:
    """Raises `UserError` for a link back to a folder on the way down to it, which may
    lead through other links."""
    if os.path.islink(folder):
        target, way = os.path.realpath(folder), os.path.dirname(folder)
        while len(way) >= len(root):
            if os.path.commonpath([target, os.path.realpath(way)]) == target:
                raise UserError(f"{folder} links back to {target}, which holds it")
            way = os.path.dirname(way)


def _scan(root: str) -> list[str]:
    """Paths of the image files below `root`, relative to it, in alphabetical order;
    what begins with a dot is passed over."""
    expected = (
        f"expected {os.path.join(root, 'CLASS', '*.jpg')}, or images of no class in"
        f" {root} itself"
    )
    if not os.path.isdir(root):
        raise UserError(f"no folder {root}; {expected}")
    files = []
    with Console(stderr=True).status(f"listing the images of {root}"):
        for folder, inner, names in os.walk(root, onerror=_unread, followlinks=True):
            inner[:] = [name for name in inner if not name.startswith(".")]
            for name in inner:
                _check_link(os.path.join(folder, name), root)
            below = os.path.relpath(folder, root)
            files += [
                os.path.normpath(os.path.join(below, name))
                for name in names
                if not name.startswith(".")
            ]
    found = [file for file in files if file.lower().endswith(EXTENSIONS)]
    said = unread(collections.Counter(map(ending, files)))
    if not found:
        raise UserError(f"no images under {root}; {said or expected}")
    warn_unread(f"under {root}", said)
    return sorted(found)


def numbered(
    found: Sequence[str], classes: tuple[str, ...] | None, where: str
) -> tuple[tuple[str, ...], Int[np.ndarray, " n"]]:
    """(the classes, the number among them of each that was `found`).

    classes: those of the training set, for a held-out one; None takes what was found,
    in alphabetical order. Raises `UserError`, which begins with `where`, for one that
    is not among them.
    """
    classes = tuple(sorted(set(found))) if classes is None else classes
    if unknown := sorted(set(found) - set(classes)):
        raise UserError(
            f"{where} {unknown[0]!r}, which the training set has not (without held-out"
            " images of its classes: eval_split=train); its classes are"
            f" {classes[0]!r} to {classes[-1]!r}"
            f"{_other_spelling(unknown[0], classes)}"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, np.array([numbers[name] for name in found], np.int64)


def _other_spelling(name: str, classes: tuple[str, ...]) -> str:
    """Says which of `classes` looks the same as `name`: e with an accent is one
    character or two."""
    looks = unicodedata.normalize("NFC", name)
    same = [c for c in classes if unicodedata.normalize("NFC", c) == looks]
    return f"; it has {same[0]!a}, and this is {name!a}: rename one" if same else ""


def ending(file: str) -> str:
    """.jpg of X.JPG; empty where there is none."""
    return os.path.splitext(file)[1].lower()


def unread(endings: Mapping[str, int]) -> str:
    """Says which files, given how many there are of each ending, are passed over though
    they may be images; empty for none."""
    passed = {
        kind: count
        for kind, count in endings.items()
        if kind not in EXTENSIONS and kind not in NO_IMAGES
    }
    most = sorted(passed, key=lambda kind: (-passed[kind], kind))
    counts = [f"{passed[kind]} end in {kind or 'nothing'}" for kind in most[:6]]
    others = [f"{len(most) - 6} other endings"] * (len(most) > 6)
    said = f"{', '.join(counts + others)}, which is not read"
    return f"{said} ({', '.join(EXTENSIONS)} are)" if passed else ""


def warn_unread(where: str, said: str) -> None:
    """Prints what `unread` has said, if anything, of the files there."""
    if said:
        print(f"warning: of the files {where} {said}", file=sys.stderr, flush=True)
