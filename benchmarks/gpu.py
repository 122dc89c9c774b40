"""Fills the table of one GPU unattended, in 25 minutes: its goals, and their levers.

python benchmarks/gpu.py --output=FILE.jsonl [--minutes=25] [--only=REGEX] [--smoke]

Parts, in order of worth; each is a process of its own, ended at its time or when the
minutes are over, and writes lines of JSON as it goes. What FILE holds already is not
taken again, and what was compiled is kept in FILE.programs: the same command goes on
where it was stopped. Then `python docs/performance.py FILE.jsonl ...` writes the page.
One at a time: XLA tries its kernels on the GPU while it compiles, and two at once took
as long as one after the other.

1. MAE of sizes B, S and L and DDAE of B: images/s, MFU, memory; of B what the kernels
   of a step were for.
2. Beside transformers: bfloat16 autocast, eager, and SDPA with torch.compile.
3. Attention alone, XLA's, cuDNN's and Pallas's, at the shapes of every stack, and
   Pallas's with other tiles.
4. The step's matrix: GELU by tanh, matrix products by cuBLAS alone, attention, remat,
   scan, batch, a cheaper teacher; small images, one step and many at once.
5. Two steps of every file of configs/ that trains, on noise.

--smoke runs all of it at tiny size, on a CPU too. It wants what benchmarks/step.py
wants; for part 2 torch, transformers and what a run wants, but for TensorFlow.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
CONFIGS = sorted(
    path.stem
    for path in (HERE.parent / "configs").glob("*.py")
    if path.stem not in ("__init__", "common", "knn")
)

PROFILED = ("mae", "mae B", "ddae B")
"""Parts that also tell what their kernels were for."""

NO_TRITON = "no products by Triton"
"""In the name of a part: XLA does not try its own kernels of matrix products."""


def step(config, batch, *changes, steps=50, warmup=10):
    """A call of benchmarks/step.py."""
    arguments = [f"--config={config}", f"--batch={batch}"]
    arguments += [f"--steps={steps}", f"--warmup={warmup}"]
    return ["step.py", *arguments, *(f"--set={change}" for change in changes)]


def parts():
    """[(name, command, seconds it may take)], the most wanted first."""
    mae, ddae = "mae_in1k:model={}", "ddae_in1k:model={}"
    found = [("mae B", step(mae.format("B"), 512), 150)]
    found.append(("ddae B", step(ddae.format("B"), 512), 150))
    found.append(("mae L", step(mae.format("L"), 512), 200))
    found.append(("mae S", step(mae.format("S"), 1024), 150))
    found.append(("torch B", ["against_torch.py", "--model=B", "--batch=256"], 240))
    found.append(("attention", ["attention.py"], 120))
    found.append(("tiles", ["tiles.py"], 120))
    for name, config in (("mae B", mae.format("B")), ("ddae B", ddae.format("B"))):
        found.append((f"{name} gelu=tanh", step(config, 512, "model.gelu=tanh"), 150))
        found.append((f"{name}, {NO_TRITON}", step(config, 512), 150))
    for kernel in ("xla", "cudnn"):
        change = f"model.attention={kernel}"
        found.append((f"mae B {kernel}", step(mae.format("B"), 512, change), 150))
        found.append((f"ddae B {kernel}", step(ddae.format("B"), 512, change), 150))
        command = step("simmim_in1k:model=B", 256, change)  # with a learned bias
        found.append((f"simmim B {kernel}", command, 150))
    for change in ("remat=dots", "remat=full", "scan=true"):
        command = step(mae.format("B"), 512, f"model.{change}")
        found.append((f"mae B {change}", command, 150))
    found.append(("mae B 1024", step(mae.format("B"), 1024), 150))
    for change in ("share=0.25", "shrink=2", "target=middle"):
        change = f"method.features.{change}"
        found.append((f"ddae B {change}", step(ddae.format("B"), 512, change), 150))
    for dispatch in (1, 25):
        command = step(
            "ddae_cifar10", 512, f"steps_per_dispatch={dispatch}", steps=400, warmup=50
        )
        found.append((f"ddae cifar10, {dispatch} at once", command, 120))
    found.append(("torch S", ["against_torch.py", "--model=S", "--batch=512"], 200))
    return found + smoke_configs(size=None, batch=16)


def smoke_configs(size, batch):
    """Two steps of every config; at another size where one is given."""
    found = []
    few = {"beit_v2_in1k": "method.early=3", "data2vec_in1k": "method.mean_of=3"}
    for name in CONFIGS:
        changes = [f"model.size={size}"] if size else []
        if size and name in few:  # of blocks, where the size has four
            changes.append(few[name])
        command = step(name, batch, *changes, steps=2, warmup=0)
        found.append((f"config {name}", command, 90))
    return found


def smoke_parts(configs):
    """Every kind of part at tiny size."""
    tiny = ("model.size=Pico", "image_size=64")
    torch = ["against_torch.py", "--model=Pico", "--batch=2", "--rounds=1"]
    found = [
        ("mae", step("mae_in1k", 4, *tiny, steps=2, warmup=1), 120),
        ("attention", ["attention.py", "--batch=2", "--repeats=2"], 120),
        ("tiles", ["tiles.py", "--batch=1", "--repeats=1"], 120),
        ("torch", [*torch, "--steps=1", "--set=image_size=64"], 240),
    ]
    return found + smoke_configs("Pico", 4) * configs


def done(output):
    """Names of the parts that `output` holds."""
    if not output.exists():
        return set()
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    return {row["part"] for row in rows if row.get("part") and row["ok"]}


def run(name, command, seconds, output):
    """Runs one part; its outcome is a line of `output`."""
    script, *arguments = command
    line = [sys.executable, str(HERE / script), *arguments, f"--output={output}"]
    if script == "step.py":
        line.append(f"--programs={output.with_suffix('.programs')}")
    if name in PROFILED:
        line.append(f"--profile={output.with_suffix('.profiles') / name}")
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9", **os.environ}
    if NO_TRITON in name:
        flags = environment.get("XLA_FLAGS", "")
        flags += " --xla_gpu_enable_triton_gemm=false"
        environment["XLA_FLAGS"] = flags.strip()
    start = time.monotonic()
    try:
        result = subprocess.run(
            line,
            **{"capture_output": True, "text": True, "timeout": seconds},
            **{"cwd": HERE.parent, "env": environment},
        )
        ok, said = result.returncode == 0, result.stderr.strip().splitlines()[-1:]
    except subprocess.TimeoutExpired:
        ok, said = False, [f"longer than {seconds:.0f} s"]
    row = {"benchmark": "part", "part": name, "ok": ok}
    row |= {"seconds": time.monotonic() - start, "said": "" if ok else " ".join(said)}
    with output.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(
        f"{name}: {'done' if ok else row['said']}, {row['seconds']:.0f} s", flush=True
    )


def main():
    """Runs what is left, until the minutes are over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--only", default="", metavar="REGEX", help="names of parts")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--no_configs", action="store_true")
    args = parser.parse_args()
    output = pathlib.Path(args.output).absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    finished = done(output)
    chosen = smoke_parts(not args.no_configs) if args.smoke else parts()
    chosen = [part for part in chosen if re.search(args.only, part[0])]
    for name, command, seconds in chosen:
        left = end - time.monotonic()
        if name in finished:
            print(f"{name}: in {output.name} already")
        elif left < 5:
            print(f"{name}: no time left; run the same command again")
        else:
            run(name, command, min(seconds, left), output)


if __name__ == "__main__":
    main()
