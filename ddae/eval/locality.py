"""How far attention looks, and how alike layers are."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddae.data import Splits, sample
from ddae.dds import block_name
from ddae.eval.evaluator import OnDevices, over
from ddae.models.attention import attention_probabilities
from ddae.patches import Grid
from ddae.settings import UserError
from ddae.tasks import Task
from ddae.tasks.pretrain import Pretrain


def make_locality(
    task: Task, splits: Splits, on_devices: OnDevices, *, num_held_out: int = 512
):
    """An evaluator: attention_distance, the mean over blocks and heads, in patches, and
    of each block attention_distance/blockNN; of whole images, nothing masked.

    num_held_out: how many images, drawn once at random; 0 takes all.
    """
    if not isinstance(task, Pretrain):
        raise UserError("config.evaluators.locality reads pretraining; remove it")
    distances = on_devices(make_distances(task))

    def run(params: Any, step: int) -> dict[str, float | np.ndarray]:
        indices = sample(splits.held_out, num_held_out)
        found, _ = over(splits.held_out, indices, distances, params, "locality")
        layers = found.mean(axis=(0, 2))
        values: dict[str, float | np.ndarray] = {
            f"attention_distance/{block_name(layer)}": float(value)
            for layer, value in enumerate(layers, start=1)
        }
        values["attention_distance"] = float(layers.mean())
        return values

    return run


def make_distances(task: Pretrain):
    """(params, images) -> mean attention distance [b, depth, heads], in patches."""
    encoder = task.encoder

    def distances(params: Mapping[str, Any], images: Array) -> Array:
        standardised = task.standardise(images)
        layers = attention_probabilities(encoder, params["encoder"], standardised)
        return jnp.stack([attention_distance(p, encoder.grid) for p in layers], axis=1)

    return distances


def attention_distance(
    probabilities: Float[Array, "b heads t t"], grid: Grid
) -> Float[Array, "b heads"]:
    """Mean distance from a patch to the patches it reads, weighted by attention.

    In patches, Euclidean; cls neither asks nor answers, and what a patch gives the
    other patches is normalised to 1. 0: every patch reads itself alone. (Raghu et al.
    2021 measure the same in pixels.)
    """
    between = probabilities[:, :, -grid[0] * grid[1] :, -grid[0] * grid[1] :]
    between = between / jnp.maximum(between.sum(axis=-1, keepdims=True), 1e-12)
    table = jnp.asarray(patch_distances(grid), jnp.float32)
    return (between * table).sum(axis=-1).mean(axis=-1)


def patch_distances(grid: Grid) -> Float[np.ndarray, "n n"]:
    """Euclidean distance between all patches of a grid, in patches."""
    at = np.indices(grid).reshape(2, -1).T
    return np.linalg.norm(at[:, None] - at[None, :], axis=-1)


def linear_cka(x: Float[np.ndarray, "n k"], y: Float[np.ndarray, "n d"]) -> float:
    """Linear centred kernel alignment of two sets of features of the same n things.

    In [0, 1]; 1 where one is the other but for a rotation, a scale and a shift
    (Kornblith et al. 2019). Computed in float64 through d x k products.
    """
    x, y = (z.astype(np.float64) - z.mean(axis=0) for z in (x, y))
    own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / own) if own > 0 else 0.0
