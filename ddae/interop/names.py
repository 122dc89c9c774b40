"""One table of names, read both ways: our parameters and everybody else's.

A row pairs a place of ours with one of theirs. What happens to the array is said by its
last part: a `kernel` is a transposed `weight`, a LayerNorm's `scale` is a `weight`, and
`qkv` may be three. "{i}" is the number of a block.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from ddae.dds import block_name
from ddae.models.positions import sincos
from ddae.settings import UserError

Weights = dict[str, np.ndarray]
"""A flat name -> array, float32."""

Modules = tuple[tuple[str, str], ...]

HF_BLOCK: Modules = (
    ("norm_attention", "layernorm_before"),
    ("attention/out", "attention.output.dense"),
    ("norm_mlp", "layernorm_after"),
    ("mlp/up", "intermediate.dense"),
    ("mlp/down", "output.dense"),
)
HF_QKV = tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))

DINOV2_BLOCK: Modules = (
    ("norm_attention", "norm1"),
    ("attention/out", "attention.output.dense"),
    ("norm_mlp", "norm2"),
    ("mlp/up", "mlp.fc1"),
    ("mlp/down", "mlp.fc2"),
)

TIMM_BLOCK: Modules = (
    ("norm_attention", "norm1"),
    ("attention/out", "attn.proj"),
    ("norm_mlp", "norm2"),
    ("mlp/up", "mlp.fc1"),
    ("mlp/down", "mlp.fc2"),
)

CLIP_BLOCK: Modules = (
    ("norm_attention", "layer_norm1"),
    ("attention/out", "self_attn.out_proj"),
    ("norm_mlp", "layer_norm2"),
    ("mlp/up", "mlp.fc1"),
    ("mlp/down", "mlp.fc2"),
)


@dataclasses.dataclass(frozen=True)
class Stack:
    """Transformer blocks: where they lie, what their parts are called.

    qkv: one name, or three. key_bias: BEiT has none. scales: layer scale of attention
    and MLP. bias: of relative positions, a table in each block.
    """

    ours: str
    theirs: str
    modules: Modules
    qkv: tuple[str, ...]
    key_bias: bool = True
    scales: tuple[str, str] | None = None
    bias: str | None = None


@dataclasses.dataclass(frozen=True)
class Dialect:
    """Their names. `arrays` are taken as they are; `patch` is a convolution; `left`:
    what may lie in their file and has no place here, by prefix."""

    stacks: tuple[Stack, ...]
    patch: str
    modules: Modules = ()
    arrays: Modules = ()
    positions: str | None = None
    decoder_positions: str | None = None  # fixed ones, which we do not keep
    left: tuple[str, ...] = ()


_HF_VIT = Stack("encoder/block_", "vit.encoder.layer.", HF_BLOCK, HF_QKV)
_HF_BEIT = Stack(
    "encoder/block_",
    "beit.encoder.layer.",
    HF_BLOCK,
    HF_QKV,
    key_bias=False,
    scales=("lambda_1", "lambda_2"),
    bias="attention.attention.relative_position_bias.relative_position_bias_table",
)
_HF_DINOV2 = Stack(
    "encoder/block_",
    "dinov2.encoder.layer.",
    DINOV2_BLOCK,
    HF_QKV,
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
)
_TIMM = Stack("encoder/block_", "blocks.", TIMM_BLOCK, ("attn.qkv",))
_TIMM_BEIT = dataclasses.replace(
    _TIMM,
    key_bias=False,
    scales=("gamma_1", "gamma_2"),
    bias="attn.relative_position_bias_table",
)
_CLASSIFIER = "heads/classifier"

DIALECTS: dict[str, Dialect] = {
    "hf_vit": Dialect(
        stacks=(_HF_VIT,),
        patch="vit.embeddings.patch_embeddings.projection",
        modules=(
            ("encoder/norm", "vit.layernorm"),
            (f"{_CLASSIFIER}/linear", "classifier"),
        ),
        arrays=(("encoder/cls_token", "vit.embeddings.cls_token"),),
        positions="vit.embeddings.position_embeddings",
        left=("vit.pooler.", "vit.embeddings.mask_token"),
    ),
    "hf_vit_mae": Dialect(
        stacks=(
            _HF_VIT,
            Stack("heads/LAST/block_", "decoder.decoder_layers.", HF_BLOCK, HF_QKV),
        ),
        patch="vit.embeddings.patch_embeddings.projection",
        modules=(
            ("encoder/norm", "vit.layernorm"),
            ("heads/LAST/embedding", "decoder.decoder_embed"),
            ("heads/LAST/norm", "decoder.decoder_norm"),
            ("heads/LAST/pixels", "decoder.decoder_pred"),
        ),
        arrays=(
            ("encoder/cls_token", "vit.embeddings.cls_token"),
            ("heads/LAST/mask_token", "decoder.mask_token"),
        ),
        positions="vit.embeddings.position_embeddings",
        decoder_positions="decoder.decoder_pos_embed",
    ),
    "hf_beit": Dialect(
        stacks=(_HF_BEIT,),
        patch="beit.embeddings.patch_embeddings.projection",
        modules=(
            ("heads/LAST/input_norm", "layernorm"),
            ("heads/LAST/tokens", "lm_head"),
            ("encoder/norm", "beit.layernorm"),
            (f"{_CLASSIFIER}/norm", "beit.pooler.layernorm"),
            (f"{_CLASSIFIER}/linear", "classifier"),
        ),
        arrays=(
            ("encoder/cls_token", "beit.embeddings.cls_token"),
            ("encoder/mask_token", "beit.embeddings.mask_token"),
            (
                "encoder/relative_bias/table",
                "beit.encoder.relative_position_bias.relative_position_bias_table",
            ),
        ),
        positions="beit.embeddings.position_embeddings",
    ),
    "hf_clip": Dialect(
        stacks=(
            Stack(
                "encoder/block_",
                "vision_model.encoder.layers.",
                CLIP_BLOCK,
                tuple(f"self_attn.{name}_proj" for name in "qkv"),
            ),
        ),
        patch="vision_model.embeddings.patch_embedding",
        modules=(
            ("encoder/norm_embedding", "vision_model.pre_layrnorm"),
            ("encoder/norm", "vision_model.post_layernorm"),
        ),
        arrays=(("encoder/cls_token", "vision_model.embeddings.class_embedding"),),
        positions="vision_model.embeddings.position_embedding.weight",
        left=(
            "text_model.",
            "visual_projection.",
            "text_projection.",
            "logit_scale",
            "vision_model.embeddings.position_ids",  # 0, 1, 2, ..., of older files
        ),
    ),
    "hf_dinov2": Dialect(
        stacks=(_HF_DINOV2,),
        patch="dinov2.embeddings.patch_embeddings.projection",
        modules=(("encoder/norm", "dinov2.layernorm"),),
        arrays=(("encoder/cls_token", "dinov2.embeddings.cls_token"),),
        positions="dinov2.embeddings.position_embeddings",
        left=("dinov2.embeddings.mask_token",),
    ),
    "timm_vit": Dialect(
        stacks=(dataclasses.replace(_TIMM, scales=("ls1.gamma", "ls2.gamma")),),
        patch="patch_embed.proj",
        modules=(
            ("encoder/norm", "norm"),
            (f"{_CLASSIFIER}/norm", "fc_norm"),
            (f"{_CLASSIFIER}/linear", "head"),
        ),
        arrays=(("encoder/cls_token", "cls_token"),),
        positions="pos_embed",
        left=("mask_token",),  # DINOv2's
    ),
    "timm_beit": Dialect(
        stacks=(_TIMM_BEIT,),
        patch="patch_embed.proj",
        modules=(
            ("heads/LAST/input_norm", "norm"),
            ("heads/LAST/tokens", "lm_head"),
            (f"{_CLASSIFIER}/norm", "fc_norm"),
            (f"{_CLASSIFIER}/linear", "head"),
        ),
        arrays=(
            ("encoder/cls_token", "cls_token"),
            ("encoder/mask_token", "mask_token"),
            (
                "encoder/relative_bias/table",
                "rel_pos_bias.relative_position_bias_table",
            ),
        ),
        positions="pos_embed",
        left=("cls_pt_", "rel_pos_bias.relative_position_index"),
    ),
    "mae": Dialect(
        stacks=(
            _TIMM,
            Stack("heads/LAST/block_", "decoder_blocks.", TIMM_BLOCK, ("attn.qkv",)),
        ),
        patch="patch_embed.proj",
        modules=(
            ("encoder/norm", "norm"),
            ("heads/LAST/embedding", "decoder_embed"),
            ("heads/LAST/norm", "decoder_norm"),
            ("heads/LAST/pixels", "decoder_pred"),
            (f"{_CLASSIFIER}/norm", "fc_norm"),
            (f"{_CLASSIFIER}/linear", "head"),
        ),
        arrays=(
            ("encoder/cls_token", "cls_token"),
            ("heads/LAST/mask_token", "mask_token"),
        ),
        positions="pos_embed",
        decoder_positions="decoder_pos_embed",
    ),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One of our arrays and where it lies with them: one place or, for qkv, three, of
    which None is an array of zeros."""

    ours: str
    theirs: tuple[str | None, ...]
    kind: str  # same, linear, patch


