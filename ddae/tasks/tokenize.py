"""VQ-KD: training a tokenizer to give back a frozen teacher's features (BEiT-v2)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from ddae import settings
from ddae.models.tokenizer import (
    Quantiser,
    TokenDecoder,
    averaged,
    k_means,
    sums_of,
    unit,
)
from ddae.models.vit import Encoder
from ddae.networks import EncoderSettings, FrozenNetwork
from ddae.objective import Metrics, Scalar
from ddae.tasks.backbone import (
    Standardisation,
    encoder_from_config,
    standardisation_from_config,
    unit_range,
)
from ddae.tasks.task import Batch, Params, Task

USED = 0.01
"""A code counts as used while its average count is above this: of late taken by more
than about one patch in a hundred steps. One that a patch took in every step counts for
460 more after the last."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookSettings:
    """codes of code_dim values; decoder_depth blocks give the teacher's features back.

    commitment: weight of the pull of latents to their codes. teacher: whose features.
    start_rows: of the first batch's latents, how many k-means sees at most.
    """

    codes: int = 8192
    code_dim: int = 32
    decoder_depth: int = 3
    commitment: float = 1.0
    start_rows: int = 131072
    teacher: EncoderSettings = EncoderSettings()

    def __post_init__(self):
        for name in ("codes", "code_dim", "decoder_depth", "start_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not 1 or more")
        if self.commitment < 0:
            raise ValueError(f"commitment={self.commitment} must not be negative")


@dataclasses.dataclass(frozen=True)
class Tokenize(Task):
    """Mean of 1 - cosine between decoded codes and the teacher, and the commitment."""

    encoder: Encoder
    settings: CodebookSettings
    teacher: FrozenNetwork
    standardise: Standardisation

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Tokenize":
        """Reads sections model and tokenizer, data.mean, data.std."""
        encoder = encoder_from_config(config)
        if encoder.drop_path:
            raise settings.UserError(
                f"config.model.drop_path={encoder.drop_path}: a tokenizer drops none;"
                " set it to 0"
            )
        chosen = settings.build(CodebookSettings, config["tokenizer"], "tokenizer.")
        try:
            teacher = chosen.teacher.network(encoder)
        except ValueError as error:
            raise settings.UserError(f"config.tokenizer.teacher: {error}") from error
        standardise = standardisation_from_config(config, encoder.channels)
        return cls(encoder, chosen, teacher, standardise)

    @property
    def _quantiser(self) -> Quantiser:
        return Quantiser(self.settings.codes, self.settings.code_dim)

    @property
    def _decoder(self) -> TokenDecoder:
        depth, width = self.settings.decoder_depth, self.teacher.width
        return TokenDecoder(self.encoder, depth, width)

    def init(self, rng: Key[Array, ""]) -> Params:
        """{"encoder", "heads": {"quantiser", "decoder"}, "frozen": {"teacher"}}."""
        keys = jax.random.split(rng, 4)
        image = jnp.zeros((1, *self.image_shape))
        features, variables = self.encoder.init_with_output(keys[0], image)
        features = features[self.encoder.spec.depth]
        (z, _), quantiser = self._quantiser.init_with_output(keys[1], features)
        decoder = self._decoder.init(keys[2], z)
        return {
            "encoder": variables["params"],
            "heads": {
                "quantiser": quantiser["params"],
                "decoder": decoder["params"],
            },
            "frozen": {"teacher": self.teacher.init(keys[3])},
        }

    def frozen(self) -> dict[str, FrozenNetwork]:
        return {"teacher": self.teacher}

    def begin(self, params: Params, batch: Batch) -> Params:
        """The first codebook: k-means of latents of the first batch."""
        z, _ = self._latents(params, batch["image"])
        z = z.reshape(-1, z.shape[-1])
        stride = -(-len(z) // self.settings.start_rows)
        codes = k_means(z[::stride], self.settings.codes)
        return _with_codebook(params, {"codes": codes})

    def loss(
        self,
        params: Params,
        ema_params: Params,
        batch: Batch,
        progress: Scalar,
        rngs: Key[Array, " b"],
    ) -> tuple[Scalar, Metrics, Params]:
        z, ids = self._latents(params, batch["image"])
        codebook = params["heads"]["quantiser"]["codebook"]
        codes = codebook["codes"][ids]
        # The decoder sees the code; its gradient goes on to the latent as it is.
        through = z + jax.lax.stop_gradient(codes - z)
        cosine = self._cosine(params, batch["image"], through).mean()
        commitment = ((jax.lax.stop_gradient(codes) - z) ** 2).mean()
        loss = 1.0 - cosine + self.settings.commitment * commitment
        seen = sums_of(
            jax.lax.stop_gradient(z).reshape(-1, z.shape[-1]),
            ids.reshape(-1),
            self.settings.codes,
        )
        one = jnp.ones((), jnp.float32)
        used = codebook["counts"] > USED
        metrics = {
            "loss": (loss, one),
            "cosine": (cosine, one),
            "commitment": (commitment, one),
            "codes_used": (100.0 * used.mean(), one),
            "codes_dead": ((~used).sum().astype(jnp.float32), one),
        }
        return loss, metrics, seen

    def absorb(self, params: Params, observed: Params) -> Params:
        codebook = params["heads"]["quantiser"]["codebook"]
        return _with_codebook(params, averaged(codebook, observed))

    def tokens(
        self, params: Params, images: Shaped[Array, "b h w c"]
    ) -> dict[str, Array]:
        """ids [b, n] of each patch's code, and cosine [b, n] of what is given back."""
        _, ids = self._latents(params, images)
        codes = params["heads"]["quantiser"]["codebook"]["codes"][ids]
        return {"ids": ids, "cosine": self._cosine(params, images, codes)}

    def _latents(
        self, params: Params, images: Shaped[Array, "b h w c"]
    ) -> tuple[Float[Array, "b n c"], Int[Array, "b n"]]:
        found: Any = self._quantiser.apply(
            {"params": params["heads"]["quantiser"]}, self.encode(params, images)
        )
        return found

    def _cosine(
        self,
        params: Params,
        images: Shaped[Array, "b h w c"],
        codes: Float[Array, "b n c"],
    ) -> Float[Array, "b n"]:
        image = unit_range(images)
        target = self.teacher.apply(params["frozen"]["teacher"], image)
        target = jax.lax.stop_gradient(target).astype(jnp.float32)
        made: Any = self._decoder.apply({"params": params["heads"]["decoder"]}, codes)
        return (unit(made.astype(jnp.float32)) * unit(target)).sum(axis=-1)


def _with_codebook(params: Params, changed: Mapping[str, Array]) -> Params:
    quantiser = params["heads"]["quantiser"]
    codebook = {**quantiser["codebook"], **changed}
    heads = {**params["heads"], "quantiser": {**quantiser, "codebook": codebook}}
    return {**params, "heads": heads}
