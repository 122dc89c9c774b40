"""What the compiled step says over several fake devices: collectives, bytes, memory.

python benchmarks/scaling.py [--sizes=Pico,S] [--devices=1,2,4,8] [--output=FILE.jsonl]

Nothing is computed; figures are of the program that XLA makes for CPU devices. For each
size, number of devices and mesh (data parallel, FSDP): the collectives in the HLO and
the bytes they move, the bytes of state of one device, compile time, temporary memory.
Then remat at one device, blocks in a Python loop and scanned: temporary memory and
compile time of off, dots and full, for MAE and for DDAE.
"""

import argparse
import collections
import math
import os
import re

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import measure

from ddae.train.sharding import bytes_a_device

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
WIDTHS = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "u8": 1, "f16": 2}
# Of one that is begun and ended, the end: what begins it names its operands too.
OPERATION = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-done)?\(")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][\w-]*)\(([^)]*)\)")
NO_KERNEL = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
# What a TPU's compiler makes of a sum of which each device keeps its part: a fusion of
# this name, of an all-reduce and a slice.
FUSED = re.compile(r"^%all-reduce-scatter[.\w]* \(.*\) -> (.*) \{")


def collectives(hlo):
    """[(kind, shapes of its results, bytes, op_name)] of a program's text."""
    found, fused = [], None
    for line in hlo.splitlines():
        if line.endswith("{"):
            fused = FUSED.match(line)
        match = OPERATION.search(line)
        if match is None:
            continue
        kind, results = match[2], match[1]
        if fused:
            kind, results = "reduce-scatter", fused[1]
        shapes = [
            (number, tuple(int(n) for n in sizes.split(",") if n))
            for number, sizes in re.findall(r"(\w+)\[([\d,]*)\]", results)
            if number in WIDTHS
        ]
        size = sum(WIDTHS[number] * math.prod(shape) for number, shape in shapes)
        name = re.search(r'op_name="([^"]*)"', line)
        found.append((kind, shapes, size, name[1] if name else ""))
    return found


def instructions(hlo):
    """(name, type of its result, kind, names of its operands, line) of each that a
    program runs one after the other."""
    entry = re.search(r"^ENTRY .*?\{\n(.*?)^\}", hlo, re.S | re.M)[1]
    for line in entry.splitlines():
        if match := INSTRUCTION.match(line):
            name, result, kind, operands = match.groups()
            yield name, result, kind, re.findall(r"%([\w.-]+)", operands), line


def operations(hlo):
    """[(kind, bytes written, bytes read)] of what a program runs one by one, without
    what runs no kernel; kind is a custom call's target.

    What computes each element by itself reads no more elements of an operand than it
    writes; of the others' operands all bytes count. What a loop runs counts once.
    """
    found, arrays = [], {}
    for name, result, kind, operands, line in instructions(hlo):
        elements, written = arrays[name] = _extent(result)
        if kind in NO_KERNEL:
            continue
        if target := re.search(r'custom_call_target="([^"]*)"', line):
            kind = target[1]
        read = [arrays[x] for x in operands if x in arrays]
        if "kind=kLoop" in line:
            read = [(n, size * min(1.0, elements / n)) for n, size in read if n]
        found.append((kind, written, sum(size for _, size in read)))
    return found


def traffic(hlo):
    """How many kernels a step runs, how many of them copy and the bytes of the copies,
    and the bytes that those read and write that neither multiply matrices nor attend.
    """
    found = operations(hlo)
    copied = [written for kind, written, _ in found if kind == "copy"]
    others = [op for op in found if not re.search("matmul|fmha|gpu.triton", op[0])]
    return {
        "kernels": len(found),
        "copies": len(copied),
        "copied_bytes": sum(copied),
        "other_bytes": round(sum(a + b for _, a, b in others)),
    }


def _extent(results):
    """Elements of the largest array that a type names, and bytes of them all."""
    found = [
        (math.prod(int(n) for n in shape.split(",") if n), WIDTHS[number])
        for number, shape in re.findall(r"\b(\w+)\[([\d,]*)\]", results)
        if number in WIDTHS
    ]
    return max((n for n, _ in found), default=0), sum(n * width for n, width in found)


def totals(found):
    """What `collectives` found, of each kind: how many, and their bytes."""
    counts, moved = collections.Counter(), collections.Counter()
    for kind, _, size, _ in found:
        counts[kind] += 1
        moved[kind] += size
    return {"counts": dict(counts), "bytes": dict(moved)}


def said(row):
    """`totals` of a row in words."""
    return "; ".join(
        f"{count} {kind}, {row['bytes'][kind] / 2**20:,.1f} MiB"
        for kind, count in sorted(row["counts"].items())
    )


def compiled_step(config, batch, devices):
    """(work, executable, seconds to compile by CPU) on the first `devices`."""
    work = measure.make_work(config, batch, devices)
    with measure.compile_cache():
        lowered = work.lower()
        compiled, _, cpu = measure.timed(lowered.compile)
    return work, compiled, cpu


