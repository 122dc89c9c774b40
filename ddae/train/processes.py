"""What the processes of a run settle among themselves. Each of them must make each of
these calls, in the same order."""

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int

from ddae.settings import UserError
from ddae.storage import AGAIN, StorageError


def of_all(number: int) -> Int[np.ndarray, " processes"]:
    """The `number` of every process, each in [0, 2^32)."""
    mine = np.array([number], np.uint32)
    return np.asarray(multihost_utils.process_allgather(mine)).reshape(-1)


def agree(value: Any, otherwise: str) -> None:
    """Raises `UserError` in every process where one has another `value` than process 0:
    that process has `otherwise`."""
    text = json.dumps(value, sort_keys=True, default=str)
    every = of_all(zlib.crc32(text.encode()))
    if len(other := np.flatnonzero(every != every[0])):
        raise UserError(f"process {other[0]} of {len(every)} has {otherwise}")


def of_first(found: Mapping[str, float]) -> Mapping[str, float]:
    """What the first process says; it alone reads the log."""
    if jax.process_count() == 1:
        return found
    text = np.frombuffer(json.dumps(dict(found)).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    sent = multihost_utils.broadcast_one_to_all(np.resize(text, size))
    return json.loads(np.asarray(sent).tobytes())


@contextlib.contextmanager
def together(kind: type[Exception]) -> Iterator[None]:
    """An error of this `kind` of one process within, or a `StorageError`, is one of
    all: what comes after is done by all. Within, no process may wait for another."""
    mine = None
    try:
        yield
    except (kind, StorageError) as error:
        mine = error
    if word := first_word(f"{mine or ''}"):
        raise mine or (StorageError if AGAIN in word else kind)(word)


def first_word(mine: str) -> str:
    """The first `mine` of all processes that is not empty, and whose it is: what one
    met, for all to say."""
    if jax.process_count() == 1:
        return mine
    sent = np.zeros(1024, np.uint8)
    said = mine.encode(errors="backslashreplace")  # it may name a file that is no text
    end = AGAIN.encode() if mine.endswith(AGAIN) else b""  # `together` looks for it
    said = said.removesuffix(end)[: sent.size - len(end)] + end
    text = np.frombuffer(said, np.uint8)
    sent[: text.size] = text
    for number, row in enumerate(np.asarray(multihost_utils.process_allgather(sent))):
        if word := bytes(row).rstrip(b"\0").decode(errors="replace"):
            return f"process {number}: {word}"
    return ""