def rows_of(dialect: Dialect, depth: int, decoder_depth: int = 0) -> Iterator[Row]:
    """Every row of a network of `depth` blocks, whether it has such a part or not."""

    def ours(name: str) -> str:
        return name.replace("LAST", block_name(depth))

    def module(our: str, their: str) -> Iterator[Row]:
        yield Row(f"{our}/kernel", (f"{their}.weight",), "linear")
        yield Row(f"{our}/scale", (f"{their}.weight",), "same")
        yield Row(f"{our}/bias", (f"{their}.bias",), "same")

    patch = "encoder/patch_embedding"
    yield Row(f"{patch}/kernel", (f"{dialect.patch}.weight",), "patch")
    yield Row(f"{patch}/bias", (f"{dialect.patch}.bias",), "same")
    for our, their in dialect.arrays:
        yield Row(ours(our), (their,), "same")
    for our, their in dialect.modules:
        yield from module(ours(our), their)
    for stack in dialect.stacks:
        own = depth if stack.ours.startswith("encoder") else decoder_depth
        for i in range(own):
            our, their = ours(f"{stack.ours}{i:02d}"), f"{stack.theirs}{i}"
            for inner, outer in stack.modules:
                yield from module(f"{our}/{inner}", f"{their}.{outer}")
            yield from _qkv(stack, our, their)
            for name, scale in zip(
                ("scale_attention", "scale_mlp"), stack.scales or (), strict=False
            ):
                yield Row(f"{our}/{name}", (f"{their}.{scale}",), "same")
            if stack.bias:
                place = (f"{their}.{stack.bias}",)
                yield Row(f"{our}/relative_bias/table", place, "same")


