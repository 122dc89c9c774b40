"""The encoder of a run, for its features."""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ddae.models.vit import Encoder, Features
from ddae.settings import UserError
from ddae.tasks.backbone import (
    encoder_from_config,
    features_of,
    standardisation_from_config,
)
from ddae.train.loading import load_params
from ddae.train.partial import InitSettings, load_pretrained

Encode = Callable[[Any, Any, int], Features]
"""(parameters, images [b, height, width, c], tap) -> what that block makes of them."""


def read_encoder(
    workdir: str, image_size: int | tuple[int, int] | None = None
) -> tuple[Any, Encode, tuple[int, int, int]]:
    """(parameters, what reads them, the shape of its images) of a workdir, whatever its
    task or method is: as `load_encoder`, not jitted."""
    params, config = load_params(workdir)
    network = encoder_from_config(config, final_norm="norm" in params["encoder"])
    standardise = standardisation_from_config(config, network.channels)
    usual = config.get("classifier", {}).get("tap", 0)  # it may read an earlier block
    if image_size is not None:
        network, params = _at_another_size(workdir, config, network, image_size)

    def encode(params: Any, images: Any, tap: int) -> Features:
        return features_of(network, standardise, params, images, tap or usual)

    return params, encode, network.image_shape


def load_encoder(
    workdir: str, image_size: int | tuple[int, int] | None = None
) -> Callable[..., Features]:
    """The encoder of a workdir's newest checkpoint: encoder(images, tap=0) -> Features.

    workdir: or WORKDIR/checkpoints/STEP, for that step.
    images: [b, height, width, c], float in [0, 1] or uint8, or a list of PIL's, at the
    run's own size, or at `image_size` with positions resized to it; they are
    standardised with the run's mean and deviation and never masked. tap: the block to
    read, from 1 on; 0 is the last, or the one that a probe reads. Features are float32,
    whatever the run computed in. Raises `UserError` for other images.
    """
    params, read, shape = read_encoder(workdir, image_size)

    @functools.partial(jax.jit, static_argnums=2)
    def encode(params: Any, images: jax.Array, tap: int) -> Features:
        # bfloat16 is no kind of NumPy's own: np.save and scikit-learn do not know it.
        features = read(params, images, tap)
        return jax.tree.map(lambda x: x.astype(jnp.float32), features)

    def encoder(images: Any, tap: int = 0) -> Features:
        """Features of block `tap` (0: as `load_encoder` says) of images [b, height,
        width, c], float in [0, 1] or uint8, or a list of PIL's."""
        if not isinstance(images, jax.Array):
            images = _stacked(images)
        if images.ndim != 4 or images.shape[1:] != shape or not len(images):
            raise UserError(
                f"images are {tuple(images.shape)}, the encoder takes"
                f" {('b', *shape)}; {_mend(tuple(images.shape), shape)}"
            )
        _check_range(images)
        try:
            block = operator.index(tap)
        except TypeError as error:
            raise UserError(f"tap={tap!r} is no block's number") from error
        return encode(params, jnp.asarray(images), block)

    return encoder


def _mend(given: tuple[int, ...], shape: tuple[int, int, int]) -> str:
    """What to do about images that are not of `shape`, in a few words."""
    if given[:1] == (0,):
        return "give one image or more"
    if given == shape:
        return "one image is no batch; give images[None]"
    if len(given) == 3 and (*given[1:], 1) == shape:
        return "give images[..., None]"
    if len(given) == 4 and given[2:] + given[1:2] == shape:
        return "channels come last here; give images.transpose(0, 2, 3, 1)"
    if len(given) == 4 and given[1:3] == shape[:2] and given[3] != shape[2]:
        mode = {1: "L", 3: "RGB"}.get(shape[2])
        said = f'; PIL\'s have them after .convert("{mode}")' if mode else ""
        return f"give images of channels={shape[2]}{said}"
    return "another size is load_encoder(..., image_size=...)"


def _stacked(images: Any) -> np.ndarray:
    """An array of images, or several of them, grey ones with a channel too."""
    if not hasattr(images, "shape"):
        if not hasattr(images, "__iter__"):
            raise UserError("one image is no batch; give a list of images: [image]")
        images = list(images)
        if any(getattr(image, "mode", "") == "P" for image in images):
            raise UserError(
                "an image of PIL's mode P has numbers of colours for pixels; give"
                ' image.convert("RGB"), or "L" for grey'
            )
        if not images:
            raise UserError("there is no image in the list; give one or more")
        rows = [np.asarray(image) for image in images]
        rows = [row[..., None] if row.ndim == 2 else row for row in rows]
        if len({row.shape for row in rows}) != 1:
            raise UserError(
                f"images of several sizes, {rows[0].shape} among them; resize them"
                " first, or use python -m ddae.features"
            )
        images = np.stack(rows)
    return np.asarray(images)


def _check_range(images: Any) -> None:
    """Raises `UserError` for pixels that are not uint8, or floats in [0, 1]; of
    traced images, whose values nobody knows yet, for another kind."""
    if images.dtype == np.uint8:
        return
    right, span = jnp.issubdtype(images.dtype, jnp.floating), ""
    if not isinstance(images, Tracer):
        low, high = float(images.min()), float(images.max())
        right = right and -1e-3 <= low and high <= 1.0 + 1e-3
        span = f" from {low:g} to {high:g}"
    if not right:
        raise UserError(
            f"images are {images.dtype}{span}; give uint8, or floats in [0, 1], not"
            " standardised: the encoder does that"
        )


def _at_another_size(
    workdir: str,
    config: Mapping[str, Any],
    own: Encoder,
    image_size: int | tuple[int, int],
) -> tuple[Encoder, dict[str, Any]]:
    """The encoder `own` of a workdir for images of another size, and its parameters."""
    try:
        sides = [operator.index(side) for side in np.broadcast_to(image_size, 2)]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"image_size={image_size!r} is no size; give SIDE or (HEIGHT, WIDTH)"
        ) from error
    image_size = (sides[0], sides[1]) if np.ndim(image_size) else sides[0]
    known = own.position_grid or own.grid
    model = {**config["model"], "position_grid": known}
    config = {**config, "image_size": image_size, "model": model}
    network = own.clone(grid=encoder_from_config(config).grid, position_grid=known)
    image = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    found = load_pretrained(InitSettings(workdir=workdir), config, {"encoder": shapes})
    assert found is not None
    return network, {"encoder": found.encoder}
