"""What each lever gave, of the rows that docs/performance.py reads."""

import measure
import performance_compiled as compiled
from performance_goals import of, tiny_steps, todays

from ddae import flops, tasks

FIRST = "attention by XLA, jax.nn.gelu"
NORMAL = "with jax's own variance again"
PRODUCTS = "queries, keys and values as three products"
"""Of `step_before`, what it was measured as."""


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


def _normal(rows):
    found = of(rows, "step_before", method="mae")
    steps = {row["what"]: f"{1e3 * row['step_seconds']:.1f}" for row in found}
    if not {FIRST, NORMAL} <= steps.keys():
        return None
    return f"with flash attention {steps[FIRST]} ms became {steps[NORMAL]}, MAE-B"


def _timed(rows, before, after=None):
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


def _halves(rows):
    by = {r["dtype"]: r for r in of(rows, "step", config="ddae_cifar10:size=Nano")}
    if set(by) != {"float32", "bfloat16"}:
        return None
    ratio = by["float32"]["step_cpu_seconds"] / by["bfloat16"]["step_cpu_seconds"]
    return f"{ratio:.2f} x float32's speed in CPU-seconds, on a CPU"


def _cached(rows):
    tiny = tiny_steps(rows)
    if not tiny:
        return None
    row = tiny[-1]
    return (
        f"{row['compile_cpu_seconds']:.1f} CPU-s become"
        f" {row['compile_cached_cpu_seconds']:.1f} for the quickstart's step"
    )


def _flags(rows):
    """Of the quickstart's step, each flag beside the step without any."""
    found = of(rows, "step_flags")
    if not found:
        return None
    (plain,) = [
        row
        for row in of(rows, "step")
        if found[0]["command"].endswith(row["command"])
        and row["machine"] == found[0]["machine"]
    ]
    said = (
        f"{row['compile_cpu_seconds']:.1f} CPU-s and {1e3 * row['step_seconds']:.1f} ms"
        for row in (plain, *found)
    )
    names = ", ".join(f"`{row['what']}`" for row in found)
    first, *others = said
    return f"the quickstart's step: {first}; with {names}: {', '.join(others)}"


def _products(rows):
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


def _kept(rows):
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


def _dispatched(rows):
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


def _biased(rows):
    steps = [of(rows, "step", method="simmim", attention=a) for a in ("xla", "cudnn")]
    if not all(steps):
        return None
    taken = (f"{1e3 * found[-1]['step_seconds']:.1f} ms" for found in steps)
    return f"a step of SimMIM-B {' became '.join(taken)}"


def _by_tanh(rows):
    """Steps that were timed with both."""
    said = []
    for tanh in of(rows, "step", platform="gpu", gelu="tanh"):
        command = tanh["command"].replace(" --set=model.gelu=tanh", "")
        for exact in of(rows, "step", platform="gpu", command=command)[-1:]:
            times = (f"{1e3 * row['step_seconds']:.1f} ms" for row in (exact, tanh))
            what = f"{tanh['method']}-{tanh['size']} at batch {tanh['batch']}"
            said.append(f"{what} {' became '.join(times)}")
    return "; ".join(said)


def _alone(rows):
    kernels = ("cudnn_seconds", "pallas_seconds")
    found = [r for r in of(rows, "attention") if all(map(r.get, kernels))]
    return "; ".join(
        "{tokens} tokens, heads of {head_width}, cuDNN's ".format(**row)
        + f"{1e3 * row['cudnn_seconds']:.2f} ms became"
        f" {1e3 * row['pallas_seconds']:.2f}"
        for row in found
    )


def _short(rows):
    alone = _alone(rows) and f"attention alone: {_alone(rows)}"
    return _said(_timed(rows, PRODUCTS), alone)


def _said(*parts):
    return ". ".join(filter(None, parts))


def _both(rows, name, other, text):
    """`text` of the row `other` of a benchmark, `text` of that of what is, and this
    row; None where it was not run."""
    found = {row["what"]: row for row in of(rows, name)}
    if len(found) < 2:
        return None
    now = found["as it is"]
    return text.format(**found[other]), text.format(**now), now


def _saved(rows):
    text = "{first_seconds:.1f} s the first time and {later_seconds:.1f} later"
    if not (both := _both(rows, "save", "Orbax's own", text)):
        return None
    before, now, row = both
    return (
        f"{row['method']}-{row['size']}'s {row['arrays']:,} arrays on {row['devices']}"
        f" devices of a CPU kept the run waiting {before}; now {now}"
    )


def _logged(rows):
    rows = [row | {"megabytes": row["bytes"] / 1e6} for row in of(rows, "log")]
    text = "{requests:.1f} requests, {megabytes:.2f} MB and {seconds:.2f} s"
    if not (both := _both(rows, "log", "as on a disk", text)):
        return None
    before, now, row = both
    return (
        f"a row of DDAE-B's, mean over {row['rows']} with figures every fifty, was"
        f" {before}; now {now}, by a fake bucket on the same machine"
    )


