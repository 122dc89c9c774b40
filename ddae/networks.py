"""Frozen networks whose answers are targets: a tokenizer, or somebody's encoder."""

import dataclasses
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

    mean, std: how its images are standardised. quantiser: of a tokenizer, whose answers
    are ids of its codes; without one they are the encoder's last patches.
    """

    workdir: str
    encoder: Encoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    quantiser: Quantiser | None = None

    @property
    def width(self) -> int:
        """How many values an answer has, or how many ids there are."""
        return self.quantiser.codes if self.quantiser else self.encoder.spec.width

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters, as they lie in the workdir."""
        image = jnp.zeros((1, *self.encoder.image_shape))
        features, variables = self.encoder.init_with_output(key, image)
        params = {"encoder": variables["params"]}
        if self.quantiser is not None:
            head = self.quantiser.init(key, features[self.encoder.spec.depth])
            params["heads"] = {"quantiser": head["params"]}
        return params

    def apply(self, params: Params, image: Float[Array, "b h w c"]) -> Any:
        """Ids [b, n] or features [b, n, width] of images in [0, 1]."""
        standardised = (image - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        found: Any = self.encoder.apply({"params": params["encoder"]}, standardised)
        features = found[self.encoder.spec.depth]
        if self.quantiser is None:
            return features.patches
        answered: Any = self.quantiser.apply(
            {"params": params["heads"]["quantiser"]}, features
        )
        return answered[1]


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
        return FrozenNetwork(self.workdir, encoder, self.mean, self.std)


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
        return FrozenNetwork(self.workdir, encoder, self.mean, self.std, quantiser)


def _beside(student: Encoder, settings: EncoderSettings | TokenizerSettings) -> Encoder:
    """The encoder of `settings` on the student's images."""
    model = settings.model
    if (model.patch_size, model.channels) != (student.patch_size, student.channels):
        raise ValueError(
            f"a frozen network with patches of {model.patch_size} pixels and"
            f" {model.channels} channels does not go with patches of"
            f" {student.patch_size} and {student.channels}"
        )
    for name in ("mean", "std"):
        values = getattr(settings, name)
        if len(values) not in (1, model.channels):  # one is that of every channel
            raise ValueError(
                f"a frozen network's {name} has {len(values)} entries for"
                f" {model.channels} channels"
            )
    if min(settings.std) <= 0:
        raise ValueError(f"a frozen network's std={settings.std} must be positive")
    return make_encoder(model, student.image_shape[:2], student.dtype)
