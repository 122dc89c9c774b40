"""How long a save keeps the run, before it goes on in the background.

python benchmarks/save.py [--config=NAME:ARGUMENTS] [--devices=8] [--output=FILE.jsonl]

The state of a config lies whole on each of several devices (fake ones on a CPU) and is
saved a few times, as Orbax does by default, which has each device write a slice of
every array, and as a run does (`ddae.train.stored.write_few_slices`). Checksums, which
the devices sum, are not counted.
"""

import argparse
import os
import statistics
import tempfile
import time

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )

import jax
import jax.numpy as jnp
import measure
import orbax.checkpoint as ocp
from etils import epath

from ddae.train.stored import items_of, open_manager, write_few_slices


def seconds(state, times):
    """Of each of `times` saves of `state`, until the run goes on."""
    items = {k: ocp.args.StandardSave(tree) for k, tree in items_of(state).items()}
    found = []
    with (
        tempfile.TemporaryDirectory() as folder,
        open_manager(epath.Path(folder)) as manager,
    ):
        for step in range(times):
            meta = ocp.args.JsonSave({"step": step})
            args = ocp.args.Composite(**items, meta=meta)
            begun = time.monotonic()
            manager.save(step, args=args, force=True)
            found.append(time.monotonic() - begun)
            manager.wait_until_finished()
    return found


def main():
    """Runs the benchmark and prints its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ddae_in1k:model=S")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--times", type=int, default=6)
    parser.add_argument("--output", help="append lines of JSON here")
    args = parser.parse_args()
    config = measure.read_config(args.config)
    work = measure.make_work(config, args.devices, args.devices)

    def zeros():
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), work.shapes)

    state = jax.block_until_ready(jax.jit(zeros, out_shardings=work.shardings)())
    leaves = jax.tree.leaves(state)
    rows = []
    for what in ("Orbax's own", "as it is"):
        if what == "as it is":
            write_few_slices()
        first, *later = seconds(state, args.times)
        row = {
            "method": config["method"]["name"],
            "size": config["model"]["size"],
            "devices": args.devices,
            "arrays": len(leaves),
            "bytes": sum(leaf.nbytes for leaf in leaves),
            "what": what,
            "first_seconds": first,
            "later_seconds": statistics.median(later),
        }
        measure.write({"benchmark": "save", **row}, args.output)
        rows.append(row)
    print(measure.table(rows))


if __name__ == "__main__":
    main()