def _read(rows):
    found = {
        (row["files"], row["what"], bool(row["delay"])): row
        for row in of(rows, "reading")
    }
    if not found:
        return None
    own, library = "as it is", "the library's way"
    cpu = [
        found["ArrayRecord", way, False]["images_per_cpu_second"]
        for way in (library, own)
    ]
    clock = [
        found["TFRecord", way, True]["images_per_second"] for way in ("one by one", own)
    ]
    delay = 1e3 * found["TFRecord", own, True]["delay"]
    return (
        f"ArrayRecord files in the system's cache: {cpu[0]:.0f} images a CPU-second"
        f" became {cpu[1]:.0f}, {cpu[1] / cpu[0]:.2f} x; TFRecord files whose records"
        f" come {delay:g} ms late, on two cores: {clock[0]:.0f} images a second became"
        f" {clock[1]:.0f}, {clock[1] / clock[0]:.2f} x"
    )


def _copied(rows):
    found = {row["what"]: row for row in of(rows, "bucket")}
    if not found:
        return None

    def said(what):
        return "{requests:.2f} requests and {connections:.2f} connections".format(
            **found[what]
        )

    return (
        f"an image of ArrayRecord files on gs:// is {said('ArrayRecord, read')}, of"
        f" TFRecord files {said('TFRecord, read')}, each time that it is read; copied"
        f" first, {said('ArrayRecord, copied')} and then none, in files of sixteen, by"
        " a fake bucket"
    )


def lever_rows(rows):
    """What each lever gave, where a line says it."""
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
                _short(rows),
                "auto takes it on a GPU of capability 9 from 50 to 64 tokens, to 256"
                " with heads of 32 or less",
            ),
            (
                "GELU by erf, in float32 within, its gradient from its input alone",
                _normal(rows),
                "unless `config.model.gelu=tanh`",
            ),
            (
                "GELU by tanh: on a GPU the product before it ends in it, and it is no"
                " kernel of its own",
                _said(_by_tanh(rows), compiled.in_short(rows, "tanh")),
                "`config.model.gelu=tanh`: it is another function, up to 5e-4 off; not"
                " timed",
            ),
            (
                "the gradient of attention's bias summed by Pallas's kernel that gives"
                " those of queries, keys and values",
                compiled.in_short(rows, "bias"),
                "always, where that kernel is; not timed",
            ),
            (
                "a relative position bias for each device within a step: of its"
                " gradient they sum the table's, [entries, heads], and not the bias's,"
                " [heads, tokens, tokens]",
                compiled.in_short(rows, "table"),
                "always; not timed",
            ),
            (
                "bfloat16 compute",
                _halves(rows),
                "default of all configs but those for CPUs",
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
                _products(rows),
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
                compiled.in_short(rows, "state"),
                "always; not timed",
            ),
            (
                "FSDP's gradients scattered as they are summed, kernels of blocks"
                " gathered in half precision",
                compiled.in_short(rows, "fsdp"),
                "always; not timed",
            ),
            (
                "a norm's scale and shift taken in by the Linear after it, of which"
                " nothing but the Linear's input is kept",
                compiled.in_short(rows, "norm"),
                "always, in blocks; not timed",
            ),
            (
                "a norm's second sum over what its first one gives: XLA has one kernel"
                " of Triton for such a chain, and for its gradient with the addition"
                " after it",
                compiled.in_short(rows, "chain"),
                "on GPUs; not timed. A TPU would read more",
            ),
            (
                "heads take turns: of each the gradient is taken with its loss, and the"
                " next but one waits for it; else XLA may keep the activations of all",
                compiled.in_short(rows, "turns"),
                "always, where a method has several heads; not timed",
            ),
            (
                "norms taken in by the Linear and heads' turns, together, on TPUs",
                compiled.in_short(rows, "tpu"),
                "always; not timed",
            ),
            (
                "where blocks are scanned no loop over two, for which a GPU's compiler"
                " sets aside at once what the loops of all heads keep; and nothing kept"
                " beside a view of it",
                compiled.in_short(rows, "loops"),
                "always; not timed. On a CPU these blocks lose their remat",
            ),
            (
                "queries, keys and values as products of their own, and a stack filled"
                " up to an even number of tokens once, not every block, where flash"
                " attention is; targets normalised by variances of one pass",
                _said(
                    _timed(rows, NORMAL, PRODUCTS),
                    compiled.in_short(rows, "products"),
                ),
                "always",
            ),
            (
                "flash attention with a learned bias (SimMIM, BEiT)",
                _said(_biased(rows), compiled.in_short(rows, "flash")),
                "`config.model.attention=cudnn` alone, until its gradients are compared"
                " on a GPU",
            ),
            (
                "memory kept from step to step, on a CPU",
                _kept(rows),
                "always, where the C library is glibc",
            ),
            ("persistent compile cache", _cached(rows), "`config.compile_cache`, on"),
            (
                "XLA's flags for a quicker compile on a CPU",
                _flags(rows),
                "none is set: no goal is met by them",
            ),
            (
                "a save cuts no array that several devices hold into slices of less"
                " than 1 MiB: each is a program, a dispatch and a copy",
                _saved(rows),
                "always",
            ),
            (
                "on gs:// the log is kept on the machine, and uploaded once a minute"
                " and before a save: no object can grow, and each row was several"
                " uploads of the whole log",
                _logged(rows),
                "always",
            ),
            (
                "records read one after the other while that goes fast, and else by"
                " threads; ArrayRecord's own reader begins some for each chunk",
                _read(rows),
                "always",
            ),
            (
                "files of a set copied to the machine before they are read",
                _copied(rows),
                "`config.data.copy_to`, off; for pods that read from gs://",
            ),
            ("FSDP's parameters gathered", fsdp, "on with `config.mesh.fsdp` above 1"),
            (
                "several steps at once",
                _dispatched(rows),
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
