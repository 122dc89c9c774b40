"""Methods are data: an encoder, a masking, heads, and a table of Terms."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ddae import losses
from ddae.difficulty import METRICS, BetaSchedule, Metric
from ddae.masking import Masking
from ddae.models.heads import ClsAggregate, Head, MaskedLinear, TapDecoder
from ddae.models.vit import Encoder, Layout, ViTSpec
from ddae.networks import EncoderSettings, FrozenNetwork, TokenizerSettings
from ddae.objective import Difficulty, Term, Weight, teacher_layers
from ddae.schedules import ema_momentum, linear_ramp
from ddae.targets import Frozen, Hog, Pixels, TeacherLayer, TeacherView


@dataclasses.dataclass(frozen=True, kw_only=True)
class Momentum:
    """Teacher momentum over t: `start` to `middle` by `rise`, then to `end`."""

    start: float = 0.999
    middle: float = 0.9999
    end: float = 0.99999
    rise: float = 0.125

    def __call__(self, t: Any) -> Any:
        return ema_momentum(t, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """All that pretraining needs to know; a new method is a function returning one."""

    encoder: Encoder
    layout: Layout
    masking: Masking
    heads: Mapping[str, Head]
    terms: tuple[Term, ...]
    momentum: Momentum = dataclasses.field(default_factory=Momentum)
    teacher_view: TeacherView = TeacherView()
    frozen: Mapping[str, FrozenNetwork] = dataclasses.field(default_factory=dict)
    small_init: bool = False
    """BEiT's: normal .02, outputs of block i's branches divided by sqrt(2 i)."""

    @property
    def has_teacher(self) -> bool:
        """Whether some Term asks for the teacher."""
        return bool(teacher_layers(self.terms))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
    """Blocks, width and attention heads of each tap's decoder (visible layout)."""

    depth: int = 8
    width: int = 512
    num_heads: int = 16

    def __post_init__(self):
        if self.width % 4 or self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(
                f"width={self.width} must be divisible by 4 and by"
                f" num_heads={self.num_heads}"
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
    depth = encoder.spec.depth
    outputs = {"pixels": encoder.patch_size**2 * encoder.channels}
    if standardise_pixels and outputs["pixels"] == 1:
        raise ValueError(
            "a patch of one value has no deviation; set standardise_pixels=False"
        )
    if layout == "visible":
        head = TapDecoder(
            decoder=ViTSpec(decoder.width, decoder.depth, decoder.num_heads),
            grid=encoder.grid,
            outputs=outputs,
            input_norm=False,
            dtype=encoder.dtype,
            remat=encoder.remat,
            scan=encoder.scan,
            kernel=encoder.kernel,
        )
    elif layout == "mask_token":
        head = MaskedLinear(outputs=outputs, input_norm=False, dtype=encoder.dtype)
    else:
        raise ValueError(f"layout {layout!r} is not visible or mask_token")
    term = Term(
        name=f"pixels/{_block(depth)}",
        taps=(depth,),
        head=_block(depth),
        output="pixels",
        target=Pixels(standardise=standardise_pixels),
        loss=losses.mse,
    )
    return Method(
        encoder=encoder,
        layout=layout,
        masking=mask,
        heads={term.head: head},
        terms=(term,),
    )


FEATURE_LOSSES: dict[str, Callable[..., Any]] = {
    "mse": losses.normalised_mse,
    "smooth_l1": losses.smooth_l1,
    "cosine": losses.cosine,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """Feature self-distillation.

    weight: lambda, reached linearly over the first `ramp` of the run; 0 leaves it out.
    target: the teacher's layer at the student's own tap ("same_depth"), its last one
    ("last"), or the mean of its top `mean_of` ("mean"). loss: "mse" after LayerNorm of
    the prediction, "smooth_l1" or "cosine". A cheaper teacher: target "middle", its
    layer at half the depth, the last that is then computed; share, shrink: what it sees
    (`TeacherView`).
    """

    weight: float = 0.1
    ramp: float = 0.25
    target: Literal["same_depth", "last", "mean", "middle"] = "same_depth"
    mean_of: int = 4
    share: float = 1.0
    shrink: int = 1
    loss: Literal["mse", "smooth_l1", "cosine"] = "mse"

    def __post_init__(self):
        if self.target not in ("same_depth", "last", "mean", "middle"):
            raise ValueError(
                f"target {self.target!r} is not same_depth, last, mean or middle"
            )
        if self.loss not in FEATURE_LOSSES:
            raise ValueError(f"loss {self.loss!r} is not one of {list(FEATURE_LOSSES)}")


def with_features(method: Method, features: FeatureSettings) -> Method:
    """The method with a second output of every head that predicts teacher features."""
    depth, width = method.encoder.spec.depth, method.encoder.spec.width
    top = features.mean_of if features.target == "mean" else 1
    if not 1 <= top <= depth:
        raise ValueError(f"features.mean_of={top} is not between 1 and {depth} blocks")
    layers = tuple(range(depth - top + 1, depth + 1))
    if features.target == "middle":
        layers = (max(1, depth // 2),)
    view = _teacher_view(method, features)
    teacher = TeacherLayer(
        teacher_layers=layers,
        same_depth=features.target == "same_depth",
    )
    weight = functools.partial(_ramped, ramp=features.ramp, weight=features.weight)
    heads = dict(method.heads)
    terms = list(method.terms)
    for term in method.terms:
        heads[term.head] = _with_output(heads[term.head], "features", width)
        distilled = dataclasses.replace(
            term,
            name=f"features/{term.head}",
            output="features",
            target=teacher.at_tap(term.taps[-1]),
            loss=FEATURE_LOSSES[features.loss],
            weight=weight,
        )
        terms.append(distilled)
    return dataclasses.replace(
        method, heads=heads, terms=tuple(terms), teacher_view=view
    )


def _teacher_view(method: Method, features: FeatureSettings) -> TeacherView:
    """Raises `ValueError` for a part of the image that the teacher cannot see."""
    encoder, share, shrink = method.encoder, features.share, features.shrink
    view = TeacherView(share=share, shrink=shrink)
    if (share, shrink) == (1.0, 1):
        return view
    if share != 1.0 and shrink != 1:
        raise ValueError("features.share and features.shrink do not go together")
    if encoder.relative_bias != "none" or encoder.positions != "sincos":
        raise ValueError("features.share and features.shrink want sincos positions")
    h, w = encoder.grid
    if shrink < 1 or h % shrink or w % shrink:
        raise ValueError(f"features.shrink={shrink} does not divide the grid {h} x {w}")
    hidden = method.masking.num_masked(encoder.grid)
    if not 0.0 < share or (share != 1.0 and view.num_patches(encoder.grid) > hidden):
        raise ValueError(
            f"features.share={share} is not above 0 and at most {hidden / (h * w):.3g},"
            " the share of hidden patches; 1 sees the whole image"
        )
    return view


def with_dds(
    method: Method,
    *,
    taps: tuple[int, ...] | None = None,
    beta: BetaSchedule = BetaSchedule(),
    metric: Metric = "euclidean",
    tap_weight: float = 0.25,
) -> Method:
    """The method under deep dynamic supervision: its Terms at every tap, weighted.

    Each Term that reads the last layer alone is repeated at each of `taps`
    (`default_taps` where None), with a head of its own for a tap before the last and
    `tap_weight` times its weight, and every Term gets a `Difficulty`. beta = 0 at the
    last tap alone equals the method itself.
    """
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is not one of {METRICS}")
    depth = method.encoder.spec.depth
    taps = default_taps(depth) if taps is None else taps
    for tap in taps:
        if not 1 <= tap <= depth:
            raise ValueError(
                f"tap {tap} lies outside the network's blocks 1 to {depth}"
            )
    if list(taps) != sorted(set(taps)) or not taps or taps[-1] != depth:
        raise ValueError(f"taps {taps} must ascend and end at the last block, {depth}")
    heads = dict(method.heads)
    terms = []
    for tap in taps:
        difficulty = Difficulty(beta=beta, depth=tap / depth, metric=metric)
        for term in method.terms:
            if tap == depth:
                terms.append(dataclasses.replace(term, difficulty=difficulty))
            if tap == depth or term.taps != (depth,):
                continue
            head = _block(tap)
            heads[head] = method.heads[term.head].at_tap(term.head)
            terms.append(
                dataclasses.replace(
                    term,
                    name=f"{term.output}/{head}",
                    taps=(tap,),
                    head=head,
                    target=term.target.at_tap(tap),
                    difficulty=difficulty,
                    weight=_scaled(term.weight, tap_weight),
                )
            )
    return dataclasses.replace(method, heads=heads, terms=tuple(terms))


def ddae(
    encoder: Encoder,
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

    The seed fixes the parts (pixel regression, dynamic feature self-distillation of
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
        method, taps=taps, beta=beta, metric=metric, tap_weight=tap_weight
    )
    return dataclasses.replace(method, momentum=momentum)


def simmim(
    encoder: Encoder, *, mask: Masking = Masking(kind="cell", ratio=0.6)
) -> Method:
    """SimMIM (Xie et al. 2022): raw standardised pixels, one Linear, L1."""
    return _masked_linear(
        encoder,
        mask,
        "pixels",
        width=encoder.patch_size**2 * encoder.channels,
        target=Pixels(standardise=False),
        loss=losses.l1,
    )


def maskfeat(
    encoder: Encoder, *, mask: Masking = Masking(kind="block", ratio=0.4), bins: int = 9
) -> Method:
    """MaskFeat (Wei et al. 2022): histograms of oriented gradients, one Linear, L2."""
    if encoder.patch_size % 2:
        raise ValueError(f"HOG wants an even patch size, not {encoder.patch_size}")
    return _masked_linear(
        encoder,
        mask,
        "hog",
        width=4 * bins * encoder.channels,
        target=Hog(bins=bins),
        loss=losses.mse,
    )


def data2vec(
    encoder: Encoder,
    *,
    mask: Masking = Masking(kind="block", ratio=0.6),
    mean_of: int = 6,
    momentum: Momentum = Momentum(),
) -> Method:
    """data2vec (Baevski et al. 2022): mean of the teacher's top layers, smooth L1."""
    depth = encoder.spec.depth
    if not 1 <= mean_of <= depth:
        raise ValueError(f"mean_of={mean_of} is not between 1 and {depth} blocks")
    top = tuple(range(depth - mean_of + 1, depth + 1))
    method = _masked_linear(
        encoder,
        mask,
        "features",
        width=encoder.spec.width,
        target=TeacherLayer(teacher_layers=top, same_depth=False),
        loss=losses.smooth_l1,
    )
    return dataclasses.replace(method, momentum=momentum)


def mvp(
    encoder: Encoder,
    *,
    mask: Masking = Masking(kind="block", ratio=75 / 196),
    teacher: EncoderSettings = EncoderSettings(),
) -> Method:
    """MVP (Wei et al. 2022): features of a frozen teacher, CLIP's in the paper."""
    network = teacher.network(encoder)
    method = _masked_linear(
        encoder,
        mask,
        "features",
        width=network.width,
        target=Frozen(network="teacher"),
        loss=losses.cosine,
    )
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
        "tokens",
        width=tokenizer.codes,
        target=Frozen(network="tokenizer"),
        loss=losses.cross_entropy,
        input_norm=True,
        one_classifier=True,
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
        outputs={"tokens": tokenizer.codes},
        shared=shared,
        dtype=encoder.dtype,
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
    output: str,
    *,
    width: int,
    target: Any,
    loss: Any,
    input_norm: bool = False,
    one_classifier: bool = False,
) -> Method:
    """One Linear on the last layer of the mask_token layout, under one Term."""
    last = _block(encoder.spec.depth)
    head = MaskedLinear(
        outputs={output: width},
        input_norm=input_norm,
        dtype=encoder.dtype,
        one_classifier=one_classifier,
    )
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
        layout="mask_token",
        masking=mask,
        heads={last: head},
        terms=(term,),
        small_init=True,
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


def default_taps(depth: int) -> tuple[int, ...]:
    """Four taps over the last half, 6, 8, 10, 12 of 12; all of it below 12 blocks."""
    if depth < 12:
        return tuple(range(depth // 2 + 1, depth + 1))
    return tuple(round(depth / 2 + i * depth / 6) for i in range(4))


def _block(layer: int) -> str:
    return f"block{layer:02d}"


def _ramped(t: Any, *, ramp: float, weight: float) -> Any:
    return weight * linear_ramp(t, until=ramp)


def _scaled(weight: float | Weight, scale: float) -> float | Weight:
    if isinstance(weight, float | int):
        return scale * weight
    return lambda t: scale * weight(t)


def _with_output(head: Head, name: str, width: int) -> Head:
    return head.clone(outputs={**head.outputs, name: width})
