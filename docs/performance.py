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

from ddae import flops, tasks  # noqa: E402

KEPT = ROOT / "docs" / "results" / "performance.jsonl"


def read(paths):
    """All rows, the later of two with one command and one thing measured."""
    found = {}
    for path in paths:
        for line in pathlib.Path(path).read_text().splitlines():
            row = json.loads(line)
            named = [row.get(k) for k in ("part", "theirs", "stack", "devices", "mesh")]
            named += [row.get("lever"), row.get("what")]
            named += [row.get(k) for k in ("size", "remat", "batch", "scan", "method")]
            if row["benchmark"].startswith(("step", "against_torch", "plan")):
                named.append(row["command"])
            found[json.dumps([row["benchmark"], *named])] = row
    return list(found.values())


def of(rows, name, **wanted):
    """Rows of the benchmark `name` with these values."""
    return [
        row
        for row in rows
        if row["benchmark"] == name and all(row.get(k) == v for k, v in wanted.items())
    ]


def tiny_steps(rows):
    """The quickstart's step on a CPU, one at a time."""
    found = of(rows, "step", config="quickstart", platform="cpu")
    return [r for r in found if r.get("steps_per_dispatch", 1) == 1]


def verdict(held):
    """Of a goal."""
    return {True: "met", False: "**missed**", None: "not measured"}[held]


def goal(text, value, held):
    """A row of the table of goals."""
    return {"goal": text, "measured": value or "-", "": verdict(held)}


def cpu_goals(rows):
    """Those of two CPU cores in float32."""
    for size, least in (("S", 0.95), ("B", 1.1)):
        text = f"MAE-{size} at {least} x transformers' speed or more, CPU-seconds"
        found = of(rows, "against_torch", size=size, theirs="eager", platform="cpu")
        for row in found or [None]:
            if row is None:
                yield goal(text, None, None)
                continue
            ratio = row["ratio_cpu_seconds"][0]
            where = row["machine"].removesuffix(", shared").partition(" of ")[2]
            shown = f"{ratio:.2f} at batch {row['batch']}, on {where}"
            yield goal(text, shown, round(ratio, 2) >= least)
    tiny = tiny_steps(rows)
    for key, text, most in (
        ("compile_cpu_seconds", "a tiny step compiles in 3 s", 3.0),
        ("compile_cached_cpu_seconds", "and in .3 s from the persistent cache", 0.3),
    ):
        value = tiny[-1][key] if tiny else None
        shown = f"{value:.2f} CPU-s" if tiny else None
        yield goal(text, shown, value <= most if tiny else None)


def scale_goals(rows):
    """Those of the compiled program over fake devices."""
    scale = of(rows, "scaling")
    data = [r for r in scale if r["mesh"] == "data parallel" and r["devices"] > 1]
    fsdp = [r for r in scale if r["mesh"] == "FSDP"]
    data = [r for r in data if "all_reduces" in r]
    combined, shown = None, None
    if data:
        largest = [[x for x in r["all_reduces"] if x[0] > 2**20] for r in data]
        combined = all(len(found) == 1 for found in largest)
        fewest, most = min(largest, key=len), max(largest, key=len)
        shown = " to ".join(
            f"{len(found)}, of {' and '.join(str(n) for _, n in found)} arrays"
            for found in (fewest, most)
        )
        rest = [b for r in data for b, _ in r["all_reduces"] if b <= 2**20]
        shown += f"; others of {max(rest)} bytes or less" if rest else ""
    yield goal(
        "data parallel: one combined all-reduce of the gradients", shown, combined
    )
    cut = [r for r in of(rows, "plan") if r["fsdp"] > 1 and "counts" in r]
    where = [("CPUs", {kind for r in fsdp for kind in r["counts"]})] if fsdp else []
    where += [
        (f"{r['method']}-{r['size']} {r['slice']}", set(r["counts"])) for r in cut
    ]
    both = {"all-gather", "reduce-scatter"}
    said = [
        f"{text}: {', '.join(named)}"
        for text, held in (("both", True), ("all-reduce and slice", False))
        if (named := [name for name, kinds in where if (both <= kinds) == held])
    ]
    held = all(both <= kinds for _, kinds in where) if where else None
    yield goal("FSDP: all-gather and reduce-scatter", "; ".join(said), held)
    worst = max(
        (
            abs(r["state_bytes"] * r["devices"] / r["state_bytes_whole"] - 1)
            for r in fsdp
            if r["size"] != "Pico"
        ),
        default=None,
    )
    yield goal(
        "state a device under FSDP within 5 % of total / n (S and larger)",
        f"{100 * worst:.2f} %" if worst is not None else None,
        worst <= 0.05 if worst is not None else None,
    )
    for remat, least in (("full", 4.0), ("dots", 2.5)):
        found = of([*rows, *planned_remat(rows)], "remat", remat=remat, scan=True)
        said = [
            f"{r['off_over_this']:.2f} x, {r['method']}-{r['size']},"
            f" for {r.get('slice', 'a CPU')}"
            for r in found
        ]
        yield goal(
            f"scan and remat {remat}: temporary memory {least:g} x less",
            "; ".join(said),
            all(r["off_over_this"] >= least for r in found) if found else None,
        )


