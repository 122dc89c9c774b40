"""From weights under other names to a workdir."""

import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ddae import tasks
from ddae.dds import block_name
from ddae.interop.names import (
    DIALECTS,
    Row,
    Weights,
    fixed_positions,
    from_theirs,
    nested,
    rows_of,
)
from ddae.models.build import pair
from ddae.models.gelu import Gelu
from ddae.models.vit import VIT_SPECS
from ddae.settings import UserError
from ddae.train.checkpoint import Checkpoints
from ddae.train.metrics import write_config
from ddae.train.optimizer import path_name
from ddae.train.state import TrainState
from ddae.train.stored import checkpoints_of

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
    """What arrays alone do not tell: heads of attention (else those of the size in
    VIT_SPECS), pixels (else those of a square grid), mean, std and eval_crop of the
    images, and how GELU is computed (CLIP's own is known); of a MAE, how it was
    trained."""

    num_heads: int | None = None
    decoder_heads: int = 16
    image_size: int | tuple[int, int] | None = None
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    gelu: Gelu = "erf"
    eval_crop: float | None = None
    mask_ratio: float | None = None
    standardise_pixels: bool | None = None


def import_weights(
    weights: Weights, name: str, hints: Hints
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters, config) of what `weights` hold in the dialect `name`.

    A decoder with other positions than MAE's is left out, and a pooler's norm without
    a classifier; either is printed.
    Raises `UserError` naming an array that is missing, unknown or of another shape.
    """
    dialect = DIALECTS[name]
    depth, *more = (_count(weights, stack.theirs) for stack in dialect.stacks)
    decoder_depth = more[0] if more else 0
    if not depth:
        raise UserError(
            f"no blocks named {dialect.stacks[0].theirs}N: not weights of {name}"
        )
    rows = list(rows_of(dialect, depth, decoder_depth))
    own = dict(weights)
    positions, decoder_positions = (
        own.pop(name, None) if name else None
        for name in (dialect.positions, dialect.decoder_positions)
    )
    _check_arrays(weights, rows)
    found = from_theirs(own, rows, dialect.left)
    last = f"heads/{block_name(depth)}"
    if f"{last}/tokens/kernel" not in found:  # a norm without a classifier of tokens
        for leaf in ("scale", "bias"):
            if f"{last}/input_norm/{leaf}" in found:
                found[f"encoder/norm/{leaf}"] = found.pop(f"{last}/input_norm/{leaf}")
    notes = _leave_out_pooler(found)
    if "encoder/norm_embedding/scale" in found:  # CLIP's patches have no bias
        width = found["encoder/cls_token"].shape[-1]
        found.setdefault("encoder/patch_embedding/bias", np.zeros(width, np.float32))
    if "encoder/cls_token" not in found:
        raise UserError("there is no cls token among the arrays")
    token = found["encoder/cls_token"].reshape(1, 1, -1)
    found["encoder/cls_token"] = token
    kernel = weights.get(f"{dialect.patch}.weight")
    if positions is not None:
        _check_positions(f"{dialect.positions}", positions, token.shape[-1])
    config = _config(found, positions, kernel, depth, decoder_depth, hints)
    width, grid = token.shape[-1], grid_of(config)
    if config["model"]["positions"] == "learned":
        assert positions is not None
        found["encoder/positions"] = positions.reshape(1, -1, width)
    decoder = config.get("method", {}).get("decoder")
    if decoder and decoder_positions is not None:
        fixed = fixed_positions(decoder["width"], grid)
        if not _same(decoder_positions, fixed):
            del config["method"]["decoder"]
            found = {k: v for k, v in found.items() if not k.startswith("heads/")}
            notes.append(
                f"its decoder is left out: {dialect.decoder_positions} is not MAE's"
                " fixed sine-cosine table, the only one that decoders have here"
            )
    _check(found, config, rows, hints)
    for note in notes:
        print(note, file=sys.stderr)
    return nested(found), config


def _check_arrays(weights: Weights, rows: list[Row]) -> None:
    """What can be joined and turned at all; whether it fits is `_check`'s."""
    for row in rows:
        parts = {name: weights[name] for name in row.theirs if name in weights}
        for name, x in parts.items():
            if x.dtype.kind != "f":
                raise UserError(
                    f"{name} holds {x.dtype}, and no floating-point numbers: weights"
                    " that were quantised are not read"
                )
            if row.kind == "patch" and (x.ndim != 4 or 0 in x.shape):
                wanted = "(width, channels, patch, patch)"
                raise UserError(f"{name} is {x.shape}, wanted is {wanted}")
            if row.ours.endswith("/table") and (x.ndim != 2 or len(x) < 4):
                raise UserError(f"{name} is {x.shape}, wanted is (offsets + 3, heads)")
        if len({(x.ndim, *x.shape[1:]) for x in parts.values()}) > 1:
            shapes = ", ".join(f"{name} {x.shape}" for name, x in parts.items())
            raise UserError(f"these do not fit together: {shapes}")


