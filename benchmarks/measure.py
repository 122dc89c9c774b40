"""What the benchmarks share: a train step on fake images, its timing, the machine.

Nothing here imports TensorFlow, clu or torch.
"""

import ast
import collections
import contextlib
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
import platform
import re
import shlex
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from ddae import flops, settings, tasks
from ddae.train.optimizer import OptimizerSettings, make_optimizer
from ddae.train.sharding import (
    MeshSettings,
    batch_sharding,
    make_mesh,
    stacked_sharding,
    state_sharding,
    to_devices,
)
from ddae.train.speed import keep_memory
from ddae.train.state import make_init
from ddae.train.step import jit_step

# TFLOP/s of bfloat16 matrix products without sparsity, a device as JAX counts them.
DATASHEET = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v5": 459,
    "TPU v6": 918,
}

TOTAL_STEPS = 1000
"""Of the run whose first steps are taken; schedules need a length."""


def read_config(text, changes=()):
    """The settings of `NAME[:key=value,...]` of configs/, with a.b=value changed."""
    name, _, arguments = text.partition(":")
    name = pathlib.Path(name).stem
    if importlib.util.find_spec(f"configs.{name}") is None:
        sys.exit(f"error: --config={text}: there is no configs/{name}.py")
    config = importlib.import_module(f"configs.{name}").get_config(arguments or None)
    config = config.to_dict()
    for change in changes:
        key, _, value = change.partition("=")
        *parents, leaf = key.split(".")
        section = config
        for parent in parents:
            section = section.get(parent, {})
        if leaf not in section:
            sys.exit(f"error: --set {change}: the config has no such key")
        try:
            section[leaf] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            section[leaf] = value
    return config


@dataclasses.dataclass(frozen=True)
class Work:
    """A run's own train step, what it takes, and how it lies on the devices."""

    config: dict
    task: tasks.Task
    mesh: jax.sharding.Mesh
    optimizer: object
    shapes: object
    shardings: object
    step: object

    @property
    def batch_size(self):
        """Over all devices."""
        return self.config["batch_size"]

    @property
    def dispatch(self):
        """Steps at once."""
        return self.config["steps_per_dispatch"]

    def state(self):
        """As a run's first, on the devices, but for its weights: all of deviation .02,
        from NumPy, since a run's own take longer to compile than the step."""
        random = np.random.default_rng(0)

        def normal(x):
            return 0.02 * random.standard_normal(x.shape, np.float32).astype(x.dtype)

        drawn = {
            name: jax.tree.map(normal, getattr(self.shapes, name))
            for name in ("params", "ema_params")
        }
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self.shapes)
        state = dataclasses.replace(zeros, **drawn)
        return jax.tree.map(jax.device_put, state, self.shardings)

    def batch_shapes(self):
        """Images, uint8; labels where the task reads them; stacked where several steps
        are taken at once."""
        shape = (self.batch_size, *self.task.image_shape)
        first = () if self.dispatch == 1 else (self.dispatch,)
        sharding = (batch_sharding if not first else stacked_sharding)(self.mesh)
        shapes = {"image": (shape, np.uint8)}
        labels = {"classify": shape[:1], "segment": shape[:3]}
        if self.config["task"] in labels:
            shapes["label"] = (labels[self.config["task"]], np.int32)
        return {
            name: jax.ShapeDtypeStruct((*first, *size), dtype, sharding=sharding)
            for name, (size, dtype) in shapes.items()
        }

    def batch(self):
        """Noise of `batch_shapes`, on the devices."""
        random = np.random.default_rng(0)
        shapes = self.batch_shapes()
        ends = {"image": 255, "label": getattr(self.task, "num_classes", 0)}
        batch = {
            name: random.integers(0, ends[name], x.shape).astype(x.dtype)
            for name, x in shapes.items()
        }
        return to_devices(batch, shapes["image"].sharding)

    def operands(self):
        """What the step takes after the state."""
        return (self.batch(), jax.random.key(0))

    def lower(self):
        """The step as traced, for devices that need not be there: nothing is compiled
        or computed."""
        shapes = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            self.shapes,
            self.shardings,
        )
        key = jax.eval_shape(jax.random.key, 0)
        return self.step.lower(shapes, self.batch_shapes(), key)

    def flops(self):
        """An image, forward and backward; None for a task that is not counted."""
        frozen = "/encoder/" in self.config["optimizer"].get("frozen", ())
        try:
            return flops.step_flops(self.task, frozen)
        except ValueError:
            return None


