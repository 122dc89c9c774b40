"""What a row of the log costs a run whose workdir is on gs://.

python benchmarks/log.py [--rows=200] [--output=FILE.jsonl]

Rows of a run of DDAE-B, one in 15 s, with three figures after every fifty, go to a fake
of Google's storage (tests/fake_gcs.py) as a run writes them and as it would write to a
disk, where each is added to a file. The fake is on this machine: it says how much is
sent, and a network's delays come to the seconds that it takes.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time
import types
from unittest import mock

import measure
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
import fake_gcs

from ddae.train import metrics

EVERY = 50
"""Rows from one evaluation to the next."""
SECONDS = 15.0
"""From one row to the next, by the clock that says when the log is uploaded."""
FIGURES = ("reconstruction", "difficulty", "loss_by_distance")


def cost(bucket, workdir, names, count, now):
    """(seconds, requests, bytes uploaded) of a row, mean over `count` of them. now: of
    the log's clock, in a list."""
    draw = np.random.default_rng(0)
    before, begun = bucket.traffic.copy(), time.monotonic()
    report = metrics.Report(workdir, None)
    for row in range(1, count + 1):
        now[0] += SECONDS
        report.write(EVERY * row, {name: draw.normal() for name in names})
        if row % EVERY == 0:
            pictures = draw.integers(0, 255, (3, 300, 300, 3), np.uint8)
            figures = {f"eval/{k}": x for k, x in zip(FIGURES, pictures, strict=True)}
            report.write(EVERY * row, figures)
    report.close()
    found = bucket.traffic - before
    sums = (time.monotonic() - begun, found["requests"], found["up"])
    return tuple(x / count for x in sums)


def names_of(config):
    """Of the numbers of a row."""
    work = measure.make_work(config, 1, 1)
    _, found = work.lower().out_info
    return [f"train/{name}" for name in found]


def main():
    """Runs the benchmark and prints its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ddae_in1k:model=B")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--output", help="append lines of JSON here")
    args = parser.parse_args()
    names = names_of(measure.read_config(args.config))
    rows, now = [], [0.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    with (
        mock.patch("ddae.storage.time", clock),
        tempfile.TemporaryDirectory() as folder,
        fake_gcs.running(folder) as (bucket, environment),
    ):
        os.environ |= environment
        for what, remote in (("as on a disk", False), ("as it is", True)):
            with mock.patch.object(metrics, "is_remote", return_value=remote):
                found = cost(bucket, f"gs://bucket/{remote}", names, args.rows, now)
            row = {"what": what, "rows": args.rows, "numbers": len(names)}
            row |= dict(zip(("seconds", "requests", "bytes"), found, strict=True))
            measure.write({"benchmark": "log", **row}, args.output)
            rows.append(row)
    print(measure.table(rows))


if __name__ == "__main__":
    main()
