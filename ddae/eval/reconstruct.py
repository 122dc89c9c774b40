"""A figure of what pretraining sees and makes: one row an image."""

from typing import Any

import jax
import numpy as np

from ddae.data import Splits
from ddae.eval.evaluator import OnDevices
from ddae.eval.figures import new_figure, to_array
from ddae.settings import UserError
from ddae.targets import Pixels
from ddae.tasks import Task
from ddae.tasks.pretrain import Pretrain, Reconstruction


def make_reconstruct(
    task: Task,
    splits: Splits,
    on_devices: OnDevices,
    *,
    num_images: int = 8,
    seed: int = 0,
):
    """An evaluator that draws `num_images` held-out images, the same at every step.

    It gives the figure `reconstruction` and `masked_rmse`, the root mean square error
    of their hidden pixels, which lie in [0, 1].
    """
    if not isinstance(task, Pretrain):
        raise UserError("config.evaluators.reconstruct draws pretraining; remove it")
    if not any(isinstance(term.target, Pixels) for term in task.method.terms):
        raise UserError(
            "config.evaluators.reconstruct draws pixels, and the method predicts none;"
            " remove it"
        )
    if num_images < 1:
        raise UserError(
            f"config.evaluators.reconstruct.num_images={num_images} must be positive;"
            " without the evaluator there is no figure"
        )
    indices = np.random.default_rng(seed).permutation(len(splits.held_out))[:num_images]
    reconstruct = jax.jit(task.reconstruct)
    given = any(
        isinstance(term.target, Pixels) and term.target.standardise
        for term in task.method.terms
    )
    note = ", hidden patches at their true mean and deviation" if given else ""

    def run(params: Any, step: int) -> dict[str, float | np.ndarray]:
        (batch,) = splits.held_out.batches(indices, len(indices))
        keys = jax.random.split(jax.random.key(seed), len(batch["label"]))
        result = jax.tree.map(np.asarray, reconstruct(params, batch["image"], keys))
        error = (result.reconstruction - result.original) ** 2
        hidden = _at_pixels(result.is_masked, error)
        rmse = float(np.sqrt((error * hidden).sum() / (hidden.sum() * error.shape[-1])))
        return {"reconstruction": draw(result, step, note), "masked_rmse": rmse}

    return run


def draw(result: Reconstruction, step: int, note: str = "") -> np.ndarray:
    """Original, masked, reconstruction with visible patches pasted in, difficulty."""
    titles = ("original", "masked", "reconstruction", "distance to visible")
    images = np.asarray(result.original)
    hidden = _at_pixels(np.asarray(result.is_masked), images)
    masked = images * (1 - hidden) + 0.5 * hidden
    rows, (height, width) = len(images), images.shape[1:3]
    tall = 1.5 * rows * height / width + 0.5
    figure, axes = new_figure(rows, len(titles), width=6.4, height=tall)
    farthest = max(float(result.distance.max()), 2.0)
    for row in range(rows):
        for column, image in enumerate((images, masked, result.reconstruction)):
            picture = image[row] if image.shape[-1] == 3 else image[row].mean(axis=-1)
            axes[row, column].imshow(picture, vmin=0, vmax=1, cmap="gray")
        axes[row, 3].imshow(result.distance[row], vmin=0, vmax=farthest)
    for column, title in enumerate(titles):
        axes[0, column].set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.colorbar(
        axes[0, 3].images[0], ax=axes[:, 3], label="patches", shrink=min(1.0, 4 / rows)
    )
    figure.suptitle(f"held-out images, step {step}{note}", fontsize=9)
    return to_array(figure)


def _at_pixels(is_masked: np.ndarray, images: np.ndarray) -> np.ndarray:
    """A grid of patches as an image of 0 and 1, [b, height, width, 1]."""
    patch = images.shape[1] // is_masked.shape[1]
    return (
        is_masked.repeat(patch, axis=1)
        .repeat(patch, axis=2)[..., None]
        .astype(np.float32)
    )
