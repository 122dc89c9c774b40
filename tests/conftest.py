"""Four fake CPU devices, shape checks from signatures, the smallest config."""

import os
import tempfile

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4"
    # Tests compile more than they compute.
    + " --xla_backend_optimization_level=0"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Many tests compile the same small step; each program is compiled once a session.
CACHE = tempfile.TemporaryDirectory(prefix="ddae-compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
os.environ["XDG_CACHE_HOME"] = CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from jaxtyping import install_import_hook  # noqa: E402

CHECKED = [
    "patches",
    "masking",
    "difficulty",
    "losses",
    "schedules",
    "targets",
    "mixing",
]
install_import_hook([f"ddae.{name}" for name in CHECKED], "beartype.beartype")

import copy  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402

from ddae.models.vit import VIT_SPECS, ViTSpec  # noqa: E402

VIT_SPECS["Two"] = ViTSpec(32, 2, 2)

TINY = {
    "task": "pretrain",
    "seed": 0,
    "batch_size": 16,
    "epochs": 100,
    "total_steps": 4,
    "image_size": 8,
    "dtype": "float32",
    "log_every_steps": 2,
    "checkpoint_every_steps": 2,
    "eval_every_steps": 0,
    "data": {"name": "digits", "mean": (0.3,), "std": (0.4,)},
    "model": {"size": "Two", "patch_size": 2, "channels": 1},
    "method": {
        "name": "ddae",
        "taps": (1, 2),
        "decoder": {"depth": 1, "width": 16, "num_heads": 2},
    },
    "optimizer": {"base_lr": 1e-2, "warmup_epochs": 10.0},
    "mesh": {"fsdp": 1},
    "evaluators": {},
}


def tiny_config(**changes):
    """A copy of TINY; dotted keys with __: data__name="folder"."""
    config = copy.deepcopy(TINY)
    for key, value in changes.items():
        section, parts = config, key.split("__")
        for part in parts[:-1]:
            section = section.setdefault(part, {})
        section[parts[-1]] = value
    return config


@pytest.fixture
def keys():
    """Eight random keys, one an example."""
    return jax.random.split(jax.random.key(0), 8)


@pytest.fixture
def digit_images():
    """Sixteen scanned digits, [16, 8, 8, 1] in [0, 1]."""
    from sklearn.datasets import load_digits

    images = load_digits().images[:16].reshape(16, 8, 8, 1) / 16.0
    return jnp.asarray(images, jnp.float32)
