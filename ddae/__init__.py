"""Deep Dynamic AutoEncoding: masked image modelling in JAX.

load_encoder, read_encoder: of a run's workdir, features of images. load_params: all of
its parameters, and its config. UserError: what is wrong with what was given, in a line.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddae.settings import UserError
    from ddae.train.encoder import load_encoder, read_encoder
    from ddae.train.loading import load_params

__version__ = "0.1.0"
__all__ = ["UserError", "load_encoder", "load_params", "read_encoder"]

_HOMES = {
    "UserError": "ddae.settings",
    "load_encoder": "ddae.train.encoder",
    "load_params": "ddae.train.loading",
    "read_encoder": "ddae.train.encoder",
}


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: `import ddae` alone brings in no JAX."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
