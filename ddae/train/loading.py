"""What a run has saved, read without its lock."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from ddae.settings import UserError
from ddae.train.state import TrainState
from ddae.train.stored import (
    DamagedError,
    checkpoints_of,
    item_metadata_of,
    items_of,
    newest_of_all,
    open_manager,
    read_items,
    read_meta,
    state_of,
    verify,
)

Tree = Any


def run_of(workdir: str) -> tuple[str, int | None]:
    """(the run's workdir, the step) of WORKDIR/checkpoints/STEP; of a workdir, None."""
    path = epath.Path(workdir)
    of_step = path.name.isdigit() and path.parent.name == "checkpoints"
    if of_step and not (path / "checkpoints").exists():  # nor a run of such a name
        return str(path.parent.parent), int(path.name)
    return workdir, None


@contextlib.contextmanager
def reading(workdir: str) -> Iterator[tuple[Any, epath.Path, int]]:
    """(a manager, its folder, the step) of what `workdir` names, as `run_of` says; a
    `DamagedError` within is the user's."""
    workdir, step = run_of(workdir)
    folder = checkpoints_of(workdir)
    if not folder.is_dir():
        raise UserError(f"no checkpoint in {folder}; name the workdir of a run")
    with open_manager(folder) as manager:
        newest = newest_of_all(manager, folder)
        there = sorted(manager.all_steps())
        if newest is None:
            raise UserError(f"no checkpoint in {folder}; name the workdir of a run")
        step = newest if step is None else step
        if step not in there:
            known = ", ".join(map(str, there))
            raise UserError(f"no step {step} in {folder}; there are {known}")
        try:
            yield manager, folder, step
        except DamagedError as error:
            raise UserError(f"damaged checkpoint: {error}") from error


def load_params(workdir: str, average: bool = False) -> tuple[Tree, dict[str, Any]]:
    """(params as NumPy arrays, the run's config) of a workdir's newest checkpoint, or
    of the one that WORKDIR/checkpoints/STEP names.

    average: the moving average, which DDAE's and data2vec's teacher is: its "encoder"
    alone. Of a classifier that keeps one always that: it is what was evaluated. Raises
    `UserError` where there is no checkpoint or average, or where it is damaged.
    """
    with reading(workdir) as (manager, folder, step):
        meta = read_meta(manager, folder, step)
        averaged = average or meta["config"].get("classifier", {}).get("average")
        item = "training" if averaged else "params"
        target = jax.tree.map(
            lambda x: np.empty(x.shape, x.dtype),
            item_metadata_of(manager, folder, step, item),
            is_leaf=lambda x: hasattr(x, "shape"),
        )
        restored = read_items(manager, folder, step, {item: target})
        verify(folder, step, restored, meta)
    found = restored[item]
    if averaged and not found["ema_params"]:
        raise UserError(f"{workdir} keeps no moving average: nothing in it has one")
    return found["ema_params"] if averaged else found, meta["config"]


def load_state(workdir: str, shapes: TrainState) -> TrainState:
    """The whole newest state of a workdir as NumPy arrays, taking no lock.

    shapes: from `jax.eval_shape`, of the run's own config. Raises `UserError` as
    `load_params`, and where the checkpoint is of another optimiser or teacher.
    """
    with reading(workdir) as (manager, folder, step):
        meta = read_meta(manager, folder, step)
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
        restored = read_items(manager, folder, step, items_of(target))
        verify(folder, step, restored, meta)
    return state_of(restored)


def describe(workdir: str) -> dict[str, Any]:
    """step, config and data of the newest checkpoint, and all `steps` there are.

    Raises `UserError` where there is none, or where it is damaged.
    """
    with reading(workdir) as (manager, folder, step):
        meta = read_meta(manager, folder, step)
        steps = sorted(manager.all_steps())
    return {"steps": steps, "data": {}} | meta
