"""What the train step becomes on GPUs or a TPU slice that are not there: memory and
collectives.

python benchmarks/plan.py --config=ddae_in1k:model=B --batch=2048 --slice=h100:8
python benchmarks/plan.py --config=ddae_in1k:model=B --batch=4096 --slice=v4:4x4x4 \\
  [--set mesh.fsdp=4] [--output=FILE.jsonl]

XLA's own compiler for them makes the program here, on a CPU, with nothing to run it on:
`pip install -e ".[cuda-plan]"` brings that for GPUs (what `.[cuda]` has of it, without
gigabytes of kernels), `".[tpu]"` that for TPUs. It shows whether a config compiles,
whether it fits the memory of each device, and what goes between them; not how fast it
is: XLA's own estimate of seconds comes out negative for steps of this size.

--slice is a kind of GPU and their number, h100:8, or machines and the number in each,
a100:2x8; or a generation of TPU and its chips, v4:4x4x4 for gcloud's v4-128 (which
counts cores), v5p:2x2x2, v5e:4x8, v6e:4x4. Exit code 1 where the step does not fit. Of
a GPU's memory jax takes three quarters, and that is what counts here, unless
XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise. XLA cannot try kernels without a GPU: its
matrix products are all cuBLAS's here.
"""

import argparse
import contextlib
import importlib.util
import os
import re
import sys
from unittest import mock

# There is no cloud to ask what this is, no chip for one process alone to hold, and no
# CUDA to check the versions of.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import measure
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies
from scaling import collectives, said, totals, traffic

from ddae.settings import UserError
from ddae.train.sharding import bytes_a_device

# Name of the generation for libtpu, cores that act as one device, GiB of a chip.
CHIPS = {
    "v4": ("v4", "megacore", 32),
    "v5p": ("v5", "megacore", 95),
    "v5e": ("v5e", "default", 16),
    "v6e": ("v6e", "default", 32),
}

# As the driver reports them: compute capability, multiprocessors, MiB, GB/s, MiB of L2,
# GHz; of a multiprocessor its float32 units, threads, KiB of shared memory.
GPUS = {
    "a100": ((8, 0), 108, 81_251, 2039, 40, 1.41, 64, 2048, 164),
    "rtx4090": ((8, 9), 128, 24_210, 1008, 72, 2.52, 128, 1536, 100),
    "h100": ((9, 0), 132, 80_995, 3352, 50, 1.98, 128, 2048, 228),
    "h200": ((9, 0), 132, 143_167, 4815, 50, 1.98, 128, 2048, 228),
    "b200": ((10, 0), 148, 183_359, 8000, 126, 1.965, 128, 2048, 228),
}
CUDNN = (9, 12, 0)

UNTRIED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""XLA's options where there is no GPU to try kernels on."""


def is_gpu(name):
    """Whether the slice `name` is of GPUs."""
    return name.partition(":")[0] in GPUS


def devices_of(name):
    """The devices of a slice, as JAX would list them there."""
    generation, _, shape = name.partition(":")
    sizes = [int(n) for n in shape.split("x")]
    if is_gpu(name):
        hosts, each = sizes if len(sizes) == 2 else (1, *sizes)
        return topologies.get_topology_desc(
            platform="cuda",
            target_config=_target(generation),
            topology=f"1x{hosts}x{each}",
        ).devices
    libtpu, cores, _ = CHIPS[generation]
    host = [min(n, 2) for n in sizes[:2]] + [1]
    return topologies.get_topology_desc(
        f"{libtpu}:{shape}",
        "tpu",
        chip_config_name=cores,
        chips_per_host_bounds=host,
        num_slices=1,
    ).devices


def _target(kind):
    """A GPU as XLA's compiler wants it described, a protocol buffer's text."""
    capability, cores, mib, gigabytes, l2, clock, units, threads, shared = GPUS[kind]
    numbers = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_block_optin": (shared - 1) * 1024,
        "shared_memory_per_core": shared * 1024,
        "threads_per_core_limit": threads,
        "core_count": cores,
        "fpus_per_core": units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "memory_bandwidth": gigabytes * 10**9,
        "l2_cache_size": l2 * 2**20,
        "clock_rate_ghz": clock,
        "device_memory_size": mib * 2**20,
    }
    info = " ".join(f"{name}: {value}" for name, value in numbers.items())
    capable = "cuda_compute_capability {{ major: {} minor: {} }}".format(*capability)
    version = "major: {} minor: {} patch: {}".format(*CUDNN)
    return (
        f"gpu_device_info {{ {info} {capable} }}"
        f' platform_name: "CUDA" device_description_str: "{kind}"'
        f" dnn_version_info {{ {version} }} runtime_version {{ major: 13 }}"
    )


def device_bytes(name):
    """Memory of each device that a run may take."""
    generation = name.partition(":")[0]
    if not is_gpu(name):
        return CHIPS[generation][2] * 2**30
    share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75))
    return int(share * GPUS[generation][2] * 2**20)


