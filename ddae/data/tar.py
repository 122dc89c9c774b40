"""Images in tar files, WebDataset's shards or folders, read by index where they lie."""

from __future__ import annotations

import collections
import itertools
import os
import re
import tarfile
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ddae.data.copies import copied
from ddae.data.decode import tensorflow
from ddae.data.files import Index, indexed, open_bytes, reading
from ddae.data.folder import EXTENSIONS, ending, numbered, unread, warn_unread
from ddae.data.images import ImageSource, RecordError
from ddae.settings import UserError
from ddae.storage import is_remote, unusable

if TYPE_CHECKING:
    from ddae.data import DataSettings, Identity

SPLITS = ("train", "training", "val", "valid", "validation", "test")
"""Folders that hold those of the classes, where all images lie in one."""

PACKED = r"\.(tar\.(gz|bz2|xz|lzma|zst|lz4|br|Z)|tgz|tbz2?|txz|tzst)"
BEGUN = r"\.tar\.(part|partial|tmp|download|crdownload|incomplete)"
"""Endings of tar files that cannot be read. Others, as .tar.md5, are no tar files."""


class Shard(NamedTuple):
    """What one tar file holds.

    images: of each where its bytes begin, how many, its name, and its folder or, where
    `numbered`, the number of its class, from a .cls file. endings: how many files have
    which.
    """

    images: list[tuple[int, int, str, str]]
    numbered: bool
    endings: collections.Counter[str]


class TarRecords:
    """`Records` of the images of one split, shard by shard, as they lie in each.

    A KEY.cls beside KEY.jpg says the number of its class, as in WebDataset; where no
    image has one, the class is the first folder on its way, as in a folder set; images
    in no folder have none, and share the label 0. KEY ends at the first dot of the
    name. Nothing is unpacked. `classes`: those of the training set, for a held-out one.
    copy_to: where the files are copied to first, if not empty.
    Raises `UserError` for no shards, one that is no whole tar file, folders that may
    hold classes or be some, or a class that is not one of `classes`.
    """

    def __init__(
        self,
        root: str,
        split: str,
        classes: tuple[str, ...] | None = None,
        copy_to: str = "",
    ):
        self._paths = _shards(root, split)
        self._files = copied(self._paths, copy_to)
        index = indexed("tar", self._files, _walk, _join)
        self._offsets, self._lengths = index["offsets"], index["lengths"]
        self._names = index["names"]
        stops = np.flatnonzero(self._names == 0)
        self._ends = np.concatenate([[-1], stops, [len(self._names)]])
        self._shards = np.repeat(np.arange(len(self._paths)), index["counts"])
        counts = zip(index["endings"].tolist(), index["ending_counts"], strict=True)
        said = unread(dict(counts))
        if not len(self._offsets):
            raise UserError(
                f"no images in {self._paths[0]} to {self._paths[-1]}"
                + f"; {said}" * bool(said)
            )
        warn_unread(f"in {self._paths[0]} to {self._paths[-1]}", said)
        found: list[str] = index["classes"].tolist()
        if classes is None and index["numbered"]:
            classes = tuple(str(number) for number in range(int(found[-1]) + 1))
        elif not index["numbered"]:
            found = self._classes_of(found, index["labels"], split)
        classes, numbers = numbered(found, classes, f"{root} {split} has a class")
        self.num_classes, self.classes = len(classes), classes
        self.class_names = () if classes == ("",) else classes
        self.labels = numbers[index["labels"]]
        self.identity: Identity = {
            "name": "tar",
            "split": split,
            "examples": len(self._offsets),
            "fingerprint": zlib.crc32(
                self._names.tobytes() + self._lengths.tobytes() + self.labels.tobytes()
            ),
        }
        self._read_all = reading(self._files[0])

    def _classes_of(
        self, folders: list[str], labels: Int[np.ndarray, " n"], split: str
    ) -> list[str]:
        """The class of each of `folders`. labels: the number of each image's folder.

        A path that all of them share, down to a folder with the name of a split, leads
        to the classes (tar -cf train.tar train) and is cut off. Any other folder that
        holds all the rest, or that holds those of one shard and has its name, may
        itself be a class or hold classes: `UserError`.
        """
        ways: list[tuple[str, ...]] = [
            tuple(folder.split("/")) if folder else () for folder in folders
        ]
        shared = os.path.commonprefix(ways)
        of_split = [part in (split, *SPLITS) for part in shared]
        ways = [
            way[of_split.index(True) + 1 :] if any(of_split) else way for way in ways
        ]
        shards = {os.path.basename(path)[: -len(".tar")] for path in self._paths}
        holders = shards if len(shards) > 1 else set()
        if len({way[:1] for way in ways}) == 1 and all(len(way) > 1 for way in ways):
            holders = {ways[0][0]}
        held: dict[str, int] = {}
        for number, way in enumerate(ways):
            if len(way) < 2 or way[0] not in holders:
                continue
            before = held.setdefault(way[0], number)
            if ways[before][1] != way[1]:
                one, two = (
                    self.key(int(np.argmax(labels == n))) for n in (before, number)
                )
                raise UserError(
                    f"{one} and {two}: is {way[0]!r} their class, or a folder of"
                    f" classes? make the tar file of the folder that holds the classes:"
                    f" tar -cf {split}.tar -C DIR/{split} ."
                )
        return [way[0] if way else "" for way in ways]

    def __len__(self) -> int:
        return len(self._offsets)

    def key(self, index: int) -> str:
        first, last = (int(self._ends[i]) for i in (index, index + 1))
        name = self._names[first + 1 : last].tobytes().decode(errors="replace")
        text = f"{self._paths[self._shards[index]]}, {name}"
        return text.encode(errors="backslashreplace").decode()  # a path may be no text

    def read(self, index: int) -> bytes:
        length = int(self._lengths[index])
        try:
            with open_bytes(self._files[self._shards[index]]) as file:
                file.seek(int(self._offsets[index]))
                data = file.read(length)
        except (OSError, tensorflow().errors.OpError) as error:
            raise RecordError(f"cannot be read: {error}") from error
        if len(data) < length:
            raise RecordError("cannot be read: the file has become shorter")
        return data

    def read_many(self, indices: Int[np.ndarray, " k"]) -> list[bytes]:
        return self._read_all(self.read, indices)

    def parse(self, record: Any, index: Any) -> tuple[Any, Any]:
        return record, tensorflow().gather(self.labels, index)


