"""The methods: each an encoder, a masking, heads, and a table of Terms."""

import dataclasses
from collections.abc import Callable, Mapping

from ddae import losses
from ddae.dds import (
    FeatureSettings,
    Method,
    Momentum,
    block_name,
    with_dds,
    with_features,
)
from ddae.difficulty import BetaSchedule, Law, Metric, power_law
from ddae.masking import Masking
from ddae.models.blocks import Blocks
from ddae.models.build import DTYPES
from ddae.models.heads import ClsAggregate, Head, MaskedLinear, TapDecoder
from ddae.models.vit import Encoder, Layout, ViTSpec
from ddae.networks import EncoderSettings, TokenizerSettings
from ddae.objective import PatchLoss, Term
from ddae.targets import Frozen, Hog, Pixels, Target, TeacherLayer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
    """Blocks, width and attention heads of each tap's decoder (visible layout).

    dtype: what it computes in, float32 or bfloat16; empty is the encoder's.
    """

    depth: int = 8
    width: int = 512
    num_heads: int = 16
    dtype: str = ""

    def __post_init__(self):
        if self.dtype not in ("", *DTYPES):
            raise ValueError(f"dtype={self.dtype!r} is not one of {list(DTYPES)}")
        if self.depth < 0:
            raise ValueError(f"depth={self.depth} must not be negative")
        wide = self.width > 0 and self.num_heads > 0
        if not wide or self.width % 4 or self.width % self.num_heads:
            raise ValueError(
                f"width={self.width} must be divisible by 4 and by"
                f" num_heads={self.num_heads}, and both above 0"
            )


def mae(
    encoder: Encoder,
    *,
    mask: Masking = Masking(),
    decoder: Decoder = Decoder(),
    layout: Layout = "visible",
    standardise_pixels: bool = True,
) -> Method:
    """Masked autoencoder: the last layer predicts the pixels of hidden patches, MSE.

    With layout "mask_token" the decoder is one Linear, as in SimMIM.
    """
    outputs = {"pixels": encoder.patch_size**2 * encoder.channels}
    if standardise_pixels and outputs["pixels"] == 1:
        raise ValueError(
            "a patch of one value has no deviation; set standardise_pixels=False"
        )
    if layout == "visible":
        blocks = Blocks(
            spec=ViTSpec(decoder.width, decoder.depth, decoder.num_heads),
            dtype=DTYPES.get(decoder.dtype, encoder.dtype),
            activation=encoder.gelu,
            kernel=encoder.kernel,
            remat=encoder.remat,
            scan=encoder.scan,
        )
        head = TapDecoder(blocks, encoder.grid, outputs, input_norm=False)
    elif layout == "mask_token":
        head = MaskedLinear(outputs=outputs, input_norm=False, dtype=encoder.dtype)
    else:
        raise ValueError(f"layout {layout!r} is not visible or mask_token")
    target = Pixels(standardise=standardise_pixels)
    return _one_term(encoder, layout, mask, head, target, losses.mse)


def ddae(
    encoder: Encoder,
    law: Law = power_law,
    *,
    mask: Masking = Masking(),
    decoder: Decoder = Decoder(depth=2),
    layout: Layout = "visible",
    standardise_pixels: bool = True,
    taps: tuple[int, ...] | None = None,
    beta: BetaSchedule = BetaSchedule(),
    metric: Metric = "euclidean",
    tap_weight: float = 0.25,
    features: FeatureSettings = FeatureSettings(),
    momentum: Momentum = Momentum(),
) -> Method:
    """Deep Dynamic AutoEncoding: pixels and teacher features at every tap, weighted.

    The paper fixes the parts (pixel regression, dynamic feature self-distillation of
    intermediate layers, weights by distance over phase and depth); every default here
    is ours.
    """
    method = mae(
        encoder,
        mask=mask,
        decoder=decoder,
        layout=layout,
        standardise_pixels=standardise_pixels,
    )
    if features.weight:
        method = with_features(method, features)
    method = with_dds(
        method, law, taps=taps, beta=beta, metric=metric, tap_weight=tap_weight
    )
    return dataclasses.replace(method, momentum=momentum)


def simmim(
    encoder: Encoder, *, mask: Masking = Masking(kind="cell", ratio=0.6)
) -> Method:
    """SimMIM (Xie et al. 2022): raw standardised pixels, one Linear, L1."""
    outputs = {"pixels": encoder.patch_size**2 * encoder.channels}
    target = Pixels(standardise=False)
    return _masked_linear(encoder, mask, outputs, target, losses.l1)


def maskfeat(
    encoder: Encoder,
    *,
    mask: Masking = Masking(kind="block", ratio=78 / 196),
    bins: int = 9,
) -> Method:
    """MaskFeat (Wei et al. 2022): histograms of oriented gradients, one Linear, L2."""
    if bins < 1:
        raise ValueError(f"bins={bins} is not 1 or more")
    if encoder.patch_size % 2:
        raise ValueError(f"HOG wants an even patch size, not {encoder.patch_size}")
    outputs = {"hog": 4 * bins * encoder.channels}
    return _masked_linear(encoder, mask, outputs, Hog(bins=bins), losses.mse)


