"""Programs kept from run to run, memory kept from step to step, profiles of steps."""

import ctypes
import os
import pathlib
import platform
import re
import zlib
from typing import Any

import filelock
import jax
from etils import epath

from ddae.models import short_attention
from ddae.settings import UserError
from ddae.storage import cache_folder, is_remote

KEPT_BYTES = 4 * 2**30
"""Compiled programs beyond these go, those first that were not used for longest."""

KEPT_SECONDS = 0.1
"""What compiles faster is not kept, as operations outside of jit do: for each new
program jax reads the ages of all, which takes .3 s where a thousand are kept."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


def keep_compiled(folder: str) -> None:
    """Has jax keep compiled programs in `folder` and take them from there again.

    folder: "auto" is ddae/xla below $XDG_CACHE_HOME, or below ~/.cache; "" keeps none.
    A folder that jax was given already, by JAX_COMPILATION_CACHE_DIR say, wins. What a
    CPU has compiled may not run on another kind, so each has a folder of its own.
    Processes may share it.

    Attention on several GPUs is custom partitioned: jax puts the address of a Python
    function into the key of such a program, and the address differs from process to
    process. So jax is told to leave it out of the key, and each version of these
    functions has a folder of its own.
    """
    if not folder or getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    if folder == "auto":
        folder = os.path.join(cache_folder(), "xla")
    folder = os.path.join(folder, _kind_of_machine())
    try:
        epath.Path(folder).mkdir(parents=True, exist_ok=True)
        if not is_remote(folder):
            # A bound makes jax lock its files, or a process could read half of one.
            jax.config.update("jax_compilation_cache_max_size", KEPT_BYTES)
            _drop_unfinished(folder)
    except OSError as error:
        why = error.strerror or error
        print(f"compiled programs are not kept: {folder}: {why}", flush=True)
        return
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", KEPT_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _drop_unfinished(folder: str) -> None:
    """Removes programs that a killed process did not write to the end.

    jax writes KEY-cache, then KEY-atime; half a file it would not replace.
    """
    root = epath.Path(folder)
    with filelock.FileLock(root / ".lockfile", timeout=10):
        for path in root.glob("*-cache"):
            name = path.name.removesuffix("-cache")
            if not (root / f"{name}-atime").exists():
                path.unlink()


def _kind_of_machine() -> str:
    """tpu; gpu with a digest of the functions that compute attention there, jax's and
    ours; or cpu with one of its instruction sets."""
    backend = jax.default_backend()
    if backend == "gpu":
        source = pathlib.Path(short_attention.__file__).read_bytes()
        return f"gpu-{zlib.crc32(jax.__version__.encode() + source):08x}"
    if backend != "cpu":
        return backend
    found = platform.machine() + platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            lines = re.findall(
                r"^(?:flags|Features|model name)\s*:.*", file.read(), re.M
            )
        found += "".join(sorted(set(lines)))
    return f"cpu-{zlib.crc32(found.encode()):08x}"


def keep_memory() -> None:
    """Has a run on a CPU keep what it allocates, for the next step; before anything
    else asks jax for devices.

    glibc gives large buffers back to the kernel at once and waits, a step later, for
    fresh pages: most of the cost of a large batch (docs/performance.md). It keeps those
    of the main thread alone, which therefore runs the programs itself. Where
    GLIBC_TUNABLES is set, in another C library and on an accelerator nothing is done.
    """
    if not jax.distributed.is_initialized():
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    tuned = "GLIBC_TUNABLES" in os.environ
    if tuned or platform.libc_ver()[0] != "glibc" or jax.default_backend() != "cpu":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)  # never


class Profile:
    """A profile of steps `first` to `last`, of text "FIRST:LAST"; "" takes none.

    It lies in WORKDIR/plugins/profile/TIME, where TensorBoard's profile plugin looks.
    A run that begins after `first` takes none.
    """

    def __init__(self, text: str, workdir: str):
        self._workdir = workdir
        self._first, self._last = parse_profile(text)
        self._running = False

    def before(self, steps: range) -> None:
        """To be called before steps are taken."""
        if self._first in steps:
            jax.profiler.start_trace(self._workdir)
            self._running = True

    def after(self, steps: range, result: Any) -> None:
        """To be called after them, with something that they compute."""
        if self._running and steps[-1] >= self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Writes what there is of it."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


def parse_profile(text: str) -> tuple[int, int]:
    """(first, last) of "FIRST:LAST"; (0, 0) of "". Raises `UserError` for others."""
    if not text:
        return 0, 0
    found = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(
            f"config.profile={text!r} is not FIRST:LAST, steps from 1 on, as 20:24"
        )
    return first, last
