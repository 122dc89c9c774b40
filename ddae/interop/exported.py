"""From a workdir to weights under other names."""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from ddae.dds import block_name
from ddae.interop.convert import grid_of
from ddae.interop.names import (
    DIALECTS,
    Weights,
    fixed_positions,
    flat,
    rows_of,
    to_theirs,
)
from ddae.models.build import pair
from ddae.models.positions import resize_positions
from ddae.models.vit import VIT_SPECS
from ddae.settings import UserError
from ddae.train.loading import load_params, run_of
from ddae.train.plan import spelled_out


def class_names(workdir: str, number: int) -> tuple[str, ...]:
    """Those of the run's classes.txt, where they are so many; else "class 0" and on."""
    path = epath.Path(run_of(workdir)[0]) / "classes.txt"
    names = tuple(path.read_text().splitlines()) if path.exists() else ()
    return names if len(names) == number else tuple(f"class {i}" for i in range(number))


def read_run(
    workdir: str, head: str | None
) -> tuple[Weights, dict[str, Any], dict[str, Any]]:
    """(flat parameters, config with all its defaults, classifier settings or {}) of a
    workdir, for export.

    Of a sweep `head` names the head; a batch norm goes into its Linear. Frozen networks
    and the parts of heads that nobody else has stay behind.
    """
    params, config = load_params(workdir)
    config = spelled_out(config)
    if (size := config["model"]["size"]) not in VIT_SPECS:
        raise UserError(
            f"{workdir} is a ViT-{size}, which is not registered here: add it to"
            " VIT_SPECS in ddae/models/vit.py, or import what does before you export"
        )
    found = flat({k: v for k, v in params.items() if k != "frozen"})
    if config["task"] != "classify":
        return found, config, {}
    classifier = dict(config["classifier"])
    if config["total_steps"] == 0:
        text = f"warning: {workdir} trained nothing; its classifier is a random one"
        print(text, file=sys.stderr)
    names = sorted({k.split("/")[1] for k in found if k.startswith("heads/")})
    chosen = head or (names[0] if len(names) == 1 else None)
    if chosen not in names:
        raise UserError(f"{workdir} has the heads {names}; choose one with --head=NAME")
    own = {
        k.replace(f"heads/{chosen}/", "heads/classifier/"): v
        for k, v in found.items()
        if k.startswith(("encoder/", f"heads/{chosen}/"))
    }
    mean = own.pop("heads/classifier/batch_norm/mean", None)
    variance = own.pop("heads/classifier/batch_norm/variance", None)
    if mean is not None and variance is not None:
        kernel = own["heads/classifier/linear/kernel"]
        kernel = kernel / np.sqrt(variance + 1e-6)[:, None]
        own["heads/classifier/linear/kernel"] = kernel
        own["heads/classifier/linear/bias"] -= mean @ kernel
        classifier["norm"] = "none"
    if (classifier["pool"], classifier["norm"]) == ("cls", "layer"):
        # A norm of the cls token alone is the encoder's last one, read at cls.
        for leaf in ("scale", "bias"):
            own[f"encoder/norm/{leaf}"] = own.pop(f"heads/classifier/norm/{leaf}")
        classifier["norm"] = "none"
    if classifier["tap"] not in (0, VIT_SPECS[size].depth):
        raise UserError("a probe of an inner block has no place in other formats")
    if classifier["pool"] == "attention":
        raise UserError("an attentive probe has no place in other formats")
    return own, config, classifier


def of_beit(config: Mapping[str, Any]) -> bool:
    """Whether its blocks have parts that a plain ViT's lack, and BEiT's may have."""
    model = config["model"]
    return model["relative_bias"] != "none" or bool(model["layer_scale"])


def last_head(config: Mapping[str, Any]) -> str:
    """Where the parameters of the head on the last layer lie: heads/block12."""
    return f"heads/{block_name(VIT_SPECS[config['model']['size']].depth)}"


def has_decoder(found: Weights, config: Mapping[str, Any]) -> bool:
    """Whether the last layer's head is a MAE's decoder, of a size that is known."""
    method = config.get("method", {})
    return (
        "num_heads" in method.get("decoder", {})
        and method.get("layout", "visible") == "visible"
        and f"{last_head(config)}/pixels/kernel" in found
    )


def export_weights(
    found: Weights, config: Mapping[str, Any], name: str, keep: Callable[[str], bool]
) -> Weights:
    """The arrays under the names of dialect `name`; `keep` chooses among ours."""
    dialect = DIALECTS[name]
    model = config["model"]
    spec = VIT_SPECS[model["size"]]
    own = {k: v for k, v in found.items() if keep(k)}
    learned = own.pop("encoder/positions", None)
    decoder = config.get("method", {}).get("decoder", {}).get("depth", 0)
    rows = list(rows_of(dialect, spec.depth, decoder))
    weights = to_theirs(own, rows, model["patch_size"])
    if model["positions"] != "none":
        if dialect.positions is None:
            raise UserError(f"{name} has no position embeddings")
        grid = grid_of(config)
        known = pair(model["position_grid"] or grid)
        fixed = fixed_positions(spec.width, known)
        if known != grid:
            patches = resize_positions(fixed[0, 1:], known, grid)
            fixed = np.concatenate([fixed[:, :1], patches[None]], axis=1)
        weights[dialect.positions] = fixed if learned is None else learned
    elif not name.endswith("_beit"):  # all others always have some
        shape = (1, 1 + math.prod(grid_of(config)), spec.width)
        weights[f"{dialect.positions}"] = np.zeros(shape, np.float32)
    if dialect.decoder_positions:
        width = config["method"]["decoder"]["width"]
        weights[dialect.decoder_positions] = fixed_positions(width, grid_of(config))
    return weights
