"""What the train step becomes on a TPU slice that is not there: memory, collectives.

python benchmarks/tpu.py --config=ddae_in1k:model=B --batch=4096 --slice=v4:4x4x4 \\
  [--set mesh.fsdp=4] [--output=FILE.jsonl]

XLA's own compiler for TPUs makes the program here, on a CPU, with nothing to run it on:
`pip install -e ".[tpu]"` brings it. It shows whether a config compiles for a slice,
whether it fits a chip's memory, and what goes between the chips; not how fast it is:
XLA's own estimate of seconds comes out negative for steps of this size.
--slice is a generation and its chips, v4:4x4x4 for gcloud's v4-128 (which counts
cores), v5p:2x2x2, v5e:4x8, v6e:4x4. Exit code 1 where the step does not fit.
"""

import argparse
import importlib.util
import os
import re
import sys

# There is no cloud to ask what this is, and no chip for one process alone to hold.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import measure
from jax.experimental import topologies
from scaling import collectives, said, totals

from ddae.settings import UserError
from ddae.train.sharding import bytes_a_device

# Name of the generation for libtpu, cores that act as one device, GiB of a chip.
CHIPS = {
    "v4": ("v4", "megacore", 32),
    "v5p": ("v5", "megacore", 95),
    "v5e": ("v5e", "default", 16),
    "v6e": ("v6e", "default", 32),
}


def devices_of(name):
    """The chips of a slice, as JAX would list them there."""
    generation, _, shape = name.partition(":")
    libtpu, cores, _ = CHIPS[generation]
    sizes = [int(n) for n in shape.split("x")]
    host = [min(n, 2) for n in sizes[:2]] + [1]
    return topologies.get_topology_desc(
        f"{libtpu}:{shape}",
        "tpu",
        chip_config_name=cores,
        chips_per_host_bounds=host,
        num_slices=1,
    ).devices


def plan(config, batch, name):
    """What a chip of the slice `name` holds and sends in a step, as plain numbers."""
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
        "remat": config["model"]["remat"],
        "scan": config["model"]["scan"],
        "dtype": config["dtype"],
        "chip_bytes": CHIPS[name.partition(":")[0]][2] * 2**30,
        "state_bytes": bytes_a_device(work.shapes, work.shardings)[0],
    }
    lowered = work.lower()
    try:
        compiled, seconds, cpu = measure.timed(lowered.compile)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return found | {"too_large": str(error).splitlines()[0][:300]}
    return found | {
        "compile_seconds": seconds,
        "compile_cpu_seconds": cpu,
        "planned_bytes": measure.planned_bytes(compiled),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        **totals(collectives(compiled.as_text())),
    }


def shown(row):
    """A row of `plan` as a table has it."""

    def gib(key):
        return f"{row[key] / 2**30:.2f}" if key in row else "-"

    return {
        "method": row["method"] + (" + DDS" if row["dds"] else ""),
        "size": row["size"],
        "slice": row["slice"],
        "chips": row["chips"],
        "hosts": row["hosts"],
        "batch": row["batch"],
        "fsdp": row["fsdp"],
        "blocks": "scanned" if row["scan"] else "in a Python loop",
        "remat": row["remat"],
        "state a chip, GiB": gib("state_bytes"),
        "planned, GiB": "too large" if "too_large" in row else gib("planned_bytes"),
        "of": f"{row['chip_bytes'] / 2**30:.0f}",
        "collectives and their results": said(row) if row.get("counts") else "-",
        "compile, CPU-s": f"{row.get('compile_cpu_seconds', float('nan')):.0f}",
    }


def main():
    """Makes the plan and prints it; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", default="ddae_in1k:model=B", help="NAME[:key=value]"
    )
    parser.add_argument("--batch", type=int, default=4096, help="over all chips")
    parser.add_argument("--slice", default="v4:4x4x4", help="GENERATION:CHIPS")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", help="append a line of JSON here")
    args = parser.parse_args()
    if not re.fullmatch(rf"({'|'.join(CHIPS)}):\d+(x\d+)+", args.slice):
        parser.error(f"--slice={args.slice} is not like v4:4x4x4, of {sorted(CHIPS)}")
    if importlib.util.find_spec("libtpu") is None:
        parser.error('libtpu is not installed: pip install -e ".[tpu]"')
    try:
        row = plan(measure.read_config(args.config, args.set), args.batch, args.slice)
    except UserError as error:
        parser.error(str(error))
    measure.write({"benchmark": "tpu", **row}, args.output)
    print(measure.table([shown(row)]))
    return int(row.get("planned_bytes", float("inf")) > row["chip_bytes"])


if __name__ == "__main__":
    sys.exit(main())
