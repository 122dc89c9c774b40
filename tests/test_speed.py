"""What a run keeps from step to step."""

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
import jax
import jax.numpy as jnp
from ddae.train.speed import keep_memory

KEEP
assert jax.default_backend() == "cpu" and jax.device_count() == 1
# Two products of 64 MiB between which nothing can be fused.
step = jax.jit(lambda x: (jnp.sin(x @ x.T) @ x).sum())
x = jnp.ones((4096, 64))


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


# What else the process allocates may cut into the first buffers, under load above all:
# glibc has pages enough after some steps, never at once.
taken = [faults() for _ in range(30)]
print(sorted(taken[-9:])[4])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told")
def test_a_step_on_a_cpu_finds_its_memory_where_the_last_one_left_it():
    def pages(keep):
        unset = ("XLA_FLAGS", "GLIBC_TUNABLES")
        env = {k: v for k, v in os.environ.items() if k not in unset}
        script = STEPS.replace("KEEP", "keep_memory()" if keep else "")
        command = [sys.executable, "-c", script]
        return int(subprocess.check_output(command, env=env, timeout=600))

    own = 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert pages(keep=False) > own / 2
    assert pages(keep=True) < own / 100
