"""Pretraining: any `Method` as a Task."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Shaped

from ddae import settings
from ddae.dds import Method, block_name, with_dds
from ddae.difficulty import nearest_visible_distance
from ddae.losses import normalise_features
from ddae.masking import Mask, gather_patches, part_of
from ddae.methods import METHODS
from ddae.models.heads import Head, Predictions, TapDecoder
from ddae.models.vit import Encoder, Features, small_init
from ddae.networks import FrozenNetwork
from ddae.objective import (
    Metrics,
    Scalar,
    evaluate_terms,
    head_taps,
    in_turn,
    teacher_layers,
)
from ddae.patches import patch_statistics, patchify, unpatchify
from ddae.settings import UserError
from ddae.targets import Pixels, TargetContext
from ddae.tasks.backbone import (
    Standardisation,
    encoder_from_config,
    standardisation_from_config,
    stream,
    unit_range,
)
from ddae.tasks.task import Batch, Params, Task


def filled_method(section: Mapping[str, Any]) -> dict[str, Any]:
    """config.method with the code's default at every key that it leaves out."""
    found: dict[str, Any] = {"dds": None} | dict(section)
    if target := METHODS.get(found.get("name", "")):
        found = settings.filled(target, found)
    if found["dds"] is not None:
        found["dds"] = settings.filled(with_dds, found["dds"])
    return found


