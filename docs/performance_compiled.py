"""What levers changed in programs compiled for devices that are not there, of the rows
that docs/performance.py reads."""

import dataclasses
from collections.abc import Callable

import scaling
from performance_goals import of


@dataclasses.dataclass(frozen=True)
class Counted:
    """What a lever is judged by: its name, its value of a row, and a row in words."""

    name: str
    value: Callable
    said: Callable


def _moved(row):
    return f"{row['other_bytes'] / 1e9:.1f} GB in {row['kernels']} kernels"


def _held(row):
    return (
        f"{_moved(row)}, {row['copied_bytes'] / 1e9:.1f} GB of it copied,"
        f" {_needed(row)} planned"
    )


def _needed(row):
    return f"{row['planned_bytes'] / 2**30:.1f} GiB"


def _copies(row):
    return f"{row['copies']} of {row['copied_bytes'] / 2**30:.2f} GiB"


def _sent(row):
    return sum(row["bytes"].values())


TRAFFIC = "traffic"
"""Bytes read and written outside matrix products and attention."""
MOVED = Counted(TRAFFIC, lambda row: row["other_bytes"], _moved)
HELD = Counted(TRAFFIC, lambda row: row["other_bytes"], _held)
BIASED = Counted(
    TRAFFIC,
    lambda row: row["other_bytes"],
    lambda row: f"{_moved(row)}, {_needed(row)} planned",
)
NEEDED = Counted("planned memory", lambda row: row["planned_bytes"], _needed)
COPIED = Counted("bytes copied", lambda row: row["copied_bytes"], _copies)
SENT = Counted("bytes between devices", _sent, scaling.said)
SUMMED = Counted(
    SENT.name, _sent, lambda row: f"{scaling.said(row)}; in all {_moved(row)}"
)

LEVERS = {
    "tanh": (MOVED, ()),
    "bias": (MOVED, ()),
    "table": (SUMMED, ()),
    "state": (COPIED, ("bias", "chain", "turns", "norm")),
    "fsdp": (SENT, ("bias", "chain", "turns", "norm")),
    "norm": (HELD, ("bias", "chain", "turns")),
    "chain": (MOVED, ("bias",)),
    "turns": (NEEDED, ("bias", "chain")),
    "tpu": (NEEDED, ("table", "loops")),
    "loops": (NEEDED, ("table", "bias")),
    "products": (MOVED, ("short",)),
    "flash": (BIASED, ()),
}
"""Of each lever what it is judged by, and the levers that came after it, the last of
them first."""

STORED = {"products": "traffic"}
"""Levers that the rows call otherwise."""


def pairs(rows, lever):
    """(program, row before, row after) of what was compiled with and without."""
    if lever == "flash":
        return _flash(rows)
    if lever == "tanh":
        return list(_tanh(rows))
    found = []
    for before in of(rows, "plan_before", lever=STORED.get(lever, lever)):
        now = of(rows, "plan", command=before["command"])
        for after in LEVERS[lever][1]:
            keys = {"lever": after, "command": before["command"]}
            now = of(rows, "plan_before", **keys) or now
        if now:
            found.append((_program(before), before, now[-1]))
    return found


def _program(row):
    remat = "" if row["remat"] == "off" else f", remat {row['remat']}"
    return f"{row['method']}-{row['size']}, {row['slice']}{remat}"


def _tanh(rows):
    for row in of(rows, "plan_tanh"):
        keys = ("method", "size", "batch", "dtype", "remat", "slice", "scan")
        for plain in of(rows, "plan", **{key: row[key] for key in keys})[:1]:
            yield _program(row), plain, row


def _flash(rows):
    found = {row["attention"]: row for row in of(rows, "plan_bias")}
    if found.keys() < {"xla", "cudnn"}:
        return []
    before, after = found["xla"], found["cudnn"]
    what = f"{before['method']}-{before['size']}, batch {before['batch']}"
    return [(what, before, after)]


def in_short(rows, lever):
    """What the lever gave over all programs, for the table of levers; None where
    nothing was compiled."""
    counted = LEVERS[lever][0]
    ratios = [
        counted.value(after) / counted.value(before)
        for _, before, after in pairs(rows, lever)
    ]
    if not ratios:
        return None
    low, high = (f"{found(ratios):.2f}" for found in (min, max))
    span = low if low == high else f"{low} to {high}"
    return f"{span} x the {counted.name}, as compiled: `{lever}` below"


def compiled_rows(rows):
    """A row for each lever and program."""
    return [
        {
            "lever": f"`{lever}`",
            "program": what,
            "before": counted.said(before),
            "after": counted.said(after),
            "of": counted.name,
            "after / before": f"{counted.value(after) / counted.value(before):.2f}",
        }
        for lever, (counted, _) in LEVERS.items()
        for what, before, after in pairs(rows, lever)
    ]
