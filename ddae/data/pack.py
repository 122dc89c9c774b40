"""Holds a small set of images as arrays, for data.name=npz, which decodes nothing.

python -m ddae.data.pack OUT --name=folder --dir=DIR --image_size=32
python -m ddae.data.pack OUT --name=tfds/cifar10 --image_size=32

Writes OUT/train.npz and OUT/test.npz: images [n, h, w, c], uint8, each read as an
evaluation reads it, labels [n] and class_names [k]. Then --config.data.name=npz
--config.data.dir=OUT.
Exit codes: 0; 2 wrong arguments or data.
"""

import os
import sys
from typing import Any

import numpy as np

from ddae import commands
from ddae.data import DataSettings, from_settings, shown_batches
from ddae.settings import UserError


def pack(out: str, data: DataSettings, image_size: tuple[int, int]) -> dict[str, int]:
    """Writes both splits below `out` at (height, width), without records that `data`
    says to skip; {file: images}. Raises `UserError`."""
    splits = from_settings(data, (*image_size, len(data.mean)))
    os.makedirs(out, exist_ok=True)
    counts = {}
    for name, source in (("train", splits.train), ("test", splits.held_out)):
        batches = list(shown_batches(source, np.arange(len(source)), name))
        images = np.concatenate([batch["image"] for batch in batches])
        labels = np.concatenate([batch["label"] for batch in batches])
        path = os.path.join(out, f"{name}.npz")
        with commands.whole(path) as file:
            names = np.array(source.class_names, str)
            np.savez(file, images=images, labels=labels, class_names=names)
        counts[path] = len(images)
    return counts


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = commands.parser("ddae.data.pack", __doc__)
    parser.add_argument("out")
    parser.add_argument("--name", default="folder", help="folder, tar or tfds/SET")
    parser.add_argument("--dir", default="", help="the set's folder")
    parser.add_argument("--train_split", default="train")
    parser.add_argument("--eval_split", default="test")
    parser.add_argument(
        "--image_size",
        type=commands.size,
        default=(32, 32),
        help="pixels: SIDE, or HEIGHT,WIDTH",
    )
    parser.add_argument("--channels", type=int, default=3, help="1 for grey")
    parser.add_argument("--on_error", choices=("raise", "skip"), default="raise")
    return commands.run(_pack, parser, argv)


def _pack(args: Any) -> None:
    if args.channels not in (1, 3):
        raise UserError(f"--channels={args.channels} is not 1 or 3")
    data = DataSettings(
        name=args.name,
        dir=args.dir,
        train_split=args.train_split,
        eval_split=args.eval_split,
        mean=(0.0,) * args.channels,
        std=(1.0,) * args.channels,
        on_error=args.on_error,
        max_bad=sys.maxsize,
    )
    for path, count in pack(args.out, data, args.image_size).items():
        height, width = args.image_size
        print(f"{path}: {count} images of {height} x {width} px")


if __name__ == "__main__":
    sys.exit(main())