@dataclasses.dataclass(frozen=True)
class Pretrain(Task):
    """Masked image modelling of `method` on images standardised by `standardise`."""

    method: Method
    standardise: Standardisation

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Pretrain":
        """Reads sections model and method, data.mean, data.std, image_size, dtype."""
        encoder = encoder_from_config(config)
        section = dict(config["method"])
        name = section.pop("name", None)
        dds = section.pop("dds", None)
        if name not in METHODS:
            raise UserError(
                f"config.method.name={name!r} is not one of {sorted(METHODS)}"
            )
        method = settings.build(METHODS[name], section, "method.", encoder)
        if dds is not None:
            method = settings.build(with_dds, dds, "method.dds.", method)
        try:
            method.masking.num_masked(encoder.grid)
        except ValueError as error:
            raise UserError(f"config.method.mask: {error}") from error
        return cls(method, standardisation_from_config(config, encoder.channels))

    @property
    def encoder(self) -> Encoder:
        return self.method.encoder

    def dtype_of(self, path: str) -> Any:
        """Of a head's block what the head says, where it says something."""
        room, key, *_ = path.split("/")
        head = self.method.heads.get(key) if room == "heads" else None
        return getattr(head, "dtype", self.encoder.dtype)

    def meaning(self) -> Mapping[str, Any]:
        """Of decoders their heads of attention, of pixels whether each patch's are
        standardised."""
        found = {}
        for head in self.method.heads.values():
            if isinstance(head, TapDecoder):
                found["method.decoder.num_heads"] = head.blocks.spec.num_heads
        for term in self.method.terms:
            if isinstance(term.target, Pixels):
                found["method.standardise_pixels"] = term.target.standardise
        return found

    def init(self, rng: Key[Array, ""]) -> Params:
        """{"encoder": ..., "heads": {key: ...}}, float32; "frozen" where there are."""
        method = self.method
        key_encoder, key_heads, key_mask = jax.random.split(rng, 3)
        key_small = jax.random.fold_in(rng, 1)
        image = jnp.zeros((1, *self.image_shape))
        mask = method.masking.draw(key_mask[None], self.encoder.grid)
        features, variables = self.encoder.init_with_output(
            key_encoder, image, mask, method.layout, self._all_taps()
        )
        heads = {}
        for name, taps in head_taps(method.terms).items():
            taken = tuple(features[tap] for tap in taps)
            key = jax.random.fold_in(key_heads, zlib.crc32(name.encode()))
            head = method.heads[name]
            made = head.init(key, taken, mask)["params"]
            heads[name] = {k: v for k, v in made.items() if k not in head.shared}
        params = {"encoder": variables["params"], "heads": heads}
        if method.small_init:
            params = small_init(params, key_small)
        if method.frozen:
            params["frozen"] = {
                name: network.init(key_small) for name, network in method.frozen.items()
            }
        return params

    def frozen(self) -> Mapping[str, FrozenNetwork]:
        return self.method.frozen

    def ema_of(self, params: Params) -> Params:
        """The encoder, where the method has a teacher."""
        return {"encoder": params["encoder"]} if self.method.has_teacher else {}

    def momentum(self, progress: Scalar, total_steps: int) -> Scalar:
        return self.method.momentum(progress, total_steps)

    def loss(
        self,
        params: Params,
        ema_params: Params,
        batch: Batch,
        progress: Scalar,
        rngs: Key[Array, " b"],
    ) -> tuple[Scalar, Metrics, Params]:
        """Draws the masks, once, and evaluates the method's Terms."""
        mask = self.method.masking.draw(stream(rngs, "mask"), self.encoder.grid)
        context = self._context(params, ema_params, batch["image"], mask, rngs)
        keys = stream(rngs, "drop_path") if self.encoder.drop_path else None
        features = self._features(params, context.standardised, mask, keys)

        def of(head: str) -> Any:
            terms = tuple(term for term in self.method.terms if term.head == head)

            def loss(params: Params, taken: Any) -> tuple[Scalar, Metrics]:
                made = self.method.heads[head].apply({"params": params}, taken, mask)
                return evaluate_terms(terms, {head: made}, context, progress)

            return loss

        given = self._given(params, features)
        loss, metrics = in_turn({head: of(head) for head in given}, given)
        return loss, metrics | _teacher_metrics(features, context), {}

    def predict(
        self,
        params: Params,
        standardised: Float[Array, "b h w c"],
        mask: Mask,
    ) -> tuple[dict[str, Predictions], dict[int, Features]]:
        """Predictions of every head, and the student's features at every tap."""
        features = self._features(params, standardised, mask, None)
        predictions: Any = {
            head: self.method.heads[head].apply({"params": own}, taken, mask)
            for head, (own, taken) in self._given(params, features).items()
        }
        return predictions, features

    def _features(
        self,
        params: Params,
        standardised: Float[Array, "b h w c"],
        mask: Mask,
        keys: Key[Array, " b"] | None,
    ) -> Any:
        return self.encoder.apply(
            {"params": params["encoder"]},
            standardised,
            mask,
            self.method.layout,
            self._all_taps(),
            keys,
        )

    def _given(
        self, params: Params, features: Mapping[int, Features]
    ) -> dict[str, tuple[Params, tuple[Features, ...]]]:
        """Of each head its parameters, and the features at its taps."""
        return {
            head: (
                _with_shared(self.method.heads[head], head, params),
                tuple(features[tap] for tap in taps),
            )
            for head, taps in head_taps(self.method.terms).items()
        }

    def reconstruct(
        self, params: Params, images: Shaped[Array, "b h w c"], rngs: Key[Array, " b"]
    ) -> "Reconstruction":
        """What the deepest pixel head makes of the hidden patches of `images`.

        Patches predicted standardised are given back the true mean and deviation of
        the patch. Raises `ValueError` where the method predicts no pixels.
        """
        method, encoder = self.method, self.encoder
        terms = [term for term in method.terms if isinstance(term.target, Pixels)]
        if not terms:
            raise ValueError("the method predicts no pixels, so nothing can be drawn")
        term = max(terms, key=lambda term: term.taps)
        mask = method.masking.draw(stream(rngs, "mask"), encoder.grid)
        standardised = self.standardise(images)
        predictions, _ = self.predict(params, standardised, mask)
        hidden = predictions[term.head][term.output].astype(jnp.float32)
        patches = patchify(standardised, encoder.patch_size)
        if isinstance(term.target, Pixels) and term.target.standardise:
            mean, deviation = patch_statistics(gather_patches(patches, mask.ids_masked))
            hidden = hidden * deviation + mean
        pasted = jax.vmap(lambda rows, ids, new: rows.at[ids].set(new))(
            patches, mask.ids_masked, hidden
        )
        image = unpatchify(pasted, encoder.grid, encoder.patch_size)
        return Reconstruction(
            original=unit_range(images),
            reconstruction=self.standardise.undo(image).clip(0.0, 1.0),
            is_masked=mask.is_masked.reshape(-1, *encoder.grid),
            distance=nearest_visible_distance(mask, encoder.grid).reshape(
                -1, *encoder.grid
            ),
        )

    def _all_taps(self) -> tuple[int, ...]:
        return tuple(sorted({tap for term in self.method.terms for tap in term.taps}))

    def _context(
        self,
        params: Params,
        ema_params: Params,
        images: Shaped[Array, "b h w c"],
        mask: Mask,
        rngs: Key[Array, " b"],
    ) -> TargetContext:
        image = unit_range(images)
        standardised = self.standardise(image)
        encoder, layers = self.encoder, teacher_layers(self.method.terms)
        teacher: Any = {}
        seen = None
        if layers:
            variables = {"params": ema_params["encoder"]}
            view = self.method.teacher_view
            if view.share < 1.0:
                keys = stream(rngs, "teacher")
                seen = part_of(mask, keys, view.num_patches(encoder.grid))
            network, pixels = _shrunk(encoder, standardised, view.shrink)
            network = network.clone(final_norm=self.method.teacher_norm)
            teacher = network.apply(variables, pixels, seen, taps=layers)
            teacher = jax.lax.stop_gradient(teacher)
        frozen = {
            name: jax.lax.stop_gradient(network.apply(params["frozen"][name], image))
            for name, network in self.method.frozen.items()
        }
        return TargetContext(
            image=image,
            standardised=standardised,
            mask=mask,
            teacher=teacher,
            frozen=frozen,
            seen=seen,
            grid=encoder.grid,
            patch_size=encoder.patch_size,
        )


