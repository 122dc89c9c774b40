"""k-nearest-neighbour top-1 of frozen features (the DINO protocol), exact."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from ddae.data import Splits, sample
from ddae.data.scenes import SceneSource
from ddae.eval.evaluator import OnDevices, cut_over, over
from ddae.settings import UserError
from ddae.tasks import Task

QUERIES = 256
"""Held-out images compared at a time: 1.3 GB of similarities to 1.28 M others."""


def make_knn(
    task: Task,
    splits: Splits,
    on_devices: OnDevices,
    *,
    k: int | tuple[int, ...] = 20,
    temperature: float = 0.07,
    pool: Literal["mean", "cls"] = "mean",
    num_train: int = 0,
    num_held_out: int = 0,
    linear: bool = False,
):
    """An evaluator: neighbours in the training set, top-1 on the held-out set, in %.

    k: how many neighbours vote; several are counted from one search. pool: mean of the
    patches, or the cls token. num_train, num_held_out: how many images of each set,
    drawn once at random; 0 takes all. linear: whether the same features are also given
    to `linear_top1`.
    """
    if temperature <= 0:
        raise UserError(
            f"config.evaluators.knn.temperature={temperature} must be positive"
        )
    if reason := _says_nothing(splits):
        if jax.process_index() == 0:
            print(f"kNN is left out: {reason}", flush=True)
        return lambda params, step: {}

    available = min(num_train or len(splits.train), len(splits.train))
    ks = _numbers(k, available)

    def pooled(params: Any, images: Array) -> Float[Array, "b d"]:
        return unit(task.encode(params, images).pooled(pool).astype(jnp.float32))

    features = on_devices(pooled)
    votes = make_votes(on_devices.mesh, ks, temperature, splits.train.num_classes)

    def run(params: Any, step: int) -> dict[str, float | np.ndarray]:
        indices = sample(splits.train, num_train)
        bank, labels = over(splits.train, indices, features, params, "kNN: training")
        placed = place_bank(on_devices.mesh, bank, labels)
        indices = sample(splits.held_out, num_held_out)
        queries, truth = over(
            splits.held_out, indices, features, params, "kNN: held out"
        )
        shares = _top1(lambda some: votes(some, *placed), queries, truth)
        found: dict[str, float | np.ndarray] = {
            f"knn{n}_top1": float(s) for n, s in zip(ks, shares, strict=True)
        }
        if linear:
            found["linear_top1"] = on_devices.meanwhile(
                lambda: linear_top1(bank, labels, queries, truth)
            )
        return found

    return run


def _top1(
    votes: Callable[[Float[np.ndarray, "q d"]], Float[Array, "k q classes"]],
    queries: Float[np.ndarray, "n d"],
    truth: Int[np.ndarray, " n"],
) -> Float[np.ndarray, " k"]:
    """In %, the queries of whose class most votes are; QUERIES at a time."""
    right: Any = 0
    for start in range(0, len(queries), QUERIES):
        rows = slice(start, start + QUERIES)
        missing = QUERIES - len(queries[rows])
        padded = np.pad(queries[rows], ((0, missing), (0, 0)))
        said = np.asarray(votes(padded))[:, : QUERIES - missing]
        right = right + (said.argmax(axis=-1) == truth[rows]).sum(axis=1)
    return 100.0 * right / len(queries)


def linear_top1(
    bank: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    queries: Float[np.ndarray, "q d"],
    truth: Int[np.ndarray, " q"],
) -> float:
    """Top-1, in %, of a logistic regression on the bank (scikit-learn's, C = 1, of
    features standardised by the bank): a linear probe in seconds.

    Unlike configs/linear_*.py (LARS, BatchNorm, augmented images, swept rates) it sees
    every image once, unaugmented, has an L2 penalty, and is solved to the end.
    """
    from sklearn.linear_model import LogisticRegression

    mean, deviation = bank.mean(axis=0), bank.std(axis=0) + 1e-6
    model = LogisticRegression(max_iter=500, tol=1e-3)
    model.fit((bank - mean) / deviation, labels)
    return 100.0 * float(model.score((queries - mean) / deviation, truth))


def unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Rows of length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def place_bank(
    mesh: Mesh, bank: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]
) -> tuple[Float[Array, "m d"], Int[Array, " m"]]:
    """Both cut over all devices; what fills them up to a whole number has label -1."""
    missing = -len(bank) % mesh.size
    bank = np.pad(bank, ((0, missing), (0, 0)))
    labels = np.pad(labels, (0, missing), constant_values=-1)
    return cut_over(mesh, bank), cut_over(mesh, labels)


def _numbers(k: int | tuple[int, ...], available: int) -> tuple[int, ...]:
    ks = (k,) if isinstance(k, int) else tuple(k)
    for number in ks or (0,):
        if not 0 < number <= available:
            raise UserError(
                f"config.evaluators.knn.k={number} is not between 1 and {available}"
                " images"
            )
    return ks


def _says_nothing(splits: Splits) -> str:
    """Why there is nothing to be right about, or wrong; empty where there is."""
    if isinstance(splits.train, SceneSource):
        return "a scene has a class for every pixel, and none of its own"
    if splits.train.num_classes < 2:
        return "all training images are of one class"
    if splits.train.identity == splits.held_out.identity:
        return "the held-out images are the training images"
    return ""


def make_votes(
    mesh: Mesh,
    ks: tuple[int, ...],
    temperature: float,
    num_classes: int,
):
    """(unit queries [q, d], placed bank and labels) -> votes [len(ks), q, classes].

    Each of the k nearest votes exp(cosine / temperature). Every device searches its own
    part of the bank, and their finds are searched again.
    """
    axes = mesh.axis_names
    most = max(ks)

    def nearest(
        queries: Float[Array, "q d"],
        bank: Float[Array, "n d"],
        labels: Int[Array, " n"],
    ) -> tuple[Float[Array, "q c"], Int[Array, "q c"]]:
        # In float32 throughout: a TPU would multiply in bfloat16, a GPU in TF32.
        similarity = jnp.matmul(queries, bank.T, precision="highest")
        similarity = jnp.where(labels >= 0, similarity, -jnp.inf)
        found, at = jax.lax.top_k(similarity, min(most, len(bank)))
        gather = {"axis_name": axes, "axis": 1, "tiled": True}
        return (
            jax.lax.all_gather(found, **gather),
            jax.lax.all_gather(labels[at], **gather),
        )

    whole, parts = PartitionSpec(), PartitionSpec(axes)
    search = jax.shard_map(
        nearest,
        mesh=mesh,
        in_specs=(whole, parts, parts),
        out_specs=(whole, whole),
        check_vma=False,  # all_gather makes them equal
    )

    @jax.jit
    def votes(
        queries: Float[Array, "q d"],
        bank: Float[Array, "n d"],
        labels: Int[Array, " n"],
    ) -> Float[Array, "k q classes"]:
        found, candidates = search(queries, bank, labels)
        similarity, at = jax.lax.top_k(found, min(most, found.shape[1]))
        labels = jnp.take_along_axis(candidates, at, axis=1)
        # Of the nearest 1, as a small temperature would make it infinite.
        each = jnp.exp((similarity - similarity[:, :1]) / temperature)[..., None]
        each = each * jax.nn.one_hot(labels, num_classes)
        return jnp.stack([each[:, :k].sum(axis=1) for k in ks])

    return votes
