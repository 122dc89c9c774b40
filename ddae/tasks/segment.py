"""Semantic segmentation: a pretrained encoder under UPerNet, or a linear head."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, Shaped

from ddae import settings
from ddae.models.heads import absorb
from ddae.models.segmenter import LinearSegmenter, UperNet, resize
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
class SegmenterSettings:
    """What reads the encoder.

    head: upernet, or linear on the last block. taps: the four blocks that UPerNet
    reads, from 1 on; () takes those at 1/3, 1/2, 2/3 of the depth and the last: 4, 6,
    8, 12 of ViT-B, 8, 12, 16, 24 of ViT-L. channels: of UPerNet's maps; pool_scales: of
    its pyramid. auxiliary_channels: of the second head, 0 is none; auxiliary_weight: of
    its loss. dropout: of channels before the scores.
    """

    num_classes: int
    head: Literal["upernet", "linear"] = "upernet"
    taps: tuple[int, ...] = ()
    channels: int = 768
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    auxiliary_channels: int = 256
    auxiliary_weight: float = 0.4
    dropout: float = 0.1

    def __post_init__(self):
        if self.num_classes < 2:
            raise ValueError(f"num_classes={self.num_classes} is not 2 or more")
        if len(self.taps) not in (0, 4):
            raise ValueError(f"taps={self.taps} are not four blocks")
        if self.auxiliary_weight < 0:
            raise ValueError(
                f"auxiliary_weight={self.auxiliary_weight} must not be negative"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout} is not in [0, 1)")
        if not self.pool_scales:
            raise ValueError("pool_scales=() are none; give at least one")
        if min(self.channels, *self.pool_scales) < 1 or self.auxiliary_channels < 0:
            raise ValueError("channels and pool_scales must be positive")


@dataclasses.dataclass(frozen=True)
class Segment(Task):
    """Cross-entropy of every pixel that has a label.

    `image_shape` is that of a training crop, and of a window of the evaluation.
    """

    encoder: Encoder
    taps: tuple[int, ...]
    head: UperNet | LinearSegmenter
    auxiliary_weight: float
    standardise: Standardisation

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Segment":
        """Reads sections model and segmenter, data.mean, data.std."""
        chosen = settings.build(SegmenterSettings, config["segmenter"], "segmenter.")
        # UPerNet reads blocks as they are; a Linear wants the last norm.
        encoder = encoder_from_config(config, final_norm=chosen.head == "linear")
        depth, p = encoder.spec.depth, encoder.patch_size
        given = {
            "num_classes": chosen.num_classes,
            "grid": encoder.grid,
            "dtype": encoder.dtype,
        }
        if chosen.head == "linear":
            taps, head = (depth,), LinearSegmenter(**given)
        else:
            if p not in (4, 8, 16) or min(encoder.grid) * p < 32:
                raise UserError(
                    "config.segmenter.head=upernet wants config.model.patch_size 4, 8"
                    f" or 16 and images of 32 pixels or more, not patch {p} of"
                    f" {config['image_size']}"
                )
            taps = chosen.taps or taps_of(depth)
            head = UperNet(
                **given,
                patch_size=p,
                channels=chosen.channels,
                auxiliary_channels=chosen.auxiliary_channels,
                pool_scales=chosen.pool_scales,
                dropout=chosen.dropout,
            )
        if not all(0 < tap <= depth for tap in taps):
            raise UserError(
                f"config.segmenter.taps={taps} are not among the blocks 1 to {depth}"
            )
        return cls(
            encoder=encoder,
            taps=taps,
            head=head,
            auxiliary_weight=chosen.auxiliary_weight,
            standardise=standardisation_from_config(config, encoder.channels),
        )

    @property
    def num_classes(self) -> int:
        return self.head.num_classes

    def meaning(self) -> Mapping[str, Any]:
        if isinstance(self.head, LinearSegmenter):
            return {}
        scales = self.head.pool_scales
        return {"segmenter.taps": self.taps, "segmenter.pool_scales": scales}

    def init(self, rng: Key[Array, ""]) -> Params:
        """{"encoder": ..., "heads": {"segmenter": ...}}, float32."""
        key_encoder, key_head = jax.random.split(rng)
        image = jnp.zeros((1, *self.image_shape))
        features, variables = self.encoder.init_with_output(
            key_encoder, image, taps=self.taps
        )
        taken = tuple(features[tap] for tap in self.taps)
        head = self.head.init(key_head, taken)["params"]
        return {"encoder": variables["params"], "heads": {"segmenter": head}}

    def loss(
        self,
        params: Params,
        ema_params: Params,
        batch: Batch,
        progress: Scalar,
        rngs: Key[Array, " b"],
    ) -> tuple[Scalar, Metrics, Params]:
        """Mean cross-entropy of the pixels whose label is not negative, and the
        auxiliary head's; batch["label"] is int [b, height, width]."""
        images = self.standardise(batch["image"])
        keys = stream(rngs, "drop_path") if self.encoder.drop_path else None
        features = self._features(params, images, keys)
        found: Any = self.head.apply(
            {"params": params["heads"]["segmenter"]},
            features,
            training=True,
            keys=stream(rngs, "dropout"),
        )
        scores, observed = found
        total, count = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
        metrics: Metrics = {}
        for name, small in scores.items():
            logits = resize(small, batch["label"].shape[1:])
            lost, count, hits = pixel_losses(logits, batch["label"])
            weight = self.auxiliary_weight if name == "auxiliary" else 1.0
            # A batch without one label teaches nothing.
            total = total + weight * lost / jnp.maximum(count, 1.0)
            metrics[f"loss/{name}"] = (lost, count)
            metrics[f"pixel_accuracy/{name}"] = (100.0 * hits, count)
        metrics["loss"] = (total * count, count)
        return total, metrics, {"segmenter": observed}

    def absorb(self, params: Params, observed: Params) -> Params:
        """The running statistics of batch norms follow what was seen."""
        return {**params, "heads": absorb(params["heads"], observed)}

    def scores(
        self, params: Params, images: Shaped[Array, "b height width c"]
    ) -> Float[Array, "b _ _ k"]:
        """Class scores of images of `image_shape`, float32, at stride 4 (UPerNet) or of
        the patches; `models.segmenter.resize` brings them to pixels."""
        features = self._features(params, self.standardise(images), None)
        found: Any = self.head.apply({"params": params["heads"]["segmenter"]}, features)
        return found[0]["segmenter"]

    def _features(
        self,
        params: Params,
        standardised: Float[Array, "b h w c"],
        keys: Key[Array, " b"] | None,
    ) -> tuple[Features, ...]:
        features: Any = self.encoder.apply(
            {"params": params["encoder"]}, standardised, taps=self.taps, keys=keys
        )
        return tuple(features[tap] for tap in self.taps)


def taps_of(depth: int) -> tuple[int, ...]:
    """Blocks, from 1 on, at 1/3, 1/2, 2/3 and the whole of the depth (BEiT's)."""
    return tuple(max(1, round(depth * part / 6)) for part in (2, 3, 4, 6))


def pixel_losses(
    logits: Float[Array, "b h w k"], labels: Int[Array, "b h w"]
) -> tuple[Scalar, Scalar, Scalar]:
    """(summed cross-entropy, number, hits) of the pixels with a label >= 0."""
    known = labels >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), jnp.maximum(labels, 0)
    )
    hits = (logits.argmax(axis=-1) == labels) & known
    return (
        jnp.where(known, losses, 0.0).sum(),
        known.astype(jnp.float32).sum(),
        hits.astype(jnp.float32).sum(),
    )
