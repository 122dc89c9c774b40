"""One process that evaluates a segmenter of random predictions: tests start several.

python tests/miou_worker.py FOLDER OUT.json [COORDINATOR PROCESSES PROCESS]

With UNSEEN in the environment that process finds no first scene.
"""

import dataclasses
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import jax
import jax.numpy as jnp
import numpy as np
import scenes

from ddae import data
from ddae.data.scenes import SceneSource
from ddae.eval.miou import make_miou
from ddae.tasks.segment import Segment
from ddae.train import cluster
from ddae.train.sharding import MeshSettings, make_mesh
from ddae.train.step import OnDevices

# Whole numbers: their means over windows order the classes as they themselves do.
TABLE = np.random.default_rng(0).permuted(
    np.tile(np.arange(scenes.CLASSES), (256, 1)), axis=1
)


@dataclasses.dataclass(frozen=True)
class ByRed(Segment):
    """Scores of a pixel are a row of TABLE, chosen by its red."""

    def scores(self, params, images):
        return jnp.asarray(TABLE, jnp.float32)[images[..., 0].astype(jnp.int32)]


def predicted(image):
    return TABLE[image[..., 0]].argmax(axis=-1)


def evaluate(folder, devices=None, **options):
    config = scenes.config(folder)
    task = ByRed(**vars(Segment.from_config(config)))
    splits = data.from_config(config, task.image_shape)
    chosen = None if devices is None else jax.devices()[:devices]
    mesh = make_mesh(MeshSettings(), 8, 1, chosen)
    options = {"num_figures": 1} | options
    return make_miou(task, splits, OnDevices(mesh), **options)({}, 0)


def main(folder, out, coordinator=None, count=None, process=None):
    number = None if count is None else int(count)
    index = None if process is None else int(process)
    cluster.start("auto", coordinator, number, index, 60)
    if os.environ.get("UNSEEN") == process:
        shape = SceneSource.shape
        SceneSource.shape = lambda self, at: shape(self, at) if at else None
    values = evaluate(folder)
    numbers = {k: v for k, v in values.items() if np.ndim(v) == 0}
    numbers["devices"] = jax.device_count()
    numbers["processes"] = jax.process_count()
    numbers["figure"] = list(values["segmentation"].shape)
    with open(f"{out}.{jax.process_index()}", "w") as file:
        json.dump(numbers, file)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
