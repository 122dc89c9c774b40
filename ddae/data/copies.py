"""Files of a data set copied to this machine before they are read.

Images are read at random, each by a request of its own. A bucket answers so many a
second, and a network's disk fewer; to copy a file whole is one request.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import filelock
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ddae.commands import whole
from ddae.data.files import State, states
from ddae.settings import UserError
from ddae.storage import absolute, is_remote, of_bucket, unusable

AT_ONCE = 8
"""Files copied at a time; Google's client keeps ten connections."""

PIECE = 2**24
"""Bytes read at a time from a disk."""

Pair = tuple[State, str]
"""A file, and where its copy is to lie."""


def copied(paths: Sequence[str], folder: str) -> list[str]:
    """Where `paths` lie below `folder`, once all are there: below their own whole path,
    with their own times; the paths themselves where `folder` is empty.

    A copy of a file's size and time stays, so what was copied before a kill is not
    copied again. Of several processes of a machine one copies and the others wait.
    Raises `UserError` for a folder that is not of this machine, cannot be written or
    has too little room, and for files that may not be read; `StorageError` where it may
    go better another time.
    """
    if not folder:
        return list(paths)
    if is_remote(folder):
        raise UserError(f"config.data.copy_to={folder} is no folder of this machine")
    folder = os.path.abspath(folder)
    each = list(dict.fromkeys(paths))  # parts of a split may share a file
    pairs = [(state, _below(folder, state[0])) for state in states(each)]
    try:
        with _alone(folder):
            if left := [pair for pair in pairs if not _there(*pair)]:
                _check_room(left, folder)
                _copy(left, folder)
    except OSError as error:
        raise unusable(f"config.data.copy_to={folder} cannot be used", error) from error
    return [_below(folder, path) for path in paths]


def _below(folder: str, path: str) -> str:
    """gs://bucket/set/file, or /disk/set/file, below `folder`."""
    whole = path.partition("://")[2] if is_remote(path) else os.path.abspath(path)
    return os.path.join(folder, whole.lstrip("/"))


@contextlib.contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Within, no other process copies into `folder`, which is made."""
    os.makedirs(folder, exist_ok=True)
    lock = filelock.FileLock(os.path.join(folder, ".lock"))
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        _say(f"waiting for another process, which copies into {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _there(state: State, copy: str) -> bool:
    """Whether `copy` is one of the file as it is now."""
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(copy)
        near = abs(found.st_mtime_ns - state[2]) < 1e9  # not all disks know more
        return found.st_size == state[1] and near
    return False


def _check_room(left: Sequence[Pair], folder: str) -> None:
    """Raises `UserError` where there is too little."""
    free = shutil.disk_usage(folder).free
    wanted = sum(size for (_, size, _), _ in left)
    if wanted > free:
        raise UserError(
            f"config.data.copy_to={folder} has {free / 2**30:.1f} GiB free, and"
            f" {wanted / 2**30:.1f} GiB are to be copied there; name a folder with more"
            " room"
        )


def _copy(left: Sequence[Pair], folder: str) -> None:
    """Copies files, each in its place once it is whole, and says how far it is."""
    total = sum(size for (_, size, _), _ in left)
    first = left[0][0][0]
    size = f"{total / 2**30:.2f} GiB"
    _say(f"copying {len(left)} files ({size}), {first} first, to {folder}")
    fetch = _google() if is_remote(first) else from_disk

    def one(pair: Pair) -> int:
        (path, size, time), copy = pair
        if not threading.main_thread().is_alive():  # this one would go on to the last
            return 0
        try:
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            with whole(copy) as file:
                fetch(path, file)
                file.flush()
                os.utime(file.fileno(), ns=(time, time))
        except Exception as error:  # Google's client raises many kinds
            if not isinstance(error, OSError) and not of_bucket(error):
                raise
            raise unusable(f"{path} cannot be copied to {copy}", error) from error
        return size

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    shown = Console(stderr=True)
    bar = Progress(
        TextColumn("copying"), *columns, TimeRemainingColumn(), console=shown
    )
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        with bar:
            task = bar.add_task("copying", total=total)
            for size in pool.map(one, left):
                bar.advance(task, size)
    finally:
        pool.shutdown(cancel_futures=True)


def from_disk(path: str, file: BinaryIO) -> None:
    """Writes what is at `path` to a file."""
    with open(path, "rb") as there:
        shutil.copyfileobj(there, file, PIECE)


def _google() -> Callable[[str, BinaryIO], object]:
    """The same of an object in a bucket, whose checksum is compared."""
    absolute("gs://")  # whether the client is installed
    from google.cloud import storage

    try:
        client = storage.Client(project=None)  # it is for billing alone
    except Exception as error:  # there are no credentials
        raise unusable("config.data.copy_to: Google's client", error) from error

    def fetch(path: str, file: BinaryIO) -> None:
        bucket, _, name = path.removeprefix("gs://").partition("/")
        client.bucket(bucket).blob(name).download_to_file(file)

    return fetch


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
