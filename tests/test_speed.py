"""What a run keeps from step to step."""

import os
import platform
import subprocess
import sys
import types

import jax
import pytest

from ddae.models import short_attention
from ddae.settings import UserError
from ddae.train import loop, plan, speed

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


@pytest.mark.slow
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


def test_a_run_keeps_its_memory_before_it_asks_for_devices(tmp_path, monkeypatch):
    """Of a backend that is there already jax changes nothing."""
    called = []
    keep, count = speed.keep_memory, jax.process_count
    for module in (loop, plan):
        monkeypatch.setattr(
            module,
            "keep_memory",
            lambda: called.append("kept") or keep(),
            raising=False,
        )
    monkeypatch.setattr(jax, "process_count", lambda: called.append("asked") or count())
    with pytest.raises(UserError):
        loop.run({}, str(tmp_path))
    assert called[0] == "kept" and "asked" in called


ATTENTION = """
import sys

import jax
import jax.numpy as jnp
from ddae.models.short_attention import short_attention
from ddae.train.sharding import MeshSettings, batch_sharding, make_mesh
from ddae.train.speed import keep_compiled

keep_compiled(sys.argv[1])
rows = batch_sharding(make_mesh(MeshSettings(), 8, 1))
qkv = jax.ShapeDtypeStruct((8, 9, 3, 2, 16), jnp.float32, sharding=rows)
bias = jax.ShapeDtypeStruct((3, 2, 16), jnp.float32)


def total(qkv, bias):
    return short_attention(qkv, bias, True).sum()


jax.jit(jax.grad(total)).lower(qkv, bias).compile()
"""


@pytest.mark.slow
def test_attention_over_several_devices_is_compiled_once(tmp_path):
    """Another process takes the program of the first."""
    unset = ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
    env = {k: v for k, v in os.environ.items() if k not in unset}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    programs = []
    for _ in range(2):
        command = [sys.executable, "-c", ATTENTION, str(tmp_path)]
        subprocess.run(command, env=env, timeout=600, check=True)
        programs.append(sorted(tmp_path.rglob("*total*-cache")))
    first, second = programs
    assert len(first) == 1 and second == first


def test_programs_of_a_gpu_are_those_of_one_version_of_its_attention(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    own = speed._kind_of_machine()
    assert own.startswith("gpu-")
    changed = tmp_path / "short_attention.py"
    changed.write_text("# another kernel")
    monkeypatch.setattr(short_attention, "__file__", str(changed))
    another = speed._kind_of_machine()
    monkeypatch.setattr(jax, "__version__", "0.99")
    assert len({own, another, speed._kind_of_machine()}) == 3


def stand_in(monkeypatch, backend, **given):
    """What is told to jax's config, and to malloc, where jax has such a `backend`."""
    told = {}
    config = types.SimpleNamespace(**given, update=told.__setitem__)
    jax_there = types.SimpleNamespace(
        config=config,
        default_backend=lambda: backend,
        distributed=types.SimpleNamespace(is_initialized=lambda: backend == "many"),
    )
    monkeypatch.setattr(speed, "jax", jax_there)
    malloc = types.SimpleNamespace(mallopt=told.__setitem__)
    monkeypatch.setattr(speed.ctypes, "CDLL", lambda name: malloc)
    monkeypatch.setattr(speed.platform, "libc_ver", lambda: ("glibc", "2.36"))
    return told


def test_a_folder_of_programs_is_bounded_and_has_none_that_is_half_there(
    tmp_path, monkeypatch
):
    told = stand_in(monkeypatch, "tpu", jax_compilation_cache_dir=None)
    folder = tmp_path / "tpu"
    folder.mkdir()
    for name in ("half-cache", "whole-cache", "whole-atime"):
        (folder / name).write_bytes(b"x")
    speed.keep_compiled("")
    assert not told
    speed.keep_compiled(str(tmp_path))
    assert {path.name for path in folder.glob("*-*")} == {"whole-cache", "whole-atime"}
    assert told["jax_compilation_cache_dir"] == str(folder)
    assert told["jax_compilation_cache_max_size"] == speed.KEPT_BYTES


def test_a_folder_that_jax_was_given_stays_its_own(tmp_path, monkeypatch):
    told = stand_in(monkeypatch, "cpu", jax_compilation_cache_dir="given")
    speed.keep_compiled(str(tmp_path / "ours"))
    assert not told and not list(tmp_path.iterdir())


def test_memory_is_kept_on_a_cpu_alone_and_as_it_was_tuned(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    sync, kept = {"jax_cpu_enable_async_dispatch": False}, {-4: 0, -1: -1}
    for backend, tunables, expected in (
        ("cpu", "", sync | kept),
        ("cpu", "glibc.malloc.check=3", sync),
        ("tpu", "", sync),
        ("many", "", {}),
    ):
        if tunables:
            monkeypatch.setenv("GLIBC_TUNABLES", tunables)
        told = stand_in(monkeypatch, backend)
        speed.keep_memory()
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        assert told == expected, backend


def test_a_profile_is_of_steps_from_1_on():
    assert speed.parse_profile("") == (0, 0)
    assert speed.parse_profile("2:2") == (2, 2)
    for text in ("0:3", "5:4", "5", "a:b", "1:2:3"):
        with pytest.raises(UserError, match=f"config.profile='{text}' is not FIRST:L"):
            speed.parse_profile(text)


@pytest.mark.parametrize(
    "text, taken", [("4:5", [2, 3]), ("4:6", [2, 3]), ("2:9", [1, 4]), ("", [])]
)
def test_a_profile_is_taken_around_the_steps_that_it_names(text, taken, monkeypatch):
    """Two steps at a time; the numbers are those of the spans."""
    now, found, ready = 0, [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: found.append(now))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append(now))
    monkeypatch.setattr(jax, "block_until_ready", lambda _: ready.append([*found]))
    profile = speed.Profile(text, "workdir")
    for now in (1, 2, 3, 4):
        steps = range(2 * now - 1, 2 * now + 1)
        profile.before(steps)
        profile.after(steps, ())
    profile.close()
    assert found == taken
    assert ready == ([[2]] if text.startswith("4") else [])  # waited for, then ended
