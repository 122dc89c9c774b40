"""Segmentation heads: from features of four blocks to class scores of every place.

Shapes: maps are [b, h, w, d] at strides 4, 8, 16, 32; scores come at the resolution of
the finest map used and are resized by whoever compares them with labels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ddae.models.blocks import folded
from ddae.models.gelu import gelu
from ddae.models.heads import BATCH_NORM, BatchNorm, Observed
from ddae.models.linear import Dense
from ddae.models.vit import Features
from ddae.patches import Grid

Scores = dict[str, Float[Array, "b _ _ k"]]

STRIDES = (4, 8, 16, 32)
"""Pixels a place of each map, as convolutional backbones have them."""

conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
score_init = nn.initializers.normal(0.01)


def resize(
    x: Float[Array, "b h w d"], shape: tuple[int, ...]
) -> Float[Array, "b new_h new_w d"]:
    """`x` at (height, width), bilinear by pixel centres, edges repeated, no antialias:
    PyTorch's `interpolate(align_corners=False)`."""
    full = (x.shape[0], *shape, x.shape[-1])
    return jax.image.resize(x, full, "bilinear", antialias=False)


def average_pool(
    x: Float[Array, "b h w d"], bins: int
) -> Float[Array, "b bins bins d"]:
    """Means of `bins` x `bins` cells that cover the map and may overlap by a place:
    PyTorch's `AdaptiveAvgPool2d`. `bins` may exceed the map's side."""
    rows, columns = (_bin_weights(size, bins) for size in x.shape[1:3])
    x = x.astype(jnp.float32)
    return jnp.einsum("yh,xw,bhwd->byxd", rows, columns, x, precision="highest")


def _bin_weights(size: int, bins: int) -> Float[np.ndarray, "bins size"]:
    weights = np.zeros((bins, size), np.float32)
    for i in range(bins):
        start, stop = i * size // bins, -(-(i + 1) * size // bins)
        weights[i, start:stop] = 1.0 / (stop - start)
    return weights


def batch_norm(dtype: Any) -> BatchNorm:
    """PyTorch's, of its owner in a compact method."""
    return BatchNorm(affine=True, epsilon=1e-5, dtype=dtype, name=BATCH_NORM)


class ConvNorm(nn.Module):
    """Convolution without bias -> batch norm -> ReLU."""

    channels: int
    kernel: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w _"], training: bool
    ) -> tuple[Float[Array, "b h w channels"], Observed]:
        conv = nn.Conv(
            self.channels,
            (self.kernel, self.kernel),
            use_bias=False,
            kernel_init=conv_init,
            dtype=self.dtype,
            name="conv",
        )
        x, observed = batch_norm(self.dtype)(conv(x), training)
        return nn.relu(x), observed