def data2vec(
    encoder: Encoder,
    *,
    mask: Masking = Masking(kind="block", ratio=120 / 196),
    mean_of: int = 6,
    momentum: Momentum = Momentum(),
) -> Method:
    """data2vec (Baevski et al. 2022): mean of the teacher's top layers, smooth L1.

    As its public code has it: of blocks' own outputs, before the final norm, each
    normalised, and their mean again.
    """
    depth = encoder.spec.depth
    if not 1 <= mean_of <= depth:
        raise ValueError(f"mean_of={mean_of} is not between 1 and {depth} blocks")
    top = tuple(range(depth - mean_of + 1, depth + 1))
    outputs = {"features": encoder.spec.width}
    target = TeacherLayer(teacher_layers=top, same_depth=False, again=True)
    method = _masked_linear(encoder, mask, outputs, target, losses.smooth_l1)
    return dataclasses.replace(method, momentum=momentum, teacher_norm=False)


def mvp(
    encoder: Encoder,
    *,
    mask: Masking = Masking(kind="block", ratio=75 / 196),
    teacher: EncoderSettings = EncoderSettings(),
) -> Method:
    """MVP (Wei et al. 2022): features of a frozen teacher, CLIP's in the paper."""
    network = teacher.network(encoder)
    outputs = {"features": network.width}
    target = Frozen(network="teacher")
    method = _masked_linear(encoder, mask, outputs, target, losses.cosine)
    return dataclasses.replace(method, frozen={"teacher": network})


BEIT_MASK = Masking(kind="block", ratio=75 / 196)


def beit(
    encoder: Encoder,
    *,
    mask: Masking = BEIT_MASK,
    tokenizer: TokenizerSettings = TokenizerSettings(),
) -> Method:
    """BEiT (Bao et al. 2022): ids of a frozen tokenizer, cross-entropy.

    Theirs was DALL-E's; here it is one of `configs/vqkd_*.py`. The encoder has no final
    norm: the head's takes its place, as in BEiT-v2, whose two heads share it.
    """
    method = _masked_linear(
        encoder.clone(final_norm=False),
        mask,
        {"tokens": tokenizer.codes},
        Frozen(network="tokenizer"),
        losses.cross_entropy,
        as_beit=True,
    )
    return dataclasses.replace(method, frozen={"tokenizer": tokenizer.network(encoder)})


def beit_v2(
    encoder: Encoder,
    *,
    mask: Masking = BEIT_MASK,
    tokenizer: TokenizerSettings = TokenizerSettings(),
    early: int | None = None,
) -> Method:
    """BEiT-v2 (Peng et al. 2022): BEiT, and the same ids again through the cls token.

    early: the layer whose patches meet the final cls; three quarters of the depth where
    None, 9 of 12 (21 of 24 in the recipe of ViT-L).
    """
    method = beit(encoder, mask=mask, tokenizer=tokenizer)
    (term,) = method.terms
    depth = encoder.spec.depth
    early = 3 * depth // 4 if early is None else early
    if not 1 <= early < depth:
        raise ValueError(f"early={early} is not between 1 and {depth - 1}")
    shared = {name: f"heads/{term.head}/{name}" for name in ("input_norm", "tokens")}
    if encoder.relative_bias == "shared":
        shared["relative_bias"] = "encoder/relative_bias"
    aggregate = ClsAggregate(
        encoder=method.encoder,
        early=early,
        outputs={"tokens": tokenizer.codes},
        shared=shared,
    )
    again = dataclasses.replace(
        term, name="tokens/cls", taps=(early, depth), head="cls"
    )
    return dataclasses.replace(
        method, heads={**method.heads, "cls": aggregate}, terms=(term, again)
    )


def _masked_linear(
    encoder: Encoder,
    mask: Masking,
    outputs: Mapping[str, int],
    target: Target,
    loss: PatchLoss,
    *,
    as_beit: bool = False,
) -> Method:
    """One Linear on the last layer of the mask_token layout, under one Term.

    as_beit: with a norm before it, and where there are more taps one Linear for all.
    """
    head = MaskedLinear(
        outputs=outputs,
        input_norm=as_beit,
        dtype=encoder.dtype,
        one_classifier=as_beit,
    )
    method = _one_term(encoder, "mask_token", mask, head, target, loss)
    return dataclasses.replace(method, small_init=True)


def _one_term(
    encoder: Encoder,
    layout: Layout,
    mask: Masking,
    head: Head,
    target: Target,
    loss: PatchLoss,
) -> Method:
    """The one output of `head`, on the last layer, under one Term."""
    last = block_name(encoder.spec.depth)
    (output,) = head.outputs
    term = Term(
        name=f"{output}/{last}",
        taps=(encoder.spec.depth,),
        head=last,
        output=output,
        target=target,
        loss=loss,
    )
    return Method(
        encoder=encoder,
        layout=layout,
        masking=mask,
        heads={last: head},
        terms=(term,),
    )


METHODS: dict[str, Callable[..., Method]] = {
    "mae": mae,
    "ddae": ddae,
    "simmim": simmim,
    "maskfeat": maskfeat,
    "data2vec": data2vec,
    "mvp": mvp,
    "beit": beit,
    "beit_v2": beit_v2,
}
