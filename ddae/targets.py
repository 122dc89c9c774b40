"""What a masked patch is asked for: pixels, HOG, token ids, features of a teacher."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddae.losses import normalise_features
from ddae.masking import Mask
from ddae.models.vit import Features
from ddae.patches import Grid, patchify, standardise_patches


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherView:
    """What the momentum teacher sees of an image; less of it costs less.

    share: of the patches, drawn anew from the hidden ones; only these are learnt from.
    shrink: the image's sides are divided by it, and each of the teacher's patches
    stands for shrink x shrink. 1 and 1: the image as it is.
    """

    share: float = 1.0
    shrink: int = 1

    def num_patches(self, grid: Grid) -> int:
        """That the teacher sees."""
        return max(1, round(self.share * grid[0] * grid[1])) // self.shrink**2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetContext:
    """All that targets may read in one step, each computed once.

    image: in [0, 1]. standardised: (image - mean) / std by channel. teacher: features
    of the full standardised image at the layers that the Terms ask for; empty where
    none does. frozen: what each frozen network of the method makes of the full image,
    by name: token ids [b, n] or features [b, n, k].
    """

    image: Float[Array, "b height width c"]
    standardised: Float[Array, "b height width c"]
    mask: Mask
    teacher: Mapping[int, Features]
    frozen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seen: Mask | None = None
    grid: Grid = dataclasses.field(metadata={"static": True})
    patch_size: int = dataclasses.field(metadata={"static": True})

    def on_grid(self, patches: Float[Array, "b t k"]) -> Float[Array, "b n k"]:
        """The teacher's patches in their places; zeros where it saw nothing."""
        (h, w), (b, t, k) = self.grid, patches.shape
        if self.seen is not None:
            zeros = jnp.zeros((b, h * w, k), patches.dtype)
            ids = self.seen.ids_visible
            return jax.vmap(lambda x, i, p: x.at[i].set(p))(zeros, ids, patches)
        times = math.isqrt(h * w // t)
        coarse = patches.reshape(b, h // times, w // times, k)
        fine = coarse.repeat(times, axis=1).repeat(times, axis=2)
        return fine.reshape(b, h * w, k)


class Target(Protocol):
    """A target gives [b, n, k], or ids [b, n].

    teacher_layers: of the momentum teacher, that it reads. `at_tap(layer)` is the same
    question asked of another depth of the network. A target that asks no teacher
    inherits both.
    """

    @property
    def teacher_layers(self) -> tuple[int, ...]:
        return ()

    def at_tap(self, layer: int) -> "Target":
        return self

    def __call__(
        self, context: TargetContext
    ) -> Float[Array, "b n k"] | Int[Array, "b n"]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels(Target):
    """Patches of the standardised image, each standardised again by default (MAE)."""

    standardise: bool = True

    def __call__(self, context: TargetContext) -> Float[Array, "b n k"]:
        patches = patchify(context.standardised, context.patch_size)
        return standardise_patches(patches) if self.standardise else patches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hog(Target):
    """Histograms of oriented gradients of the patch (MaskFeat), [b, n, 4 * bins * c].

    Of each channel of the standardised image: Sobel gradients with reflected edges;
    their magnitudes, under a Gaussian window of one patch (deviation half of it), fall
    into `bins` directions over pi, are summed over cells of half a patch, and the
    histogram of a cell is scaled to length 1. A patch has 2 x 2 cells: 108 values for
    9 bins and 3 channels. The window is mmpretrain's; the authors' code has none.
    """

    bins: int = 9

    def __call__(self, context: TargetContext) -> Float[Array, "b n k"]:
        cells = hog(context.standardised, context.patch_size, self.bins)
        (h, w), b = context.grid, len(cells)
        cells = cells.reshape(b, h, 2, w, 2, -1).transpose(0, 1, 3, 2, 4, 5)
        return cells.reshape(b, h * w, -1)


def hog(
    images: Float[Array, "b height width c"], window: int, bins: int
) -> Float[Array, "b y x k"]:
    """Unit histograms [c * bins] of cells of half a `window`; see `Hog`."""
    b, height, width, c = images.shape
    x = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    # Sobel: smoothed over three along one axis, differences along the other.
    rows = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
    columns = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
    across = rows[:, :, :-2] - rows[:, :, 2:]
    down = columns[:, :-2] - columns[:, 2:]
    angle = jnp.arctan2(across, down) / jnp.pi * bins
    direction = jnp.floor(angle).astype(jnp.int32) % bins
    offsets = np.arange(window) - (window - 1) / 2
    bell = np.exp(-0.5 * (offsets / (window / 2)) ** 2)
    bell = np.outer(bell, bell).astype(np.float32)
    bell = np.tile(bell, (height // window, width // window))[..., None]
    magnitude = jnp.sqrt(across**2 + down**2) * bell
    votes = jax.nn.one_hot(direction, bins) * magnitude[..., None]
    cell = window // 2
    votes = votes.reshape(b, height // cell, cell, width // cell, cell, c, bins)
    histogram = votes.sum(axis=(2, 4))
    length = jnp.linalg.norm(histogram, axis=-1, keepdims=True)
    histogram = histogram / jnp.maximum(length, 1e-12)
    return histogram.reshape(b, height // cell, width // cell, c * bins)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen(Target):
    """What the method's frozen network of this name makes of the patch: the ids of a
    tokenizer (BEiT), or features, LayerNorm without affine (MVP)."""

    network: str

    def __call__(
        self, context: TargetContext
    ) -> Float[Array, "b n k"] | Int[Array, "b n"]:
        found = context.frozen[self.network]
        return found if found.ndim == 2 else normalise_features(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherLayer:
    """The teacher's patches at a layer, LayerNorm without affine (eps 1e-6).

    Several layers are normalised each and averaged (data2vec's mean of the top k);
    again: and their mean once more. The last layer is read after the teacher's final
    norm, unless the method says otherwise. same_depth: a student's tap l learns from
    the teacher's layer l, rather than all taps from the same layers.
    """

    teacher_layers: tuple[int, ...]
    same_depth: bool = True
    again: bool = False

    def at_tap(self, layer: int) -> "TeacherLayer":
        if not self.same_depth:
            return self
        return dataclasses.replace(self, teacher_layers=(layer,))

    def __call__(self, context: TargetContext) -> Float[Array, "b n k"]:
        layers = [
            normalise_features(context.teacher[layer].patches)
            for layer in self.teacher_layers
        ]
        mean = sum(layers[1:], layers[0]) / len(layers)
        return context.on_grid(normalise_features(mean) if self.again else mean)
