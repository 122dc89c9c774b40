"""Mean IoU of a segmenter by sliding windows, every held-out image counted once."""

import dataclasses
import functools
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from ddae.data import Splits, sample
from ddae.data.scene_augment import IGNORED, fitted, resized, sides
from ddae.data.scenes import SceneSource
from ddae.eval.evaluator import OnDevices, cut_over, with_bar
from ddae.eval.scene_figures import Scene, draw_classes, draw_scenes
from ddae.eval.sliding import Pair, make_stitch, window_grid, windows
from ddae.settings import UserError
from ddae.tasks import Task
from ddae.tasks.segment import Segment

CANVAS = 256
"""Labels are padded to a multiple of this: few shapes, few compiled programs."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Images with as many windows each, one a row; index -1 is none.

    grid: windows down and across. canvas: what the labels are padded to.
    """

    indices: tuple[int, ...]
    grid: Pair
    canvas: Pair


def make_miou(
    task: Task,
    splits: Splits,
    on_devices: OnDevices,
    *,
    stride: int = 0,
    scale: tuple[int, int] = (0, 0),
    images_a_device: int = 1,
    num_held_out: int = 0,
    num_figures: int = 4,
):
    """An evaluator: miou, mean_accuracy and pixel_accuracy in %, iou/CLASS and
    accuracy/CLASS, a table of them, and a figure.

    Windows as large as training crops, `stride` pixels apart (0: two thirds of them),
    of images fitted into the (long, short) sides of `scale`; (0, 0) leaves them. Scores
    are averaged, brought to the image's own size, and compared with its labels there.
    constant_miou: what the best single class everywhere would reach. images_a_device:
    how many go through at a time. num_held_out: drawn once at random; 0 takes all.
    """
    source = splits.held_out
    if not isinstance(task, Segment) or not isinstance(source, SceneSource):
        raise UserError(
            "config.evaluators.miou wants config.task=segment and"
            " config.data.name=scenes; remove it"
        )
    if source.num_classes != task.num_classes:
        raise UserError(
            f"config.segmenter.num_classes={task.num_classes}, but"
            f" config.data.scenes.num_classes={source.num_classes}"
        )
    widest = min(task.image_shape[:2])  # beyond it, windows leave pixels out
    if images_a_device < 1 or not 0 <= stride <= widest or not sides(scale):
        raise UserError(
            "config.evaluators.miou wants images_a_device of 1 or more, a stride of 0"
            f" to {widest} pixels, and as scale a pair of positive sides or (0, 0)"
        )
    sliding = Sliding(
        task, source, on_devices, stride, (scale[0], scale[1]), images_a_device
    )
    indices = sample(source, num_held_out)
    chunks = sliding.plan(indices)
    shown = np.random.default_rng(0).permutation(indices)[:num_figures].tolist()

    def run(params: Any, step: int) -> dict[str, float | np.ndarray]:
        confusion, predicted = sliding.run(params, chunks, shown)
        values = values_of(confusion, source.class_names)
        table = class_table(confusion)
        title = f"step {step}: mIoU {values['miou']:.2f} %"
        values["class_table"] = draw_classes(source.class_names, *table, title)
        # Without those that turned out bad, which have a size, and so a prediction.
        found = {i: scene for i in predicted if (scene := source.scene(i))}
        if found:
            own = [predicted[i] for i in found]
            values["segmentation"] = draw_scenes(
                list(found.values()), own, source.class_names, title
            )
        return values

    return run


