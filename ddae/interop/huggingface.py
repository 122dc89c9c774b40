"""Hugging Face folders: python -m ddae.interop.huggingface export WORKDIR FOLDER

Or import FOLDER --workdir=DIR. A folder is config.json and model.safetensors: ViT,
ViTMAE (with its decoder), BEiT, DINO (a ViT), and, to import only, DINOv2 and the
vision tower of CLIP. Exit codes: 0; 2 wrong arguments or weights, nothing written.
"""

import json
import math
import operator
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddae.data import crop_of
from ddae.interop import command
from ddae.interop.convert import CLIP, HALF, IMAGENET
from ddae.interop.exported import (
    class_names,
    export_weights,
    has_decoder,
    last_head,
    of_beit,
    read_run,
)
from ddae.interop.files import read_json, read_weights, write_weights
from ddae.interop.names import HF_QKV, Weights
from ddae.models.build import pair
from ddae.models.vit import VIT_SPECS
from ddae.settings import UserError

STANDARDISED = {
    "vit": HALF,
    "vit_mae": IMAGENET,
    "beit": HALF,
    "clip": CLIP,
    "dinov2": IMAGENET,
}
"""How their images are standardised where no preprocessor_config.json says it."""

GELUS = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}
"""Ours, by the names of transformers."""

OBLONG_BIAS = (
    "transformers' BEiT reads the relative bias of images that are not square by"
    " another order than BEiT's"
)

DEFAULTS = {"num_attention_heads": 12, "image_size": 224}
"""Of transformers, for all of these; a config may leave out what is at its default."""

PREFIXES = {
    "vit": "vit.",
    "vit_mae": "vit.",
    "beit": "beit.",
    "clip": "vision_model.",
    "dinov2": "dinov2.",
}


OTHER_HEADS = {
    "ViTForMaskedImageModeling",
    "BeitForSemanticSegmentation",
    "Dinov2ForImageClassification",
    "CLIPForImageClassification",
}
"""Classes of transformers whose arrays have no place here, but for the encoder."""


def export(workdir: str, folder: str, head: str | None) -> None:
    """The nearest class of transformers; it is printed.

    A classifier of the cls token is a ViT, or with a relative bias or layer scale a
    BEiT without mean pooling; of the mean of the patches, after a norm of
    its own, a BEiT, which differs from our ViT in nothing once relative bias and layer
    scale are left out. MAE and DDAE with the visible layout are a ViTMAE with the last
    layer's decoder; other methods, and what is not square, the encoder alone.
    """
    files = ("config.json", "model.safetensors", "preprocessor_config.json")
    if any(os.path.exists(os.path.join(folder, name)) for name in files):
        raise UserError(f"{folder} holds a model already; give another folder")
    found, config, classifier = read_run(workdir, head)
    kind, architecture = _class(found, config, classifier)
    height, width = pair(config["image_size"])
    positions = config["model"]["positions"]
    if kind == "beit" and positions != "none" and height != width:
        raise UserError(
            "transformers' BEiT has positions of square images alone; as a ViT goes a"
            " classifier of the cls token: --config.classifier.pool=cls"
        )
    if config["model"].get("relative_bias", "none") != "none" and height != width:
        raise UserError(f"{OBLONG_BIAS}; export it by ddae.interop.timm")
    last = f"{last_head(config)}/"

    def keep(our: str) -> bool:
        if our == "encoder/mask_token":
            return kind == "beit"
        if our.startswith("encoder/"):
            return True
        if architecture in ("ViTMAEForPreTraining", "BeitForMaskedImageModeling"):
            return our.startswith(last) and "/features/" not in our
        return our.startswith("heads/classifier/")

    weights = export_weights(found, config, f"hf_{kind}", keep)
    if architecture in ("ViTModel", "BeitModel"):
        weights = {k.removeprefix(PREFIXES[kind]): v for k, v in weights.items()}
    os.makedirs(folder, exist_ok=True)
    write_weights(os.path.join(folder, "model.safetensors"), weights)
    made = _config(kind, architecture, config)
    if classifier:
        names = class_names(workdir, classifier["num_classes"])
        made["id2label"] = {str(i): name for i, name in enumerate(names)}
        made["label2id"] = {name: i for i, name in enumerate(names)}
    if kind == "beit":
        made["use_mean_pooling"] = "encoder/norm/scale" not in found
        made["use_mask_token"] = any(name.endswith("mask_token") for name in weights)
    _write(folder, "config.json", made)
    _write(folder, "preprocessor_config.json", _preprocessor(config))
    print(f"{folder}: {len(weights)} arrays, {architecture}")


