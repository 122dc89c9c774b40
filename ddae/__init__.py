"""Deep Dynamic AutoEncoding: masked image modelling in JAX."""

__version__ = "0.1.0"
