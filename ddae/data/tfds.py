"""TFDS image classification sets, read by index from ArrayRecord or TFRecord files."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from ddae.data.copies import copied
from ddae.data.decode import tensorflow
from ddae.data.files import Index, indexed, open_bytes, reading
from ddae.data.images import ImageSource, RecordError
from ddae.settings import UserError
from ddae.storage import AGAIN, StorageError, of_storage

if TYPE_CHECKING:
    from ddae.data import DataSettings, Identity

HEADER = struct.Struct("<QI")
"""Before a TFRecord: its length, and the masked checksum of that."""


class TfdsRecords:
    """`Records` of one split of a prepared TFDS set, "train" or "train[:10%]".

    The order is that of the set, which is the same in both file formats. copy_to: where
    the files are copied to first, if not empty. Raises `UserError` where the set has no
    image, no such split, or no files.
    """

    def __init__(self, builder: Any, split: str, copy_to: str = ""):
        info = builder.info
        try:
            files = info.splits[split].file_instructions
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{info.full_name} has no split {split!r}, but {sorted(info.splits)};"
                " set config.data.train_split and config.data.eval_split"
            ) from error
        if not files:
            raise UserError(f"{info.full_name} {split}: there is no image in it")
        self.name, self.split = info.full_name, split
        self._image, self._label = _features(info)
        label = info.features[self._label] if self._label else None
        self.num_classes = label.num_classes if label else 1
        self.class_names = tuple(label.names) if label else ()
        names = copied([str(file.filename) for file in files], copy_to)
        files = [
            dataclasses.replace(file, filename=name)
            for file, name in zip(files, names, strict=True)
        ]
        array_record = info.file_format.value == "array_record"
        self._files = ArrayRecords(files) if array_record else TFRecords(files)
        self.identity: Identity = {
            "name": f"tfds/{info.full_name}",
            "split": split,
            "examples": len(self._files),
            "fingerprint": zlib.crc32(repr(info.features).encode()),
        }

    def __len__(self) -> int:
        return len(self._files)

    def count(self) -> int:
        """How many records the files hold, whatever the set says of itself."""
        return self._files.count()

    def key(self, index: int) -> str:
        return f"{self.name} {self.split}, record {index}"

    def read(self, index: int) -> bytes:
        return self._files.read(index)

    def read_many(self, indices: Int[np.ndarray, " k"]) -> list[bytes]:
        return self._files.read_many(indices)

    def parse(self, record: Any, index: Any) -> tuple[Any, Any]:
        tf = tensorflow()
        wanted = {self._image: tf.io.FixedLenFeature((), tf.string)}
        if self._label:
            wanted[self._label] = tf.io.FixedLenFeature((), tf.int64)
        found = tf.io.parse_single_example(record, wanted)
        label = found[self._label] if self._label else tf.zeros((), tf.int64)
        return found[self._image], label


class ArrayRecords:
    """Records of ArrayRecord files, by the library's own reader, one at a time: asked
    for several, it begins a pool of threads each time, and takes several times as long.
    """

    def __init__(self, files: Sequence[Any]):
        try:
            from array_record.python import array_record_data_source as library
        except ModuleNotFoundError as error:
            raise UserError(
                "array_record is not installed (there are wheels for Linux and macOS);"
                " prepare the set with --file_format=tfrecord"
            ) from error
        self._files, self._source = files, library.ArrayRecordDataSource(files)
        self._read_all = reading(str(files[0].filename))

    def __len__(self) -> int:
        return len(self._source)

    def count(self) -> int:
        """How many records the files themselves say they hold."""
        from array_record.python.array_record_module import ArrayRecordReader

        return sum(ArrayRecordReader(f.filename).num_records() for f in self._files)

    def read(self, index: int) -> bytes:
        try:
            return self._source[index]
        except Exception as error:  # the library raises RuntimeError, IndexError, ...
            reason = str(error).split("\n")[0]
            raise RecordError(f"cannot be read: {reason}") from error

    def read_many(self, indices: Int[np.ndarray, " k"]) -> list[bytes]:
        return self._read_all(self.read, indices)


class TFRecords:
    """Records of TFRecord files at their offsets, each checked by its checksum.

    The offsets are found by walking the headers once, and kept in the user's cache
    folder. Raises `UserError` for a missing, truncated or foreign file.
    """

    def __init__(self, files: Sequence[Any]):
        self._paths = [str(file.filename) for file in files]
        offsets = _offsets(files)
        self._offsets = np.concatenate(
            [o[f.skip : f.skip + f.take] for o, f in zip(offsets, files, strict=True)]
        )
        self._shards = np.repeat(np.arange(len(files)), [f.take for f in files])
        self._read_all = reading(self._paths[0])

    def __len__(self) -> int:
        return len(self._offsets)

    def count(self) -> int:
        """How many records were found in the files."""
        return len(self._offsets)

    def read(self, index: int) -> bytes:
        from google_crc32c import value as crc32c

        path = self._paths[self._shards[index]]
        try:
            with open_bytes(path) as file:
                file.seek(int(self._offsets[index]))
                length, _ = HEADER.unpack(file.read(HEADER.size))
                data, footer = file.read(length), file.read(4)
        except (OSError, struct.error, tensorflow().errors.OpError) as error:
            raise RecordError(f"cannot be read from {path}: {error}") from error
        crc = crc32c(data)
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
        if footer != struct.pack("<I", masked):
            raise RecordError(f"checksum differs in {path}")
        return data

    def read_many(self, indices: Int[np.ndarray, " k"]) -> list[bytes]:
        return self._read_all(self.read, indices)


def tfds_sources(
    data: DataSettings, image_shape: tuple[int, int, int]
) -> tuple[ImageSource, ImageSource]:
    """The TFDS set of `data.name`, "tfds/SET", prepared under `data.dir`.

    An empty dir is TFDS's own default. Raises `UserError` where there is no copy.
    """
    builder = load_builder(data.name.partition("/")[2], data.dir)
    if not is_prepared(builder):
        directory = f" --data_dir={data.dir}" if data.dir else ""
        raise UserError(
            f"no prepared copy in {builder.data_dir}; make it with python -m"
            f" ddae.data.prepare {builder.name}{directory}"
        )
    train, held_out = (
        ImageSource(TfdsRecords(builder, split, data.copy_to), image_shape, data)
        for split in (data.train_split, data.eval_split)
    )
    return train, held_out


def load_builder(name: str, data_dir: str, file_format: str | None = None) -> Any:
    """TFDS's builder of the set; `UserError` for an unknown one."""
    tensorflow()
    import tensorflow_datasets as tfds

    kept: dict[str, Any] = {"file_format": file_format} if file_format else {}
    try:
        return tfds.builder(name, data_dir=data_dir or None, **kept)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        said = str(error).strip().partition("\n")[0] or "is it NAME:1.0.0?"
        raise UserError(f"TFDS knows no set {name!r}: {said}") from error
    except AssertionError as error:  # its way to refuse a version
        said = str(error).rpartition('": ')[2]
        raise UserError(f"TFDS has no {name!r}: {said}") from error
    except RuntimeError as error:  # its way to say what a bucket said
        said = f"{name} cannot be read: {str(error).strip().splitlines()[0]}"
        if of_storage(error):
            raise StorageError(f"{said}{AGAIN}") from error
        raise UserError(said) from error