class Deconv(nn.Module):
    """Twice the resolution: transposed convolution, kernel 2, stride 2, width kept."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b 2*h 2*w d"]:
        b, h, w, d = x.shape
        bias = self.param("bias", nn.initializers.zeros, (d,)).astype(self.dtype)
        # Strides as large as the kernel: every place makes four of its own.
        x = Dense(4 * d, use_bias=False, dtype=self.dtype, name="linear")(x)
        x = x.reshape(b, h, w, 2, 2, d).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(b, 2 * h, 2 * w, d) + bias


class Rescale(nn.Module):
    """A ViT's map from stride `patch_size` to `stride` (BEiT's).

    Four times finer: deconv, batch norm, GELU, deconv. Twice: deconv. Coarser: max
    pooling.
    """

    patch_size: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w d"], training: bool
    ) -> tuple[Float[Array, "b new_h new_w d"], Observed]:
        observed = {}
        if self.patch_size >= self.stride:
            finer = self.patch_size // self.stride
            if finer not in (1, 2, 4):
                raise ValueError(f"a map cannot be made {finer} times finer")
            if finer > 1:
                x = Deconv(self.dtype, name="deconv")(x)
            if finer > 2:
                x, observed = batch_norm(self.dtype)(x, training)
                x = gelu(x)
                x = Deconv(self.dtype, name="deconv_again")(x)
            return x, observed
        side = self.stride // self.patch_size
        # No x.max(): its gradient divides by the number of values that equal the
        # maximum, and is NaN where XLA computes x twice and rounds it differently.
        return nn.max_pool(x, (side, side), strides=(side, side)), observed


class UPerHead(nn.Module):
    """UPerNet (Xiao et al. 2018): pyramid pooling of the coarsest map, then an FPN.

    channels: width of all its maps. dropout: of whole channels before the scores.
    """

    num_classes: int
    channels: int
    pool_scales: tuple[int, ...]
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        maps: list[Float[Array, "b _ _ d"]],
        training: bool,
        keys: Key[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b h w k"], Observed]:
        """Scores at the resolution of the first map. keys: one an example, for dropout;
        None drops nothing."""
        observed: Observed = {}

        def conv(name: str, kernel: int, x: Array) -> Array:
            module = ConvNorm(self.channels, kernel, self.dtype, name=name)
            x, observed[name] = module(x, training)
            return x

        top = maps[-1]
        pooled = [top]
        for bins in self.pool_scales:
            x = average_pool(top, bins).astype(self.dtype)
            x = conv(f"pool_{bins}", 1, x)
            pooled.append(resize(x, top.shape[1:3]))
        laterals = [conv(f"lateral_{level}", 1, x) for level, x in enumerate(maps[:-1])]
        laterals.append(conv("bottleneck", 3, jnp.concatenate(pooled, axis=-1)))
        for level in reversed(range(1, len(maps))):
            finer = laterals[level - 1]
            coarser = resize(laterals[level], finer.shape[1:3])
            laterals[level - 1] = finer + coarser
        outputs = [conv(f"fpn_{level}", 3, x) for level, x in enumerate(laterals[:-1])]
        outputs.append(laterals[-1])
        outputs = [resize(x, maps[0].shape[1:3]) for x in outputs]
        x = conv("fpn_bottleneck", 3, jnp.concatenate(outputs, axis=-1))
        x = drop_channels(x, self.dropout, keys)
        return _scores(self.num_classes, x), {k: v for k, v in observed.items() if v}


class FCNHead(nn.Module):
    """One 3 x 3 convolution on one map, and scores: UPerNet's auxiliary head."""

    num_classes: int
    channels: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w d"],
        training: bool,
        keys: Key[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b h w k"], Observed]:
        x, seen = ConvNorm(self.channels, 3, self.dtype, name="conv_0")(x, training)
        x = drop_channels(x, self.dropout, keys)
        return _scores(self.num_classes, x), {"conv_0": seen} if seen else {}


def _scores(num_classes: int, x: Float[Array, "b h w d"]) -> Float[Array, "b h w k"]:
    """Linear, float32; called inside a compact method, which owns it."""
    linear = nn.Dense(num_classes, kernel_init=score_init, name="classifier")
    return linear(x.astype(jnp.float32))


def drop_channels(
    x: Float[Array, "b h w d"], rate: float, keys: Key[Array, " b"] | None
) -> Float[Array, "b h w d"]:
    """Whole channels of an example set to 0 with probability `rate`, by its key."""
    if keys is None or not rate:
        return x
    keep = 1.0 - rate
    draw = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x.shape[-1:]))
    return jnp.where(draw(keys)[:, None, None, :], x / keep, 0.0).astype(x.dtype)


class UperNet(nn.Module):
    """Four blocks of a ViT to maps at `STRIDES`, UPerHead, and the auxiliary head on
    the third map where it has channels."""

    num_classes: int
    grid: Grid
    patch_size: int
    channels: int
    auxiliary_channels: int
    pool_scales: tuple[int, ...]
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: tuple[Features, ...],
        training: bool = False,
        keys: Key[Array, " b"] | None = None,
    ) -> tuple[Scores, Observed]:
        """Scores "segmenter" at stride 4 and, in training, "auxiliary" at stride 16."""
        observed: Observed = {}
        maps = []
        for level, (tokens, stride) in enumerate(zip(features, STRIDES, strict=True)):
            name = f"neck_{level}"
            neck = Rescale(self.patch_size, stride, self.dtype, name=name)
            x, observed[name] = neck(_as_map(tokens, self.grid), training)
            maps.append(x)
        shared = (self.num_classes, self.channels, self.pool_scales, self.dropout)
        head = UPerHead(*shared, self.dtype, name="decode")
        scores: Scores = {}
        scores["segmenter"], observed["decode"] = head(maps, training, keys)
        # Its parameters are made in evaluation mode too, and then nothing runs.
        if self.auxiliary_channels and (training or self.is_initializing()):
            auxiliary = FCNHead(
                self.num_classes,
                self.auxiliary_channels,
                self.dropout,
                self.dtype,
                name="auxiliary",
            )
            own = None if keys is None else folded(keys, 1)
            found = auxiliary(maps[2], training, own)
            scores["auxiliary"], observed["auxiliary"] = found
        return scores, {name: seen for name, seen in observed.items() if seen}


class LinearSegmenter(nn.Module):
    """Batch norm and one Linear on each patch of the last block: a quick look."""

    num_classes: int
    grid: Grid
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: tuple[Features, ...],
        training: bool = False,
        keys: Key[Array, " b"] | None = None,
    ) -> tuple[Scores, Observed]:
        """Scores "segmenter", one a patch. keys: unused, as nothing is dropped."""
        x = _as_map(features[-1], self.grid)
        x, observed = batch_norm(self.dtype)(x, training)
        return {"segmenter": _scores(self.num_classes, x)}, observed


def _as_map(tokens: Features, grid: Grid) -> Float[Array, "b h w d"]:
    return tokens.patches.reshape(-1, *grid, tokens.patches.shape[-1])
