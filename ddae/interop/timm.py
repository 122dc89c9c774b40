"""timm's names: python -m ddae.interop.timm export WORKDIR OUT.safetensors

Or import FILE --workdir=DIR: a .safetensors, .pth or .bin file of a timm ViT or BEiT.
Exit codes: 0; 2 wrong arguments or weights, nothing written.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

from ddae.interop import command
from ddae.interop.beside import hints_of, said_of
from ddae.interop.convert import HALF
from ddae.interop.exported import (
    export_weights,
    has_decoder,
    last_head,
    of_beit,
    read_run,
)
from ddae.interop.files import (
    new_file,
    read_beside,
    read_json,
    read_weights,
    write_weights,
)
from ddae.interop.names import Weights
from ddae.settings import UserError


def export(workdir: str, path: str, head: str | None) -> None:
    """Encoder, and the classifier where there is one, as timm's VisionTransformer or
    Beit has them."""
    new_file(path, ".safetensors")
    weights, name, config = named(workdir, head)
    write_weights(path, weights, said_of(config, decoder=False, head=head))
    print(f"{path}: {len(weights)} arrays, {name}{said_of_gelu(config)}")


def said_of_gelu(config: Mapping[str, Any]) -> str:
    """What whoever builds the model there has to know of it; nothing of erf's."""
    tanh = config["model"]["gelu"] == "tanh"
    return ", GELU by tanh: act_layer='gelu_tanh'" if tanh else ""


def named(
    workdir: str, head: str | None, decoder: bool = False
) -> tuple[Weights, str, dict[str, Any]]:
    """(arrays under timm's names, the dialect, the run's config). decoder: under MAE's,
    with the last layer's decoder where that is a MAE's, and of a BEiT with its mask
    token and the classifier of its tokens. Raises `UserError`.
    """
    found, config, classifier = read_run(workdir, head)
    last = last_head(config)
    name = "timm_vit"
    if of_beit(config):
        name = "timm_beit"
    elif decoder and has_decoder(found, config):
        name = "mae"
    if classifier.get("norm") == "none" and classifier.get("pool") == "mean":
        raise UserError(
            "timm has no mean-pooled classifier without a norm of its own; fine-tune,"
            " or probe the cls token: --config.classifier.pool=cls"
        )
    of_encoder, of_head = "encoder/norm", f"{last}/input_norm"
    if f"{of_encoder}/scale" not in found:  # a BEiT's
        _move(found, of_head, of_encoder)
    if name == "timm_beit":  # the place of this dialect's norm
        _move(found, of_encoder, of_head)
    norms = (of_encoder, of_head, "heads/classifier/norm")
    if not any(f"{norm}/scale" in found for norm in norms):
        raise UserError(
            f"{workdir} has an encoder without a last norm, as segmenters have, unlike"
            " timm's; export the run that it began with"
        )

    def keep(our: str) -> bool:
        if our == "encoder/mask_token" or our.startswith(f"{last}/tokens/"):
            return decoder and name == "timm_beit"  # timm's Beit has neither
        if name == "timm_beit" and our.startswith(f"{last}/input"):
            return True
        if name == "mae" and our.startswith(f"{last}/"):
            return "/features/" not in our
        return our.startswith(("encoder/", "heads/classifier/"))

    return export_weights(found, config, name, keep), name, config


def _move(found: Weights, norm: str, to: str) -> None:
    """The arrays of a norm, where there is one, to another place."""
    for leaf in ("scale", "bias"):
        if (value := found.pop(f"{norm}/{leaf}", None)) is not None:
            found[f"{to}/{leaf}"] = value


def names_of_beit(weights: Weights) -> bool:
    """Whether there are parts among them that only BEiT has."""
    return any("gamma_1" in name or "relative_position" in name for name in weights)


def bring_in(args: Any) -> None:
    """The command import."""
    weights = read_weights(args.path)
    if any(name.startswith("decoder_") for name in weights):
        raise UserError(
            f"{args.path} has a decoder, as MAE's own files have and timm's have not;"
            " python -m ddae.interop.official import takes it"
        )
    beit = names_of_beit(weights)
    known: dict[str, Any] = {"mean": HALF[0], "std": HALF[1]} if beit else {}
    folder = args.path if os.path.isdir(args.path) else os.path.dirname(args.path)
    path = os.path.join(folder, "config.json")  # as timm's weights are published
    said = _published(path) if os.path.isfile(path) else {}
    ours = hints_of(read_beside(args.path))
    told = bool(ours) or {"mean", "std"} <= said.keys()
    dialect = "timm_beit" if beit else "timm_vit"
    command.bring_in(weights, dialect, args, assumed=not told, **(known | said | ours))


def _published(path: str) -> dict[str, Any]:
    """What a config.json as timm's weights are published with says, by the names of
    `Hints`."""
    found = read_json(path)
    about, model = (found.get(key) for key in ("pretrained_cfg", "model_args"))
    said: dict[str, Any] = {}
    if isinstance(about, Mapping):
        both = {key: about.get(key) for key in ("mean", "std")}
        lists = {key: tuple(x) for key, x in both.items() if isinstance(x, list)}
        said = lists if len(lists) == 2 else {}
    act = model.get("act_layer") if isinstance(model, Mapping) else None
    if act not in (None, "gelu", "gelu_tanh"):
        raise UserError(f"{path}: act_layer {act!r} is not ours (gelu or gelu_tanh)")
    if act == "gelu_tanh":
        said["gelu"] = "tanh"
    return said


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command.main(
        argv,
        "timm",
        __doc__,
        what="a file of timm's weights",
        bring_in=bring_in,
        where="OUT.safetensors",
        export=export,
    )


if __name__ == "__main__":
    sys.exit(main())
