"""One process of a run, which may be told to fail: the tests start several.

python tests/worker.py CONFIG.json WORKDIR [FAULT] [train.py's flags for a cluster]

FAULT is KIND:PROCESS:STEP. raise, hang, kill: in the step loop. full: no file of more
than 4 KB can be written from there on, as on a full disk; full-log: of 64 KB, nor a
row of the log. term, hup: SIGTERM or SIGHUP there; term-compile: SIGTERM while the
step is traced; term-eval, kill-eval: SIGTERM or a kill in the evaluation at STEP. late,
blind: the checkpoint of STEP is not listed for 4 s, or never. flip: of that checkpoint
a number is read otherwise. unread: record STEP of a folder cannot be read.
With INTERLEAVE in the environment neighbours in the mesh are of different processes;
with SHARDED matrices of that many numbers are cut by FSDP.
"""

import errno
import json
import os
import resource
import signal
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import jax
import numpy as np
import tiny  # noqa: F401  the network named Two

from ddae.data import folder
from ddae.train import checkpoint, cluster, loop, sharding, stored
from ddae.train import step as train_step


def strike(kind, process):
    if jax.process_index() != process:
        return
    if kind == "raise":
        raise ValueError("a fault of the test")
    if kind == "hang":
        time.sleep(10_000)
    if kind == "full-log":
        loop.Report.write = no_space
    if kind.startswith("full"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        # Less than an array's part, which is written at once: some file is too large.
        most = 2**16 if kind == "full-log" else 2**12
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limit))
        return
    if kind == "kill":
        time.sleep(3)  # what is being saved is saved
    sent = {"kill": signal.SIGKILL, "hup": signal.SIGHUP}
    os.kill(os.getpid(), sent.get(kind, signal.SIGTERM))
    time.sleep(0.1)


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def hide(step, seconds):
    """Lists no checkpoint of `step` until `seconds` after the first look."""
    listed, looks = stored.Manager._load_checkpoint_infos, []

    def late(self, *arguments, **options):
        looks.append(time.monotonic())
        found = listed(self, *arguments, **options)
        hidden = time.monotonic() - looks[0] < seconds
        return [x for x in found if x.step != step] if hidden else found

    stored.Manager._load_checkpoint_infos = late


def flip(step):
    """Reads another number of the parameters of `step`."""
    read = checkpoint.read_items

    def otherwise(manager, folder, at, targets):
        found = read(manager, folder, at, targets)
        if at == step:
            (first, *rest), tree = jax.tree.flatten(found["params"])
            wrong = np.array(first.addressable_shards[0].data)
            wrong.flat[0] += 1.0
            made = jax.make_array_from_callback(
                first.shape, first.sharding, lambda index: wrong[index]
            )
            found["params"] = tree.unflatten([made, *rest])
        return found

    checkpoint.read_items = otherwise


def unread(number):
    """Finds no file where the held-out record `number` lies."""
    path_of = folder.FolderRecords.read

    def gone(self, index):
        path = path_of(self, index)
        held_out = self.identity["split"] == "test"
        return path + b".gone" if held_out and index == number else path

    folder.FolderRecords.read = gone


def prepare(fault):
    kind, process, step = fault.split(":")
    process, step = int(process), int(step)
    mine = jax.process_index() == process
    if kind in ("late", "blind"):
        stored.LISTED_SECONDS = 10.0
        if mine:
            hide(step, 4.0 if kind == "late" else float("inf"))
    elif kind == "flip":
        if mine:
            flip(step)
    elif kind == "unread":
        if mine:
            unread(step)
    elif kind == "term-compile":
        original = train_step.make_step

        def make_step(*arguments):
            inner = original(*arguments)

            def traced(*operands):
                strike("term", process)
                return inner(*operands)

            return traced

        train_step.make_step = make_step
    elif kind.endswith("-eval"):
        original = loop.evaluate

        def evaluate(job, state, at, report):
            if at == step:
                strike(kind.removesuffix("-eval"), process)
            return original(job, state, at, report)

        loop.evaluate = evaluate
    else:
        original = loop.Meter.add
        count = {"steps": 0}

        def add(self, *arguments):
            count["steps"] += 1
            if count["steps"] == step:
                strike(kind, process)
            return original(self, *arguments)

        loop.Meter.add = add


def interleaved(shape, devices, **options):
    """As the torus of a TPU pod has it: the second chip is another host's."""
    of = [[d for d in devices if d.process_index == p] for p in range(8)]
    rounds = zip(*filter(None, of), strict=True)
    return np.array([d for one in rounds for d in one]).reshape(shape)


def main(config, workdir, fault="", coordinator=None, count=None, process=None):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where nohup began the tests
    if "SHARDED" in os.environ:
        sharding.MIN_SHARDED = int(os.environ["SHARDED"])
    if "INTERLEAVE" in os.environ:
        sharding.mesh_utils.create_device_mesh = interleaved
    number = None if count is None else int(count)
    index = None if process is None else int(process)
    cluster.start("auto", coordinator, number, index, 60)
    if fault:
        prepare(fault)
    with open(config) as file:
        return cluster.run_to_end(loop.run, json.load(file), workdir)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
