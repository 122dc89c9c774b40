"""What every task begins with: the encoder, and images made ready for it."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from ddae import settings
from ddae.models.blocks import folded
from ddae.models.build import DTYPES, ModelSettings, make_encoder
from ddae.models.vit import Encoder, Features
from ddae.settings import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standardisation:
    """Mean and deviation of each channel, of images in [0, 1]; takes uint8 too."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Shaped[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return (unit_range(images) - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def undo(self, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Back to [0, 1], unclipped."""
        return image * jnp.asarray(self.std) + jnp.asarray(self.mean)


def standardisation_from_config(
    config: Mapping[str, Any], channels: int
) -> Standardisation:
    """data.mean and data.std; `UserError` where they are not one a channel."""
    mean, std = (config["data"].get(key, ()) for key in ("mean", "std"))
    for key, value in (("mean", mean), ("std", std)):
        if not settings.fits(value, tuple[float, ...]):
            raise UserError(f"config.data.{key}={value!r} is not a tuple of numbers")
        if value and not 0.0 <= min(value) <= max(value) <= 1.0:
            raise UserError(f"config.data.{key}={value}: pixels lie in [0, 1] here")
        if key == "std" and 0.0 in value:
            raise UserError(f"config.data: std={value} must be positive")
        if len(value) != channels:
            raise UserError(
                f"config.data.{key} has {len(value)} entries for"
                f" config.model.channels={channels}"
            )
    return Standardisation(mean=tuple(mean), std=tuple(std))


def encoder_from_config(config: Mapping[str, Any], final_norm: bool = True) -> Encoder:
    """The encoder of config.model at config.image_size, computing in config.dtype."""
    model = settings.build(ModelSettings, config["model"], "model.")
    if config["dtype"] not in DTYPES:
        raise UserError(
            f"config.dtype={config['dtype']!r} is not one of {list(DTYPES)}"
        )
    if "/encoder/" in config.get("optimizer", {}).get("frozen", ()):
        model = dataclasses.replace(model, drop_path=0.0)  # in training as in use
    return make_encoder(
        model, config["image_size"], DTYPES[config["dtype"]], final_norm=final_norm
    )


def features_of(
    encoder: Encoder,
    standardise: Standardisation,
    params: Mapping[str, Any],
    images: Shaped[Array, "b h w c"],
    tap: int,
) -> Features:
    """Features of block `tap`, 0 for the last, of whole images: nothing is masked."""
    tap = tap or encoder.spec.depth
    if not 1 <= tap <= encoder.spec.depth:
        raise UserError(f"tap {tap} is not among blocks 1 to {encoder.spec.depth}")
    features: Any = encoder.apply(
        {"params": params["encoder"]}, standardise(images), taps=(tap,)
    )
    return features[tap]


def unit_range(images: Shaped[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """uint8 images as float32 in [0, 1]; floats are taken to be so already."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255.0
    return images.astype(jnp.float32)


def stream(rngs: Key[Array, " b"], name: str) -> Key[Array, " b"]:
    """The named random stream of each example."""
    return folded(rngs, zlib.crc32(name.encode()))