def scale_row(size, config, batch, devices, fsdp):
    """What the step of `size` is on so many devices."""
    config = {**config, "mesh": {"fsdp": devices if fsdp else 1}}
    work, compiled, cpu = compiled_step(config, batch, devices)
    found = collectives(compiled.as_text())
    shard, whole = bytes_a_device(work.shapes, work.shardings)
    return {
        "size": size,
        "devices": devices,
        "mesh": "FSDP" if fsdp else "data parallel",
        **totals(found),
        # (bytes, arrays) of each; XLA combines 256 arrays at most.
        "all_reduces": sorted(
            ((b, len(shapes)) for kind, shapes, b, _ in found if kind == "all-reduce"),
            reverse=True,
        ),
        "state_bytes": shard,
        "state_bytes_whole": whole,
        "compile_cpu_seconds": cpu,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def remat_row(size, config, batch, remat, scan):
    """What the step of `size` takes with this remat, on one device."""
    model = {**config["model"], "remat": remat, "scan": scan}
    config = {**config, "model": model}
    _, compiled, cpu = compiled_step(config, batch, 1)
    return {
        "size": size,
        "batch": batch,
        "remat": remat,
        "scan": scan,
        "compiled_flops": compiled.cost_analysis()["flops"],
        "compile_cpu_seconds": cpu,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def shown_remat(row):
    """A row of `remat_row` as a table has it."""
    return {
        "method": f"{row['method']}-{row['size']}",
        "batch": row["batch"],
        "remat": row["remat"],
        "blocks": "scanned" if row["scan"] else "in a Python loop",
        "compile, CPU-s": f"{row['compile_cpu_seconds']:.1f}",
        "temporary, MiB": f"{row['temporary_bytes'] / 2**20:,.1f}",
        "off / this": f"{row['off_over_this']:.2f}",
    }


def casts_row(size):
    """How often the step, as traced in bfloat16, casts matrices of parameters."""
    config = {**settings(size, 224), "dtype": "bfloat16"}
    work = measure.make_work(config, 8, 1)
    cast = re.findall(
        r"stablehlo.convert .*tensor<(\d+x\d+)xf32>\) -> tensor<\1xbf16>",
        work.lower().as_text(),
    )
    read = [work.shapes.params, work.shapes.ema_params]
    matrices = [x for x in jax.tree.leaves(read) if len(x.shape) == 2]
    shapes = {f"{a}x{b}" for a, b in (x.shape for x in matrices)}
    return {
        "size": size,
        "matrices": len(matrices),
        "casts": sum(shape in shapes for shape in cast),
    }


def settings(size, image_size, method="ddae"):
    """Pretraining in float32 at `image_size`."""
    config = measure.read_config(f"{method}_in1k:model=S", ["dtype=float32"])
    config["model"]["size"] = size
    return {**config, "image_size": image_size}


def shown(row):
    """A row of the first table."""
    share = row["state_bytes"] / (row["state_bytes_whole"] / row["devices"])
    return {
        "size": row["size"],
        "devices": row["devices"],
        "mesh": row["mesh"],
        "collectives and their results": said(row) or "none",
        "state a device, MiB": f"{row['state_bytes'] / 2**20:,.1f}",
        "of total / n": f"{share:.3f}" if row["mesh"] == "FSDP" else "-",
        "compile, CPU-s": f"{row['compile_cpu_seconds']:.1f}",
        "temporary, MiB": f"{row['temporary_bytes'] / 2**20:,.1f}",
    }


def main():
    """Runs the benchmark and prints its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="Pico,S")
    parser.add_argument("--devices", default="1,2,4,8")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8, help="a device")
    parser.add_argument("--remat", default="S", help="sizes; empty for none")
    parser.add_argument("--remat_batch", type=int, default=64)
    parser.add_argument("--output", help="append lines of JSON here")
    args = parser.parse_args()
    rows = []
    for size in filter(None, args.sizes.split(",")):
        for devices in map(int, args.devices.split(",")):
            for fsdp in (False, True)[: 1 + (devices > 1)]:
                config = settings(size, args.image_size)
                batch = devices * args.batch
                rows.append(scale_row(size, config, batch, devices, fsdp))
                measure.write({"benchmark": "scaling", **rows[-1]}, args.output)
    if rows:
        print(measure.table([shown(row) for row in rows]), "\n")
    rows = []
    for size in filter(None, args.remat.split(",")):
        row = casts_row(size)
        print(f"{size}: {row['casts']} casts of {row['matrices']} matrices a step\n")
        measure.write({"benchmark": "casts", **row}, args.output)
        for method in ("mae", "ddae"):
            config = settings(size, args.image_size, method)
            own = [
                remat_row(size, config, args.remat_batch, remat, scan)
                for scan in (False, True)
                for remat in ("off", "dots", "full")
            ]
            off = own[0]["temporary_bytes"]
            for row in own:
                row = {"method": method, **row}
                row["off_over_this"] = off / row["temporary_bytes"]
                measure.write({"benchmark": "remat", **row}, args.output)
                rows.append(row)
    if rows:
        print(measure.table([shown_remat(row) for row in rows]))


if __name__ == "__main__":
    main()