def gpu_goals(rows):
    """Those of a GPU, in bfloat16."""
    gpu = [r for r in of(rows, "step") if r["platform"] == "gpu"]
    best = {}
    for row in gpu:
        if row["dtype"] == "bfloat16" and row["steps"] >= 50:
            key = (row["method"], row["size"])
            if row["images_per_second"] > best.get(key, row)["images_per_second"]:
                best[key] = row
            best.setdefault(key, row)
    for size, least, floor in (("B", 50, 40), ("L", 57, 48), ("S", 45, 30)):
        row = best.get(("mae", size))
        value = 100 * row["mfu_gemm"] if row else None
        yield goal(
            f"MAE-{size}: MFU {least} % of a GEMM's rate; {floor} % at the least",
            f"{value:.1f} %" if row else None,
            value >= least if row else None,
        )
    for theirs, least in (("SDPA, compiled", 1.2), ("eager", 1.3)):
        found = of(rows, "against_torch", theirs=theirs, platform="gpu")
        value = min((r["ratio_seconds"][0] for r in found), default=None)
        yield goal(
            f"{least} x transformers' images/s, bfloat16 autocast, {theirs}",
            f"{value:.2f}" if found else None,
            value >= least if found else None,
        )
    pair = [best.get((name, "B")) for name in ("mae", "ddae")]
    held, shown = None, None
    if all(pair):
        work = pair[1]["flops_per_image"] / pair[0]["flops_per_image"]
        time = pair[0]["images_per_second"] / pair[1]["images_per_second"]
        shown, held = f"{time:.2f} x the time for {work:.2f} x", time <= 1.05 * work
    yield goal("a DDAE step within 1.05 x its FLOPs' ratio to MAE's", shown, held)
    for key, text, most in (
        ("weights_seconds", "distances and weights .5 % of a DDAE step", 0.5),
        ("ema_seconds", "the teacher's update 1 % of it", 1.0),
    ):
        row = best.get(("ddae", "B"), {})
        share = 100 * row[key] / row["step_seconds"] if key in row else None
        shown = f"{share:.2f} %, as a program of its own" if row else None
        yield goal(text, shown, share <= most if row else None)


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


def flops_rows():
    """GFLOP an image of every method of configs/*_in1k, counted."""
    names = ["mae", "ddae", "simmim", "maskfeat", "data2vec", "mvp", "beit", "beit_v2"]
    rows = []
    for name in names:
        for dds in ("", ",dds=1"):
            if name == "ddae" and dds:
                continue
            row = {"method": name + (" + DDS" if dds else "")}
            for size in "SBL":
                config = measure.read_config(f"{name}_in1k:model={size}{dds}")
                count = flops.step_flops(tasks.from_config(config)) / 1e9
                row[size] = f"{count:.1f}"
            rows.append(row)
    for change in ("share=0.5", "share=0.25", "shrink=2", "target=middle"):
        row = {"method": f"ddae, features.{change}"}
        for size in "SBL":
            config = measure.read_config(
                f"ddae_in1k:model={size}", [f"method.features.{change}"]
            )
            row[size] = f"{flops.step_flops(tasks.from_config(config)) / 1e9:.1f}"
        rows.append(row)
    return rows


