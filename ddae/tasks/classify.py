"""Classification: fine-tuning, and probes of a frozen encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, Shaped

from ddae import settings
from ddae.mixing import Mixing, erase, mix
from ddae.models.heads import Classifier, Pool, absorb
from ddae.models.vit import Encoder, Features
from ddae.objective import Metrics, Scalar
from ddae.settings import UserError
from ddae.tasks.backbone import (
    Standardisation,
    encoder_from_config,
    standardisation_from_config,
    stream,
)
from ddae.tasks.task import Batch, Params, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """What reads the encoder, and how it is taught.

    tap: the block that is read, from 1 on; 0 is the last. pool: mean of the patches,
    cls, or attention (a learned query). norm: layer (its own, in place of the
    encoder's), batch (without affine) or none. rates: a head for each, which learns at
    so many times the learning rate, all on the same features; heads share the encoder,
    so more than one wants it frozen. average: momentum of a moving average of all
    weights, which evaluations then see; 0 is none.
    """

    num_classes: int
    tap: int = 0
    pool: Pool = "mean"
    norm: Literal["layer", "batch", "none"] = "layer"
    rates: tuple[float, ...] = (1.0,)
    kernel_deviation: float = 2e-5
    average: float = 0.0

    def __post_init__(self):
        if self.num_classes < 2:
            raise ValueError(f"num_classes={self.num_classes} is not 2 or more")
        if not self.rates or len(set(self.rates)) != len(self.rates):
            raise ValueError(f"rates={self.rates} are not different ones")
        if min(self.rates) <= 0:
            raise ValueError(f"rates={self.rates} must be positive")
        if self.kernel_deviation < 0:
            raise ValueError(
                f"kernel_deviation={self.kernel_deviation} must not be negative"
            )
        if not 0.0 <= self.average < 1.0:
            raise ValueError(f"average={self.average} is not in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Classify(Task):
    """Cross-entropy of class scores read at one block of the encoder."""

    encoder: Encoder
    tap: int
    heads: Mapping[str, Classifier]
    mixing: Mixing
    average: float
    standardise: Standardisation

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Classify":
        """Reads sections model, classifier and mixing, data.mean, data.std."""
        chosen = settings.build(ClassifierSettings, config["classifier"], "classifier.")
        # A norm of the head's own stands in for the encoder's last one (MAE).
        encoder = encoder_from_config(config, final_norm=chosen.norm != "layer")
        depth = encoder.spec.depth
        if not 0 <= chosen.tap <= depth:
            raise UserError(
                f"config.classifier.tap={chosen.tap} is not among the blocks 1 to"
                f" {depth}, nor 0 for the last"
            )
        head = Classifier(
            num_classes=chosen.num_classes,
            pool=chosen.pool,
            norm=chosen.norm,
            num_heads=encoder.spec.num_heads,
            kernel_deviation=chosen.kernel_deviation,
            dtype=encoder.dtype,
        )
        names = ["classifier"]
        if chosen.rates != (1.0,):
            names = [f"lr_{rate:g}" for rate in chosen.rates]
        if len(set(names)) < len(names):
            raise UserError(
                f"config.classifier.rates={chosen.rates} are alike to six digits"
            )
        if len(names) > 1 and "/encoder/" not in config["optimizer"].get("frozen", ()):
            raise UserError(
                "several config.classifier.rates want a frozen encoder:"
                " config.optimizer.frozen=('/encoder/',)"
            )
        return cls(
            encoder=encoder,
            tap=chosen.tap or depth,
            heads=dict.fromkeys(names, head),
            mixing=settings.build(Mixing, config["mixing"], "mixing."),
            average=chosen.average,
            standardise=standardisation_from_config(config, encoder.channels),
        )

    @property
    def num_classes(self) -> int:
        return next(iter(self.heads.values())).num_classes

    def meaning(self) -> Mapping[str, Any]:
        (pool,) = {head.pool for head in self.heads.values()}
        return {"classifier.tap": self.tap, "classifier.pool": pool}

    def init(self, rng: Key[Array, ""]) -> Params:
        """{"encoder": ..., "heads": {name: ...}}, float32; all heads begin alike."""
        key_encoder, key_head = jax.random.split(rng)
        image = jnp.zeros((1, *self.image_shape))
        features, variables = self.encoder.init_with_output(
            key_encoder, image, taps=(self.tap,)
        )
        heads = {
            name: head.init(key_head, features[self.tap])["params"]
            for name, head in self.heads.items()
        }
        return {"encoder": variables["params"], "heads": heads}

    def ema_of(self, params: Params) -> Params:
        return params if self.average else {}

    def momentum(self, progress: Scalar, total_steps: int) -> Scalar:
        return jnp.asarray(self.average, jnp.float32)

    def loss(
        self,
        params: Params,
        ema_params: Params,
        batch: Batch,
        progress: Scalar,
        rngs: Key[Array, " b"],
    ) -> tuple[Scalar, Metrics, Params]:
        """Mean cross-entropy with the mixed targets, summed over heads."""
        images = self.standardise(batch["image"])
        if self.mixing.erasing:
            images = erase(images, stream(rngs, "erase"), self.mixing.erasing)
        images, targets = mix(
            images,
            batch["label"],
            self.num_classes,
            self.mixing,
            stream(rngs[:1], "mix")[0],
        )
        keys = stream(rngs, "drop_path") if self.encoder.drop_path else None
        features = self._features(params, images, keys)
        total = jnp.zeros((), jnp.float32)
        metrics: Metrics = {}
        observed = {}
        count = jnp.asarray(len(images), jnp.float32)
        right = targets.argmax(axis=-1)
        for name, head in self.heads.items():
            logits: Any
            logits, observed[name] = head.apply(
                {"params": params["heads"][name]}, features, training=True
            )
            losses = optax.softmax_cross_entropy(logits, targets)
            total = total + losses.mean()
            metrics[f"loss/{name}"] = (losses.sum(), count)
            hits = (logits.argmax(axis=-1) == right).astype(jnp.float32)
            metrics[f"top1/{name}"] = (100.0 * hits.sum(), count)
        metrics["loss"] = (total, jnp.ones((), jnp.float32))
        return total, metrics, observed

    def absorb(self, params: Params, observed: Params) -> Params:
        """The running statistics of batch norms follow what was seen."""
        return {**params, "heads": absorb(params["heads"], observed)}

    def evaluated(self, params: Params, ema_params: Params) -> Params:
        """The moving average, where there is one."""
        return ema_params if self.average else params

    def logits(
        self, params: Params, images: Shaped[Array, "b h w c"]
    ) -> dict[str, Float[Array, "b k"]]:
        """Class scores of every head; nothing dropped, mixed or erased."""
        features = self._features(params, self.standardise(images), None)
        found: Any = {
            name: head.apply({"params": params["heads"][name]}, features)[0]
            for name, head in self.heads.items()
        }
        return found

    def encode(
        self, params: Params, images: Shaped[Array, "b h w c"], tap: int = 0
    ) -> Features:
        return super().encode(params, images, tap or self.tap)

    def _features(
        self,
        params: Params,
        standardised: Float[Array, "b h w c"],
        keys: Key[Array, " b"] | None,
    ) -> Features:
        features: Any = self.encoder.apply(
            {"params": params["encoder"]}, standardised, taps=(self.tap,), keys=keys
        )
        return features[self.tap]
