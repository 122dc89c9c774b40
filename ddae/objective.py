"""THE loss function: a sum of Terms, each a weighted mean over masked patches."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddae.difficulty import (
    DISTANCE_BINS,
    BetaSchedule,
    Law,
    Metric,
    effective_sample_size,
    nearest_visible_distance,
    power_law,
)
from ddae.losses import weighted_mean
from ddae.masking import Mask, gather_patches
from ddae.models.heads import Predictions
from ddae.targets import Target, TargetContext

Scalar = Float[Array, ""]
Progress = Float[Array, ""]
PatchLoss = Callable[..., Float[Array, "b m"]]
Weight = Callable[[Progress], Scalar]
Metrics = dict[str, tuple[Scalar, Scalar]]
"""Name to (sum, count): means over devices, micro-batches and steps stay exact."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difficulty:
    """Deep dynamic supervision of one Term: the exponent at its relative depth, and
    what weights it makes of distances."""

    beta: BetaSchedule
    depth: float
    metric: Metric = "euclidean"
    law: Law = power_law


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """One line of a method's loss table.

    name: of its metrics, "pixels/block12". taps: layers that its head reads. head: key
    into the method's heads; the same key is one set of weights, run once. output:
    which of the head's predictions. weight: a number or a function of progress.
    """

    name: str
    taps: tuple[int, ...]
    head: str
    output: str
    target: Target
    loss: PatchLoss
    difficulty: Difficulty | None = None
    weight: float | Weight = 1.0


def evaluate_terms(
    terms: tuple[Term, ...],
    predictions: Mapping[str, Predictions],
    context: TargetContext,
    progress: Progress,
) -> tuple[Scalar, Metrics]:
    """The total loss, and metrics of every Term.

    L = sum over Terms of weight(t) * mean over images of (1/m) sum_i w_i(beta) e_i,
    with e the Term's per-patch loss, and w = 1 where it has no difficulty. `progress`
    is t in [0, 1].
    """
    # The map is cheap and its bins are worth seeing for every method, weighted or not.
    metrics_used: set[Metric] = {"euclidean"}
    metrics_used |= {term.difficulty.metric for term in terms if term.difficulty}
    distances = {
        metric: gather_patches(
            nearest_visible_distance(context.mask, context.grid, metric),
            context.mask.ids_masked,
        )
        for metric in sorted(metrics_used)
    }
    total = jnp.zeros((), jnp.float32)
    metrics: Metrics = {}
    for term in terms:
        target = gather_patches(term.target(context), context.mask.ids_masked)
        prediction = predictions[term.head][term.output]
        errors = term.loss(prediction, target)
        if target.ndim == 2:
            hits = (prediction.argmax(axis=-1) == target).astype(jnp.float32)
            metrics[f"accuracy/{term.name}"] = _mean(100.0 * hits.mean(axis=-1))
        scored, share = None, 1.0
        if context.seen is not None and term.target.teacher_layers:
            scored, share = _scored(context.mask, context.seen)
        weights = scored
        if (difficulty := term.difficulty) is not None:
            beta = difficulty.beta(progress, difficulty.depth)
            weights = difficulty.law(
                distances[difficulty.metric], beta, jax.lax.stop_gradient(errors)
            )
            weights = weights if scored is None else _mean_one(weights * scored)
            metrics[f"beta/{term.name}"] = _scalar(beta)
            # Among the patches that count, whose weights have the mean 1 / share.
            ess = effective_sample_size(weights) / share
            ess = jnp.where(weights.any(axis=-1), ess, 0.0)
            metrics[f"ess/{term.name}"] = _mean(ess)
            metrics[f"max_weight/{term.name}"] = _mean(weights.max(axis=-1) * share)
        loss = weighted_mean(errors, weights)
        factor = term.weight(progress) if callable(term.weight) else term.weight
        total = total + factor * loss
        metrics[f"loss/{term.name}"] = _scalar(loss)
        metrics |= _by_distance(term.name, errors, distances["euclidean"], scored)
    metrics["loss"] = _scalar(total)
    return total, metrics


