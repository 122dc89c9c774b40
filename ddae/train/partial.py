"""Parameters of one tree put into another that is not quite the same."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ddae.settings import UserError
from ddae.train.optimizer import path_name

Resize = Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray | None]
"""(path, stored array, wanted shape) -> the array at that shape; None: it cannot be."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Which leaves came (`matched`, `resized`), kept their own value (`missing`), or
    were left behind (`unexpected`): paths."""

    matched: list[str]
    resized: list[str]
    missing: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        counts = (
            f"{len(found)} {name}" + (f" ({found[0]}, ...)" if found else "")
            for name, found in vars(self).items()
        )
        return "loaded weights: " + ", ".join(counts)


def load_into(
    wanted: Any,
    stored: Any,
    *,
    may_miss: Sequence[str] = (),
    may_leave: Sequence[str] = (),
    resize: Resize | None = None,
) -> tuple[Any, Loaded]:
    """`wanted` with the values of `stored` at the same paths, and what became of each.

    may_miss, may_leave: patterns of paths that `stored` may lack, or have beyond
    `wanted`. Raises `UserError` for any other, and for a shape that `resize` does not
    fit: a weight is never left out in silence.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(wanted)
    own = {path_name(path): leaf for path, leaf in leaves}
    given = {
        path_name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(stored)
    }
    missing = [path for path in own if path not in given]
    unexpected = [path for path in given if path not in own]
    _refuse(missing, may_miss, "are not among the weights, among them")
    _refuse(unexpected, may_leave, "of the weights have no place, among them")
    taken, resized = dict(own), []
    for path in own.keys() & given.keys():
        shape, value = tuple(own[path].shape), given[path]
        if value.shape != shape:
            fitted = resize(path, value, shape) if resize else None
            if fitted is None:
                raise UserError(
                    f"weight {path} has shape {value.shape}, wanted is {shape}"
                )
            value = fitted
            resized.append(path)
        taken[path] = value.astype(own[path].dtype)
    matched = [path for path in own if path in given and path not in resized]
    tree = jax.tree_util.tree_unflatten(structure, list(taken.values()))
    return tree, Loaded(matched, sorted(resized), missing, unexpected)


def _refuse(paths: list[str], allowed: Sequence[str], what: str) -> None:
    wrong = [p for p in paths if not any(re.search(rule, p) for rule in allowed)]
    if wrong:
        raise UserError(f"{len(wrong)} parameters {what} {wrong[0]}")