def _preprocessor(config: Mapping[str, Any]) -> dict[str, Any]:
    """Images as our evaluations have them: bicubic as Pillow's, and of square ones the
    centre of a larger image. transformers stretches others."""
    height, width = pair(config["image_size"])
    made: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": config["model"]["channels"] == 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config["data"]["mean"]),
        "image_std": list(config["data"]["std"]),
        "do_resize": True,
        "resample": 3,
        "do_center_crop": height == width,
        "crop_size": {"height": height, "width": width},
        "size": {"height": height, "width": width},
    }
    if height == width:
        edge = round(height / crop_of(config["data"]))
        made["size"] = {"shortest_edge": edge}
    return made


def _class(
    found: Weights, config: Mapping[str, Any], classifier: Mapping[str, Any]
) -> tuple[str, str]:
    """(model_type, architecture)."""
    model = config["model"]
    plain = not of_beit(config)
    if model["style"] != "vit":
        raise UserError("CLIP's encoder is imported only")
    if classifier:
        kind = classifier["pool"], classifier["norm"]
        if kind == ("mean", "layer"):
            return "beit", "BeitForImageClassification"
        if kind == ("cls", "none"):
            if plain:
                return "vit", "ViTForImageClassification"
            return "beit", "BeitForImageClassification"
        raise UserError(
            "transformers has no such classifier; fine-tune, or probe the cls token:"
            " --config.classifier.pool=cls"
        )
    if any(name.endswith("/tokens/kernel") for name in found):
        return "beit", "BeitForMaskedImageModeling"
    if "encoder/norm/scale" not in found:
        raise UserError(
            "an encoder without a last norm, as a segmenter's, has no class in"
            " transformers; export the run that it began with"
        )
    fixed = model["positions"] == "sincos"
    height, width = pair(config["image_size"])
    # Its own decoder has positions of a square alone.
    if has_decoder(found, config) and plain and fixed and height == width:
        return "vit_mae", "ViTMAEForPreTraining"
    return ("vit", "ViTModel") if plain else ("beit", "BeitModel")


def _config(kind: str, architecture: str, config: Mapping[str, Any]) -> dict[str, Any]:
    model = config["model"]
    spec = VIT_SPECS[model["size"]]
    made: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": int(spec.width * spec.mlp_ratio),
        "hidden_act": next(act for act, gelu in GELUS.items() if gelu == model["gelu"]),
        "layer_norm_eps": 1e-6,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "image_size": config["image_size"],
        "patch_size": model["patch_size"],
        "num_channels": model["channels"],
        "qkv_bias": True,
    }
    if kind == "vit_mae":
        decoder = config["method"]["decoder"]
        made |= {
            "decoder_hidden_size": decoder["width"],
            "decoder_num_hidden_layers": decoder["depth"],
            "decoder_num_attention_heads": decoder["num_heads"],
            "decoder_intermediate_size": 4 * decoder["width"],
            "mask_ratio": config["method"].get("mask", {}).get("ratio", 0.75),
            "norm_pix_loss": config["method"].get("standardise_pixels", True),
        }
    if kind == "beit":
        bias = model["relative_bias"]
        made |= {
            "layer_scale_init_value": model["layer_scale"],
            "use_absolute_position_embeddings": model["positions"] != "none",
            "use_relative_position_bias": bias == "block",
            "use_shared_relative_position_bias": bias == "shared",
            "drop_path_rate": 0.0,
        }
        if architecture == "BeitForMaskedImageModeling":
            made["vocab_size"] = config["method"]["tokenizer"]["codes"]
    return made


def bring_in(args: Any) -> None:
    """The command import."""
    found = read_json(os.path.join(args.path, "config.json"))
    kind = found.get("model_type", "")
    kind = {"clip_vision_model": "clip"}.get(str(kind), kind)
    if kind not in list(PREFIXES):
        raise UserError(
            f"{args.path}: model_type {kind!r} is not one of {sorted(PREFIXES)}"
        )
    made = found.get("architectures")
    if isinstance(made, list) and (other := OTHER_HEADS.intersection(map(str, made))):
        raise UserError(
            f"{args.path}: the head of {other.pop()} is none of ours; save its encoder"
            f" alone: model.{PREFIXES[kind]}save_pretrained(FOLDER)"
        )
    path = os.path.join(args.path, "preprocessor_config.json")
    said = read_json(path) if os.path.exists(path) else {}
    given = args.mean is not None and args.std is not None
    try:
        vision = DEFAULTS | found.get("vision_config", found)
        known = _known(kind, args.path, vision) | _images(kind, said, given)
        names = _class_names(found.get("id2label") or {})
    except (TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"{args.path}: config.json or preprocessor_config.json has a value of"
            f" another kind than transformers writes: {error}"
        ) from error
    weights = _arrays(args.path, kind)
    if vision.get("qkv_bias") is False:
        weights = _with_biases(weights)
    height, width = known["image_size"]
    if height != width and any("relative_position_bias" in name for name in weights):
        raise UserError(f"{args.path}: {OBLONG_BIAS}; take another format's file")
    command.bring_in(
        weights,
        f"hf_{kind}",
        args,
        class_names=names,
        assumed=not {"image_mean", "image_std"} <= said.keys(),
        **known,
    )


