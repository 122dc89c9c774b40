"""Attention among few tokens alone, by Pallas, forward and backward: which tiles are
the fastest on this GPU?

python benchmarks/tiles.py [--batch=512] [--output=FILE.jsonl]

The table behind `forward_tiles` and `backward_tiles` of `ddae.models.short_attention`:
queries and keys at a time, warps a program, loads ahead. Milliseconds are the median;
"-" where a tile cannot be compiled.
"""

from unittest import mock

import attention
import jax
import jax.numpy as jnp
import measure

from ddae.models import short_attention

TRIED = {
    ("encoder B, visible", "forward"): [(64, 64, 4, 1), (64, 64, 8, 1), (32, 64, 4, 1)],
    ("encoder B, visible", "backward"): [
        *((64, 64, 4, 1), (64, 64, 8, 1), (32, 64, 4, 3), (16, 64, 4, 3)),
    ],
    ("decoder 512 x 16", "forward"): [
        *((128, 64, 8, 3), (128, 64, 8, 4), (64, 64, 4, 3), (64, 64, 4, 4)),
        *((64, 128, 4, 3), (64, 32, 4, 3), (256, 64, 16, 3)),
    ],
    ("decoder 512 x 16", "backward"): [
        *((16, 256, 4, 3), (16, 256, 4, 2), (16, 256, 4, 4), (16, 256, 8, 3)),
        *((32, 256, 8, 3), (64, 256, 8, 2)),
    ],
}
"""(queries, keys, warps, stages) by stack and way; the backward kernel has all keys at
once."""


def measured(way, tiles, operands, repeats):
    """Seconds of one call; None where it cannot be compiled."""
    kernel = getattr(short_attention, f"_{way}")
    interpret = jax.default_backend() == "cpu"

    @jax.jit
    def call(*operands):
        return kernel(*operands, interpret)

    chosen = mock.patch.object(
        short_attention, f"{way}_tiles", lambda t: short_attention.Tiles(*tiles)
    )
    with chosen:
        try:
            jax.block_until_ready(call(*operands))
        except jax.errors.JaxRuntimeError:
            return None
    return attention.seconds_of(lambda: call(*operands), repeats)


def shown(row):
    """The row that is printed."""
    keys = ("stack", "way", "queries", "keys", "warps", "stages")
    seconds = row["seconds"]
    taken = {"ms": "-" if seconds is None else f"{1e3 * seconds:.3f}"}
    return {key: row[key] for key in keys} | taken


def main():
    """Runs the benchmark and prints its table."""
    args = attention.arguments(__doc__)
    rows = []
    for (stack, way), tried in TRIED.items():
        tokens, heads, width = attention.STACKS[stack]
        shapes = [(args.batch, tokens, 3, heads, width), (3, heads, width)]
        if way == "backward":
            shapes.append((args.batch, tokens, heads, width))
        operands = [
            jax.random.normal(jax.random.key(i), shape, jnp.bfloat16)
            for i, shape in enumerate(shapes)
        ]
        for tiles in tried:
            named = short_attention.Tiles(*tiles)._asdict()
            row = {"stack": stack, "way": way, "batch": args.batch, **named}
            row["seconds"] = measured(way, tiles, operands, args.repeats)
            measure.write({"benchmark": "tiles", **row}, args.output)
            rows.append(shown(row))
    print(measure.table(rows))


if __name__ == "__main__":
    main()