def make_work(config, batch_size, devices=None):
    """The step of `config`, at another batch size, on `devices`: a list of them, how
    many of those that are there, or None for all."""
    keep_memory()
    config = {"steps_per_dispatch": 1, **config, "batch_size": batch_size}
    try:
        task = tasks.from_config(config)
        chosen = settings.build(OptimizerSettings, config["optimizer"], "optimizer.")
        over = settings.build(MeshSettings, config["mesh"], "mesh.")
    except settings.UserError as error:
        sys.exit(f"error: {error}")
    if not isinstance(devices, list):
        devices = jax.devices()[:devices]
    mesh = make_mesh(over, batch_size, chosen.accumulate, devices)
    optimizer = make_optimizer(chosen, batch_size, TOTAL_STEPS // 10, TOTAL_STEPS)
    shapes = jax.eval_shape(make_init(task, optimizer), jax.random.key(0))
    shardings = state_sharding(shapes, mesh)
    step = jit_step(
        task,
        optimizer,
        mesh,
        TOTAL_STEPS,
        shardings,
        several=config["steps_per_dispatch"] > 1,
    )
    return Work(config, task, mesh, optimizer, shapes, shardings, step)


@contextlib.contextmanager
def compile_cache():
    """An empty persistent cache of compiled programs, as long as it lasts."""
    with tempfile.TemporaryDirectory(prefix="ddae-xla-") as folder:
        changed = {
            "jax_compilation_cache_dir": folder,
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        before = {name: getattr(jax.config, name) for name in changed}
        try:
            _configure(changed)
            yield folder
        finally:
            _configure(before)


def _configure(values):
    from jax.experimental.compilation_cache import compilation_cache

    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_times(work):
    """The executable, and seconds to trace the step, to compile it, and to read it from
    the persistent cache; of the clock, and of CPU."""
    work.batch()  # the devices are up
    seconds = {}
    with compile_cache():
        for name in ("", "_cached"):
            lowered, wall, cpu = timed(work.lower)
            if not name:
                seconds |= {"trace_seconds": wall, "trace_cpu_seconds": cpu}
            compiled, wall, cpu = timed(lowered.compile)
            seconds[f"compile{name}_seconds"] = wall
            seconds[f"compile{name}_cpu_seconds"] = cpu
            jax.clear_caches()
    return compiled, seconds


def timed(function):
    """(what it gives, seconds of the clock, seconds of CPU)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def step_seconds(take_step, state, operands, steps, warmup, lag=2):
    """The state after it all, wall seconds of each of `steps` calls after `warmup`, and
    CPU-seconds of one.

    As a run does, it looks at a step's outcome `lag` steps later and never waits.
    """
    pending, stamps, cpu = collections.deque(), [], 0.0
    for _ in range(warmup + steps + 1 + lag):
        state, metrics = take_step(state, *operands)
        pending.append(metrics["loss"][0])
        if len(pending) > lag:
            jax.block_until_ready(pending.popleft())
            stamps.append(time.perf_counter())
        if len(stamps) == warmup + 1 and not cpu:
            cpu = time.process_time()
    seconds = np.diff(stamps)[warmup:]
    spent = time.process_time() - cpu
    assert np.isfinite(float(metrics["loss"][0])), "the loss is not finite"
    return state, [float(s) for s in seconds], spent / max(1, len(seconds))


def peak_bytes(compiled):
    """Of the fullest device: what it reports, or what the compiler has planned."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    if peaks:
        return max(peaks), "measured"
    return planned_bytes(compiled), "planned"


def planned_bytes(compiled):
    """Arguments, results and temporaries of one device, shared buffers once."""
    m = compiled.memory_analysis()
    return (
        m.argument_size_in_bytes
        + m.output_size_in_bytes
        + m.temp_size_in_bytes
        - m.alias_size_in_bytes
    )


def gemm_rate(dtype, size=None, repeats=5):
    """FLOP/s of a square matrix product on one device, the best of `repeats`."""
    on_cpu = jax.devices()[0].platform == "cpu"
    size = size or (1536 if on_cpu else 8192)
    rounds = 2 if on_cpu else 20
    x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    y = (x / size**0.5).astype(dtype)
    product = jax.jit(lambda a, b: jnp.dot(a, b))
    jax.block_until_ready(product(x, y))
    best = 0.0
    for _ in range(repeats):
        start, z = time.perf_counter(), x
        for _ in range(rounds):
            z = product(z, y)
        jax.block_until_ready(z)
        seconds = time.perf_counter() - start
        best = max(best, rounds * 2 * size**3 / seconds)
    return best


def datasheet_rate():
    """FLOP/s in bfloat16 by the datasheet of one device; None where not known."""
    kind = jax.devices()[0].device_kind
    for name, teraflops in DATASHEET.items():
        if name in kind:
            return teraflops * 1e12
    return None


def machine():
    """What the figures were taken on: processors, accelerator, versions."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        where = f"{os.cpu_count()} {platform.machine()} cores{_processor()}, shared"
    else:
        where = f"{jax.device_count()} x {device.device_kind}"
    # glibc's settings for memory change what a step on a CPU costs.
    malloc = os.environ.get("GLIBC_TUNABLES")
    return {
        "machine": where,
        **({"malloc": malloc} if malloc else {}),
        "platform": device.platform,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _processor():
    """ " of MODEL, AVX-512 or not", where /proc tells."""
    path = pathlib.Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    wide = "AVX-512" if " avx512f " in text else "no AVX-512"
    return f" of {model[1].strip()}, {wide}" if model else ""


def command():
    """The command that is running, from the root of the repository."""
    script = pathlib.Path(sys.argv[0]).name
    places = ("--output", "--programs", "--profile")
    arguments = [
        shlex.quote(word)
        for before, word in itertools.pairwise(sys.argv)
        if before not in places and not word.startswith(places)
    ]
    named = {key: os.environ.get(key, "") for key in ("GLIBC_TUNABLES", "XLA_FLAGS")}
    # Which scaling.py sets for itself.
    own = r"\s*--xla_force_host_platform_device_count=\d+"
    named["XLA_FLAGS"] = re.sub(own, "", named["XLA_FLAGS"])
    before = [f"{key}='{value}'" for key, value in named.items() if value]
    return " ".join([*before, "python", f"benchmarks/{script}", *arguments])


def write(row, output):
    """`row` as a line of JSON at the end of `output`, with machine and command."""
    if not output:
        return
    path = pathlib.Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {**row, **machine(), "command": command()}
    whole["time"] = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    with path.open("a") as file:
        file.write(json.dumps(whole) + "\n")


def table(rows):
    """Rows, dicts of the same keys, as lines of Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    return "\n".join(lines)


def torch_row(row):
    """What benchmarks/against_torch.py prints of a row."""

    def ratio(unit):
        middle, low, high = row[f"ratio_{unit}"]
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"

    return {
        "size": row["size"],
        "batch": row["batch"],
        "dtype": row["dtype"],
        "theirs": row["theirs"],
        "memory": "kept" if "malloc" in row else "as usual",
        "losses differ by": f"{row['loss_difference']:.0e}",
        "ours, CPU-s a step": f"{row['ours_cpu_seconds']:.2f}",
        "theirs, CPU-s a step": f"{row['theirs_cpu_seconds']:.2f}",
        "theirs / ours, CPU-s": ratio("cpu_seconds"),
        "theirs / ours, clock": ratio("seconds"),
        "of the best rounds": f"{row['ratio_best_cpu_seconds']:.2f} CPU-s,"
        f" {row['ratio_best_seconds']:.2f} clock",
    }


KINDS = {
    "matrix products": r"nvjet|gemm|cutlass|cublas|xmma",
    "attention": r"sdpa|fmha|attention|compute_dot_do_o|convert_dq",
    "zeros and copies": r"^mem(set|cpy)|copy",
    "sums over an axis": r"reduce|softmax",
    "of each element alone": "",
}
"""What a GPU's kernels are for, by their names as XLA and its libraries have them."""


def kernel_seconds(folder, steps):
    """{kind of KINDS: [seconds a step, kernels a step]} of a profile of so many steps;
    empty where no GPU took part in it."""
    found = {}
    for path in pathlib.Path(folder).rglob("*.xplane.pb"):
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        for plane in planes:
            if not plane.name.startswith("/device:GPU"):
                continue
            for event in (event for line in plane.lines for event in line.events):
                kind = next(
                    k for k, v in KINDS.items() if re.search(v, event.name, re.I)
                )
                seconds, number = found.get(kind, (0.0, 0.0))
                seconds += event.duration_ns / 1e9 / steps
                found[kind] = [seconds, number + 1 / steps]
    return found


def kernel_rows(found):
    """What is printed of `kernel_seconds`, the most first."""
    whole = sum(seconds for seconds, _ in found.values())
    return [
        {
            "kernels": kind,
            "ms a step": f"{1e3 * seconds:.1f}",
            "share": f"{100 * seconds / whole:.0f} %",
            "number": f"{number:.0f}",
        }
        for kind, (seconds, number) in sorted(found.items(), key=lambda x: -x[1][0])
    ]


median = statistics.median