def tar_sources(
    data: DataSettings, image_shape: tuple[int, int, int]
) -> tuple[ImageSource, ImageSource]:
    """The shards `data.dir`/SPLIT-000.tar and so on; `UserError` for none."""
    if not data.dir:
        raise UserError(
            "config.data.dir is empty; give the folder of the tar files with"
            " --config.data.dir=..."
        )
    copy_to = data.copy_to
    train = TarRecords(data.dir, data.train_split, copy_to=copy_to)
    held_out = TarRecords(data.dir, data.eval_split, train.classes, copy_to)
    return (
        ImageSource(train, image_shape, data),
        ImageSource(held_out, image_shape, data),
    )


def _shards(root: str, split: str) -> list[str]:
    """Paths of ROOT/SPLIT.tar, SPLIT-000.tar, SPLIT-000-of-100.tar or SPLIT/*.tar.

    Raises `UserError` where some would be read twice, or some are missing.
    """
    within = os.path.join(root, split)
    folder, name = os.path.split(within)
    of_split = re.escape(name) + r"([-_.]?\d+([-_]of[-_]\d+)?)?"
    listed = ((folder, of_split, _names(folder)), (within, ".*", _names(within)))

    def tars(ending: str) -> list[list[str]]:
        return [
            [os.path.join(at, n) for n in names if re.fullmatch(wanted + ending, n)]
            for at, wanted, names in listed
        ]

    if begun := next(itertools.chain(*tars(BEGUN)), ""):
        raise UserError(
            f"{begun} is a tar file that is not finished; finish it, or remove it"
        )
    if packed := next(itertools.chain(*tars(PACKED)), ""):
        raise UserError(
            f"{packed} is compressed, and cannot be read at random; unpack it to a"
            " .tar (photographs do not shrink), and move it away"
        )
    beside, inside = tars(r"\.tar")
    found = beside + inside
    if not found:
        raise UserError(
            f"no tar files {within}.tar, {within}-000.tar or {within}/*.tar"
        )
    kinds = {re.sub(r"\d+", "0", path): path for path in beside}
    if several := [*kinds.values(), *inside[:1]][1:]:
        one, two = beside[0], several[0]
        raise UserError(f"{one} and {two} are both {split}; move one of them away")
    _check_whole(found)
    return found


def _names(folder: str) -> list[str]:
    """Of what lies in `folder`, in alphabetical order, hidden files left out; none
    where it is no folder."""
    if not is_remote(folder):  # TensorFlow reads no name that is no text
        names = os.listdir(folder) if os.path.isdir(folder) else []
    else:
        gfile, names = tensorflow().io.gfile, []
        try:  # isdir says False of a folder that may not be read
            if gfile.stat(folder).is_directory:
                names = gfile.listdir(folder)
        except tensorflow().errors.NotFoundError:
            pass
        except tensorflow().errors.OpError as error:
            raise unusable(f"{folder} cannot be read", error) from error
    return sorted(name for name in names if not name.startswith("."))


def _check_whole(paths: list[str]) -> None:
    """Raises `UserError` for fewer files than the -of-100 of their names says."""
    sets: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
    for path in paths:
        if found := re.fullmatch(r"(.*?)(\d+)([-_]of[-_]\d+\.tar)", path):
            sets[found[1], found[3]].add(int(found[2]))
    for (start, end), numbers in sets.items():
        count = int(re.findall(r"\d+", end)[0])
        first = int(count in numbers)
        if missing := sorted({*range(first, first + count)} - numbers):
            some = ", ".join(map(str, missing[:5])) + ", ..." * (len(missing) > 5)
            raise UserError(
                f"{start}*{end}: {len(missing)} of {count} files are missing: number"
                f" {some}"
            )


