"""The train step alone, on fake images: compile time, images/s, MFU, peak memory.

python benchmarks/step.py --method=ddae --model=B --batch=512 [--output=FILE.jsonl]
python benchmarks/step.py --config=quickstart --batch=64
python benchmarks/step.py --config=mae_in1k:model=L --batch=256 \\
  --set model.remat=dots --set mesh.fsdp=4
python benchmarks/step.py --config=ddae_cifar10 --batch=512 \\
  --set steps_per_dispatch=20

Any method and any file of configs/, on CPU, GPU or TPU. It is the very step of a run:
`ddae.train.step.jit_step`, state donated and laid out over the mesh, uint8 images on
the devices. It needs jax, flax, optax, ml_collections, jaxtyping, psutil and etils; no
TensorFlow and no clu.

MFU is images/s times `ddae.flops.step_flops` over what a matrix product reached in the
same run (bf16 on accelerators, of the config's dtype on CPU), and over the datasheet's
figure where the chip is known. Images/s is the median over steps, after the warm-up.
"""

import argparse

import measure


def run(config, batch, steps, warmup):
    """Everything measured, as plain numbers."""
    work = measure.make_work(config, batch)
    compiled, compiling = measure.compile_times(work)
    state = work.state()
    calls = [max(1, -(-number // work.dispatch)) for number in (steps, warmup)]
    seconds, cpu = measure.step_seconds(compiled, state, work.operands(), *calls)
    step, cpu = measure.median(seconds) / work.dispatch, cpu / work.dispatch
    memory, source = measure.peak_bytes(compiled)
    devices = work.mesh.size
    found = {
        "method": config.get("method", {}).get("name", config["task"]),
        "dds": bool(config.get("method", {}).get("dds")),
        "size": config["model"]["size"],
        "dtype": config["dtype"],
        "remat": config["model"]["remat"],
        "attention": config["model"].get("attention", "auto"),
        "batch": batch,
        "devices": devices,
        "steps": steps,
        "steps_per_dispatch": work.dispatch,
        **compiling,
        "step_seconds": step,
        "step_cpu_seconds": cpu,
        "images_per_second": batch / step,
        "peak_bytes": memory,
        "peak_source": source,
        "flops_per_image": work.flops(),
    }
    gemm = measure.gemm_rate(config["dtype"]) * devices
    found["gemm_flops"] = gemm
    if found["flops_per_image"]:
        rate = found["flops_per_image"] * batch / step
        found["mfu_gemm"] = rate / gemm
        sheet = measure.datasheet_rate()
        if sheet and config["dtype"] == "bfloat16":
            found["mfu_datasheet"] = rate / (sheet * devices)
    return found


def shown(found):
    """The row that is printed."""

    def percent(key):
        return f"{100 * found[key]:.1f} %" if key in found else "-"

    flops = found["flops_per_image"]
    return {
        "method": found["method"] + (" + DDS" if found["dds"] else ""),
        "size": found["size"],
        "batch": found["batch"],
        "dtype": found["dtype"],
        "remat": found["remat"],
        "at once": found.get("steps_per_dispatch", 1),
        "trace / compile / from cache, CPU-s": " / ".join(
            f"{found[f'{key}_cpu_seconds']:.2f}"
            for key in ("trace", "compile", "compile_cached")
        ),
        "images/s": f"{found['images_per_second']:,.1f}",
        "ms a step": f"{1e3 * found['step_seconds']:,.1f}",
        "GFLOP an image": f"{flops / 1e9:.2f}" if flops else "-",
        "MFU of GEMM": percent("mfu_gemm"),
        "of datasheet": percent("mfu_datasheet"),
        f"memory, MiB ({found['peak_source']})": f"{found['peak_bytes'] / 2**20:,.0f}",
    }


def main():
    """Runs the benchmark and prints its row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="B", help="Ti, S, B, L or H")
    parser.add_argument("--method", default="mae", help="of configs/METHOD_in1k.py")
    parser.add_argument("--dds", action="store_true", help="deep dynamic supervision")
    parser.add_argument("--config", help="NAME[:key=value,...], instead of those")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--batch", type=int, required=True, help="over all devices")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--output", help="append a line of JSON here")
    args = parser.parse_args()
    name = args.config
    if name is None:
        name = f"{args.method}_in1k:model={args.model}" + (",dds=1" * args.dds)
    config = measure.read_config(name, args.set)
    found = run(config, args.batch, args.steps, args.warmup)
    measure.write({"benchmark": "step", "config": name, **found}, args.output)
    print(measure.table([shown(found)]))


if __name__ == "__main__":
    main()
