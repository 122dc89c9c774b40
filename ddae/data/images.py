"""A `Source` of encoded images: reading, decoding and augmenting through tf.data."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import itertools
import os
import sys
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Int

from ddae.data.augment import Augment, of_bytes
from ddae.data.decode import centre, decode, tensorflow
from ddae.data.order import Order
from ddae.settings import UserError

if TYPE_CHECKING:
    from ddae.data import Batch, DataSettings, Identity, Rows, Source

CHUNK = 64
"""Records that one Python call reads; the rest of their way is C++."""

READERS = 4
"""Chunks read at a time."""

UNREADABLE = "cannot be read"
FAILING = "cannot be read now"

PASSING = ("Unavailable", "Aborted", "DeadlineExceeded", "ResourceExhausted", "Unknown")
"""TensorFlow's errors where a file is there and the system does not give it: a stale
handle is Aborted, an input/output error Unknown."""

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0)
"""Seconds before another look where the storage seems to be away."""

STAND_INS = 4 << 32
"""Added to the seed where others are drawn for a bad record: `of_bytes` has 0 to 3."""

Chunk = Callable[[int], tuple[np.ndarray, np.ndarray]]
Verdict = Callable[[int, int], str | None]
"""(position, index) -> why the record is bad there; None where it is good."""


class RecordError(ValueError):
    """A record that cannot be read, and why."""


class Records(Protocol):
    """Where encoded images come from; random access by index."""

    num_classes: int
    class_names: tuple[str, ...]  # () where nobody has named them
    identity: Identity

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """What a user would look for: the file, or the record of a split."""
        ...

    def read(self, index: int) -> bytes:
        """The record, as `parse` takes it; `RecordError` where it is damaged."""
        ...

    def read_many(self, indices: Int[np.ndarray, " k"]) -> list[bytes]:
        """The same for several, as fast as the storage allows."""
        ...

    def parse(self, record: Any, index: Any) -> tuple[Any, Any]:
        """Tensors: a record and its index -> (encoded image, int label)."""
        ...


class ImageSource:
    """`records`, every image at `image_shape`.

    Held-out images, and training ones without a random crop, are resized to cover the
    shape over `eval_crop` (1 for training) and cut to its centre, as Pillow resizes.

    A record that cannot be read, decoded or has no class of the set is *bad*, on every
    path alike; only of a JPEG that is damaged in its middle a crop above the damage is
    good. With on_error "raise" it stops the run by name. With "skip" it is left out of
    evaluations, and in training others are drawn for its position until one is good: a
    function of seed and position, whatever was met before, so hosts and restarts agree.
    More than `max_bad` stop the run.
    """

    def __init__(
        self, records: Records, image_shape: tuple[int, int, int], data: DataSettings
    ):
        if image_shape[2] not in (1, 3):
            raise UserError(
                f"image files are read with 1 or 3 channels, not {image_shape[2]}; set"
                " config.model.channels, or keep arrays in npz files"
            )
        if data.augment.colours and image_shape[2] != 3:
            raise UserError(
                "config.data.augment.rand_augment and color_jitter want 3 channels"
            )
        self.records, self.image_shape, self.data = records, image_shape, data
        self.num_classes, self.class_names = records.num_classes, records.class_names
        self.identity = records.identity
        self.bad: dict[int, str] = {}
        self._tries = 0  # that failed, since the last batch

    def __len__(self) -> int:
        return len(self.records)

    def key(self, index: int) -> str:
        return self.records.key(index)

    def train_batches(
        self, order: Order, first_step: int, rows: Rows, augment: Augment
    ) -> Iterator[Batch]:
        own = np.arange(order.batch_size)[rows]
        parts = -(-len(own) // CHUNK)
        tf, step = tensorflow(), first_step
        plain = dataclasses.replace(augment, rand_augment=0, color_jitter=0.0)

        def verdict(position: int, index: int) -> str | None:
            at = tf.constant(position, tf.int64)
            return self.verdict(
                index,
                lambda data: of_bytes(data, self.image_shape, plain, order.seed, at),
            )

        def examples(step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            positions, indices = (ids[rows] for ids in order.batch(step))
            for row in np.flatnonzero(np.isin(indices, list(self.bad))):
                position, index = int(positions[row]), int(indices[row])
                indices[row] = self._good(order.seed, position, index, verdict)
            return positions, indices

        def chunk(number: int) -> tuple[np.ndarray, np.ndarray]:
            step, part = divmod(number, parts)
            return examples(step, own[part * CHUNK : (part + 1) * CHUNK])

        def image(data: Any, position: Any) -> Any:
            return of_bytes(data, self.image_shape, augment, order.seed, position)

        unreadable = tf.errors.OpError  # a module may be empty when the process ends
        while True:
            numbers = tf.data.Dataset.range(step * parts, np.iinfo(np.int64).max)
            try:
                for batch in self._batches(numbers, chunk, image, len(own)):
                    self._tries = 0
                    yield batch
                    step += 1
            except unreadable as error:
                self._condemn(*examples(step, own), verdict, error)

    def batches(
        self, indices: Int[np.ndarray, " k"], batch_size: int
    ) -> Iterator[Batch]:
        size, channels = self.image_shape[:2], self.image_shape[2]

        def image(data: Any, _: Any) -> Any:
            return centre(decode(data, channels), size, self.data.eval_crop)

        def verdict(_: int, index: int) -> str | None:
            return self.verdict(index)

        tf, left = tensorflow(), np.asarray(indices, np.int64)
        unreadable = tf.errors.OpError
        if len(left) and not len(self._without_bad(left)):
            raise self._all_bad(left)
        while len(left := self._without_bad(left)):
            chunk = functools.partial(_chunk_of, left)
            numbers = tf.data.Dataset.range(-(-len(left) // CHUNK))
            try:
                for batch in self._batches(numbers, chunk, image, batch_size):
                    self._tries = 0
                    yield batch
                    left = left[batch_size:]
            except unreadable as error:
                self._condemn(left[:batch_size], left[:batch_size], verdict, error)
                if not len(self._without_bad(np.asarray(indices, np.int64))):
                    raise self._all_bad(indices) from error

    def verdict(
        self, index: int, image: Callable[[Any], Any] | None = None
    ) -> str | None:
        """Why the record at `index` is bad; None for a good one. `image`: what is made
        of its bytes; else all of it is decoded."""
        tf = tensorflow()
        passing = tuple(getattr(tf.errors, f"{name}Error") for name in PASSING)
        try:
            data, label = self.records.parse(self.records.read(index), index)
            image(data) if image else decode(data, self.image_shape[2])
        except RecordError as error:
            return str(error)
        except tf.errors.NotFoundError as error:
            return f"{UNREADABLE} ({_reason(error)})"
        except passing as error:
            return f"{FAILING} ({_reason(error)})"
        except tf.errors.OpError as error:
            return f"no image that can be decoded ({_reason(error)})"
        if not 0 <= int(label) < self.num_classes:
            return f"label {int(label)} is not below {self.num_classes}"
        return None

    def _batches(
        self,
        numbers: Any,
        chunk: Chunk,
        image: Callable[[Any, Any], Any],
        batch_size: int,
    ) -> Iterator[Batch]:
        """Batches of the chunks `numbers`; an OpError comes in place of a batch."""
        tf = tensorflow()
        # Their branches are tf.cond's: rewriting their source takes a start a second.
        as_written = tf.autograph.experimental.do_not_convert

        @as_written
        def read(number: Any) -> Any:
            positions, indices, data = tf.numpy_function(
                lambda number: self._read(*chunk(int(number))),
                [number],
                (tf.int64, tf.int64, tf.string),
            )
            for rows in (positions, indices, data):
                rows.set_shape((None,))
            return positions, indices, data

        @as_written
        def example(position: Any, index: Any, record: Any) -> Any:
            data, label = self.records.parse(record, index)
            known = (label >= 0) & (label < self.num_classes)
            with tf.control_dependencies(
                [tf.debugging.Assert(known, ["label", label])]
            ):
                label = tf.cast(label, tf.int32)
            return {"image": image(data, position), "label": label}

        read_chunks = numbers.map(read, num_parallel_calls=READERS, deterministic=True)
        examples = read_chunks.unbatch().map(
            example, num_parallel_calls=os.cpu_count(), deterministic=True
        )
        options = tf.data.Options()
        # An image a core, one thread an image: nothing is left to tune.
        options.autotune.enabled = False
        options.threading.max_intra_op_parallelism = 1
        batches = examples.batch(batch_size).with_options(options).prefetch(2)
        return _ended_at_exit(batches)

    def _read(
        self, positions: np.ndarray, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Adds the records; one that cannot be read is empty, and fails in its turn."""
        try:
            found = self.records.read_many(indices)
        except RecordError:
            found = [self._read_or_empty(int(index)) for index in indices]
        return positions, indices, np.array(found, dtype=object)

    def _read_or_empty(self, index: int) -> bytes:
        try:
            return self.records.read(index)
        except RecordError:
            return b""

    def _condemn(
        self,
        positions: np.ndarray,
        indices: np.ndarray,
        verdict: Verdict,
        error: Exception,
    ) -> None:
        """Finds the bad records behind `error`, and remembers or raises them.

        Where no other is bad than those known, none of several can be read, or some
        that are there cannot, the storage was or is away: it waits for one of `PAUSES`,
        and all is tried again. After the last such some are bad; else `OSError`.
        """
        places = [positions.tolist(), indices.tolist()]
        with ThreadPoolExecutor() as pool:
            verdicts = list(pool.map(verdict, *places))
        found = {i: why for i, why in zip(places[1], verdicts, strict=True) if why}
        away = len(found) > 1 and all(w.startswith(UNREADABLE) for w in found.values())
        away = away and len(found) == len(indices)
        passing = any(w.startswith(FAILING) for w in found.values())
        news = found.keys() - self.bad.keys()
        if not away and not (passing and self._tries < len(PAUSES)):
            for index, why in found.items():
                pass_over(self, self.data, index, why, error)
            if found and len(self.bad) == len(self):
                raise self._all_bad(np.arange(len(self))) from error
            if news:
                return
        self._pause(error, indices[0])

    def _all_bad(self, indices: np.ndarray) -> UserError:
        return UserError(
            f"all {len(indices)} images that were to be read of"
            f" {self.identity['split']} are bad; the last: {_last_bad(self)}"
        )

    def _pause(self, error: Exception, index: int) -> None:
        said = f"images cannot be read, {self.records.key(int(index))} among them"
        if self._tries == len(PAUSES):
            raise OSError(f"{said}: {error}") from error
        seconds = PAUSES[self._tries]
        self._tries += 1
        print(f"{said}; again in {seconds:g} s", file=sys.stderr, flush=True)
        time.sleep(seconds)

    def _good(self, seed: int, position: int, index: int, verdict: Verdict) -> int:
        """The record at `index`, or the first of others, in an order drawn for the
        position, that is good there; `index` where there is none, or all those that may
        be bad have been tried. What is known as bad is looked at again."""
        random = np.random.Generator(np.random.Philox(key=[seed + STAND_INS, position]))
        others = map(int, random.permutation(len(self)))
        tries = itertools.chain([index], others)
        most = min(self.data.max_bad, len(self)) + 2
        for tried in itertools.islice(tries, most):
            why = verdict(position, tried)
            if why is None:
                return tried
            if not why.startswith(UNREADABLE):  # the storage may be away for a moment
                _note_bad(self, tried, why)
        return index

    def _without_bad(self, indices: np.ndarray) -> np.ndarray:
        return indices[~np.isin(indices, list(self.bad))]


