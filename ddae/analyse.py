"""What a pretraining run's encoder does: python -m ddae.analyse WORKDIR [--beside RUN]

Reads the newest checkpoint and held-out images of the run's own config, and writes
numbers (analysis.json) and four figures to WORKDIR/analysis: how far every attention
head looks, the loss of hidden patches by distance and tap, how alike layers are (CKA)
and, for methods that weigh patches, what share of them the weights leave.
docs/reading_a_run.md says how to read each. Exit codes: 0; 2 wrong arguments or data.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float
from PIL import Image

from ddae import commands
from ddae.data import sample
from ddae.difficulty import (
    DISTANCE_BINS,
    effective_sample_size,
    nearest_visible_distance,
)
from ddae.eval.evaluator import over
from ddae.eval.figures import new_figure, to_array
from ddae.eval.locality import linear_cka, make_distances, patch_distances
from ddae.masking import gather_patches
from ddae.settings import UserError
from ddae.tasks.pretrain import Pretrain
from ddae.train.loading import describe, load_state, run_of
from ddae.train.plan import Job, plan
from ddae.train.speed import keep_memory
from ddae.train.step import OnDevices

BETAS = np.linspace(-2.0, 2.0, 17)
MASKS = 256
"""Masks that effective sample sizes are averaged over."""


def open_run(
    workdir: str, changes: Mapping[str, str]
) -> tuple[Job, Pretrain, Any, Any]:
    """(plan, task, params, teacher's params or {}) of a pretraining's last step.

    changes: keys of config.data, where the images lie elsewhere now. Raises
    `UserError`.
    """
    config = describe(workdir)["config"]
    if "epochs" not in config:
        raise UserError(f"{workdir} holds imported weights, and no run to analyse")
    config["model"]["drop_path"] = 0.0
    config["evaluators"] = {}
    keep_memory()  # the next line asks jax for devices
    # The training's mesh need not be here.
    config |= {"mesh": {"fsdp": 1}, "batch_size": jax.device_count()}
    config["optimizer"] = {**config.get("optimizer", {}), "accumulate": 1}
    for key, value in changes.items():
        if key not in config["data"]:
            raise UserError(f"--data {key}={value}: config.data has no such key")
        is_text = isinstance(config["data"][key], str)
        config["data"][key] = value if is_text else commands.literal(value)
    job = plan(config)
    if not isinstance(job.task, Pretrain):
        raise UserError(f"{workdir} is a run of task {config['task']}, not pretrain")
    state = load_state(workdir, job.shapes)
    return job, job.task, state.params, state.ema_params


def analyse(
    workdir: str, beside: str, num_images: int, changes: Mapping[str, str]
) -> dict[str, Any]:
    """All numbers of the page, as nested dicts and lists.

    attention_distance [depth, heads], in patches, and uniform_distance, of a head that
    reads all patches alike; loss {term: {bin: loss}}; cka
    {"student": [depth, depth], "teacher" or "beside": ...}; ess {"taps": ..., "beta":
    ...} as shares of the hidden patches.
    """
    job, task, params, teacher = open_run(workdir, changes)
    on_devices = OnDevices(job.mesh)
    source = job.splits.held_out
    indices = sample(source, num_images)
    if beside:  # before minutes of work
        _, other_task, other_params, _ = open_run(beside, changes)
        if other_task.image_shape != task.image_shape:
            raise UserError(
                f"{beside} takes images of {other_task.image_shape}, {workdir} of"
                f" {task.image_shape}; they cannot see the same ones"
            )
        if other_task.encoder.grid != task.encoder.grid:
            raise UserError(f"{beside} has another grid of patches than {workdir}")

    def read(function: Any, read_params: Any) -> Any:
        return over(source, indices, function, read_params, "analyse")[0]

    found: dict[str, Any] = {"workdir": workdir, "images": len(indices)}
    distances = read(on_devices(make_distances(task)), params)
    found["attention_distance"] = distances.mean(axis=0).tolist()
    grid = task.encoder.grid
    found["uniform_distance"] = float(patch_distances(grid).mean())
    own = read(on_devices(_all_layers(task)), params)
    found["cka"] = {"student": cka_matrix(own, own)}
    if teacher:
        other = read(on_devices(_all_layers(task)), teacher)
        found["cka"]["teacher"] = cka_matrix(own, other)
    if beside:
        other = read(on_devices(_all_layers(other_task)), other_params)
        found["cka"]["beside"] = cka_matrix(own, other)
        found["beside"] = beside
    (batch,) = source.batches(indices, len(indices))
    found["loss"] = loss_by_distance(task, params, teacher, batch)
    if curves := sample_sizes(task):
        found["ess"] = curves
    return found


def _all_layers(task: Pretrain):
    """(params, images) -> patches of every block, [b, depth, n, d]; the last one after
    the final norm, where the encoder has one."""
    encoder = task.encoder
    taps = tuple(range(1, encoder.spec.depth + 1))

    def layers(params: Any, images: Array) -> Float[Array, "b depth n d"]:
        x = task.standardise(images)
        features: Any = encoder.apply({"params": params["encoder"]}, x, taps=taps)
        return jnp.stack([features[tap].patches for tap in taps], axis=1)

    return layers


def cka_matrix(
    x: Float[np.ndarray, "b depth n d"], y: Float[np.ndarray, "b layers n k"]
) -> list[list[float]]:
    """Linear CKA of every layer of `x` with every layer of `y`, over all patches."""
    rows, columns = (
        [z[:, layer].reshape(-1, z.shape[-1]) for layer in range(z.shape[1])]
        for z in (x, y)
    )
    return [[linear_cka(a, b) for b in columns] for a in rows]


def loss_by_distance(
    task: Pretrain, params: Any, teacher: Any, batch: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """{term: {bin: unweighted loss of hidden patches}} at the end of training, t = 1.

    Bins that no hidden patch falls into are left out.
    """
    size = 64
    take = jax.jit(lambda p, e, b, t, rngs: task.loss(p, e, b, t, rngs)[1])
    sums: dict[str, np.ndarray] = {}
    root = jax.random.key(0)
    for start in range(0, len(batch["label"]), size):
        part = {k: jnp.asarray(v[start : start + size]) for k, v in batch.items()}
        rngs = jax.random.split(jax.random.fold_in(root, start), len(part["label"]))
        metrics = take(params, teacher, part, jnp.ones(()), rngs)
        for name, pair in metrics.items():
            if name.startswith("distance/"):
                sums[name] = sums.get(name, np.zeros(2)) + np.array(pair, float)
    found: dict[str, dict[str, float]] = {}
    for name, (total, count) in sums.items():
        term, label = name.removeprefix("distance/").rsplit("/", 1)
        if count:
            found.setdefault(term, {})[label] = float(total / count)
    return found


def sample_sizes(task: Pretrain) -> dict[str, Any]:
    """Effective sample size of the weights, mean over masks; {} without difficulty.

    {"beta": [(beta, ess)], "taps": {depth u: [(t, ess)]}}, of the method's own masks
    and the metric and law of its first weighted Term; {} too where the law reads
    losses, which nobody has here.
    """
    method = task.method
    known = {
        round(term.difficulty.depth, 4): term.difficulty
        for term in method.terms
        if term.difficulty
    }
    if not known:
        return {}
    grid = task.encoder.grid
    mask = method.masking.draw(jax.random.split(jax.random.key(0), MASKS), grid)
    first = next(iter(known.values()))
    distance = nearest_visible_distance(mask, grid, first.metric)
    distance = gather_patches(distance, mask.ids_masked)
    errors = jnp.full_like(distance, jnp.nan)
    share = jax.jit(
        lambda beta: effective_sample_size(first.law(distance, beta, errors)).mean()
    )
    times = np.linspace(0.0, 1.0, 21)
    taps = {
        str(depth): [
            (float(t), float(share(difficulty.beta(t, difficulty.depth))))
            for t in times
        ]
        for depth, difficulty in sorted(known.items())
    }
    if not np.isfinite(list(taps.values())).all():
        return {}
    curve = [(float(b), float(share(b))) for b in BETAS]
    return {"beta": [point for point in curve if np.isfinite(point[1])], "taps": taps}


def figures(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The page's pictures, {name: uint8 [height, width, 3]}."""
    made = {
        "attention_distance": _draw_attention(
            np.array(found["attention_distance"]), found["uniform_distance"]
        ),
        "loss_by_distance": _draw_losses(found["loss"]),
        "cka": _draw_cka(found["cka"]),
    }
    if "ess" in found:
        made["effective_sample_size"] = _draw_sample_sizes(found["ess"])
    return made


def _draw_attention(
    distances: Float[np.ndarray, "depth heads"], uniform: float
) -> np.ndarray:
    figure, axes = new_figure(1, 1, width=4.6, height=3.3)
    axis, depth = axes[0, 0], np.arange(1, len(distances) + 1)
    for head in distances.T:
        axis.plot(depth, head, "o", color="C0", alpha=0.45, markersize=5)
    axis.plot(depth, distances.mean(axis=1), "-", color="C1", label="mean of heads")
    axis.set_xticks(depth)
    axis.axhline(uniform, color="grey", linestyle=":", label="all patches alike")
    axis.set_ylim(0, 1.15 * max(uniform, distances.max()))
    axis.set_xlabel("block")
    axis.set_ylabel("attention distance, patches")
    axis.legend(fontsize=8, loc="lower left")
    return to_array(figure)


def _draw_losses(losses: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    # A name of one's own may have no slash, or two.
    parts = {
        term: (term.rpartition("/")[0] or term, term.split("/")[-1]) for term in losses
    }
    kinds = sorted({kind for kind, _ in parts.values()})
    labels = [label for label, _, _ in DISTANCE_BINS]
    heads = sorted({head for _, head in parts.values()})
    figure, axes = new_figure(1, len(kinds), width=3.8 * len(kinds) + 1.4, height=3.3)
    for axis, kind in zip(axes[0], kinds, strict=True):
        for term in sorted(t for t in losses if parts[t][0] == kind):
            inside = [label for label in labels if label in losses[term]]
            at = [labels.index(label) for label in inside]
            values = [losses[term][label] for label in inside]
            head = parts[term][1]
            colour = f"C{heads.index(head) % 10}"
            axis.plot(at, values, marker="o", label=head, color=colour)
        axis.set_xticks(range(len(labels)), [label[1:] for label in labels])
        axis.set_title(kind, fontsize=9)
        axis.set_xlabel("patches to the nearest visible one")
    axes[0, 0].set_ylabel("loss of a hidden patch")
    lines = {line.get_label(): line for axis in axes[0] for line in axis.lines}
    figure.legend(lines.values(), lines, fontsize=8, loc="outside right upper")
    return to_array(figure)


def _draw_cka(matrices: Mapping[str, Any]) -> np.ndarray:
    figure, axes = new_figure(1, len(matrices), width=3.4 * len(matrices), height=3.2)
    for axis, (name, matrix) in zip(axes[0], matrices.items(), strict=True):
        values = np.array(matrix)
        axis.imshow(values, vmin=0, vmax=1, origin="lower", cmap="viridis")
        for i, j in np.ndindex(*values.shape) if values.size <= 64 else ():
            dark = values[i, j] < 0.6
            axis.text(
                *(j, i, f"{values[i, j]:.2f}"),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "black",
            )
        axis.set_xticks(range(values.shape[1]), range(1, values.shape[1] + 1))
        axis.set_yticks(range(values.shape[0]), range(1, values.shape[0] + 1))
        axis.set_xlabel(f"block, {name}")
        axis.set_ylabel("block, student")
    figure.colorbar(axes[0, -1].images[0], ax=axes[0, -1], label="CKA", shrink=0.8)
    return to_array(figure)


def _draw_sample_sizes(curves: Mapping[str, Any]) -> np.ndarray:
    figure, axes = new_figure(1, 2, width=8.0, height=3.2)
    left, right = axes[0]
    left.plot(*zip(*curves["beta"], strict=True), color="black")
    left.set_xlabel("beta")
    left.set_ylabel("effective sample size, share")
    for depth, points in curves["taps"].items():
        right.plot(*zip(*points, strict=True), label=f"u = {float(depth):g}")
    right.set_xlabel("progress t")
    right.legend(title="tap at depth", fontsize=8, title_fontsize=8, loc="lower left")
    for axis in (left, right):
        axis.set_ylim(0, 1.03)
    return to_array(figure)


def lines(found: Mapping[str, Any]) -> list[str]:
    """The page in short, for the terminal."""
    shown = []
    for layer, heads in enumerate(found["attention_distance"], start=1):
        each = " ".join(f"{value:.2f}" for value in heads)
        shown.append(
            f"block {layer:>2}  attention distance {np.mean(heads):.2f} ({each})"
        )
    for term, bins in sorted(found["loss"].items()):
        each = ", ".join(f"{label} {value:.3f}" for label, value in bins.items())
        shown.append(f"{term}  loss by distance {each}")
    for name, matrix in found["cka"].items():
        if name != "student":
            each = " ".join(f"{value:.2f}" for value in np.diag(matrix))
            shown.append(f"CKA of each block with its like, {name}: {each}")
    return shown


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = commands.parser("ddae.analyse", __doc__)
    parser.add_argument("workdir")
    parser.add_argument("--beside", default="", help="another run, for CKA")
    parser.add_argument("--out", help="default: WORKDIR/analysis")
    parser.add_argument("--num_images", type=int, default=512)
    parser.add_argument("--data", action="append", default=[], metavar="KEY=VALUE")
    return commands.run(_analyse, parser, argv)


def _analyse(args: Any) -> None:
    out = epath.Path(args.out or epath.Path(run_of(args.workdir)[0]) / "analysis")
    if args.num_images < 1:
        raise UserError(f"--num_images={args.num_images} is not 1 or more")
    if wrong := [text for text in args.data if "=" not in text]:
        raise UserError(f"--data {wrong[0]} is not KEY=VALUE, as dir={wrong[0]} is")
    changes = dict(text.split("=", 1) for text in args.data)
    found = analyse(args.workdir, args.beside, args.num_images, changes)
    out.mkdir(parents=True, exist_ok=True)
    (out / "analysis.json").write_text(json.dumps(found, indent=1))
    for name, picture in figures(found).items():
        with (out / f"{name}.png").open("wb") as file:
            Image.fromarray(picture).save(file, "PNG")
    print("\n".join([*lines(found), str(out)]))


if __name__ == "__main__":
    sys.exit(main())
