"""Writes docs/performance.md from the benchmarks' lines of JSON.

python docs/performance.py FILE.jsonl [FILE.jsonl ...] [--run=WORKDIR]

The lines are kept in docs/results/performance.jsonl, from which
`python docs/performance.py docs/results/performance.jsonl` writes the page again. Every
figure is read from them, or counted by ddae.flops. Of two lines of one measurement the
later one is shown.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

import attention  # noqa: E402
import measure  # noqa: E402
import plan  # noqa: E402
import scaling  # noqa: E402
import step  # noqa: E402
import tiles  # noqa: E402
from performance_compiled import compiled_rows  # noqa: E402
from performance_goals import (  # noqa: E402
    about_remat,
    cpu_goals,
    gpu_goals,
    of,
    planned_remat,
    scale_goals,
    todays,
)
from performance_levers import flops_rows, lever_rows  # noqa: E402

KEPT = ROOT / "docs" / "results" / "performance.jsonl"


def read(paths):
    """All rows, the later of two with one command and one thing measured."""
    found = {}
    for path in paths:
        for line in pathlib.Path(path).read_text().splitlines():
            row = json.loads(line)
            named = [row.get(k) for k in ("part", "theirs", "stack", "devices", "mesh")]
            named += [row.get(k) for k in ("lever", "what", "way", "files", "delay")]
            named += [row.get(k) for k in ("queries", "keys", "warps", "stages")]
            named += [row.get(k) for k in ("size", "remat", "batch", "scan", "method")]
            if row["benchmark"].startswith(("step", "against_torch", "plan")):
                named.append(row["command"])
            found[json.dumps([row["benchmark"], *named])] = row
    return list(found.values())


DATA_WAIT = (
    "python train.py --config=configs/mae_in1k.py:model=S --config.data.name=folder"
    " --config.data.dir=DIR --config.data.eval_split=val --config.batch_size=16"
    " --config.dtype=float32 --config.total_steps=12 --config.log_every_steps=1"
    " --config.eval_every_steps=0 --config.evaluators.knn.num_train=16"
    " --config.evaluators.knn.num_held_out=4 --config.evaluators.knn.k=1"
    " --workdir=RUN"
)


def data_wait(workdir):
    """What a run of DATA_WAIT spent waiting for its images, the first steps apart."""
    config = json.loads((workdir / "config.json").read_text())
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, lines) if row["step"] > 3]

    def middle(name):
        return measure.median(r[f"train/{name}"] for r in steps if f"train/{name}" in r)

    return {
        "benchmark": "data_wait",
        "method": config["method"]["name"],
        "size": config["model"]["size"],
        "batch": config["batch_size"],
        "step_seconds": middle("step_seconds"),
        "data_wait": middle("data_wait"),
        **measure.machine(),
        "command": DATA_WAIT,
        "time": "",
    }


def sources(rows):
    """Machines, versions and commands behind the figures."""
    found = {}
    for row in rows:
        if "command" in row:
            where = f"{row['machine']}, jax {row['jax']}, Python {row['python']}"
            found.setdefault(where, {})[row["command"]] = row["time"]
    for where, commands in found.items():
        yield f"On {where}:\n\n```sh"
        yield from commands
        yield "```\n"


PLAN_NOTE = """

XLA's compilers for GPUs and TPUs made these programs on a CPU, for devices that are not
there: they compile, a device plans so much of its memory, and so much goes between
devices in a step (where blocks are scanned, what the loop sends counts once, not for
each block). `of`: a chip's memory, and the three quarters of a GPU's that jax takes.
Gradients of what is read in bfloat16 are summed over devices in bfloat16 too. How fast
any of it is they do not say. On GPUs heads' turns save little where heads are scanned,
those of more than two blocks: XLA zeroes at once what the loops of all heads fill."""


def planned_notes(rows):
    """What was measured of a step that was planned, too."""
    said = []
    for row in of(rows, "plan_before", lever="norm", slice="h100:1"):
        keys = ("method", "size", "batch", "dtype")
        seen = of(rows, "step", platform="gpu", **{key: row[key] for key in keys})
        for one in seen:
            if "H100" in one["machine"]:
                sizes = [row["planned_bytes"], one["peak_bytes"]]
                said.append(
                    f"{row['method']}-{row['size']} at batch {row['batch']},"
                    f" {' and '.join(f'{size / 2**30:.1f}' for size in sizes)} GiB"
                )
    if not said:
        return ""
    return (
        " Planned for an H100, and taken there, when a norm's input was still kept:"
        f" {'; '.join(said)}."
    )


def where(row):
    """A first column, of rows that know what they were taken on."""
    if row.get("benchmark") in (None, "scaling", "remat", "plan"):
        return {}
    gpu = row["platform"] == "gpu"
    return {"on": row["machine"].removeprefix("1 x NVIDIA ") if gpu else "CPU"}


HISTORY_NOTE = """

Steps on one GPU, of two days, at the end as they are. With LayerNorm's variance in a
pass of its own XLA makes a Triton kernel of the norm and writes its gradient's products
to memory in float32; that is not in the code. No matrix product by Triton: XLA_FLAGS of
the command below."""

KERNELS_NOTE = """

