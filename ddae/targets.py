"""What a masked patch is asked for: pixels, or a layer of the teacher."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import jax
from jaxtyping import Array, Float, Int

from ddae.losses import normalise_features
from ddae.masking import Mask
from ddae.models.vit import Features
from ddae.patches import Grid, patchify, standardise_patches


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetContext:
    """All that targets may read in one step, each computed once.

    image: in [0, 1]. standardised: (image - mean) / std by channel. teacher: features
    of the full standardised image at the layers that the Terms ask for; empty where
    none does.
    """

    image: Float[Array, "b height width c"]
    standardised: Float[Array, "b height width c"]
    mask: Mask
    teacher: Mapping[int, Features]
    grid: Grid = dataclasses.field(metadata={"static": True})
    patch_size: int = dataclasses.field(metadata={"static": True})


class Target(Protocol):
    """A target gives [b, n, k], or ids [b, n]; `teacher_layers` says what it needs.

    `at_tap(layer)` is the same question asked of another depth of the network.
    """

    @property
    def teacher_layers(self) -> tuple[int, ...]: ...

    def at_tap(self, layer: int) -> "Target": ...

    def __call__(
        self, context: TargetContext
    ) -> Float[Array, "b n k"] | Int[Array, "b n"]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
    """Patches of the standardised image, each standardised again by default (MAE)."""

    standardise: bool = True
    teacher_layers: tuple[int, ...] = ()

    def at_tap(self, layer: int) -> "Pixels":
        return self

    def __call__(self, context: TargetContext) -> Float[Array, "b n k"]:
        patches = patchify(context.standardised, context.patch_size)
        return standardise_patches(patches) if self.standardise else patches


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherLayer:
    """The teacher's patches at a layer, LayerNorm without affine (eps 1e-6).

    Several layers are normalised each and averaged (data2vec's mean of the top k).
    same_depth: a student's tap l learns from the teacher's layer l, rather than all
    taps from the same layers.
    """

    teacher_layers: tuple[int, ...]
    same_depth: bool = True

    def at_tap(self, layer: int) -> "TeacherLayer":
        if not self.same_depth:
            return self
        return dataclasses.replace(self, teacher_layers=(layer,))

    def __call__(self, context: TargetContext) -> Float[Array, "b n k"]:
        layers = [
            normalise_features(context.teacher[layer].patches)
            for layer in self.teacher_layers
        ]
        return sum(layers[1:], layers[0]) / len(layers)
