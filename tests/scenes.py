"""Small sets of scenes in ADE20K's layout, made of blocks of colour."""

import pathlib
import zipfile

import numpy as np
from PIL import Image

CLASSES = 5
STEP = 40
"""Class k is grey of level STEP * k in images made by `blocks`."""


def blocks(seed, height=60, width=80, side=20):
    """(image, values of the labels file): blocks of one class each, some unlabelled."""
    random = np.random.default_rng(seed)
    shape = (-(-height // side), -(-width // side))
    coarse = random.integers(0, CLASSES + 1, shape)
    values = coarse.repeat(side, 0).repeat(side, 1)[:height, :width].astype(np.uint8)
    image = np.repeat((values * STEP)[..., None], 3, axis=-1).astype(np.uint8)
    return image, values


def noise(seed, height, width, share_ignored=0.2):
    """(image, labels) that have nothing to do with each other."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
    values = random.integers(1, CLASSES + 1, (height, width)).astype(np.uint8)
    values[random.random((height, width)) < share_ignored] = 0
    return image, values


def write(root, scenes, split="training"):
    """PNG both, so that pixels stay what they are."""
    root = pathlib.Path(root)
    for number, (image, values) in enumerate(scenes):
        for folder, pixels in (("images", image), ("annotations", values)):
            path = root / folder / split / f"scene_{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


def zipped(root, path, prefix="ADEChallengeData2016/"):
    """The files below `root` as the release's zip has them."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/images/training/._x.png", b"")
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(root).as_posix())
    return path


def bilinear(x, shape):
    """One pixel at a time, from the definition."""
    out = np.zeros((*shape, x.shape[-1]))
    for place in np.ndindex(*shape):
        at = [
            min(max((p + 0.5) * h / w - 0.5, 0.0), h - 1.0)
            for p, h, w in zip(place, x.shape[:2], shape, strict=True)
        ]
        low = [int(np.floor(a)) for a in at]
        for di in (0, 1):
            for dj in (0, 1):
                weight = 1.0
                for a, lo, d in zip(at, low, (di, dj), strict=True):
                    weight *= (a - lo) if d else 1.0 - (a - lo)
                row = min(low[0] + di, x.shape[0] - 1)
                column = min(low[1] + dj, x.shape[1] - 1)
                out[place] += weight * x[row, column]
    return out


def section(root, **changes):
    """config.data of a set written by `write`."""
    scenes = {"num_classes": CLASSES, "scale": (0, 0), "photometric": False}
    return {
        "name": "scenes",
        "dir": str(root),
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "train_split": "training",
        "eval_split": "validation",
        "augment": {"crop": "none", "flip": True},
        "scenes": scenes | changes.pop("scenes", {}),
    } | changes


def config(root, **changes):
    """A run of the smallest segmenter on such a set; dotted keys with __."""
    from tiny import tiny_config

    given = {
        "task": "segment",
        "image_size": 32,
        "batch_size": 8,
        "total_steps": 2,
        "model": {"size": "Two", "patch_size": 8, "channels": 3},
        "data": section(root),
        "segmenter": {
            "num_classes": CLASSES,
            "channels": 16,
            "pool_scales": (1, 2),
            "auxiliary_channels": 8,
        },
        "evaluators": {"miou": {"num_figures": 2}},
    }
    made = tiny_config(**(given | changes))
    del made["method"]
    return made
