"""Mean and deviation of a set's channels, as a config wants them, and its bad records.

python -m ddae.data.stats NAME [--dir=DIR] [--split=train] [--image_size=224]

NAME is what config.data.name takes: folder, npz, tfds/cifar10, ... (scenes are read as
folder --dir=DIR/images --split=training). Every image is read (or `--limit` of them,
drawn once at random), resized and cut to its centre; records that cannot be decoded are
listed. Printed are two lines for a config file, and the same as flags, which no shell
wants quoted. Exit codes: 0; 2 wrong arguments or data.
"""

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from ddae import commands, data
from ddae.settings import UserError


def channel_stats(
    batches: Iterable[data.Batch],
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """(mean, standard deviation) of each channel over all pixels, in [0, 1]."""
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for batch in batches:
        images = batch["image"]
        pixels = images.reshape(-1, images.shape[-1]).astype(np.float64)
        pixels /= 255.0 if images.dtype == np.uint8 else 1.0
        count += len(pixels)
        total, squares = total + pixels.sum(0), squares + (pixels**2).sum(0)
    if not count:
        raise UserError("no image could be read")
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0.0))


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = commands.parser("ddae.data.stats", __doc__)
    parser.add_argument("name", help="config.data.name")
    parser.add_argument("--dir", default="", help="config.data.dir")
    parser.add_argument("--split", default="train")
    parser.add_argument(
        "--image_size", type=commands.size, default=(224, 224), help="or HEIGHT,WIDTH"
    )
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--limit", type=int, default=0, help="0 reads every image")
    return commands.run(_stats, parser, argv)


def _stats(args: Any) -> None:
    if args.name == "scenes":
        raise UserError(
            "images of scenes are read as those of a folder: folder --dir=DIR/images"
            " --split=training"
        )
    if args.channels < 1:
        raise UserError(f"--channels={args.channels} is not 1 or more")
    section = {
        "name": args.name,
        "dir": args.dir,
        "train_split": args.split,
        "eval_split": args.split,
        "mean": (0.0,) * args.channels,
        "std": (1.0,) * args.channels,
        "on_error": "skip",
        "max_bad": sys.maxsize,
    }
    shape = (*args.image_size, args.channels)
    report(data.from_config({"data": section}, shape).train, args.limit)


def report(source: data.Source, limit: int) -> None:
    """Reads `limit` images of `source` (0: all) and prints what a config wants."""
    indices = data.sample(source, max(limit, 0))
    label = f"{len(indices)} images"
    mean, std = channel_stats(data.shown_batches(source, indices, label))
    print(f"# {len(indices) - len(source.bad)} images, {len(source.bad)} bad records")
    texts = [",".join(f"{x:.4f}" for x in values) for values in (mean, std)]
    for key, text in zip(("mean", "std"), texts, strict=True):
        print(f"config.data.{key} = ({text.replace(',', ', ')},)")
    print(f"# --config.data.mean={texts[0]} --config.data.std={texts[1]}")


if __name__ == "__main__":
    sys.exit(main())
