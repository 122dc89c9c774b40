"""Features of a folder of images: python -m ddae.features WORKDIR FOLDER OUT.npz

Every image file below FOLDER is read, resized and cut to its centre as in the run's
evaluations, encoded by the workdir's newest checkpoint, never masked, and written to
OUT.npz: features [n, d] (or [n, patches, d]), float32, and files [n]. Exit codes: 0; 2
wrong arguments or data.
"""

import os
import sys
from typing import Any, Literal

import jax
import numpy as np

from ddae import commands, data, settings
from ddae.data.folder import FolderRecords
from ddae.data.images import ImageSource
from ddae.eval.evaluator import over
from ddae.settings import UserError
from ddae.train.encoder import read_encoder
from ddae.train.loading import describe
from ddae.train.sharding import MeshSettings, make_mesh
from ddae.train.step import OnDevices


def extract(
    workdir: str,
    folder: str,
    tap: int = 0,
    pool: Literal["mean", "cls", "none"] = "mean",
    on_error: str = "raise",
) -> tuple[np.ndarray, list[str]]:
    """(features, float32, the files they are of) for the images below `folder`.

    tap: the block to read, 0 for the last, or the one that a probe reads. pool: mean of
    the patches, cls, or none. on_error: "skip" leaves out files that cannot be decoded,
    however many.
    """
    params, encode, shape = read_encoder(workdir)
    config = describe(workdir)["config"]["data"]
    config |= {
        "eval_crop": data.crop_of(config),
        "on_error": on_error,
        "max_bad": sys.maxsize,  # the run's is for its own images
    }
    chosen = settings.build(data.DataSettings, config, "data.")
    source = ImageSource(records := FolderRecords(folder, "features"), shape, chosen)

    def pooled(params: Any, images: jax.Array) -> jax.Array:
        found = encode(params, images, tap)
        return found.patches if pool == "none" else found.pooled(pool)

    # A tap or a cls token that is not there is refused before images are read.
    jax.eval_shape(pooled, params, jax.ShapeDtypeStruct((1, *shape), np.uint8))
    mesh = make_mesh(MeshSettings(), batch_size=jax.device_count(), accumulate=1)
    function = OnDevices(mesh)(pooled)
    indices = np.arange(len(source))
    features, _ = over(source, indices, function, params, "features")
    files = [name for i, name in enumerate(records.files) if i not in source.bad]
    return features, files


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = commands.parser("ddae.features", __doc__)
    parser.add_argument("workdir")
    parser.add_argument("folder")
    parser.add_argument("out", metavar="OUT.npz")
    parser.add_argument("--tap", type=int, default=0, help="0: the last, or a probe's")
    parser.add_argument("--pool", choices=("mean", "cls", "none"), default="mean")
    parser.add_argument("--on_error", choices=("raise", "skip"), default="raise")
    return commands.run(_features, parser, argv)


def _features(args: Any) -> None:
    if not args.out.endswith(".npz"):
        raise UserError(f"{args.out} does not end in .npz")
    if not os.path.isdir(folder := os.path.dirname(args.out) or "."):
        raise UserError(f"no folder {folder} for {args.out}; make it first")
    features, files = extract(
        args.workdir, args.folder, args.tap, args.pool, args.on_error
    )
    with commands.whole(args.out) as file:
        np.savez(file, features=features, files=np.array(files))
    print(f"{args.out}: features {features.shape} of {len(files)} images")


if __name__ == "__main__":
    sys.exit(main())
