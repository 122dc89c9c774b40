"""Four fake CPU devices, shape checks from signatures, the smallest config."""

import importlib.metadata
import itertools
import os
import tempfile
import types

# Tests compile more than they compute: with these a third of the time goes for it.
QUICK = " --xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"  # a later XLA ends at its name
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4"
    + QUICK
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Where tests/test_cuda.py's compiler is, there need be no CUDA.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Many tests compile the same small step; each program is compiled once a session. Not
# the thousands of small ones: for each jax would read the ages of all others.
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share their parent's
    CACHE = tempfile.TemporaryDirectory(prefix="ddae-compiled-")
    kept = os.environ.get("DDAE_TEST_CACHE", CACHE.name)  # .ci/run's, between its parts
    os.environ["JAX_COMPILATION_CACHE_DIR"] = kept
    os.environ["XDG_CACHE_HOME"] = CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# With a bound jax locks what the workers share.
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(8 * 2**30)

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

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402
from tiny import tiny_config  # noqa: E402, F401


@pytest.fixture
def busy_machine(monkeypatch):
    """A legend that searches its place takes 5 s: matplotlib warns, an error here."""
    clock = types.SimpleNamespace(perf_counter=itertools.count(0, 5).__next__)
    monkeypatch.setattr("matplotlib.legend.time", clock)


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