def _arrays(path: str, kind: str) -> Weights:
    """Those of the folder, under the names of their dialect."""
    weights = read_weights(path)
    if kind != "clip" and any(".q_proj." in name for name in weights):
        raise UserError(
            f"{path}: its arrays are named as transformers 5 has them in memory; write"
            " them with model.save_pretrained(FOLDER), which gives them their old names"
        )
    if not any(name.startswith(PREFIXES[kind]) for name in weights):
        weights = {f"{PREFIXES[kind]}{name}": x for name, x in weights.items()}
    return {
        name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): x
        for name, x in weights.items()
    }


def _with_biases(weights: Weights) -> Weights:
    """With zeros for the biases of queries, keys and values where there are none, which
    changes nothing."""
    ends = tuple(f".{name}.weight" for name in HF_QKV)
    zeros = {
        name.removesuffix("weight") + "bias": np.zeros(x.shape[:1], np.float32)
        for name, x in weights.items()
        if name.endswith(ends)
    }
    return zeros | weights


def _known(kind: str, path: str, vision: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says of the network, by the names of `Hints`."""
    known = {"quick_gelu": "erf"} if kind == "clip" else GELUS
    act = vision.get("hidden_act", next(iter(known)))
    if act not in known or vision.get("layer_norm_eps", 0) > 1e-5:
        raise UserError(
            f"{path}: hidden_act {act!r} with layer_norm_eps"
            f" {vision.get('layer_norm_eps')} is not ours"
            f" ({' or '.join(map(repr, known))}, at most 1e-5)"
        )
    height, width = map(operator.index, pair(vision["image_size"]))
    return {
        "num_heads": vision["num_attention_heads"],
        "decoder_heads": vision.get("decoder_num_attention_heads", 16),
        "image_size": (height, width),
        "gelu": known[act],
        "mask_ratio": vision.get("mask_ratio"),
        "standardise_pixels": vision.get("norm_pix_loss", False),
    }


def _images(kind: str, said: Mapping[str, Any], given: bool) -> dict[str, Any]:
    """What a preprocessor_config.json says of the images. given: mean and deviation
    are, by flags, and what it says of them is not used."""
    mean, std = STANDARDISED[kind]
    mean, std = said.get("image_mean", mean), said.get("image_std", std)
    if not said.get("do_normalize", True):
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    factor = said.get("rescale_factor", 1 / 255)
    plain = said.get("do_rescale", True) and math.isclose(factor, 1 / 255, rel_tol=1e-4)
    if not plain and not given:
        raise UserError(
            "preprocessor_config.json has pixels that are not in [0, 1] before they are"
            " standardised; give --mean and --std of those that are"
        )
    return {"mean": tuple(mean), "std": tuple(std), "eval_crop": _crop(said)}


def _crop(said: Mapping[str, Any]) -> float | None:
    """The side of the centre that a preprocessor keeps, as a share of the image's
    shortest; None where it keeps all, or stretches images first."""
    cut, size = (said.get(key) for key in ("crop_size", "size"))
    cut = cut.get("height") if isinstance(cut, Mapping) else cut
    size = size.get("shortest_edge") if isinstance(size, Mapping) else size
    return cut / size if said.get("do_center_crop") and cut and size else None


def _class_names(id2label: Mapping[str, str]) -> tuple[str, ...]:
    names = (id2label.get(str(i)) for i in range(len(id2label)))
    return tuple(" ".join(str(name).split()) for name in names)


def _write(folder: str, name: str, content: Mapping[str, Any]) -> None:
    with open(os.path.join(folder, name), "w") as file:
        json.dump(content, file, indent=2)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command.main(
        argv,
        "huggingface",
        __doc__,
        what="a Hugging Face folder",
        bring_in=bring_in,
        where="a new folder",
        export=export,
    )


if __name__ == "__main__":
    sys.exit(main())
