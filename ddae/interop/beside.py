"""What our files say beside their arrays, as text, and imports here read again.

In `__metadata__` of a .safetensors file, under "ddae" of a .pth file. Nobody else reads
it; without it mean and deviation are assumed, and an oblong grid may pass for a square.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ddae import commands
from ddae.interop.command import numbers

KINDS: dict[str, Callable[[str], Any]] = {
    "mean": numbers,
    "std": numbers,
    "image_size": commands.size,
    "eval_crop": float,
    "gelu": {"erf": "erf", "tanh": "tanh"}.__getitem__,
    "decoder_heads": int,
    "mask_ratio": float,
    "standardise_pixels": {"True": True, "False": False}.__getitem__,
}
"""`Hints`, and how each is read."""


def said_of(config: Mapping[str, Any], decoder: bool) -> dict[str, str]:
    """What there is to say of a run; decoder: that goes out too."""
    found = {
        **{key: config["data"][key] for key in ("mean", "std")},
        "image_size": config["image_size"],
    }
    if config["data"].get("eval_crop", 1.0) != 1.0:
        found["eval_crop"] = config["data"]["eval_crop"]
    if config["model"].get("gelu") == "tanh":
        found["gelu"] = "tanh"
    if decoder:
        method = config["method"]
        found |= {
            "decoder_heads": method["decoder"]["num_heads"],
            "mask_ratio": method.get("mask", {}).get("ratio", 0.75),
            "standardise_pixels": method.get("standardise_pixels", True),
        }
    return {
        key: ",".join(map(str, x)) if isinstance(x, list | tuple) else str(x)
        for key, x in found.items()
    }


def hints_of(beside: Mapping[str, Any]) -> dict[str, Any]:
    """What of it can be read, by the names of `Hints`; somebody else's may not."""
    found: dict[str, Any] = {}
    for key, read in KINDS.items():
        try:
            found[key] = read(beside[key])
        except Exception:  # a key that is not there, text of another kind, no text
            continue
    return found if {"mean", "std"} <= found.keys() else {}
