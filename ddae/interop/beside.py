"""Facts that exported files hold beside their arrays, as text, for imports here.

They lie in `__metadata__` of a .safetensors file, and under "ddae" in a .pth file;
other programs ignore them. Without them an import has to assume mean and deviation, and
may take an oblong grid for a square one.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ddae import commands
from ddae.data import crop_of
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


def said_of(
    config: Mapping[str, Any], decoder: bool, head: str | None = None
) -> dict[str, str]:
    """The facts about a run; decoder: whether its decoder is exported too; head: which
    one of a sweep is."""
    found = {
        **{key: config["data"][key] for key in ("mean", "std")},
        "image_size": config["image_size"],
    }
    if (crop := crop_of(config["data"])) != 1.0:
        found["eval_crop"] = crop
    if config["model"]["gelu"] == "tanh":
        found["gelu"] = "tanh"
    if head and config["task"] == "classify":
        found["head"] = head
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
    """Those that can be read, by the names of `Hints`; in somebody else's file the keys
    may mean other things."""
    found: dict[str, Any] = {}
    for key, read in KINDS.items():
        try:
            found[key] = read(beside[key])
        except Exception:  # a key that is not there, text of another kind, no text
            continue
    return found if {"mean", "std"} <= found.keys() else {}