def lever_rows(rows):
    """What each lever gave, where a line says it."""

    def normal():
        found = of(rows, "step_before", method="mae")
        steps = {row["what"]: f"{1e3 * row['step_seconds']:.1f}" for row in found}
        if not {FIRST, NORMAL} <= steps.keys():
            return None
        return f"with flash attention {steps[FIRST]} ms became {steps[NORMAL]}, MAE-B"

    def timed(before, after=None):
        said = []
        for method in ("mae", "ddae"):
            chosen = of(rows, "step_before", method=method, what=before)
            if after:
                chosen += of(rows, "step_before", method=method, what=after)
            else:
                chosen += todays(rows, method)
            if len(chosen) == 2:
                one, other = (f"{1e3 * r['step_seconds']:.1f}" for r in chosen)
                said.append(f"{method.upper()}-B {one} ms became {other}")
        return "; ".join(said)

    def halves():
        by = {r["dtype"]: r for r in of(rows, "step", config="ddae_cifar10:size=Nano")}
        if set(by) != {"float32", "bfloat16"}:
            return None
        ratio = by["float32"]["step_cpu_seconds"] / by["bfloat16"]["step_cpu_seconds"]
        return f"{ratio:.2f} x float32's speed in CPU-seconds, on a CPU"

    def cached():
        tiny = tiny_steps(rows)
        if not tiny:
            return None
        row = tiny[-1]
        return (
            f"{row['compile_cpu_seconds']:.1f} CPU-s become"
            f" {row['compile_cached_cpu_seconds']:.1f} for the quickstart's step"
        )

    def products():
        # Rows of before the change, and of right after it, both in one process.
        names = ("against_torch_before", "against_torch_one_process")
        chosen = [of(rows, n, size="S", batch=8, theirs="eager") for n in names]
        if not all(chosen):
            return None
        before, after = (found[-1]["ratio_cpu_seconds"][0] for found in chosen)
        return (
            "theirs / ours in CPU-seconds, MAE-S at batch 8, eager, in one process:"
            f" {before:.2f} before, {after:.2f} with the next two lines"
        )

    def kept():
        said = []
        for batch in (8, 32):
            names = ("against_torch_freed", "against_torch")
            chosen = [
                of(rows, n, size="S", batch=batch, theirs="eager", malloc=None)
                for n in names
            ]
            if not all(chosen):
                return None
            freed, own = (found[-1]["ours_cpu_seconds"] for found in chosen)
            said.append(f"{freed:.2f} to {own:.2f} CPU-s at batch {batch}")
        return (
            f"a step of MAE-S from {' and '.join(said)}; the rest was the kernel's,"
            " for fresh pages"
        )

    def dispatched():
        many = [r for r in of(rows, "step") if r.get("steps_per_dispatch", 1) > 1]
        said = []
        for row in many:
            keys = ("method", "size", "batch", "dtype", "machine")
            same = {key: row.get(key) for key in keys}
            one = of(rows, "step", steps_per_dispatch=1, **same)
            if one:
                ratio = row["images_per_second"] / one[-1]["images_per_second"]
                what = f"{row['method']}-{row['size']} at batch {row['batch']}"
                said.append(f"{what}: {ratio:.2f} x with {row['steps_per_dispatch']}")
        return "; ".join(said)

    def planned(say, lever, until=None):
        said = []
        for before in of(rows, "plan_before", lever=lever):
            now = of(rows, "plan", command=before["command"])
            if until:
                keys = {"lever": until, "command": before["command"]}
                now = of(rows, "plan_before", **keys)
            if now:
                what = f"{before['method']}-{before['size']} for {before['slice']}"
                said.append(f"{what}: {say(before)} became {say(now[-1])}")
        return said and f"as compiled, {'; '.join(said)}"

    def copies(row):
        return f"{row['copies']} copies of {row['copied_bytes'] / 2**30:.2f} GiB a step"

    def biased():
        found = {r["attention"]: r for r in of(rows, "plan_bias")}
        if found.keys() < {"xla", "cudnn"}:
            return None
        said = (
            f"{moved(row)} and {row['planned_bytes'] / 2**30:.1f} GiB planned"
            for row in (found["xla"], found["cudnn"])
        )
        what = "{method}-{size} at batch {batch}".format(**found["xla"])
        steps = [of(rows, "step", method="simmim", attention=a) for a in found]
        taken = [f"{1e3 * r[-1]['step_seconds']:.1f} ms" for r in steps if r]
        taken = f"{' became '.join(taken)}; " if len(taken) == 2 else ""
        return f"{what}: {taken}as compiled, {' became '.join(said)}"

    def alone():
        found = [r for r in of(rows, "attention") if r.get("pallas_seconds")]
        return "; ".join(
            "{tokens} tokens, heads of {head_width}, cuDNN's ".format(**row)
            + f"{1e3 * row['cudnn_seconds']:.2f} ms became"
            f" {1e3 * row['pallas_seconds']:.2f}"
            for row in found
        )

    def short():
        both = timed(PRODUCTS), alone() and f"attention alone: {alone()}"
        return ". ".join(filter(None, both))

    def traffic():
        whole = planned(moved, "traffic", until="short")
        return ". ".join(filter(None, (timed(NORMAL, PRODUCTS), whole)))

    def moved(row):
        return f"{row['other_bytes'] / 1e9:.1f} GB in {row['kernels']} kernels"

    casts = of(rows, "casts")
    cast = casts and (
        f"nothing to gain: {casts[-1]['casts']} casts of {casts[-1]['matrices']}"
        " matrices a step already"
    )
    fsdp = "parameters are gathered, activations are not; see Scale"
    count = {r["method"]: float(r["B"]) for r in flops_rows()}
    cheap = ", ".join(
        f"{name.rpartition('.features.')[2].removeprefix('ddae, features.')}"
        f" {count[name] / count['ddae']:.2f} x"
        for name in count
        if name.startswith("ddae, ")
    )
    return [
        {"lever": lever, "what it gave": gave or "not measured", "now": now}
        for lever, gave, now in (
            (
                "attention by cuDNN",
                _flash(rows),
                "`config.model.attention`; auto takes it on a GPU from 50 tokens on",
            ),
            (
                "attention among few tokens by a kernel in Pallas: a head of an example"
                " a program, from the product of queries, keys and values",
                short(),
                "auto takes it on a GPU of capability 9 from 50 to 64 tokens, to 256"
                " with heads of 32 or less",
            ),
            (
                "GELU by erf, in float32 within, its gradient from its input alone",
                normal(),
                "always",
            ),
            (
                "bfloat16 compute",
                halves(),
                "default of ImageNet configs, for accelerators",
            ),
            ("casts of parameters once a step", cast, "as it was"),
            (
                "remat and scan",
                of(rows, "remat", scan=True) and "see Memory",
                "`config.model.remat`, `config.model.scan`, off by default: XLA on a"
                " CPU takes remat out again unless blocks are scanned",
            ),
            (
                "Linears as one product, heads before tokens in attention",
                products(),
                "always; flash attention where `config.model.attention` takes it",
            ),
            (
                "on CPUs a branch for steps that are not finite, not a choice of each"
                " array",
                "the state is not copied: see the line above",
                "always",
            ),
            (
                "on GPUs and TPUs that choice, not a branch",
                planned(copies, "state"),
                "always; not timed",
            ),
            (
                "FSDP's gradients scattered as they are summed, kernels of blocks"
                " gathered in half precision",
                planned(scaling.said, "fsdp"),
                "always; not timed",
            ),
            (
                "queries, keys and values as products of their own, and a stack filled"
                " up to an even number of tokens once, not every block, where flash"
                " attention is; targets normalised by variances of one pass. What a"
                " step reads and writes outside matrix products and attention",
                traffic(),
                "always",
            ),
            (
                "flash attention with a learned bias (SimMIM, BEiT)",
                biased(),
                "`config.model.attention=cudnn` alone, until its gradients are compared"
                " on a GPU",
            ),
            (
                "memory kept from step to step, on a CPU",
                kept(),
                "always, where the C library is glibc",
            ),
            ("persistent compile cache", cached(), "`config.compile_cache`, on"),
            ("FSDP's parameters gathered", fsdp, "on with `config.mesh.fsdp` above 1"),
            (
                "several steps at once",
                dispatched(),
                "`config.steps_per_dispatch`, 1; 25 in the studies' full scale, with"
                " images and crops on the device",
            ),
            (
                "a cheaper teacher",
                f"FLOPs of DDAE-B: {cheap}",
                "`config.method.features`"
                " share, shrink, target; the whole image by default",
            ),
            (
                "patches embedded after masking; heads on hidden patches alone",
                "counted in the FLOPs above",
                "always",
            ),
            (
                "uint8 to the devices; donation; two batches ahead; outcomes two"
                " steps late",
                "in every figure here",
                "always",
            ),
        )
    ]


