"""Runs a study: python -m ddae.study configs/studies/NAME.py[:key=value] --workdir DIR

Every row of its table at every seed, one after another, each scored; what is done is
skipped, a killed run goes on from its checkpoint, and several such commands in one DIR
share the work. DIR gets results.csv, results.md and figures. Exit codes: 0; 2 a wrong
study, config or data; 75 stopped by SIGTERM, SIGHUP or Ctrl-C, run me again; 1 a full
disk, or one that failed as it may for a while.
"""

import argparse
import os
import re
import sys
import time

from ddae import commands
from ddae.settings import UserError
from ddae.storage import is_remote
from ddae.study.report import write_report
from ddae.study.runner import Runner
from ddae.study.table import read_study, runs_of
from ddae.train.cluster import PreemptedError


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    try:
        return commands.run(study, _parser(), argv)
    except PreemptedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 75


def study(args: argparse.Namespace) -> int:
    """Lists or runs the study that `args` name."""
    table = read_study(args.study)
    changes = dict(_pair(text) for text in args.set)
    if is_remote(args.workdir):
        raise UserError(f"--workdir={args.workdir}: a study is kept on a disk")
    workdir = os.path.abspath(args.workdir)
    runner = Runner(table, workdir, changes, args.keep_weights)
    try:
        only = re.compile(args.only)
    except re.error as error:
        raise UserError(f"--only={args.only} is no pattern: {error}") from error
    runs = [run for run in runs_of(table) if only.search(str(run))]
    if not runs:
        raise UserError(f"--only={args.only} leaves no run of {table.name}")
    if args.list:
        for run in runs:
            runner.config(run)  # which knows whether there are the keys of --set
            result = runner.result(run)
            state = "to do" if result is None else result.get("failed", "done")
            print(f"{state:6} {run}")
        return 0
    runner.check()
    os.makedirs(workdir, exist_ok=True)
    with runner.signals.listening():
        if args.rescore:
            lines = runner.rescore(runs, args.rescore.split(","))
        else:
            for folder in args.adopt:
                for line in runner.adopt(runs, folder):
                    print(line, flush=True)
            until = None
            if args.budget is not None:
                until = time.monotonic() + 60.0 * args.budget
            lines = runner.work(runs, until)
        for line in lines:
            print(line, flush=True)
            write_report(runner)
        write_report(runner)
    print(f"{workdir}/results.md")
    return 0


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: expected KEY=VALUE")
    return key, value


def _parser() -> argparse.ArgumentParser:
    """Of the command's arguments."""
    parser = commands.parser("ddae.study", __doc__)
    parser.add_argument("study", help="a file of configs/studies/")
    parser.add_argument("--workdir", required=True)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of every run's config, say data.dir=DIR",
    )
    parser.add_argument("--only", default="", help="runs whose name has this regex")
    parser.add_argument("--budget", type=float, help="minutes; then no run is begun")
    parser.add_argument("--list", action="store_true", help="what is done, what is not")
    parser.add_argument(
        "--keep_weights", action="store_true", help="of finished runs; else removed"
    )
    parser.add_argument(
        "--adopt",
        action="append",
        default=[],
        metavar="DIR",
        help="another study's workdir: what it did with the same config is taken over",
    )
    parser.add_argument(
        "--rescore",
        default="",
        metavar="SCORE,...",
        help="train nothing: these scores, of runs that are done with weights kept",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
