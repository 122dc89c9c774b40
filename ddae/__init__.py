"""Deep Dynamic AutoEncoding: masked image modelling in JAX."""

from collections.abc import Callable
from typing import Any

__version__ = "0.1.0"


def load_encoder(workdir: str, image_size: Any = None) -> Callable[..., Any]:
    """The encoder of a workdir's newest checkpoint: encoder(images, tap=0) -> Features.

    workdir: or WORKDIR/checkpoints/STEP, for that step.
    images: [b, height, width, c], float in [0, 1] or uint8, or a list of PIL's, at the
    run's own size or at `image_size`; standardised within, never masked. tap: the block
    to read, 0 for the last. Features: `prefix` [b, 1, d], cls, and `patches` [b, n, d].
    """
    from ddae.train import encoder

    return encoder.load_encoder(workdir, image_size)
