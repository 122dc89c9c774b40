"""The goals that the rows of docs/performance.py meet or miss."""


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


def todays(rows, method, size="B"):
    """The last step that was timed as it is by default, on a GPU, over 50 steps."""
    chosen = {"method": method, "size": size, "attention": "auto", "platform": "gpu"}
    found = of(rows, "step", dtype="bfloat16", remat="off", **chosen)
    return [r for r in found if r["steps"] >= 50 and "--set" not in r["command"]][-1:]


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
    for row in of(rows, "data_wait"):
        share, what = 100 * row["data_wait"], f"{row['method']}-{row['size']}"
        shown = f"{share:.1f} %, {what} at batch {row['batch']}"
        text = "waiting for photographs 3 % of a step, where cores suffice"
        yield goal(text, shown, share <= 3.0)
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
        each = (
            f"{len(found)}, of {' and '.join(str(n) for _, n in found)} arrays"
            for found in largest
        )
        shown = "; ".join(dict.fromkeys(each))
        rest = [b for r in data for b, _ in r["all_reduces"] if b <= 2**20]
        shown += f"; others of {max(rest)} bytes or less" if rest else ""
        found = of(rows, "plan", method="ddae", fsdp=1)
        found = [r for r in found if "all-reduce" in r["counts"]]
        if found:
            said = (f"{r['counts']['all-reduce']} for {r['slice']}" for r in found)
            shown += f"; ddae's, a head after the other, {', '.join(said)}"
            combined = combined and all(r["counts"]["all-reduce"] == 1 for r in found)
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
