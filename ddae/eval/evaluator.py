"""What evaluators are, and how they go over the images of a source."""

import sys
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int
from rich.progress import track

from ddae.data import Source
from ddae.settings import UserError

Evaluator = Callable[[Any, int], dict[str, float | np.ndarray]]
"""(parameters, step) -> values."""

HostFunction = Callable[[Any, np.ndarray], Any]
"""(parameters, any number of images) -> a tree of NumPy arrays [b, ...]."""


class OnDevices(Protocol):
    """Makes such a function of one of arrays on the devices of `mesh`; `meanwhile` is
    for what the host does alone for long."""

    mesh: Mesh

    def __call__(self, function: Callable[[Any, jax.Array], Any]) -> HostFunction: ...

    def meanwhile(self, work: Callable[[], Any]) -> Any: ...


CHUNK = 1024
"""Images read at a time."""


def over(
    source: Source,
    indices: Int[np.ndarray, " k"],
    function: HostFunction,
    params: Any,
    description: str,
) -> tuple[Any, Int[np.ndarray, " k"]]:
    """(what `function` gives for the images at `indices`, their labels), each once."""
    found, labels = [], []
    batches, total = source.batches(indices, CHUNK), -(-len(indices) // CHUNK)
    for batch in with_bar(batches, description, total):
        found.append(function(params, batch["image"]))
        labels.append(batch["label"])
    if not found:
        raise UserError(f"{description}: none of the {len(indices)} images can be read")
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    return joined, np.concatenate(labels)


def with_bar(parts: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """`parts`, with a bar of how far it is while it goes, on a terminal."""
    on = sys.stdout.isatty()
    return track(parts, description, total=total, transient=True, disable=not on)


def cut_over(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """`rows`, cut along their first axis over all devices; a process gives its own."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback(rows.shape, sharding, lambda part: rows[part])
