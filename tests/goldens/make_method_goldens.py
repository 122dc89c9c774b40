"""Writes methods.json: loss and gradient norm of every method on fixed weights.

python tests/goldens/make_method_goldens.py [NAME ...]

Without names all are written anew; with names only those, as when a method is added.
Weights are drawn by NumPy from the shapes of the parameters, so that a change of the
first weights does not change them.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
PATH = pathlib.Path(__file__).with_name("methods.json")

from ddae.methods import METHODS, Decoder  # noqa: E402
from ddae.models.build import ModelSettings  # noqa: E402
from ddae.models.vit import VIT_SPECS, Encoder, ViTSpec  # noqa: E402
from ddae.networks import EncoderSettings, TokenizerSettings  # noqa: E402
from ddae.tasks.pretrain import Pretrain, Standardisation  # noqa: E402

VIT_SPECS["Two"] = ViTSpec(32, 2, 2)
ENCODER = Encoder(VIT_SPECS["Two"], (4, 4), 2, channels=1)
BEIT = ENCODER.clone(positions="none", relative_bias="shared", layer_scale=0.1)


def images_of():
    """Six of scikit-learn's scanned digits."""
    from sklearn.datasets import load_digits

    images = load_digits().images[:6].reshape(6, 8, 8, 1) / 16.0
    return jnp.asarray(images, jnp.float32)


def make(name, bad_patch=False, settings_only=False):
    """The method at the size of a test."""
    model = ModelSettings(size="Two", patch_size=4 if bad_patch else 2, channels=1)
    tokenizer = TokenizerSettings(model=model, codes=12, code_dim=4)
    if settings_only:
        return tokenizer
    given = {
        "mae": {"decoder": Decoder(depth=1, width=32, num_heads=2)},
        "ddae": {"decoder": Decoder(depth=1, width=32, num_heads=2)},
        "data2vec": {"mean_of": 2},
        "mvp": {"teacher": EncoderSettings(model=model)},
        "beit": {"tokenizer": tokenizer},
        "beit_v2": {"tokenizer": tokenizer, "early": 1},
    }
    encoder = ENCODER if name in ("mae", "ddae") else BEIT
    return METHODS[name](encoder, **given.get(name, {}))


def values(name):
    """{"loss", "gradient_norm", the loss of every Term} of the method."""
    task = Pretrain(make(name), Standardisation(mean=(0.3,), std=(0.4,)))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(random.normal(0, 0.1, x.shape), jnp.float32), shapes
    )
    images = images_of()
    keys = jax.random.split(jax.random.key(5), len(images))

    @jax.jit
    def gradient(encoder, heads):
        def function(encoder, heads):
            full = {**params, "encoder": encoder, "heads": heads}
            batch = {"image": images}
            progress = jnp.float32(0.5)
            return task.loss(full, task.ema_of(params), batch, progress, keys)[:2]

        return jax.value_and_grad(function, argnums=(0, 1), has_aux=True)(
            encoder, heads
        )

    (loss, metrics), grads = gradient(params["encoder"], params["heads"])
    squares = sum(float((g**2).sum()) for g in jax.tree.leaves(grads))
    found = {"loss": float(loss), "gradient_norm": squares**0.5}
    for key, (total, count) in sorted(metrics.items()):
        if key.startswith("loss/"):
            found[key] = float(total / count)
    return found


if __name__ == "__main__":
    known = json.loads(PATH.read_text()) if PATH.exists() else {}
    for name in sys.argv[1:] or sorted(METHODS):
        known[name] = values(name)
    PATH.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
