"""Attention alone, forward and backward: XLA's against cuDNN's, at every stack's shape.

python benchmarks/attention.py [--batch=256] [--output=FILE.jsonl]

The table behind `ddae.models.vit.FLASH_FROM`. Where cuDNN cannot run, "-" says so.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import measure

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


def seconds(implementation, shape, dtype, repeats):
    """Of one forward and backward pass; None where it cannot run."""
    q, k, v = (
        jax.random.normal(jax.random.key(i), shape).astype(dtype) for i in range(3)
    )

    @jax.jit
    def gradient(q, k, v):
        def loss(q, k, v):
            found = jax.nn.dot_product_attention(q, k, v, implementation=implementation)
            return found.astype(jnp.float32).sum()

        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    try:
        jax.block_until_ready(gradient(q, k, v))
    except (RuntimeError, ValueError, NotImplementedError):
        return None
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(5):
            found = gradient(q, k, v)
        jax.block_until_ready(found)
        taken.append((time.perf_counter() - start) / 5)
    return measure.median(taken)


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
        found = {
            kernel: seconds(kernel, shape, jnp.bfloat16, args.repeats)
            for kernel in ("xla", "cudnn")
        }
        row = {"stack": name, "tokens": tokens, "heads": heads, "head_width": width}
        row |= {"batch": args.batch, **{f"{k}_seconds": s for k, s in found.items()}}
        measure.write({"benchmark": "attention", **row}, args.output)
        row |= {f"{k}, ms": f"{1e3 * s:.2f}" if s else "-" for k, s in found.items()}
        faster = found["xla"] / found["cudnn"] if found["cudnn"] else None
        row["xla / cudnn"] = f"{faster:.2f}" if faster else "-"
        rows.append({k: v for k, v in row.items() if not k.endswith("_seconds")})
    print(measure.table(rows))


if __name__ == "__main__":
    main()
