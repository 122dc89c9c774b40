"""Files of many records: opened anywhere, and their index kept between runs."""

from __future__ import annotations

import contextlib
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int
from rich.console import Console
from rich.progress import track

from ddae.data.decode import tensorflow
from ddae.settings import UserError
from ddae.storage import cache_folder, is_remote

THREADS = 64
"""Files indexed at a time."""

FAR, NEAR = 256, 64
"""Records read at a time from a bucket, and from a disk that is slow."""

PATIENCE = 0.01
"""Seconds after which it is: 64 records of 110 KB that the system has take 3 ms."""

Index = dict[str, np.ndarray]

State = tuple[str, int, int]
"""A file as it is known again: path, bytes, time of the last change in ns."""

EDITION = 3
"""Of the index: raise it with any change to what is kept, so that old ones are not
read."""


@contextlib.contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO | Any]:
    """A file of any file system that TensorFlow knows, for reading bytes."""
    if is_remote(path):
        with tensorflow().io.gfile.GFile(path, "rb") as file:
            yield file
    else:
        with open(path, "rb") as file:
            yield file


Read = Callable[[int], bytes]


def reading(path: str) -> Callable[[Read, Int[np.ndarray, " k"]], list[bytes]]:
    """(read, indices) -> [read(index), ...], for files like that at `path`.

    One after the other while that goes fast, as from a disk of the machine, where
    threads cost more than they save; what is left after `PATIENCE` comes from far away,
    a network's disk or a bucket, and is read by many threads.
    """
    far = is_remote(path)
    pool = ThreadPoolExecutor(FAR if far else NEAR)
    patience = 0.0 if far else PATIENCE

    def read_all(read: Read, indices: Int[np.ndarray, " k"]) -> list[bytes]:
        each, found = indices.tolist(), []
        until = time.monotonic() + patience
        while len(found) < len(each) and time.monotonic() < until:
            found.append(read(each[len(found)]))
        return found + list(pool.map(read, each[len(found) :]))

    return read_all


BROKEN = (
    *(AttributeError, EOFError, KeyError, RuntimeError, TypeError, ValueError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What NumPy and zipfile raise for an .npz file that is damaged, or is none."""


def indexed(
    kind: str,
    paths: Sequence[str],
    walk: Callable[[str, int], Any],
    join: Callable[[list[Any]], Index],
) -> Index:
    """`join` of what `walk(path, bytes)` finds in each file, or what it was last time.

    Kept in the user's cache folder, until a file's size or time changes. Raises
    `UserError` for a file that is not there.
    """
    state = states(paths)
    sizes = [size for _, size, _ in state]
    key = zlib.crc32(repr((EDITION, state)).encode())
    kept = os.path.join(cache_folder(), f"{kind}-{key:08x}.npz")
    with contextlib.suppress(OSError, *BROKEN):
        with open(kept, "rb") as opened, np.load(opened, allow_pickle=False) as index:
            if index["state"] == repr(state):
                return dict(index)
    with ThreadPoolExecutor(THREADS) as pool:
        walks = pool.map(walk, paths, sizes)
        label = f"indexing {len(paths)} {kind} files"
        shown = Console(stderr=True)
        index = join(list(track(walks, label, total=len(paths), console=shown)))
    with contextlib.suppress(OSError):  # a cache that cannot be written is no error
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        part = f"{kept}.{os.getpid()}.npz"
        arrays: dict[str, Any] = {"state": np.array(repr(state)), **index}
        try:
            np.savez(part, **arrays)
            os.replace(part, kept)
        finally:  # of a full disk
            with contextlib.suppress(FileNotFoundError):
                os.remove(part)
    return index


def states(paths: Sequence[str]) -> list[State]:
    """How each file is now; `UserError` for one that is not there."""
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(_state, paths))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    except tensorflow().errors.OpError as error:
        raise UserError(f"cannot be read: {error.message}") from error


def _state(path: str) -> State:
    if is_remote(path):
        found = tensorflow().io.gfile.stat(path)
        return path, found.length, found.mtime_nsec
    found = os.stat(path)
    return os.path.abspath(path), found.st_size, found.st_mtime_ns
