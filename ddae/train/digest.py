"""A checksum of every array of a tree, whatever devices it lies on.

Orbax keeps none: a flipped bit, or a file cut short, is restored in silence. The
checksum of a leaf is a sum over its 32-bit words, each mixed with its place, modulo
2**32: the same for every sharding, and another after any change of one word.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

from ddae.train.optimizer import path_name


def digests(tree: Any) -> dict[str, int]:
    """{path of the leaf: checksum}. Arrays may be sharded, or NumPy's."""
    paths, leaves = _named(tree)
    return dict(zip(paths, map(int, np.asarray(_digests(leaves))), strict=True))


def nonfinite(tree: Any) -> list[str]:
    """Paths of the leaves that hold an infinity or a NaN."""
    paths, leaves = _named(tree)
    finite = np.asarray(_finite(leaves))
    return [path for path, good in zip(paths, finite, strict=True) if not good]


@jax.jit
def _digests(leaves: list[Array]) -> UInt32[Array, " leaves"]:
    return jnp.stack([_digest(leaf) for leaf in leaves])


@jax.jit
def _finite(leaves: list[Array]) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def _digest(leaf: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    place, stride = jnp.zeros(leaf.shape, jnp.uint32), 1
    for axis in reversed(range(leaf.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        place += along * np.uint32(stride % 2**32)
        stride *= leaf.shape[axis]
    word = _words(leaf) ^ (place * np.uint32(0x9E3779B1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        word = (word ^ (word >> shift)) * np.uint32(factor)
    return (word ^ (word >> 16)).sum(dtype=jnp.uint32)


def _words(leaf: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    """The bits of each element; those of 8 bytes are not among our arrays."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


def _named(tree: Any) -> tuple[list[str], list[Array]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [path_name(path) for path, _ in leaves], [leaf for _, leaf in leaves]
