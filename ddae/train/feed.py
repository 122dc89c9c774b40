"""Batches on the devices, ahead of the steps that read them."""

import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ddae.data import Splits
from ddae.data.order import Order
from ddae.train.sharding import (
    batch_sharding,
    host_rows,
    replicated,
    stacked_sharding,
    to_devices,
)


def cut(first: int, last: int, most: int, every: Sequence[int]) -> Iterator[range]:
    """Steps `first` + 1 to `last` in spans of at most `most`, each of which ends at
    the multiples of every number of `every`, zeros left out."""
    while first < last:
        ends = [first - first % n + n for n in every if n]
        end = min(first + most, last, *ends)
        yield range(first + 1, end + 1)
        first = end


def feed(
    splits: Splits,
    order: Order,
    first_step: int,
    spans: Iterable[range],
    most: int,
    mesh: Mesh,
) -> Iterator[dict[str, Any]]:
    """What each of `spans`, from `first_step` on, reads: global arrays, two ahead.

    most: steps a span may have; above 1 the batches of a span are stacked along a new
    first axis. Where the training images are to lie on the devices, all of them are
    its `images`.
    """
    sharding = (batch_sharding if most == 1 else stacked_sharding)(mesh)
    rows = host_rows(order.batch_size, batch_sharding(mesh))
    batches = splits.train_batches(order, first_step, rows)
    whole = {}
    if splits.images is not None:
        whole["images"] = jax.device_put(splits.images, replicated(mesh))
    queue: collections.deque[Any] = collections.deque()
    for span in spans:
        taken = [next(batches) for _ in span]
        batch = taken[0]
        if most > 1:
            batch = {name: np.stack([b[name] for b in taken]) for name in batch}
        queue.append(to_devices(batch, sharding) | whole)
        if len(queue) == 2:
            yield queue.popleft()
    yield from queue