By their names, of a profile (`--profile`). Those that sum over an axis write arrays
besides: a norm's gradient, a GELU's. The profiles were taken without XLA's command
buffers, and before attention among few tokens had its kernel."""


COMPILED_NOTE = """

The same step compiled without and with a lever. Traffic: bytes read and written outside
matrix products and attention, here in GB, and the kernels that do it. All of it is what
the compiler's program says; only what the table above gives in ms was timed."""


def history_rows(rows):
    """What the step took before, and what it takes now."""
    for method in ("mae", "ddae"):
        before = of(rows, "step_before", method=method)
        for row in [*before, *(todays(rows, method) if before else [])]:
            yield {
                "method": f"{method}-{row['size']}",
                "as": row.get("what", "attention among few tokens by Pallas's kernel"),
                "batch": row["batch"],
                "ms a step": f"{1e3 * row['step_seconds']:.1f}",
                "images/s": f"{row['images_per_second']:,.0f}",
                "MFU of GEMM": f"{100 * row['mfu_gemm']:.1f} %",
                "memory, MiB": f"{row['peak_bytes'] / 2**20:,.0f}",
            }


def kernel_rows(rows):
    """What the kernels of steps with a profile were for."""
    for row in [*of(rows, "step_before"), *of(rows, "step")]:
        for kinds in measure.kernel_rows(row.get("kernels", {})):
            yield {"method": f"{row['method']}-{row['size']}", **kinds}


def page(rows):
    """The lines of the page."""
    gpu = [r for r in rows if r.get("platform") == "gpu"]
    yield """# Performance, measured

Written by `python docs/performance.py` from lines of JSON that the benchmarks of
`benchmarks/` print; none of the figures was typed. FLOPs count a multiply-add as 2,
backward as twice forward, and nothing that remat computes again.
"""
    if not gpu:
        yield "**No GPU was at hand.**"
    yield """What is of CPU cores was taken on machines that other programs shared, so
CPU-seconds and ratios within a run mean more than images/s there. For a GPU's table:
`python benchmarks/gpu.py --output=FILE.jsonl`, 25 minutes unattended, then `python
docs/performance.py docs/results/performance.jsonl FILE.jsonl`.
"""
    yield "## Goals\n"
    goals = [*cpu_goals(rows), *scale_goals(rows), *gpu_goals(rows)]
    yield measure.table(goals)
    yield "\nGoals of the input pipeline: [input_pipeline.md](input_pipeline.md).\n"
    waits = of(rows, "data_wait")
    if waits:
        yield "Share of a step spent waiting for photographs, on the same cores:\n"
        yield measure.table(
            [
                {
                    "method": f"{r['method']}-{r['size']}",
                    "batch": r["batch"],
                    "step, s": f"{r['step_seconds']:.2f}",
                    "data wait": f"{100 * r['data_wait']:.1f} %",
                }
                for r in waits
            ]
        )
    yield "\n## GFLOP of a step, an image of 224 px\n"
    yield measure.table(flops_rows())
    remat = about_remat(rows)
    parts = (
        ("## The step alone", of(rows, "step"), step.shown),
        (f"### How it came to be{HISTORY_NOTE}", list(history_rows(rows)), dict),
        (
            f"### What the kernels of a step were for{KERNELS_NOTE}",
            list(kernel_rows(rows)),
            dict,
        ),
        ("## Beside transformers", of(rows, "against_torch"), measure.torch_row),
        (
            "### Before memory was kept, as usual and by GLIBC_TUNABLES",
            of(rows, "against_torch_freed"),
            measure.torch_row,
        ),
        ("## Attention alone", of(rows, "attention"), attention.shown),
        ("### Pallas's, by its tiles", of(rows, "tiles"), tiles.shown),
        ("## Scale", of(rows, "scaling"), scaling.shown),
        ("### Memory, on one device", of(rows, "remat"), scaling.shown_remat),
        (
            f"## Devices that were not there{PLAN_NOTE}{planned_notes(rows)}",
            [r for r in of(rows, "plan") if r not in remat],
            plan.shown,
        ),
        ("### Remat, on one of these", list(planned_remat(rows)), scaling.shown_remat),
    )
    for title, found, shown in parts:
        if found:
            yield f"\n{title}\n"
            yield measure.table([where(row) | shown(row) for row in found])
    yield "\n## Levers\n"
    yield measure.table(lever_rows(rows))
    if found := compiled_rows(rows):
        yield f"\n### As compiled for devices that were not there{COMPILED_NOTE}\n"
        yield measure.table(found)
    failed = [r for r in of(rows, "part") if not r["ok"]]
    if failed:
        yield "\n## What failed\n"
        yield measure.table([{"part": r["part"], "said": r["said"]} for r in failed])
    yield "\n## Where and how\n"
    yield from sources(rows)


def main():
    """Writes the page, and keeps the rows that it was made of."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--run", help="workdir of the run for the data's wait")
    parser.add_argument("--output", default=str(ROOT / "docs" / "performance.md"))
    args = parser.parse_args()
    rows = read(args.files)
    if args.run:
        rows = [row for row in rows if row["benchmark"] != "data_wait"]
        rows.append(data_wait(pathlib.Path(args.run)))
    text = "\n".join(page(rows)).rstrip() + "\n"
    pathlib.Path(args.output).write_text(text)
    if args.output.endswith("docs/performance.md"):
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