def pass_over(
    source: Source, data: DataSettings, index: int, why: str, cause: Exception
) -> None:
    """Notes that the record at `index` is bad. Raises `UserError` where the run is to
    stop: at once, or after too many."""
    if data.on_error == "raise":
        raise UserError(
            f"{source.key(index)}: {why}; mend or remove it, or pass over such records"
            " with --config.data.on_error=skip"
        ) from cause
    _note_bad(source, index, why)
    if len(source.bad) > data.max_bad:
        raise UserError(
            f"{len(source.bad)} bad records, more than config.data.max_bad="
            f"{data.max_bad}; the last: {_last_bad(source)}"
        ) from cause


def _note_bad(source: Source, index: int, why: str) -> None:
    if index not in source.bad:
        source.bad[index] = why
        line = f"bad record {source.key(index)}: {why}"
        print(line, file=sys.stderr, flush=True)


def _last_bad(source: Source) -> str:
    index = next(reversed(source.bad))
    return f"{source.key(index)}: {source.bad[index]}"


_live: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()


def _ended_at_exit(dataset: Any) -> Iterator[Batch]:
    """The batches of a tf.data `dataset`, none of which outlives the interpreter.

    An iterator that goes waits for its calls of Python, and those wait for ever once
    the interpreter ends: a run that crashed would hang.
    """

    def batches() -> Generator[Batch, None, None]:
        yield from dataset.as_numpy_iterator()

    found = batches()
    _live.add(found)
    return found


@atexit.register
def _end_all() -> None:
    # The frames of an error that nobody caught hold iterators, too.
    for name in ("last_exc", "last_value", "last_traceback"):
        setattr(sys, name, None)
    for batches in list(_live):
        batches.close()


def _chunk_of(indices: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    taken = indices[number * CHUNK : (number + 1) * CHUNK]
    return taken, taken


def _reason(error: Any) -> str:
    """TensorFlow's message without the names of its graph nodes."""
    message = str(error.message).split("[Op:")[0].split("\n")[0]
    return message.rpartition("}}")[2].strip() or type(error).__name__