def in_turn(
    losses: Mapping[str, Callable[[Any, Any], tuple[Scalar, Metrics]]],
    given: Mapping[str, tuple[Any, Any]],
) -> tuple[Scalar, Metrics]:
    """The sum of the `losses`, each of its (parameters, features), and all metrics.

    Left to itself XLA may keep the activations of all heads in memory; here no more
    than two heads' are. Each loss is computed with its gradient, and begins only when
    the last one's gradient of the features is there, and that of the parameters of the
    one before it (the last one's may still be on its way between devices).
    Differentiable once, backwards.
    """

    def forward(given: Any) -> tuple[tuple[Scalar, Metrics], Any]:
        total, metrics = jnp.zeros((), jnp.float32), {}
        grads: dict[str, Any] = {}
        for name, loss in losses.items():
            params, features = given[name]
            *_, before, last = (None, None), (None, None), *grads.values()
            features, _ = jax.lax.optimization_barrier((features, (before[0], last[1])))
            both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
            (value, own), grads[name] = both(params, features)
            total, metrics = total + value, metrics | own
        return (total, metrics | {"loss": _scalar(total)}), grads

    def backward(grads: Any, cotangents: Any) -> tuple[Any]:
        scale, _ = cotangents
        return (jax.tree.map(lambda x: x * scale.astype(x.dtype), grads),)

    @jax.custom_vjp
    def evaluated(given: Any) -> tuple[Scalar, Metrics]:
        return forward(given)[0]

    evaluated.defvjp(forward, backward)
    return evaluated(given)


def _scored(mask: Mask, seen: Mask) -> tuple[Float[Array, "b m"], float]:
    """Weights of mean 1, alike for hidden patches that the teacher saw, else 0; and the
    share of hidden patches that it saw."""
    hidden, count = mask.ids_masked.shape[1], seen.ids_visible.shape[1]
    inside = gather_patches((~seen.is_masked).astype(jnp.float32), mask.ids_masked)
    return inside * (hidden / count), count / hidden


def _mean_one(weights: Float[Array, "b m"]) -> Float[Array, "b m"]:
    """0 where all are: a law may leave out every patch that the teacher saw."""
    mean = weights.mean(axis=-1, keepdims=True)
    return weights / jnp.maximum(mean, jnp.finfo(jnp.float32).tiny)


def _by_distance(
    name: str,
    errors: Float[Array, "b m"],
    distance: Float[Array, "b m"],
    scored: Float[Array, "b m"] | None,
) -> Metrics:
    """The unweighted loss of the patches in each distance bin."""
    labels, *edges = zip(*DISTANCE_BINS, strict=True)
    low, high = (np.array(edge)[:, None, None] for edge in edges)
    inside = ((distance >= low) & (distance < high)).astype(jnp.float32)
    if scored is not None:
        inside = inside * (scored > 0)
    sums, counts = (errors * inside).sum(axis=(1, 2)), inside.sum(axis=(1, 2))
    return {
        f"distance/{name}/{label}": (sums[i], counts[i])
        for i, label in enumerate(labels)
    }


def _scalar(value: Scalar) -> tuple[Scalar, Scalar]:
    return value, jnp.ones((), jnp.float32)


def _mean(values: Float[Array, " b"]) -> tuple[Scalar, Scalar]:
    return values.sum(), jnp.asarray(values.size, jnp.float32)


def teacher_layers(terms: tuple[Term, ...]) -> tuple[int, ...]:
    """Layers of the teacher that some Term asks for, ascending; empty: no teacher."""
    return tuple(
        sorted({layer for term in terms for layer in term.target.teacher_layers})
    )


def head_taps(terms: tuple[Term, ...]) -> dict[str, tuple[int, ...]]:
    """The taps of each head. Raises `ValueError` where Terms disagree on them, or have
    one name, under which metrics would show one of them alone."""
    taps: dict[str, tuple[int, ...]] = {}
    for term in terms:
        if taps.setdefault(term.head, term.taps) != term.taps:
            raise ValueError(
                f"head {term.head!r} is read at {taps[term.head]} and {term.taps}"
            )
    names = [term.name for term in terms]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two Terms are called {min(twice)!r}")
    return taps
