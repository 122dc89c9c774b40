"""Tensors of Hugging Face's ViTMAEForPreTraining in the places of our parameters."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddae.models.positions import sincos
from ddae.patches import Grid

POSITIONS = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")

Tensors = dict[str, np.ndarray]
Tree = dict[str, Any]


def from_hf(tensors: Mapping[str, np.ndarray], grid: Grid) -> Tree:
    """The tree of `Pretrain.init` for MAE, from tensors under transformers 5's names.

    Every step moves numbers without changing them, so that weights and gradients go
    the same way. Positions are fixed and have no place on our side: where given, they
    are compared with ours on `grid` and dropped. Raises `ValueError` where they differ
    or where a tensor finds no place, `KeyError` where one is missing.
    """
    left = dict(tensors)
    for name in POSITIONS:
        if name in left:
            _check_positions(name, left.pop(name), grid)
    embedding = "vit.embeddings.patch_embeddings.projection"
    kernel = left.pop(f"{embedding}.weight")  # [d, channel, row, column]
    encoder = {
        "patch_embedding": {
            "kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0]),
            "bias": left.pop(f"{embedding}.bias"),
        },
        "cls_token": left.pop("vit.embeddings.cls_token"),
        "norm": _norm(left, "vit.layernorm"),
    }
    blocks = _blocks(left, "vit.layers")
    head = {
        "embedding": _linear(left, "decoder.decoder_embed"),
        "mask_token": left.pop("decoder.mask_token"),
        "norm": _norm(left, "decoder.decoder_norm"),
        "pixels": _linear(left, "decoder.decoder_pred"),
        **_blocks(left, "decoder.decoder_layers"),
    }
    if left:
        raise ValueError(f"tensors without a place in our tree: {sorted(left)}")
    return {"encoder": encoder | blocks, "heads": {f"block{len(blocks):02d}": head}}


def _check_positions(name: str, table: np.ndarray, grid: Grid) -> None:
    ours = sincos(table.shape[-1], grid)
    expected = np.concatenate([np.zeros_like(ours[:1]), ours])[None]  # cls gets none
    if table.shape != expected.shape or np.abs(table - expected).max() > 1e-6:
        raise ValueError(f"{name} differs from our sine-cosine positions on {grid}")


def _linear(left: Tensors, name: str) -> Tree:
    return {"kernel": left.pop(f"{name}.weight").T, "bias": left.pop(f"{name}.bias")}


def _norm(left: Tensors, name: str) -> Tree:
    return {"scale": left.pop(f"{name}.weight"), "bias": left.pop(f"{name}.bias")}


def _blocks(left: Tensors, prefix: str) -> Tree:
    blocks: Tree = {}
    while f"{prefix}.{len(blocks)}.mlp.fc1.weight" in left:
        blocks[f"block_{len(blocks):02d}"] = _block(left, f"{prefix}.{len(blocks)}")
    return blocks


def _block(left: Tensors, name: str) -> Tree:
    qkv = [_linear(left, f"{name}.attention.{letter}_proj") for letter in "qkv"]
    fused = {
        key: np.concatenate([part[key] for part in qkv], axis=-1)
        for key in ("kernel", "bias")
    }
    return {
        "norm_attention": _norm(left, f"{name}.layernorm_before"),
        "attention": {"qkv": fused, "out": _linear(left, f"{name}.attention.o_proj")},
        "norm_mlp": _norm(left, f"{name}.layernorm_after"),
        "mlp": {
            "up": _linear(left, f"{name}.mlp.fc1"),
            "down": _linear(left, f"{name}.mlp.fc2"),
        },
    }