def _check_positions(name: str, positions: np.ndarray, width: int) -> None:
    if positions.ndim < 2 or positions.shape[-1] != width or 0 in positions.shape:
        raise UserError(
            f"{name} is {positions.shape}, wanted is (1, 1 + patches, {width})"
        )


def _leave_out_pooler(found: Weights) -> list[str]:
    """Removes a norm of the pooled mean that no classifier follows, and says so."""
    pooler = [name for name in found if name.startswith("heads/classifier/norm/")]
    if not pooler or any("heads/classifier/linear/" in name for name in found):
        return []
    for name in pooler:
        del found[name]
    return [
        "the norm of its pooled mean is left out, as no classifier follows; the"
        " encoder has no last norm"
    ]


def _count(weights: Weights, prefix: str) -> int:
    numbers = {
        name.removeprefix(prefix).partition(".")[0]
        for name in weights
        if name.startswith(prefix)
    }
    return len(numbers)


def _config(
    found: Weights,
    positions: np.ndarray | None,
    kernel: np.ndarray | None,
    depth: int,
    decoder_depth: int,
    hints: Hints,
) -> dict[str, Any]:
    width = found["encoder/cls_token"].shape[-1]
    size = _size(width, depth, hints.num_heads)
    if kernel is None:
        raise UserError("there is no patch embedding among the arrays")
    _, channels, patch, _ = kernel.shape
    if not len(hints.mean) == len(hints.std) == channels:
        raise UserError(
            f"images of {channels} channels, mean and deviation of {len(hints.mean)}"
            f" and {len(hints.std)}; give --mean and --std with a number for each"
        )
    shared = found.get("encoder/relative_bias/table")
    own = found.get("encoder/block_00/relative_bias/table")
    table = shared if shared is not None else own
    grid = _grid_by(hints.image_size, patch, positions, table)
    kind = "none"
    if positions is not None:
        fixed = fixed_positions(width, grid)
        kind = "sincos" if _same(positions, fixed) else "learned"
    scale = found.get("encoder/block_00/scale_attention")
    model = {
        "size": size,
        "patch_size": patch,
        "channels": channels,
        "positions": kind,
        "relative_bias": "none"
        if table is None
        else ("block" if shared is None else "shared"),
        "layer_scale": 0.0 if scale is None else 0.1,
        "style": "clip" if "encoder/norm_embedding/scale" in found else "vit",
        "gelu": hints.gelu,
    }
    data = {"name": "folder", "mean": tuple(hints.mean), "std": tuple(hints.std)}
    if 0.0 < (hints.eval_crop or 0.0) <= 1.0:
        data["eval_crop"] = hints.eval_crop
    config = {
        "image_size": grid[0] * patch
        if grid[0] == grid[1]
        else (grid[0] * patch, grid[1] * patch),
        "dtype": "float32",
        "data": data,
        "model": model,
        "optimizer": {},
    }
    return config | _task(found, depth, decoder_depth, hints, model)


def _grid_by(
    image_size: int | tuple[int, int] | None,
    patch: int,
    positions: np.ndarray | None,
    table: np.ndarray | None,
) -> tuple[int, int]:
    """The grid of images of that size, else the square one that the arrays are of."""
    if image_size:
        height, width = pair(image_size)
        if height % patch or width % patch:
            raise UserError(f"image_size={image_size} is not whole patches of {patch}")
        return height // patch, width // patch
    if positions is not None:
        side = round((positions.shape[-2] - 1) ** 0.5)
    elif table is not None:
        side = (round((len(table) - 3) ** 0.5) + 1) // 2
    else:
        raise UserError("the arrays do not tell the size of images; give --image_size")
    return side, side


def _size(width: int, depth: int, num_heads: int | None) -> str:
    """The first of `VIT_SPECS` that is so."""
    for name, spec in VIT_SPECS.items():
        same = (spec.width, spec.depth) == (width, depth)
        if same and num_heads in (None, spec.num_heads):
            return name
    raise UserError(
        f"no size of ours has width {width}, {depth} blocks and"
        f" {num_heads or 'any number of'} heads; known: {sorted(VIT_SPECS)}"
    )


