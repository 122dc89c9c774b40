"""Deep Dynamic AutoEncoding: masked image modelling in JAX."""

from collections.abc import Callable
from typing import Any

__version__ = "0.1.0"


def load_encoder(workdir: str, image_size: Any = None) -> Callable[..., Any]:
    """The encoder of a workdir's newest checkpoint: images to `Features`, never masked.

    See `ddae.train.partial.load_encoder`.
    """
    from ddae.train import partial

    return partial.load_encoder(workdir, image_size)
