"""k-nearest-neighbour top-1 of frozen features (the DINO protocol)."""

import functools
import sys
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from rich.progress import track

from ddae.data import Source, Splits
from ddae.models.vit import Features
from ddae.settings import UserError
from ddae.tasks import Task

Encode = Callable[[Any, np.ndarray], Features]

CHUNK = 1024
"""Images read, or queries compared, at a time."""


def make_knn(
    task: Task,
    splits: Splits,
    encode: Encode,
    *,
    k: int = 20,
    temperature: float = 0.07,
    pool: Literal["mean", "cls"] = "mean",
    num_train: int = 0,
    num_held_out: int = 0,
):
    """An evaluator: neighbours in the training set, top-1 on the held-out set, in %.

    pool: mean of the patches, or the cls token. num_train, num_held_out: how many
    images of each set, drawn once at random; 0 takes all.
    """
    if pool not in ("mean", "cls"):
        raise UserError(f"config.evaluators.knn.pool={pool!r} is not mean or cls")
    available = num_train or len(splits.train)
    if not 0 < k <= min(available, len(splits.train)):
        raise UserError(
            f"config.evaluators.knn.k={k} is not between 1 and {available} images"
        )

    def run(params: Any, step: int) -> dict[str, float | np.ndarray]:
        pooled = functools.partial(_features, params, encode, pool)
        train, train_labels = pooled(splits.train, num_train, "kNN: training features")
        test, test_labels = pooled(
            splits.held_out, num_held_out, "kNN: held-out features"
        )
        bank, bank_labels = jnp.asarray(train), jnp.asarray(train_labels)
        right = 0
        for start in range(0, len(test), CHUNK):
            rows = slice(start, start + CHUNK)
            scores = class_scores(
                test[rows],
                bank,
                bank_labels,
                k,
                temperature,
                splits.train.num_classes,
            )
            right += int(
                (np.asarray(scores).argmax(axis=-1) == test_labels[rows]).sum()
            )
        return {f"knn{k}_top1": 100.0 * right / len(test)}

    return run


@functools.partial(jax.jit, static_argnames=("k", "num_classes"))
def class_scores(
    queries: Float[Array, "q d"],
    bank: Float[Array, "n d"],
    labels: Int[Array, " n"],
    k: int,
    temperature: float,
    num_classes: int,
) -> Float[Array, "q classes"]:
    """Votes of the k nearest by cosine, each exp(similarity / temperature)."""

    def unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    similarity, nearest = jax.lax.top_k(unit(queries) @ unit(bank).T, k)
    votes = jnp.exp(similarity / temperature)
    return (jax.nn.one_hot(labels[nearest], num_classes) * votes[..., None]).sum(axis=1)


def _features(
    params: Any,
    encode: Encode,
    pool: str,
    source: Source,
    limit: int,
    description: str,
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
    indices = np.arange(len(source))
    if limit and limit < len(source):
        chosen = np.random.default_rng(0).permutation(len(source))[:limit]
        indices = np.sort(chosen)
    rows, labels = [], []
    batches = track(
        source.batches(indices, CHUNK),
        description,
        total=-(-len(indices) // CHUNK),
        transient=True,
        disable=not sys.stdout.isatty(),
    )
    for batch in batches:
        tokens = encode(params, batch["image"])
        rows.append(
            tokens.patches.mean(axis=1) if pool == "mean" else tokens.prefix[:, 0]
        )
        labels.append(batch["label"])
    return np.concatenate(rows), np.concatenate(labels)