def _flash(rows):
    found = [r for r in of(rows, "attention") if r.get("cudnn_seconds")]
    if not found:
        return None
    said = ", ".join(
        "{tokens} tokens, heads of {head_width} {by:.2f} x".format(
            by=row["xla_seconds"] / row["cudnn_seconds"], **row
        )
        for row in found
    )
    return f"alone, over XLA's speed: {said}"


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
any of it is they do not say."""


def about_remat(rows):
    """`plan` rows of one device that say their remat."""
    return [r for r in of(rows, "plan", chips=1) if "model.remat=" in r["command"]]


def planned_remat(rows):
    """Those of `about_remat`, as rows of `scaling` are."""
    found = about_remat(rows)
    for row in found:
        keys = ("method", "size", "batch", "slice")
        (off,) = [
            r
            for r in found
            if r["remat"] == "off"
            and not r["scan"]
            and all(r[key] == row[key] for key in keys)
        ]
        over = off["temporary_bytes"] / row["temporary_bytes"]
        yield row | {"benchmark": "remat", "off_over_this": over}


def planned_notes(rows):
    """What was measured of a step that was planned, too."""
    said = []
    for row in of(rows, "plan", slice="h100:1", remat="off", scan=False):
        keys = ("method", "size", "batch", "dtype")
        seen = of(rows, "step", platform="gpu", **{key: row[key] for key in keys})
        for one in seen:
            if "H100" in one["machine"] and row not in about_remat(rows):
                sizes = [row["planned_bytes"], one["peak_bytes"]]
                said.append(
                    f"{row['method']}-{row['size']} at batch {row['batch']},"
                    f" {' and '.join(f'{size / 2**30:.1f}' for size in sizes)} GiB"
                )
    if not said:
        return ""
    return f" Planned for an H100, and taken there: {'; '.join(said)}."


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

FIRST = "attention by XLA, jax.nn.gelu"
NORMAL = "with jax's own variance again"
PRODUCTS = "queries, keys and values as three products"
"""Of `step_before`, what it was measured as."""

KERNELS_NOTE = """

By their names, of a profile (`--profile`). Those that sum over an axis write arrays
besides: a norm's gradient, a GELU's. The profiles were taken without XLA's command
buffers, and before attention among few tokens had its kernel."""


def todays(rows, method, size="B"):
    """The last step that was timed as it is by default, on a GPU, over 50 steps."""
    chosen = {"method": method, "size": size, "attention": "auto", "platform": "gpu"}
    found = of(rows, "step", dtype="bfloat16", remat="off", **chosen)
    return [r for r in found if r["steps"] >= 50 and "--set" not in r["command"]][-1:]


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
    yield "\nOf the input pipeline: [input_pipeline.md](input_pipeline.md).\n"
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
