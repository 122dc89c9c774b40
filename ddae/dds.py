"""A method as data, and deep dynamic supervision, which goes onto any of them."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ddae import losses
from ddae.difficulty import BetaSchedule, Law, Metric, power_law
from ddae.masking import Masking
from ddae.models.heads import Head
from ddae.models.vit import Encoder, Layout
from ddae.networks import FrozenNetwork
from ddae.objective import Difficulty, Term, Weight, teacher_layers
from ddae.schedules import ema_momentum, linear_ramp
from ddae.targets import TeacherLayer, TeacherView


@dataclasses.dataclass(frozen=True, kw_only=True)
class Momentum:
    """Teacher momentum over t: `start` to `middle` by `rise`, then to `end`.

    steps: the length of the run that they are meant for; in one of another length
    1 - momentum is as many times larger as that is shorter, and the teacher is behind
    by the same share of it. 0: they are as they are in any run. In float32 a teacher
    stands still, at .99999, where the student's weight is less than about half a
    percent from its own.
    """

    start: float = 0.999
    middle: float = 0.9999
    end: float = 0.99999
    rise: float = 0.125
    steps: int = 0

    def __post_init__(self):
        for name in ("start", "middle", "end", "rise"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"momentum {name}={value} is not in [0, 1]")
        if self.steps < 0:
            raise ValueError(f"momentum steps={self.steps} must not be negative")

    def __call__(self, t: Any, total_steps: int) -> Any:
        values = self.start, self.middle, self.end
        if self.steps:
            longer = self.steps / total_steps
            values = (max(0.0, 1.0 - (1.0 - value) * longer) for value in values)
        start, middle, end = values
        return ema_momentum(t, start=start, middle=middle, end=end, rise=self.rise)


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
    teacher_norm: bool = True
    """Whether the teacher's last layer is read after its final norm."""
    small_init: bool = False
    """BEiT's: normal .02, outputs of block i's branches divided by sqrt(2 i)."""

    @property
    def has_teacher(self) -> bool:
        """Whether some Term asks for the teacher."""
        return bool(teacher_layers(self.terms))


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

    weight: float = 1.0
    ramp: float = 0.25
    target: Literal["same_depth", "last", "mean", "middle"] = "same_depth"
    mean_of: int = 4
    share: float = 1.0
    shrink: int = 1
    loss: Literal["mse", "smooth_l1", "cosine"] = "mse"

    def __post_init__(self):
        if not self.weight >= 0.0:
            raise ValueError(f"weight={self.weight} must not be negative")
        if not 0.0 <= self.ramp <= 1.0:
            raise ValueError(f"ramp={self.ramp} is not a share of the run, 0 to 1")


def with_features(method: Method, features: FeatureSettings) -> Method:
    """The method with a second output of every head that predicts teacher features."""
    depth, width = method.encoder.spec.depth, method.encoder.spec.width
    top = features.mean_of if features.target == "mean" else 1
    if not 1 <= top <= depth:
        raise ValueError(f"features.mean_of={top} is not between 1 and {depth} blocks")
    layers = tuple(range(depth - top + 1, depth + 1))
    if features.target == "middle":
        layers = (max(1, depth // 2),)
    teacher = TeacherLayer(
        teacher_layers=layers, same_depth=features.target == "same_depth"
    )

    def weight(t: Any) -> Any:
        return features.weight * linear_ramp(t, until=features.ramp)

    heads = dict(method.heads)
    terms = list(method.terms)
    firsts: dict[str, Term] = {}  # of Terms that share a head
    for term in method.terms:
        firsts.setdefault(term.head, term)
    for term in firsts.values():
        head = heads[term.head]
        heads[term.head] = head.clone(outputs={**head.outputs, "features": width})
        distilled = dataclasses.replace(
            term,
            name=f"features/{term.head}",
            output="features",
            target=teacher.at_tap(term.taps[-1]),
            loss=FEATURE_LOSSES[features.loss],
            weight=weight,
        )
        terms.append(distilled)
    view = _teacher_view(method, features)
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
    law: Law = power_law,
    *,
    taps: tuple[int, ...] | None = None,
    beta: BetaSchedule = BetaSchedule(),
    metric: Metric = "euclidean",
    tap_weight: float = 0.25,
) -> Method:
    """The method under deep dynamic supervision: its Terms at every tap, weighted.

    Each Term that reads the last layer alone is repeated at each of `taps`
    (`default_taps` where None), with a head of its own for a tap before the last and
    `tap_weight` times its weight, and every Term gets a `Difficulty`. A tap that the
    method supervises itself stays as it is there. beta = 0 at the last tap alone equals
    the method itself. `law` is no setting: a method of one's own gives it.
    """
    if tap_weight < 0:
        raise ValueError(f"tap_weight={tap_weight} must not be negative")
    depth = method.encoder.spec.depth
    taps = default_taps(depth) if taps is None else taps
    for tap in taps:
        if not 1 <= tap <= depth:
            raise ValueError(
                f"tap {tap} lies outside the network's blocks 1 to {depth}"
            )
    if list(taps) != sorted(set(taps)) or not taps or taps[-1] != depth:
        raise ValueError(f"taps {taps} must ascend and end at the last block, {depth}")

    def difficulty(tap: int) -> Difficulty:
        return Difficulty(beta=beta, depth=tap / depth, metric=metric, law=law)

    heads = dict(method.heads)
    terms = []
    repeated = [term for term in method.terms if term.taps == (depth,)]
    for tap, term in itertools.product(taps[:-1], repeated):
        head = block_name(tap)
        if term.head != block_name(depth):
            head = f"{term.head}_{head}"
        if head in method.heads:
            continue
        heads[head] = method.heads[term.head].at_tap(term.head)
        terms.append(
            dataclasses.replace(
                term,
                name=f"{_kind(term, method.terms)}/{head}",
                taps=(tap,),
                head=head,
                target=term.target.at_tap(tap),
                difficulty=difficulty(tap),
                weight=_scaled(term.weight, tap_weight),
            )
        )
    for term in method.terms:
        own = difficulty(max(term.taps))
        terms.append(dataclasses.replace(term, difficulty=own))
    return dataclasses.replace(method, heads=heads, terms=tuple(terms))


def _kind(term: Term, terms: tuple[Term, ...]) -> str:
    """How the names of a Term's copies at other taps begin: with its output, or, where
    several Terms have a loss of that output, as its own name does."""
    own = (term.head, term.output)
    alone = [(other.head, other.output) for other in terms].count(own) == 1
    return term.output if alone else term.name.removesuffix(f"/{term.head}")


def default_taps(depth: int) -> tuple[int, ...]:
    """Four taps over the last half, 6, 8, 10, 12 of 12; all of it below 12 blocks."""
    if depth < 12:
        return tuple(range(depth // 2 + 1, depth + 1))
    return tuple(round(depth / 2 + i * depth / 6) for i in range(4))


def block_name(layer: int) -> str:
    """Of a layer, in the names of heads and metrics: block06."""
    return f"block{layer:02d}"


def _scaled(weight: float | Weight, scale: float) -> float | Weight:
    if isinstance(weight, float | int):
        return scale * weight
    return lambda t: scale * weight(t)
