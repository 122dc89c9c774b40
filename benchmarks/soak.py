"""Hits a run at random until it is done; then it must be the run that nobody hit.

python benchmarks/soak.py --dir=NEW [--hit=gs://BUCKET/NEW] [--processes=2] \\
  [--seed=0] [--within 6 15] [--output=FILE.jsonl] \\
  --config=configs/NAME.py [--config.KEY=VALUE ...]

All that it does not know goes to train.py. A first run is left alone; a second one, in
DIR/hit or --hit, gets SIGKILL, SIGTERM or SIGINT, one of its processes or all, some
seconds (--within) after each start, and is started again, until it ends by itself.
Choose log_every_steps=1 and few steps a checkpoint. Exit code 1 where a row of its
metrics.jsonl is not the other's to the bit, but for times, or where a process goes on
for longer than --patience after a hit.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import measure
from etils import epath

ROOT = pathlib.Path(__file__).parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TIMES = ("seconds", "data_wait", "images_per_second")
"""What the names of metrics that are no numbers of the training end with."""


def started(arguments, workdir, processes, log):
    """The processes of one run; what they print goes into the file `log`."""
    command = [sys.executable, "train.py", *arguments, f"--workdir={workdir}"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    joined = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
    with open(log, "a") as said:
        return [
            subprocess.Popen(
                [*command, *(joined + [f"--process_id={i}"]) * (processes > 1)],
                cwd=ROOT,
                stdout=said,
                stderr=said,
            )
            for i in range(processes)
        ]


def done(running, seconds, enough=any):
    """Waits until a process has ended, or all; whether it was within so long."""
    end = time.monotonic() + seconds
    while not (yes := enough(one.poll() is not None for one in running)):
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    return yes


def ended(running, patience=float("inf")):
    """Waits until all have; returns their exit codes, None of one that had not."""
    done(running, patience, enough=all)
    codes = [one.poll() for one in running]
    for one in running:
        one.kill()
        one.wait()
    return codes


def rows_of(workdir):
    """{(step, metric): value} of all that is no time."""
    found = {}
    text = (epath.Path(workdir) / "metrics.jsonl").read_text()
    for line in text.splitlines():
        row = json.loads(line)
        found |= {(row["step"], k): v for k, v in row.items() if not k.endswith(TIMES)}
    return found


def soak(arguments, folder, hit, processes, chance, within, patience):
    """What was done and found, as plain numbers."""
    # What a shell starts in the background hears no Ctrl-C, nor would the runs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    alone, log = os.path.join(folder, "alone"), os.path.join(folder, "hit.log")
    print(f"a run that is left alone: see {alone}.log", flush=True)
    codes = ended(started(arguments, alone, processes, f"{alone}.log"))
    if any(codes):
        sys.exit(f"the run that was left alone ended with {codes}: see {alone}.log")
    hits, longest = collections.Counter(), 0.0
    for number in range(1, sys.maxsize):
        running = started(arguments, hit, processes, log)
        kind = chance.choice(SIGNALS)
        struck = chance.sample(running, chance.randint(1, processes))
        if done(running, chance.uniform(*within)):
            codes = ended(running)
            print(f"start {number}: ended with {codes}", flush=True)
            if any(codes):
                sys.exit(f"nobody had hit it: see {log}")
            break
        for one in struck:
            one.send_signal(kind)
        begun = time.monotonic()
        codes = ended(running, patience)
        taken = time.monotonic() - begun
        hits[kind.name] += 1
        longest = max(longest, taken)
        print(
            f"start {number}: {kind.name} to {len(struck)} of {processes}, ended with"
            f" {codes} after {taken:.1f} s",
            flush=True,
        )
        if None in codes:
            sys.exit(f"a process went on for {patience:.0f} s: see {log}")
    wanted, found = rows_of(alone), rows_of(hit)
    return {
        "processes": processes,
        "hits": dict(hits),
        "longest_seconds": longest,
        "values": len(wanted),
        "different": sum(found.get(key) != value for key, value in wanted.items()),
    }


def main():
    """Runs it; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dir", required=True, help="a new folder for both runs")
    parser.add_argument("--hit", help="the second run's workdir, on gs:// maybe")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the hits")
    parser.add_argument(
        "--within", type=float, nargs=2, default=(6, 15), help="seconds after a start"
    )
    parser.add_argument("--patience", type=float, default=120.0, help="seconds")
    parser.add_argument("--output", help="append a line of JSON here")
    args, arguments = parser.parse_known_args()
    if os.path.exists(args.dir):
        parser.error(f"--dir={args.dir} is there already")
    folder = os.path.abspath(args.dir)
    os.makedirs(folder)
    chance = random.Random(args.seed)
    hit = args.hit or os.path.join(folder, "hit")
    given = (args.processes, chance, args.within, args.patience)
    row = soak(arguments, folder, hit, *given)
    measure.write({"benchmark": "soak", **row}, args.output)
    print(measure.table([row | {"hits": str(row["hits"])}]))
    return int(row["different"] > 0)


if __name__ == "__main__":
    sys.exit(main())