def _qkv(stack: Stack, our: str, their: str) -> Iterator[Row]:
    names = tuple(f"{their}.{name}" for name in stack.qkv)
    weights = tuple(f"{name}.weight" for name in names)
    yield Row(f"{our}/attention/qkv/kernel", weights, "linear")
    biases: tuple[str | None, ...] = tuple(f"{name}.bias" for name in names)
    if not stack.key_bias:
        # Softmax does not see a bias of the keys: BEiT has none, ours is left out.
        one = len(names) == 1
        attention = their + ".attn" if one else ""
        query = f"{attention}.q_bias" if one else biases[0]
        value = f"{attention}.v_bias" if one else biases[2]
        biases = (query, None, value)
    yield Row(f"{our}/attention/qkv/bias", biases, "same")


def to_theirs(params: Weights, rows: list[Row], patch_size: int) -> Weights:
    """Our flat parameters under their names; `UserError` for one that has none."""
    found: Weights = {}
    left = dict(params)
    for row in rows:
        value = left.pop(row.ours, None)
        if value is None:
            continue
        if row.kind == "patch":
            p = patch_size
            value = value.reshape(p, p, -1, value.shape[-1]).transpose(3, 2, 0, 1)
        elif row.kind == "linear":
            value = value.T
        for name, part in zip(
            row.theirs, np.split(value, len(row.theirs)), strict=True
        ):
            if name is not None:
                found[name] = np.ascontiguousarray(part)
    if left:
        raise UserError(f"{sorted(left)[0]} has no name in this format")
    return found


def from_theirs(weights: Weights, rows: list[Row], left: tuple[str, ...]) -> Weights:
    """Their arrays under our flat names. `UserError` names one that has no place, or
    that is missing of three that belong together."""
    found: Weights = {}
    used = set()
    for row in rows:
        present = [name for name in row.theirs if name in weights]
        if not present:
            continue
        missing = [n for n in row.theirs if n is not None and n not in weights]
        if missing:
            raise UserError(f"{missing[0]} is missing, beside {present[0]}")
        value = weights[present[0]]
        # A norm's weight and a Linear's have one name; the shape tells them apart.
        if (row.ours.endswith("/scale") and value.ndim != 1) or (
            row.kind == "linear" and value.ndim != 2
        ):
            continue
        parts = [
            np.zeros_like(value) if name is None else weights[name]
            for name in row.theirs
        ]
        value = np.concatenate(parts) if len(parts) > 1 else value
        if row.kind == "patch":
            value = value.transpose(2, 3, 1, 0).reshape(-1, len(value))
        elif row.kind == "linear":
            value = value.T
        used.update(present)
        found[row.ours] = np.asarray(value, np.float32)
    unknown = sorted(
        name
        for name in weights.keys() - used
        if not name.startswith(left) and not name.endswith("relative_position_index")
    )
    if unknown:
        raise UserError(f"{unknown[0]} has no place here ({len(unknown)} such arrays)")
    return found


def fixed_positions(width: int, grid: tuple[int, int]) -> np.ndarray:
    """Sine-cosine positions as they write them, [1, 1 + n, width]: zeros for cls."""
    patches = sincos(width, grid)
    return np.concatenate([np.zeros((1, width), np.float32), patches])[None]


def flat(tree: Mapping, prefix: str = "") -> Weights:
    """Nested parameters as "encoder/norm/scale" -> array."""
    found: Weights = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{path}/")
        else:
            found[path] = np.asarray(value)
    return found


def nested(weights: Weights) -> dict:
    """The inverse of `flat`."""
    tree: dict = {}
    for path, value in weights.items():
        *parents, leaf = path.split("/")
        place = tree
        for key in parents:
            place = place.setdefault(key, {})
        place[leaf] = value
    return tree
