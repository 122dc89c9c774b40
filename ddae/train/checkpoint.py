"""Checkpoints over Orbax: the whole state, and enough beside it to say what it is."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax import Array

from ddae import tasks
from ddae.models.vit import Features
from ddae.settings import UserError
from ddae.train.optimizer import path_name
from ddae.train.state import TrainState

Tree = Any


class Checkpoints:
    """The folder `checkpoints` of a workdir; each step is written in the background.

    A step counts only with Orbax's commit file in it, so a run may be killed at any
    moment. `params` is an item of its own: an encoder is read without the optimiser.
    """

    def __init__(self, workdir: str, *, keep: int = 3):
        self.folder = os.path.join(os.path.abspath(workdir), "checkpoints")
        self._manager = _manager(self.folder, keep)

    def latest(self) -> int | None:
        """The newest committed step."""
        return self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        step: int,
        config: Mapping[str, Any],
        data_state: Mapping[str, Any],
    ) -> None:
        """Starts writing `state`; a step that is already there is left as it is.

        data_state: what must be equal for the batches after `step` to be the same.
        """
        if step == self.latest():
            return
        params, training = _split(state)
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                training=ocp.args.StandardSave(training),
                meta=ocp.args.JsonSave(
                    {"step": step, "config": dict(config), "data": dict(data_state)}
                ),
            ),
        )
        if not saved:
            raise RuntimeError(
                f"step {step} was not saved: {self.folder} holds a later one"
            )

    def check(self, shapes: TrainState, data_state: Mapping[str, Any]) -> None:
        """Raises `UserError` naming what the newest checkpoint has otherwise: a field
        of the data state, or the shape of a parameter of `shapes` (from
        `jax.eval_shape`). Compiles nothing."""
        step = self.latest()
        if step is None:
            return
        self._check_data(step, data_state)
        stored = _shapes(self._manager.item_metadata(step)["params"])
        wanted = _shapes(shapes.params)
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                raise UserError(
                    f"checkpoint {self.folder}/{step} holds {name} of shape"
                    f" {stored.get(name, 'none')}, this config makes"
                    f" {wanted.get(name, 'none')}; use its own config or another"
                    " --workdir"
                )

    def _check_data(self, step: int, data_state: Mapping[str, Any]) -> None:
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        stored = self._manager.restore(step, args=args)["meta"].get("data", {})
        for field, value in stored.items():
            if data_state.get(field) != value:
                raise UserError(
                    f"checkpoint {self.folder}/{step} was trained on data with {field}"
                    f" {value!r}, this config has {data_state.get(field)!r}; use its"
                    " own data, seed and batch size, or another --workdir"
                )

    def restore(self, shapes: TrainState) -> TrainState | None:
        """The newest state, laid out as `shapes` (with shardings); None at a start."""
        step = self.latest()
        if step is None:
            return None
        params, training = _split(shapes)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(params),
                    training=ocp.args.StandardRestore(training),
                ),
            )
        except ValueError as error:
            if "structure" not in str(error):
                raise
            raise UserError(
                f"checkpoint {self.folder}/{step} holds another optimiser or teacher"
                " than this config makes; use its own config or another --workdir"
            ) from error
        return TrainState(params=restored["params"], **restored["training"])

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def load_params(workdir: str) -> tuple[Tree, dict[str, Any]]:
    """(params as NumPy arrays, the run's config) of a workdir's newest checkpoint.

    Raises `UserError` where there is none.
    """
    folder = os.path.join(os.path.abspath(workdir), "checkpoints")
    if not os.path.isdir(folder):
        raise UserError(f"no checkpoint in {folder}")
    with _manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"no checkpoint in {folder}")
        target = jax.tree.map(
            lambda x: np.empty(x.shape, x.dtype),
            _plain(manager.item_metadata(step)["params"]),
            is_leaf=lambda x: hasattr(x, "shape"),
        )
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
            ),
        )
    return restored["params"], restored["meta"]["config"]


def load_encoder(workdir: str) -> Callable[[Array], Features]:
    """The encoder of a workdir's newest checkpoint, as a function of images.

    images: [b, height, width, c], float in [0, 1] or uint8, at the run's own size; they
    are standardised with the run's mean and deviation and never masked.
    """
    params, config = load_params(workdir)
    encode = jax.jit(tasks.from_config(config).encode)
    return lambda images: encode(params, images)


def _manager(folder: str, keep: int | None = None) -> ocp.CheckpointManager:
    mode = ocp.options.AtomicityMode.COMMIT_FILE
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, atomicity_options=ocp.options.AtomicityOptions(mode=mode)
    )
    handlers = {
        "params": ocp.StandardCheckpointHandler(),
        "training": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def _split(state: TrainState) -> tuple[Tree, dict[str, Tree]]:
    fields = dict(vars(state))
    return fields.pop("params"), fields


def _plain(tree: Tree) -> Tree:
    """Orbax wraps the metadata of a tree."""
    return getattr(tree, "tree", tree)


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(
        _plain(tree), is_leaf=lambda x: hasattr(x, "shape")
    )
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}
