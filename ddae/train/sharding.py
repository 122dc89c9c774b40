"""The device mesh, and how state and batches lie on it."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from ddae.settings import UserError

MIN_SHARDED = 2**12
"""Arrays of fewer elements are replicated: gathering them costs more than it saves."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """fsdp: over how many devices each parameter is cut; the rest is data parallel."""

    fsdp: int = 1


def make_mesh(
    settings: MeshSettings,
    batch_size: int,
    accumulate: int,
    chosen: list[jax.Device] | None = None,
) -> Mesh:
    """A ("data", "fsdp") mesh of the chosen devices, or of all.

    Raises `UserError` where sizes do not divide.
    """
    chosen = chosen or jax.devices()
    devices = len(chosen)
    if settings.fsdp < 1 or devices % settings.fsdp:
        raise UserError(
            f"config.mesh.fsdp={settings.fsdp} does not divide {devices} devices; give"
            " one of their divisors"
        )
    if accumulate < 1 or batch_size % (devices * accumulate):
        raise UserError(
            f"config.batch_size={batch_size} does not divide over {devices} devices"
            f" times config.optimizer.accumulate={accumulate}"
        )
    shape = (devices // settings.fsdp, settings.fsdp)
    # jax.make_mesh would not split an axis of a pod's torus: fsdp=8 of 4 x 4 x 4 chips.
    placed = mesh_utils.create_device_mesh(
        shape, chosen, allow_split_physical_axes=True
    )
    return Mesh(placed, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are cut along their first axis over every device."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def stacked_sharding(mesh: Mesh) -> NamedSharding:
    """Of several batches along a new first axis."""
    return NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(shapes: Any, mesh: Mesh) -> Any:
    """An array is cut along its first axis that fsdp divides, of a kernel its rows, so
    that the columns of query, key and value stay together; small ones not."""
    return jax.tree.map(
        lambda x: NamedSharding(mesh, _partition(x.shape, mesh)), shapes
    )


def _partition(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    parts = mesh.shape["fsdp"]
    if parts == 1 or np.prod(shape) < MIN_SHARDED:
        return PartitionSpec()
    for axis, size in enumerate(shape):
        if size % parts == 0:
            return PartitionSpec(*[None] * axis, "fsdp")
    return PartitionSpec()


def gathered(params: Any, mesh: Mesh, dtype_of: Callable[[str], Any]) -> Any:
    """`params` whole on every device while a loss reads them (FSDP), the kernels of
    blocks as what these compute in: `dtype_of` their path.

    Left to itself XLA keeps parameters cut and gathers activations, over the batch. Of
    their gradient a device needs its own part of the sum alone: a reduce-scatter.
    """
    if mesh.shape["fsdp"] == 1:
        return params
    cut = state_sharding(params, mesh)
    constrain = jax.lax.with_sharding_constraint

    @jax.custom_vjp
    def gather(params: Any) -> Any:
        return constrain(params, replicated(mesh))

    gather.defvjp(
        lambda params: (gather(params), None),
        lambda _, gradient: (constrain(gradient, cut),),
    )

    def cast(path: Any, x: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        kernel = re.search(r"/block_\d+/.*/kernel$", f"/{name}")
        return x.astype(dtype_of(name)) if kernel else x

    # Cut once more, or XLA casts what it has gathered.
    return gather(constrain(jax.tree_util.tree_map_with_path(cast, params), cut))


def to_devices(
    batch: dict[str, np.ndarray], sharding: NamedSharding
) -> dict[str, jax.Array]:
    """This host's rows of a global batch as global arrays.

    In order, though its devices may lie apart in the mesh, as those of a pod do.
    """
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def host_rows(batch_size: int, sharding: NamedSharding) -> Int[np.ndarray, " rows"]:
    """The rows of a global batch that lie on this process's devices, in order."""
    places = sharding.addressable_devices_indices_map((batch_size,))
    return np.unique([np.arange(batch_size)[place] for place in places.values()])


def flag_devices(flag: int, mesh: Mesh) -> jax.Array:
    """This process's `flag` on each of its devices: its maximum is known to all."""
    rows = host_rows(mesh.size, batch_sharding(mesh))
    flags = np.full(len(rows), flag, np.int32)
    return to_devices({"flag": flags}, batch_sharding(mesh))["flag"]


def bytes_a_device(shapes: Any, shardings: Any) -> tuple[int, int]:
    """(bytes of a tree on one device, bytes of the whole)."""
    whole = jax.tree.map(lambda x: x.size * x.dtype.itemsize, shapes)
    shard = jax.tree.map(
        lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize,
        shapes,
        shardings,
    )
    return sum(jax.tree.leaves(shard)), sum(jax.tree.leaves(whole))
