"""Study 5: is it the distance, and is it the power law?

python -m ddae.study configs/studies/laws.py:scale=small --workdir=runs/study_laws \\
  --set data.name=npz --set data.dir=DIR

DDAE under other laws of its weights, with one schedule of beta and blockwise masks.
elsewhere is the control: the very weights of an image, each at another of its hidden
patches. by-loss weighs a patch by its own loss in place of its distance, exponential by
exp(beta d); even weighs all alike. DIR as in configs/studies/beta.py.
"""

import functools

import jax.numpy as jnp
import numpy as np

from configs.studies import common
from ddae.difficulty import power_law
from ddae.methods import METHODS, ddae


def elsewhere(distance, beta, errors):
    """The power law of another patch's distance, by a permutation drawn once."""
    other = np.random.default_rng(0).permutation(distance.shape[-1])
    return power_law(distance[:, other], beta, errors)


def by_loss(distance, beta, errors):
    """The power law of each patch's loss."""
    return power_law(jnp.maximum(errors, 1e-6), beta, errors)


def exponential(distance, beta, errors):
    """exp(beta d), of mean 1 an image."""
    z = beta * distance
    e = jnp.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.mean(axis=-1, keepdims=True)


LAWS = {"elsewhere": elsewhere, "by-loss": by_loss, "exponential": exponential}
"""Rows that are DDAE under another law."""


def method_under(law):
    """DDAE under `law`, with DDAE's settings."""

    @functools.wraps(ddae)
    def made(encoder, **settings):
        return ddae(encoder, law, **settings)

    return made


def add_methods():
    """ddae_LAW for each law. Not at the import: who asks for no such study has none."""
    METHODS.update({f"ddae_{name}": method_under(law) for name, law in LAWS.items()})


def get_study(text=None):
    chosen = common.arguments(text, scale="full", epochs=100)
    add_methods()
    rows = []
    for name in ("power", "even", *LAWS):
        row = common.pretraining(chosen["scale"], "ddae", epochs=chosen["epochs"])
        phase, tilt = ("constant", 0.0) if name == "even" else ("near-far", -0.5)
        row["set"] |= common.beta(phase, tilt) | {"method.mask.kind": "block"}
        if name in LAWS:
            row["set"]["method.name"] = f"ddae_{name}"
        rows.append({"name": name} | row)
    return {
        "about": "other laws of the weights, and a control without the distance",
        "rows": rows,
        "seeds": (0, 1, 2, 3, 4),
        "scores": common.scores(chosen["scale"]),
        "follow_ups": common.follow_ups(chosen["scale"]),
        "control": "even",
    }
