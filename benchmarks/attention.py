"""Attention alone, forward and backward: XLA's, cuDNN's, and the kernel in Pallas.

python benchmarks/attention.py [--batch=512] [--output=FILE.jsonl]

The table behind "auto" of `ddae.models.kernels`, at every stack's shape, each with what
a stack gives it: cuDNN's an even number of tokens, Pallas's one array of queries, keys
and values and their bias. Where one cannot run, "-" says so; else outputs and gradients
are compared with XLA's: the largest difference over the largest value, which bfloat16
leaves near .01.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import measure

from ddae.models.kernels import attend, flash
from ddae.models.short_attention import fits, short_attention

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


def cudnn(q, k, v):
    """With a token more where their number is odd; it is there before, in a stack."""
    t = q.shape[1]
    more = ((0, 0), (0, t % 2), (0, 0), (0, 0))
    arrays = [jnp.pad(x, more) for x in (q, k, v)]
    return lambda q, k, v: flash(q, k, v, t), arrays


def pallas(q, k, v):
    """On a CPU as Pallas interprets it."""
    if not fits(q.shape[1], q.shape[3]):
        raise ValueError("too many tokens for heads of this width")
    bias = jnp.zeros((3, *q.shape[2:]), q.dtype)
    interpret = jax.default_backend() == "cpu"
    return (
        lambda qkv: short_attention(qkv, bias, interpret),
        [jnp.stack([q, k, v], axis=2)],
    )


KERNELS = {"xla": lambda *arrays: (attend, arrays), "cudnn": cudnn, "pallas": pallas}
"""The function, and the arrays that it takes, of queries, keys and values."""


def measured(kernel, shape, dtype, repeats):
    """(seconds of one forward and backward pass, what it gives); None where it cannot
    run."""
    *arrays, weights = (
        jax.random.normal(jax.random.key(i), shape).astype(dtype) for i in range(4)
    )

    @jax.jit
    def both(arrays, weights):
        out, gradients = jax.vjp(function, *arrays)
        return out, gradients(weights)

    try:
        function, arrays = KERNELS[kernel](*arrays)
        more = arrays[0].shape[1] - shape[1]
        weights = jnp.pad(weights, ((0, 0), (0, more), (0, 0), (0, 0)))
        out, gradients = jax.block_until_ready(both(arrays, weights))
    except (ImportError, RuntimeError, ValueError, NotImplementedError):
        return None
    taken = seconds_of(lambda: both(arrays, weights), repeats)
    if len(gradients) == 1:
        gradients = jnp.unstack(gradients[0], axis=2)
    return taken, [x[:, : shape[1]] for x in (out, *gradients)]


def seconds_of(call, repeats):
    """The median of one call, of five that are on their way at once."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready([call() for _ in range(5)])
        taken.append((time.perf_counter() - start) / 5)
    return measure.median(taken)


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
    for name in ("cudnn", "pallas"):
        own = row.get(f"{name}_seconds")
        found |= {
            f"{name}, ms": text(own and 1e3 * own, "{:.2f}"),
            f"xla / {name}": text(own and xla / own, "{:.2f}"),
            f"{name} differs by": text(row.get(f"{name}_difference"), "{:.0e}"),
        }
    return found


def arguments(about):
    """Of a benchmark of attention alone."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", help="append lines of JSON here")
    return parser.parse_args()


def main():
    """Runs the benchmark and prints its table."""
    args = arguments(__doc__)
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
