"""Attention alone, forward and backward: XLA's, cuDNN's and tokamax's Triton kernel.

python benchmarks/attention.py [--batch=256] [--output=FILE.jsonl]

The table behind `ddae.models.kernels.FLASH_FROM`, at every stack's shape. xla and cudnn
are what a model takes; triton, of the package tokamax where that is installed, it does
not: would it be faster? Where one cannot run, "-" says so; else outputs and gradients
are compared with XLA's: the largest difference over the largest value, which bfloat16
leaves near .01.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import measure

from ddae.models.kernels import attend, flash

STACKS = {
    "encoder S, visible": (50, 6, 64),
    "encoder B, visible": (50, 12, 64),
    "encoder L, visible": (50, 16, 64),
    "encoder H, visible": (65, 16, 80),
    "encoder S, all": (197, 6, 64),
    "encoder B, all": (197, 12, 64),
    "encoder L, all": (197, 16, 64),
    "decoder 512 x 16": (197, 16, 32),
}


def triton(q, k, v):
    """tokamax's flash attention in Triton, to which jax's own documents now send."""
    import tokamax

    return tokamax.dot_product_attention(q, k, v, implementation="triton")


KERNELS = {"xla": attend, "cudnn": flash, "triton": triton}


def measured(kernel, shape, dtype, repeats):
    """(seconds of one forward and backward pass, what it gives); None where it cannot
    run."""
    q, k, v, weights = (
        jax.random.normal(jax.random.key(i), shape).astype(dtype) for i in range(4)
    )

    @jax.jit
    def both(q, k, v):
        out, gradients = jax.vjp(KERNELS[kernel], q, k, v)
        return out, *gradients(weights)

    try:
        found = jax.block_until_ready(both(q, k, v))
    except (ImportError, RuntimeError, ValueError, NotImplementedError):
        return None
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(5):
            found = both(q, k, v)
        jax.block_until_ready(found)
        taken.append((time.perf_counter() - start) / 5)
    return measure.median(taken), found


def apart(these, those):
    """The largest difference of arrays of two tuples over the largest value."""

    def one(a, b):
        a, b = (x.astype(jnp.float32) for x in (a, b))
        return float(jnp.abs(a - b).max() / jnp.abs(b).max())

    return max(one(a, b) for a, b in zip(these, those, strict=True))


def shown(row):
    """The row that is printed."""

    def text(value, form):
        return form.format(value) if value is not None else "-"

    xla = row["xla_seconds"]
    found = {k: row[k] for k in ("stack", "tokens", "heads", "head_width", "batch")}
    found["xla, ms"] = f"{1e3 * xla:.2f}"
    for name in ("cudnn", "triton"):
        own = row.get(f"{name}_seconds")
        found |= {
            f"{name}, ms": text(own and 1e3 * own, "{:.2f}"),
            f"xla / {name}": text(own and xla / own, "{:.2f}"),
            f"{name} differs by": text(row.get(f"{name}_difference"), "{:.0e}"),
        }
    return found


def main():
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", help="append lines of JSON here")
    args = parser.parse_args()
    rows = []
    for name, (tokens, heads, width) in STACKS.items():
        shape = (args.batch, tokens, heads, width)
        runs = {k: measured(k, shape, jnp.bfloat16, args.repeats) for k in KERNELS}
        row = {"stack": name, "tokens": tokens, "heads": heads, "head_width": width}
        row["batch"] = args.batch
        for kernel, run in runs.items():
            row[f"{kernel}_seconds"] = run and run[0]
            if run and kernel != "xla":
                row[f"{kernel}_difference"] = apart(run[1], runs["xla"][1])
        measure.write({"benchmark": "attention", **row}, args.output)
        rows.append(shown(row))
    print(measure.table(rows))


if __name__ == "__main__":
    main()
