"""Frozen networks whose answers are targets: a tokenizer, or somebody's encoder."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ddae.models.build import ModelSettings, make_encoder
from ddae.models.tokenizer import Quantiser
from ddae.models.vit import Encoder

Params = Any


@dataclasses.dataclass(frozen=True)
class FrozenNetwork:
    """A network that a method asks and never trains; `workdir` holds its weights.

    init, apply: of parameters as they lie in that workdir, on images in [0, 1];
    apply gives ids [b, n] or features [b, n, width]. encoder, quantiser: what it is
    made of; mean, std: how its images are standardised.
    """

    workdir: str
    width: int
    init: Callable[[Key[Array, ""]], Params]
    apply: Callable[[Params, Float[Array, "b h w c"]], Any]
    encoder: Encoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    quantiser: Quantiser | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """An encoder as a teacher: its last patches.

    workdir: of a run, or made by ddae.interop of CLIP's or DINO's weights. model: as
    that run has it. mean, std: its standardisation.
    """

    workdir: str = ""
    model: ModelSettings = ModelSettings()
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def network(self, student: Encoder) -> FrozenNetwork:
        """On the student's images. Raises `ValueError` for another grid of patches."""
        encoder = _beside(student, self)

        def apply(params: Params, image: Float[Array, "b h w c"]) -> Any:
            return encoder_output(encoder, params, self.mean, self.std, image).patches

        def init(key: Key[Array, ""]) -> Params:
            return {"encoder": encoder.init(key, _one_image(encoder))["params"]}

        return FrozenNetwork(
            workdir=self.workdir,
            width=encoder.spec.width,
            init=init,
            apply=apply,
            encoder=encoder,
            mean=self.mean,
            std=self.std,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """A trained VQ-KD tokenizer (config.task="tokenize"): ids of its codebook.

    workdir: of its run. model, codes, code_dim, mean, std: as that run has them.
    """

    workdir: str = ""
    model: ModelSettings = ModelSettings(positions="learned")
    codes: int = 8192
    code_dim: int = 32
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __post_init__(self):
        for name in ("codes", "code_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not 1 or more")

    def network(self, student: Encoder) -> FrozenNetwork:
        """On the student's images. Raises `ValueError` for another grid of patches."""
        encoder = _beside(student, self)
        quantiser = Quantiser(self.codes, self.code_dim)

        def apply(params: Params, image: Float[Array, "b h w c"]) -> Any:
            features = encoder_output(encoder, params, self.mean, self.std, image)
            variables = {"params": params["heads"]["quantiser"]}
            return quantiser.apply(variables, features)[1]

        def init(key: Key[Array, ""]) -> Params:
            features, variables = encoder.init_with_output(key, _one_image(encoder))
            head = quantiser.init(key, features[encoder.spec.depth])
            return {
                "encoder": variables["params"],
                "heads": {"quantiser": head["params"]},
            }

        return FrozenNetwork(
            workdir=self.workdir,
            width=self.codes,
            init=init,
            apply=apply,
            encoder=encoder,
            mean=self.mean,
            std=self.std,
            quantiser=quantiser,
        )


def encoder_output(
    encoder: Encoder,
    params: Params,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    image: Float[Array, "b h w c"],
) -> Any:
    """The last `Features` of an image in [0, 1], standardised by `mean` and `std`."""
    standardised = (image - jnp.asarray(mean)) / jnp.asarray(std)
    return encoder.apply({"params": params["encoder"]}, standardised)[
        encoder.spec.depth
    ]


def _beside(student: Encoder, settings: EncoderSettings | TokenizerSettings) -> Encoder:
    h, w = student.grid
    p, model = student.patch_size, settings.model
    if (model.patch_size, model.channels) != (p, student.channels):
        raise ValueError(
            f"a frozen network with patches of {model.patch_size} pixels and"
            f" {model.channels} channels does not go with patches of {p} and"
            f" {student.channels}"
        )
    for name in ("mean", "std"):
        values = getattr(settings, name)
        if len(values) not in (1, model.channels):  # one is that of every channel
            raise ValueError(
                f"a frozen network's {name} has {len(values)} entries for"
                f" {model.channels} channels"
            )
    return make_encoder(model, (h * p, w * p), student.dtype)


def _one_image(encoder: Encoder) -> Float[Array, "1 h w c"]:
    h, w = encoder.grid
    p = encoder.patch_size
    return jnp.zeros((1, h * p, w * p, encoder.channels))