def _shrunk(
    encoder: Encoder, images: Float[Array, "b h w c"], times: int
) -> tuple[Encoder, Float[Array, "b _ _ c"]]:
    """The encoder of images `times` smaller, and those images: means of pixels."""
    if times == 1:
        return encoder, images
    b, h, w, c = images.shape
    cells = images.reshape(b, h // times, times, w // times, times, c)
    return (
        encoder.clone(
            grid=(encoder.grid[0] // times, encoder.grid[1] // times),
            position_grid=encoder.position_grid or encoder.grid,
        ),
        cells.mean(axis=(2, 4)),
    )


def _with_shared(head: Head, name: str, params: Params) -> Params:
    """A head's own parameters, and those that it has from elsewhere."""
    own = dict(params["heads"][name])
    for part, path in head.shared.items():
        found = params
        for key in path.split("/"):
            found = found[key]
        own[part] = found
    return own


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Images in [0, 1]; visible patches are the original's. distance: in patches."""

    original: Float[Array, "b height width c"]
    reconstruction: Float[Array, "b height width c"]
    is_masked: Bool[Array, "b h w"]
    distance: Float[Array, "b h w"]


def _teacher_metrics(
    features: Mapping[int, Features], context: TargetContext
) -> Metrics:
    """Signs of collapse: spread of the teacher's features, agreement with the student.

    teacher_std: mean over channels of the deviation over all patches of the batch,
    after LayerNorm; near 0 is collapse. teacher_cosine: of the mean-pooled student and
    teacher features.
    """
    metrics: Metrics = {}
    one = jnp.ones((), jnp.float32)
    for layer, tokens in context.teacher.items():
        x = normalise_features(tokens.patches)
        mean, square = x.mean(axis=1), (x**2).mean(axis=1)
        variance = square.mean(axis=0) - mean.mean(axis=0) ** 2
        deviation = jnp.sqrt(jnp.maximum(variance, 0.0)).mean()
        metrics[f"teacher_std/{block_name(layer)}"] = (deviation, one)
        if layer in features:
            y = normalise_features(features[layer].patches)
            pooled = _cosine(mean, y.mean(axis=1))
            metrics[f"teacher_cosine/{block_name(layer)}"] = (pooled.mean(), one)
    return metrics


def _cosine(x: Float[Array, "b d"], y: Float[Array, "b d"]) -> Float[Array, " b"]:
    norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    return (x * y).sum(axis=-1) / jnp.maximum(norms, 1e-12)