def _task(
    found: Weights,
    depth: int,
    decoder_depth: int,
    hints: Hints,
    model: Mapping[str, Any],
) -> dict[str, Any]:
    """The task that these parameters are of."""
    last = f"heads/{block_name(depth)}"
    linear = [x for k, x in found.items() if k.startswith("heads/classifier/linear/")]
    if linear:
        mean = "heads/classifier/norm/scale" in found
        classifier = {
            "num_classes": np.atleast_1d(linear[0]).shape[-1],
            "pool": "mean" if mean else "cls",
            "norm": "layer" if mean else "none",
        }
        return {"task": "classify", "classifier": classifier, "mixing": {}}
    if f"{last}/embedding/kernel" in found:
        decoder = {
            "depth": decoder_depth,
            "width": found[f"{last}/embedding/kernel"].shape[1],
            "num_heads": hints.decoder_heads,
        }
        method = {"name": "mae", "decoder": decoder}
        if hints.standardise_pixels is not None:
            method["standardise_pixels"] = hints.standardise_pixels
        if 0.0 < (hints.mask_ratio or 0.0) < 1.0:
            method["mask"] = {"ratio": hints.mask_ratio}
        return {"task": "pretrain", "method": method}
    tokens = found.get(f"{last}/tokens/bias")
    if tokens is None and "encoder/norm/scale" in found:
        layout = "visible" if model["relative_bias"] == "none" else "mask_token"
        return {"task": "pretrain", "method": {"name": "mae", "layout": layout}}
    asked = {"size": model["size"], "patch_size": model["patch_size"]}
    tokenizer = {
        "codes": 2 if tokens is None else len(tokens),
        "model": asked | {"channels": model["channels"]},
    }
    return {"task": "pretrain", "method": {"name": "beit", "tokenizer": tokenizer}}


def grid_of(config: Mapping[str, Any]) -> tuple[int, int]:
    """(rows, columns) of the patches of its images."""
    height, width = pair(config["image_size"])
    patch = config["model"]["patch_size"]
    return height // patch, width // patch


def _same(stored: np.ndarray, fixed: np.ndarray) -> bool:
    """Equal up to the precision in which `stored` was kept."""
    if stored.size != fixed.size:
        return False
    tolerance = 1e-5
    for kind, coarser in ((np.float16, 1e-3), (ml_dtypes.bfloat16, 1e-2)):
        if np.array_equal(stored, stored.astype(kind).astype(np.float32)):
            tolerance = coarser
    return np.allclose(stored.reshape(fixed.shape), fixed, rtol=0, atol=tolerance)


def _check(
    found: Weights, config: Mapping[str, Any], rows: list[Row], hints: Hints
) -> None:
    """Every array that the task has is there at its shape; heads may be wanting."""
    shapes = jax.eval_shape(tasks.from_config(config).init, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    wanted = {path_name(path)[1:]: tuple(x.shape) for path, x in leaves}
    wanted = {k: v for k, v in wanted.items() if not k.startswith("frozen/")}
    if not any(name.startswith("heads/") for name in found):
        wanted = {k: v for k, v in wanted.items() if k.startswith("encoder/")}
    token = "encoder/mask_token"
    wanted.pop(token, None)
    if token in found:
        wanted[token] = found["encoder/cls_token"].shape
    theirs = {row.ours: row.theirs[0] for row in rows}
    for name in sorted(wanted):
        shape = wanted[name]
        if name not in found:
            raise UserError(f"{theirs.get(name, name)} is missing (our {name})")
        if not np.isfinite(found[name]).all():
            raise UserError(f"{theirs.get(name, name)} is not finite")
        if found[name].shape != shape:
            of_grid = name == "encoder/positions" or name.endswith("bias/table")
            mend = _mend(found, config, hints) if of_grid else ""
            raise UserError(
                f"{theirs.get(name, name)} makes {found[name].shape} for our {name},"
                f" which is {shape} in ViT-{config['model']['size']}{mend}"
            )
    for name in sorted(found.keys() - wanted.keys()):
        raise UserError(
            f"{theirs.get(name, name)} has no place here beside the other arrays; no"
            " encoder of ours reads both"
        )


def _mend(found: Weights, config: Mapping[str, Any], hints: Hints) -> str:
    """What to do where positions, or a table of biases, are of another grid."""
    rows, columns = grid_of(config)
    positions = found.get("encoder/positions")
    without = positions is not None and positions.shape[1] == rows * columns
    no_row = "no row for the cls token (timm's no_embed_class) are not taken"
    if hints.image_size is None:
        mend = "; of oblong images give --image_size=HEIGHT,WIDTH, as it was trained"
        return f"{mend}; positions with {no_row}" if without else mend
    if without:
        return f"; positions with {no_row}"
    return (
        f" at image_size={config['image_size']}; import it at the size that it was"
        " trained at: load_encoder(image_size=...) and config.image_size resize it"
    )


def write_workdir(
    workdir: str,
    params: Mapping[str, Any],
    config: Mapping[str, Any],
    class_names: tuple[str, ...] = (),
) -> None:
    """A checkpoint of step 0. Raises `UserError` where the workdir has some already."""
    if checkpoints_of(workdir).is_dir():
        raise UserError(f"{workdir} has checkpoints already; give another --workdir")
    os.makedirs(workdir, exist_ok=True)
    zero = jnp.zeros((), jnp.int32)
    params = {"heads": {}} | jax.tree.map(jnp.asarray, dict(params))
    state = TrainState(zero, params, {}, {}, zero, zero)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, 0, config, {})
    write_config(workdir, config, class_names)
