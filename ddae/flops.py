"""FLOPs of a train step an image, counted from what a task is made of.

A multiply-add is 2 FLOP, the backward pass twice the forward where something is
trained, and what remat computes again is not counted: MFU, not HFU. Only products of
matrices count; norms, softmax and the loss are about one per cent on top.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ddae.dds import Method
from ddae.models.heads import Classifier, ClsAggregate, MaskedLinear, TapDecoder
from ddae.models.vit import Encoder, ViTSpec
from ddae.networks import FrozenNetwork
from ddae.objective import head_taps, teacher_layers
from ddae.tasks import Task
from ddae.tasks.classify import Classify
from ddae.tasks.pretrain import Pretrain

TRAINED = 3
"""A forward pass and a backward one, in forward passes."""

PREFIX = 1
"""The cls token."""


def step_flops(task: Task, frozen_encoder: bool = False) -> int:
    """FLOPs of one train step, an image; forward and backward.

    frozen_encoder: the optimiser trains heads alone (a probe). Raises `ValueError` for
    a task or head that is not counted.
    """
    if isinstance(task, Pretrain):
        return method_flops(task.method)
    if isinstance(task, Classify):
        encoder = task.encoder
        n = encoder.grid[0] * encoder.grid[1]
        passes = 1 if frozen_encoder else TRAINED
        heads = sum(_classifier(h, encoder.spec.width, n) for h in task.heads.values())
        return passes * encoder_flops(encoder, n, task.tap) + TRAINED * heads
    raise ValueError(f"FLOPs of the task {type(task).__name__} are not counted")


def method_flops(method: Method) -> int:
    """FLOPs of one train step of pretraining, an image."""
    encoder = method.encoder
    n = encoder.grid[0] * encoder.grid[1]
    masked = method.masking.num_masked(encoder.grid)
    seen = n - masked if method.layout == "visible" else n
    trained = encoder_flops(encoder, seen)
    for name in head_taps(method.terms):
        head = method.heads[name]
        if type(head) not in HEADS:
            raise ValueError(
                f"FLOPs of the head {type(head).__name__} are not counted; add it to"
                " ddae.flops.HEADS"
            )
        trained += HEADS[type(head)](head, encoder.spec.width, seen, masked)
    asked = sum(frozen_flops(network) for network in method.frozen.values())
    layers = teacher_layers(method.terms)
    if layers:
        view = method.teacher_view.num_patches(encoder.grid)
        asked += encoder_flops(encoder, view, max(layers))
    return TRAINED * trained + asked


def _classifier(head: Classifier, width: int, patches: int) -> int:
    """FLOPs of a head on one image, forward."""
    scores = linear(1, width, head.num_classes)
    if head.pool != "attention":
        return scores
    tokens = PREFIX + patches
    keys_and_values = linear(tokens, width, 2 * width)
    return scores + keys_and_values + linear(1, width, 2 * tokens + width)


def linear(tokens: int, inputs: int, outputs: int) -> int:
    """FLOPs of a Linear, forward."""
    return 2 * tokens * inputs * outputs


def blocks_flops(spec: ViTSpec, tokens: int, depth: int) -> int:
    """FLOPs of `depth` transformer blocks on one image, forward."""
    width = spec.width
    projections = linear(tokens, width, 4 * width)
    attention = 2 * linear(tokens, width, tokens)
    mlp = 2 * linear(tokens, width, int(width * spec.mlp_ratio))
    return depth * (projections + attention + mlp)


def encoder_flops(encoder: Encoder, patches: int, depth: int | None = None) -> int:
    """FLOPs of the encoder on `patches` patches of one image, up to block `depth`."""
    spec = encoder.spec
    inputs = encoder.patch_size**2 * encoder.channels
    depth = spec.depth if depth is None else depth
    embedding = linear(patches, inputs, spec.width)
    return embedding + blocks_flops(spec, PREFIX + patches, depth)


def frozen_flops(network: FrozenNetwork) -> int:
    """FLOPs of asking a frozen network about one image."""
    encoder, quantiser = network.encoder, network.quantiser
    width, n = encoder.spec.width, encoder.grid[0] * encoder.grid[1]
    asked = encoder_flops(encoder, n)
    if quantiser is not None:
        asked += linear(n, width, width + quantiser.code_dim)
        asked += linear(n, quantiser.code_dim, quantiser.codes)
    return asked


def _tap_decoder(head: TapDecoder, width: int, seen: int, masked: int) -> int:
    spec = head.blocks.spec
    return (
        linear(PREFIX + seen, width, spec.width)
        + blocks_flops(spec, PREFIX + seen + masked, spec.depth)
        + linear(masked, spec.width, sum(head.outputs.values()))
    )


def _masked_linear(head: MaskedLinear, width: int, seen: int, masked: int) -> int:
    return linear(masked, width, sum(head.outputs.values()))


def _cls_aggregate(head: ClsAggregate, width: int, seen: int, masked: int) -> int:
    blocks = blocks_flops(head.encoder.spec, PREFIX + seen, head.num_blocks)
    return blocks + linear(masked, width, sum(head.outputs.values()))


HEADS: Mapping[type, Callable[[Any, int, int, int], int]] = {
    TapDecoder: _tap_decoder,
    MaskedLinear: _masked_linear,
    ClsAggregate: _cls_aggregate,
}
"""FLOPs forward of each kind of head: (head, encoder's width, patches that the encoder
sees, masked patches)."""
