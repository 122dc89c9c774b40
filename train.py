"""Trains what a config file says, in a workdir.

python train.py --config=configs/NAME.py --workdir=DIR [--config.KEY=VALUE ...]

Rerunning the same command resumes. On a cluster, start the same command in every
process; docs/gpu.md and docs/tpu.md say how. Exit codes: 0 done; 2 wrong config or
data; 3 the loss stayed non-finite; 75 asked to stop, saved, run me again; 1 a crash.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/.", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints, metrics and figures go."
)


DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", ["auto", "on", "off"], "Join the cluster's processes."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.")
PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is.")
TIMEOUT = flags.DEFINE_integer("start_timeout", 300, "Seconds to wait for the others.")


def main(argv: list[str]) -> int:
    """Runs the config; returns the exit code."""
    if len(argv) > 1:
        return wrong(
            f"unexpected argument {argv[1]!r}; settings are --config.KEY=VALUE"
        )
    logging.set_verbosity(logging.WARNING)
    from ddae.settings import UserError
    from ddae.train import cluster, loop

    try:
        cluster.start(
            DISTRIBUTED.value,
            COORDINATOR.value,
            PROCESSES.value,
            PROCESS.value,
            TIMEOUT.value,
        )
    except UserError as error:
        return wrong(str(error))
    return cluster.run_to_end(loop.run, CONFIG.value.to_dict(), WORKDIR.value)


def wrong(message: str) -> int:
    """Says what is wrong in one line; exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    return 2


def parse(argv: list[str]) -> list[str]:
    """Parses flags; a misspelt key or missing file is one line, exit code 2."""
    from ddae.commands import at_home, before_tensorflow, in_file, unknown_key

    before_tensorflow()
    try:
        rest = flags.FLAGS(at_home(argv))
        for name in ("config", "workdir"):
            if flags.FLAGS[name].value in (None, ""):
                raise ValueError(f"--{name} is missing")
        CONFIG.value.to_dict()  # a file that could not be read says so only here
        return rest
    except (AttributeError, KeyError) as error:
        sys.exit(wrong(unknown_key(argv, str(error))))
    except (TypeError, ValueError, OSError, flags.Error) as error:
        # A failure inside a config file brings its traceback; its last line says why.
        lines = str(error).strip().splitlines()
        said = " ".join(lines[-1:] if len(lines) > 3 else lines)
        sys.exit(wrong(" ".join(said.split())))
    except Exception as error:  # a config file may raise any
        sys.exit(wrong(in_file(error)))


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