@contextlib.contextmanager
def as_if_there(devices):
    """Whoever asks what the machine has gets `devices`; jax's attention also asks its
    cuDNN, which is not installed, and Pallas, from jax 0.12 on, what GPU it is."""
    if devices[0].platform != "gpu":
        yield
        return
    capability = devices[0].compute_capability
    major, minor, patch = CUDNN
    with contextlib.ExitStack() as patched:
        patched.enter_context(mock.patch.object(jax, "devices", lambda *_: devices))
        patched.enter_context(
            mock.patch.multiple(
                cudnn,
                check_cudnn_version=lambda: 10_000 * major + 100 * minor + patch,
                check_compute_capability=lambda least: (
                    float(capability) >= float(least)
                ),
                is_cuda_compute_capability_equal=lambda other: capability == other,
            )
        )
        if gpu_info := optional("jax._src.pallas.triton.gpu_info"):
            number = int(capability.replace(".", ""))
            info = gpu_info.GpuInfo(
                gpu_version=None, arch_name=capability, compute_capability=number
            )
            asked = mock.patch.object(gpu_info, "get_gpu_info", lambda: info)
            patched.enter_context(asked)
        yield


def optional(module):
    """A module, or None where there is none of that name."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def plan(config, batch, name):
    """What a device of the slice `name` holds and sends in a step, as plain numbers."""
    devices = list(devices_of(name))
    work = measure.make_work(config, batch, devices)
    found = {
        "method": config.get("method", {}).get("name", config["task"]),
        "dds": bool(config.get("method", {}).get("dds")),
        "size": config["model"]["size"],
        "slice": name,
        "chips": len(devices),
        "hosts": len({device.process_index for device in devices}),
        "batch": batch,
        "fsdp": config["mesh"]["fsdp"],
        "accumulate": config["optimizer"]["accumulate"],
        "attention": config["model"].get("attention", "auto"),
        "gelu": config["model"].get("gelu", "erf"),
        "remat": config["model"]["remat"],
        "scan": config["model"]["scan"],
        "dtype": config["dtype"],
        "chip_bytes": device_bytes(name),
        "state_bytes": bytes_a_device(work.shapes, work.shardings)[0],
    }
    options = UNTRIED if is_gpu(name) else None
    try:
        with as_if_there(devices):
            lowered = work.lower()
            compiled, seconds, cpu = measure.timed(lambda: lowered.compile(options))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return found | {"too_large": str(error).splitlines()[0][:300]}
    text = compiled.as_text()
    return found | {
        **traffic(text),
        "compile_seconds": seconds,
        "compile_cpu_seconds": cpu,
        "planned_bytes": measure.planned_bytes(compiled),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        **totals(collectives(text)),
    }


def shown(row):
    """A row of `plan` as a table has it."""

    def gib(key):
        return f"{row[key] / 2**30:.2f}" if key in row else "-"

    return {
        "method": row["method"] + (" + DDS" if row["dds"] else ""),
        "size": row["size"],
        "slice": row["slice"],
        "devices": row["chips"],
        "hosts": row["hosts"],
        "batch": row["batch"],
        "fsdp": row["fsdp"],
        "blocks": "scanned" if row["scan"] else "in a Python loop",
        "remat": row["remat"],
        "state a device, GiB": gib("state_bytes"),
        "planned, GiB": "too large" if "too_large" in row else gib("planned_bytes"),
        "of": f"{row['chip_bytes'] / 2**30:.0f}",
        "collectives and their results": said(row) if row.get("counts") else "-",
        "compile, CPU-s": f"{row.get('compile_cpu_seconds', float('nan')):.0f}",
    }


def missing(name):
    """What to install before anything compiles for the slice `name`; "" for nothing."""
    module, extra = ("jax_plugins", "cuda-plan") if is_gpu(name) else ("libtpu", "tpu")
    if importlib.util.find_spec(module):
        return ""
    return f'no compiler for {name}: pip install -e ".[{extra}]"'


def main():
    """Makes the plan and prints it; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", default="ddae_in1k:model=B", help="NAME[:key=value]"
    )
    parser.add_argument("--batch", type=int, default=2048, help="over all devices")
    parser.add_argument("--slice", default="h100:8", help="KIND:DEVICES")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", help="append a line of JSON here")
    args = parser.parse_args()
    tpus, gpus = "|".join(CHIPS), "|".join(GPUS)
    if not re.fullmatch(rf"({tpus}):\d+(x\d+)+|({gpus}):(\d+x)?\d+", args.slice):
        kinds = ", ".join([*GPUS, *CHIPS])
        parser.error(f"--slice={args.slice} is not like h100:8 or v4:4x4x4, of {kinds}")
    if said := missing(args.slice):
        parser.error(said)
    try:
        row = plan(measure.read_config(args.config, args.set), args.batch, args.slice)
    except UserError as error:
        parser.error(str(error))
    measure.write({"benchmark": "plan", **row}, args.output)
    print(measure.table([shown(row)]))
    return int(row.get("planned_bytes", float("inf")) > row["chip_bytes"])


if __name__ == "__main__":
    sys.exit(main())