def _walk(path: str, size: int) -> Shard:
    """The images of one shard, which must be whole."""
    images, numbers, known = [], {}, {}
    endings: collections.Counter[str] = collections.Counter()
    try:
        with open_bytes(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                if tar.offset <= member.offset:  # of a size below 0, and so for ever
                    raise tarfile.ReadError(f"{member.name} ends before it begins")
                if member.isdir() or re.search(r"(^|/)\.(?!\.?(/|$))", member.name):
                    continue  # hidden, as the ._NAME of a Mac
                extension = ending(member.name)
                endings[extension] += 1
                if extension in EXTENSIONS:
                    images.append((*_bytes_of(path, member, known), member.name))
                    known[member.name] = images[-1][:2]
                elif extension == ".cls":
                    number = _number(path, tar, member, numbers)
                    numbers[_key(member.name)] = number
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"no end at byte {tar.offset} of {size}")
            while block := file.read(2**20):  # as many zeros as a tar likes
                if block.strip(tarfile.NUL):
                    raise UserError(
                        f"{path} holds several tar files one after the other, the"
                        f" first of which ends at byte {tar.offset}; tar them anew, or"
                        " keep each as a file of its own"
                    )
    except UserError:
        raise
    except (tarfile.TarError, ValueError, OverflowError) as error:  # of odd numbers
        mend = "copy it again, or unpack it where it is compressed"
        raise UserError(f"{path} is not a whole tar file ({error}); {mend}") from error
    except (OSError, tensorflow().errors.OpError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    keys = [_key(name) for *_, name in images]
    if numbers and len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{path}: {twice} has several images beside one .cls")
    bare = [name for _, _, name in images if _key(name) not in numbers]
    if bare and numbers:
        raise UserError(f"{path}: {bare[0]} has no .cls beside it, as others have")
    rows = [
        (at, length, name, numbers[_key(name)] if numbers else _folder_of(name))
        for at, length, name in images
    ]
    return Shard(rows, bool(numbers), endings)


def _bytes_of(
    path: str, member: tarfile.TarInfo, known: dict[str, tuple[int, int]]
) -> tuple[int, int]:
    """(where the image begins, how many bytes); of a file that tar has met before under
    another name, those there. Raises `UserError` for another link, and for a file whose
    zeros tar has left out."""
    if member.issparse():
        raise UserError(
            f"{path}: {member.name} lies there without its zeros; make the tar file"
            " anew, without --sparse (-S)"
        )
    if member.isreg():
        return member.offset_data, member.size
    if member.islnk() and member.linkname in known:
        return known[member.linkname]
    raise UserError(
        f"{path}: {member.name} is a link; make the tar file of what it leads to"
        " (tar -h)"
    )


def _key(name: str) -> str:
    """The name up to the first dot of its last part."""
    last = name.rpartition("/")[2]
    return os.path.join(_folder_of(name), last.partition(".")[0])


def _folder_of(name: str) -> str:
    """Without what does not matter, as in ./cat; empty for where the tar begins."""
    folder = os.path.normpath(os.path.dirname(name)).lstrip("/")
    return "" if folder == "." else folder


def _number(
    path: str,
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    numbers: Mapping[str, str],
) -> str:
    """The class number in a .cls file, without leading zeros; of a file that tar has
    met before under another name, that in `numbers`. Raises `UserError` for another
    link, and for what is no number of six digits at most."""
    if member.islnk() and (before := numbers.get(_key(member.linkname))):
        return before
    _bytes_of(path, member, {})  # it is a file
    content = tar.extractfile(member)
    text = content.read() if content else b""
    if not re.fullmatch(rb"\s*0*\d{1,6}\s*", text):
        raise UserError(
            f"{path}: {member.name} holds no class number, but {text[:20]!r}"
        )
    return str(int(text))


def _join(shards: list[Shard]) -> Index:
    """What `TarRecords` wants to know, of all shards, as arrays."""
    rows = [row for shard in shards for row in shard.images]
    endings = sum((shard.endings for shard in shards), collections.Counter[str]())
    offsets, lengths, names, classes = zip(*rows, strict=True) if rows else ([],) * 4
    kinds = {shard.numbered for shard in shards if shard.images}
    if len(kinds) > 1:
        raise UserError("some tar files have .cls files, and some have none")
    of_numbers = True in kinds
    known = sorted(set(classes), key=int if of_numbers else None)
    places = {name: place for place, name in enumerate(known)}
    return {
        "offsets": np.array(offsets, np.int64),
        "lengths": np.array(lengths, np.int64),
        "counts": np.array([len(shard.images) for shard in shards], np.int64),
        "endings": np.array(list(endings), str),
        "ending_counts": np.array(list(endings.values()), np.int64),
        "names": np.frombuffer("\0".join(names).encode(errors="replace"), np.uint8),
        "classes": np.array(known, str),
        "labels": np.array([places[name] for name in classes], np.int64),
        "numbered": np.array(of_numbers),
    }