def is_prepared(builder: Any) -> bool:
    """Whether its copy is there."""
    with errors_alone():
        return builder.is_prepared()


@contextlib.contextmanager
def errors_alone() -> Iterator[None]:
    """Keeps TFDS from warning that there is no copy yet, which is an error that we say
    or no news, and no archive of a split that nobody asked for."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _features(info: Any) -> tuple[str, str | None]:
    """Names of the image and of the label, None where there is none: what the set says
    is learned from what, then those called image and label, then the first of the
    alphabet (TFDS reads a set's features in another order in each process). Raises
    `UserError` for no image, and for images of floats, of which TFDS keeps the bits."""
    import tensorflow_datasets as tfds

    def first(kind: type, usual: str) -> str | None:
        names = [k for k, f in info.features.items() if type(f) is kind]
        liked = [*(info.supervised_keys or ()), usual, *sorted(names)]
        return next((name for name in liked if name in names), None)

    image = first(tfds.features.Image, "image")
    if image is None:
        raise UserError(f"{info.full_name} has no image, but {list(info.features)}")
    if (kind := np.dtype(info.features[image].np_dtype)).kind == "f":
        raise UserError(
            f"{info.full_name}: {image!r} holds images of {kind}; save npz files"
        )
    return image, first(tfds.features.ClassLabel, "label")


def _offsets(files: Sequence[Any]) -> list[Int[np.ndarray, " n"]]:
    """Where each record of each file begins."""
    counts = {str(file.filename): file.examples_in_shard for file in files}

    def walk(path: str, size: int) -> Int[np.ndarray, " n"]:
        return _walk(path, size, counts[path])

    def join(found: list[Any]) -> Index:
        return {"offsets": np.concatenate(found)}

    index = indexed("TFRecord", list(counts), walk, join)
    cuts = np.cumsum(list(counts.values()))[:-1]
    offsets = dict(zip(counts, np.split(index["offsets"], cuts), strict=True))
    return [offsets[str(file.filename)] for file in files]


def _walk(path: str, size: int, count: int) -> Int[np.ndarray, " n"]:
    """The offset of each record of a file, which must hold `count` and end there."""
    offsets, position = [], 0
    with open_bytes(path) as file:
        while position < size and len(offsets) < count:
            offsets.append(position)
            file.seek(position)
            header = file.read(HEADER.size)
            if len(header) < HEADER.size:
                break
            position += HEADER.unpack(header)[0] + HEADER.size + 4
    if position != size or len(offsets) != count:
        raise UserError(
            f"{path} is not a whole TFRecord file of {count} records; prepare or copy"
            " it again"
        )
    return np.array(offsets, np.int64)
