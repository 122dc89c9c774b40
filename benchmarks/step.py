"""The train step alone, on fake images: compile time, images/s, MFU, peak memory.

python benchmarks/step.py --method=ddae --model=B --batch=512 [--output=FILE.jsonl]
python benchmarks/step.py --config=quickstart --batch=64
python benchmarks/step.py --config=mae_in1k:model=L --batch=256 \\
  --set model.remat=dots --set mesh.fsdp=4
python benchmarks/step.py --config=ddae_cifar10 --batch=512 \\
  --set steps_per_dispatch=20

Any method and any file of configs/, on CPU, GPU or TPU. It is the very step of a run:
`ddae.train.step.jit_step`, state donated and laid out over the mesh, uint8 images on
the devices. It needs jax, flax, optax, ml_collections, jaxtyping, psutil, etils,
filelock, rich and Pillow; no TensorFlow and no clu.

--programs=DIR takes the compiled step from DIR, or keeps it there: no compile times are
given then. --profile=DIR writes a profile of five more steps, as a run does with
config.profile; on a GPU it is also told what their kernels were for.

Of a method with deep dynamic supervision, what distances and weights cost alone, and of
one with a teacher, what its update costs alone, are timed by themselves.

MFU is images/s times `ddae.flops.step_flops` over what a matrix product reached in the
same run (bf16 on accelerators, of the config's dtype on CPU), and over the datasheet's
figure where the chip is known. Images/s is the median over steps, after the warm-up.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import measure
import optax

from ddae.difficulty import nearest_visible_distance
from ddae.masking import gather_patches
from ddae.train import speed

REPEATS = 20
"""Of what is timed by itself."""

PROFILED = 5
"""Calls of the step in a profile."""


def run(config, batch, steps, warmup, programs=None, profile=None):
    """Everything measured, as plain numbers."""
    work = measure.make_work(config, batch)
    if programs:
        compiled, compiling = work.lower().compile(), {}
    else:
        compiled, compiling = measure.compile_times(work)
    state = work.state()
    calls = [max(1, -(-number // work.dispatch)) for number in (steps, warmup)]
    operands = work.operands()
    state, seconds, cpu = measure.step_seconds(compiled, state, operands, *calls)
    step, cpu = measure.median(seconds) / work.dispatch, cpu / work.dispatch
    memory, source = measure.peak_bytes(compiled)
    alone = shares(work, state)
    kernels = {}
    if profile:
        with jax.profiler.trace(profile):
            measure.step_seconds(compiled, state, operands, PROFILED, 0)
        kernels = measure.kernel_seconds(profile, PROFILED * work.dispatch)
    devices = work.mesh.size
    found = {
        "method": config.get("method", {}).get("name", config["task"]),
        "dds": bool(config.get("method", {}).get("dds")),
        "size": config["model"]["size"],
        "dtype": config["dtype"],
        "remat": config["model"]["remat"],
        "attention": config["model"].get("attention", "auto"),
        "gelu": config["model"].get("gelu", "erf"),
        "batch": batch,
        "devices": devices,
        "steps": steps,
        "steps_per_dispatch": work.dispatch,
        **compiling,
        **alone,
        "step_seconds": step,
        "step_cpu_seconds": cpu,
        "images_per_second": batch / step,
        "peak_bytes": memory,
        "peak_source": source,
        "flops_per_image": work.flops(),
        **({"kernels": kernels} if kernels else {}),
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


def shares(work, state):
    """Seconds of a step's distances and weights, and of the teacher's update, alone."""
    method = getattr(work.task, "method", None)
    found = {}
    hidden = [t.difficulty for t in method.terms if t.difficulty] if method else []
    if hidden:
        keys = jax.random.split(jax.random.key(0), work.batch_size)
        mask = jax.jit(lambda k: method.masking.draw(k, method.encoder.grid))(keys)

        def weights(number, total, mask):
            t = number / REPEATS
            each = [weights_of(d, mask, method.encoder.grid, t) for d in hidden]
            return total + sum(each)

        zeros = jnp.zeros(mask.ids_masked.shape)
        found["weights_seconds"] = seconds_of(weights, zeros, mask)
    if jax.tree.leaves(state.ema_params):

        def update(number, ema, params):
            return optax.incremental_update(params, ema, 0.01)

        params = work.task.ema_of(state.params)
        found["ema_seconds"] = seconds_of(update, state.ema_params, params)
    return found


def weights_of(difficulty, mask, grid, t):
    """Of the hidden patches under one Term, as the loss takes them."""
    distance = nearest_visible_distance(mask, grid, difficulty.metric)
    beta = difficulty.beta(t, difficulty.depth)
    distance = gather_patches(distance, mask.ids_masked)
    return difficulty.law(distance, beta, jnp.ones_like(distance))


def seconds_of(function, first, given, rounds=10):
    """The median of one call of function(number, carry, given), of REPEATS in a loop of
    one program, where no launch from the host counts."""
    loop = jax.jit(
        lambda carry, given: jax.lax.fori_loop(
            0, REPEATS, lambda i, carry: function(i, carry, given), carry
        )
    )
    jax.block_until_ready(loop(first, given))
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(loop(first, given))
        taken.append((time.perf_counter() - start) / REPEATS)
    return measure.median(taken)


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
        "attention": found.get("attention", "auto"),
        "GELU": found.get("gelu", "erf"),
        "at once": found.get("steps_per_dispatch", 1),
        "trace / compile / from cache, CPU-s": " / ".join(
            f"{found[f'{key}_cpu_seconds']:.2f}"
            for key in ("trace", "compile", "compile_cached")
            if f"{key}_cpu_seconds" in found
        )
        or "-",
        "images/s": f"{found['images_per_second']:,.1f}",
        "ms a step": f"{1e3 * found['step_seconds']:,.1f}",
        "GFLOP an image": f"{flops / 1e9:.2f}" if flops else "-",
        "MFU of GEMM": percent("mfu_gemm"),
        "of datasheet": percent("mfu_datasheet"),
        "memory, MiB": f"{found['peak_bytes'] / 2**20:,.0f} {found['peak_source']}",
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
    parser.add_argument("--programs", metavar="DIR", help="of compiled programs")
    parser.add_argument("--profile", metavar="DIR", help="of five more steps")
    parser.add_argument("--output", help="append a line of JSON here")
    args = parser.parse_args()
    if args.programs:
        speed.keep_compiled(args.programs)
    name = args.config
    if name is None:
        name = f"{args.method}_in1k:model={args.model}" + (",dds=1" * args.dds)
    config = measure.read_config(name, args.set)
    given = (args.steps, args.warmup, args.programs, args.profile)
    found = run(config, args.batch, *given)
    measure.write({"benchmark": "step", "config": name, **found}, args.output)
    print(measure.table([shown(found)]))
    if "kernels" in found:
        print("\n" + measure.table(measure.kernel_rows(found["kernels"])))


if __name__ == "__main__":
    main()