class Sliding:
    """Confusion matrices of `source` under `task`, by windows over all devices.

    Each process reads the images of its own devices alone.
    """

    def __init__(
        self,
        task: Segment,
        source: SceneSource,
        on_devices: OnDevices,
        stride: int,
        scale: Pair,
        images_a_device: int,
    ):
        self.source, self.scale, self.mesh = source, scale, on_devices.mesh
        height, width, _ = task.image_shape
        self.crop = (height, width)
        self.stride = (stride or 2 * height // 3, stride or 2 * width // 3)
        self.rows = images_a_device * self.mesh.size
        self.sharding = NamedSharding(
            self.mesh, PartitionSpec(tuple(self.mesh.axis_names))
        )
        self._scores = jax.jit(task.scores, out_shardings=self.sharding)
        self._stitch = functools.cache(
            functools.partial(
                make_stitch, self.mesh, crop=self.crop, stride=self.stride
            )
        )
        # One pixel over all devices: this is how a stop asked of any process is seen
        # by all of them, how a long evaluation shows that it is alive, and how it is
        # seen that all have the same plan.
        self._tick = on_devices(lambda _, pixel: pixel)

    def plan(self, indices: Int[np.ndarray, " k"]) -> list[Chunk]:
        """Every image once, in chunks of one shape; the same in every process."""
        groups: dict[tuple[Pair, Pair], list[int]] = {}
        with ThreadPoolExecutor() as pool:
            shapes = list(pool.map(self.source.shape, map(int, indices)))
        for index, shape in zip(indices, shapes, strict=True):
            if shape is not None:
                grid = window_grid(fitted(shape, self.scale), self.crop, self.stride)
                down, across = (-(-side // CANVAS) * CANVAS for side in shape)
                groups.setdefault((grid, (down, across)), []).append(int(index))
        return [
            Chunk(_filled(group[start : start + self.rows], self.rows), grid, canvas)
            for (grid, canvas), group in sorted(groups.items())
            for start in range(0, len(group), self.rows)
        ]

    def run(
        self, params: Any, chunks: list[Chunk], shown: list[int]
    ) -> tuple[Int[np.ndarray, "k k"], dict[int, Int[np.ndarray, "h w"]]]:
        """(confusion matrix, truth by prediction; predictions of the images `shown`)"""
        k = self.source.num_classes
        confusion = np.zeros((k, k), np.int64)
        predicted: dict[int, np.ndarray] = {}
        for chunk, loaded in with_bar(self._loaded(chunks), "mIoU", len(chunks)):
            planned = zlib.crc32(repr(chunk).encode())
            self._tick({}, np.full((1, 1, 1, 1), planned, np.float32))
            counts, labels = self._chunk(params, chunk, loaded)
            confusion += np.asarray(counts)
            for row, index in enumerate(chunk.indices):
                if index in shown:
                    h, w = self.source.shape(index) or (0, 0)
                    predicted[index] = np.asarray(labels)[row, :h, :w]
        return confusion, {i: predicted[i] for i in shown if i in predicted}

    def _loaded(self, chunks: list[Chunk]) -> Iterator[tuple[Chunk, dict[int, Scene]]]:
        """Each chunk with this process's scenes by row, read one chunk ahead."""
        places = self.sharding.addressable_devices_indices_map((self.rows,)).values()
        own = np.unique([np.arange(self.rows)[place] for place in places]).tolist()
        with ThreadPoolExecutor() as pool:

            def ask(chunk: Chunk) -> dict[int, Future[Any]]:
                return {
                    row: pool.submit(self.source.scene, chunk.indices[row])
                    for row in own
                    if chunk.indices[row] >= 0
                }

            asked = ask(chunks[0]) if chunks else {}
            for number, chunk in enumerate(chunks):
                found = {row: future.result() for row, future in asked.items()}
                asked = ask(chunks[number + 1]) if number + 1 < len(chunks) else {}
                yield chunk, {row: scene for row, scene in found.items() if scene}

    def _chunk(self, params: Any, chunk: Chunk, loaded: dict[int, Scene]) -> Any:
        crop, (down, across) = self.crop, chunk.grid
        number, fill = down * across, self.source.fill
        cut = np.zeros((self.rows, number, *crop, 3), np.uint8)
        sizes = np.tile(np.asarray(crop, np.int32), (self.rows, 1))
        shapes = sizes.copy()
        labels = np.full((self.rows, *chunk.canvas), IGNORED, np.int32)
        for row, (image, truth) in loaded.items():
            height, width = truth.shape
            image = resized(image, fitted((height, width), self.scale))
            cut[row] = windows(image, crop, self.stride, fill)
            sizes[row], shapes[row] = image.shape[:2], truth.shape
            labels[row, :height, :width] = truth
        put = functools.partial(cut_over, self.mesh)
        scores = tuple(self._scores(params, put(cut[:, i])) for i in range(number))
        stitch = self._stitch(grid=chunk.grid, canvas=chunk.canvas)
        return stitch(scores, *map(put, (sizes, shapes, labels)))


def _filled(indices: list[int], rows: int) -> tuple[int, ...]:
    return (*indices, *[-1] * (rows - len(indices)))


def class_table(
    confusion: Int[np.ndarray, "k k"],
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """(IoU, accuracy, share of the labelled pixels) of each class, in %.

    IoU is NaN for a class that is neither true nor predicted anywhere, accuracy for one
    that is not true anywhere.
    """
    right = np.diag(confusion).astype(np.float64)
    true, said = confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        iou = 100.0 * right / (true + said - right)
        accuracy = 100.0 * right / true
    return iou, accuracy, 100.0 * true / max(1, confusion.sum())


def values_of(
    confusion: Int[np.ndarray, "k k"], names: tuple[str, ...]
) -> dict[str, float | np.ndarray]:
    """Means over the classes that are somewhere, and each class's own, in %."""
    total = int(confusion.sum())
    if not total:
        raise UserError("no held-out image has a labelled pixel")
    iou, accuracy, share = class_table(confusion)
    values: dict[str, float | np.ndarray] = {
        "miou": float(np.nanmean(iou)),
        "mean_accuracy": float(np.nanmean(accuracy)),
        "pixel_accuracy": 100.0 * float(np.trace(confusion)) / total,
        "constant_miou": float(share.max() / (share > 0).sum()),
    }
    for kind, column in (("iou", iou), ("accuracy", accuracy)):
        values |= {
            f"{kind}/{name.replace(' ', '_')}": float(value)
            for name, value in zip(names, column, strict=True)
            if not np.isnan(value)
        }
    return values
