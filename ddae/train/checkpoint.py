"""Checkpoints over Orbax: the whole state, and enough beside it to say what it is."""

import contextlib
import dataclasses
import fcntl
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from ddae.settings import NOT_SET, UserError, changed
from ddae.storage import AGAIN, StorageError, is_remote, unusable
from ddae.train.digest import digests, nonfinite
from ddae.train.processes import first_word, together
from ddae.train.state import NonFiniteError, TrainState
from ddae.train.stored import (
    Alone,
    DamagedError,
    checkpoints_of,
    checksum,
    committed,
    first_line,
    item_metadata_of,
    items_of,
    move_away,
    newest_of_all,
    open_manager,
    read_items,
    read_meta,
    shapes_of,
    state_of,
    sweep,
    verify,
    write_few_slices,
)

SAME = (
    r"(task|image_size|data\.(mean|std))$"
    r"|model\.(size|style|gelu|positions|position_grid)$"
    r"|(method|classifier|mixing|segmenter|tokenizer)\.(?!.*(workdir|\.dtype)$)"
)
"""Keys of a config that a resumed run cannot change, as its weights were learned for
them. Not among them: where frozen networks lie, and a decoder's precision."""


ENDING_SECONDS = 60.0
"""How long one of several processes that fails waits for what is being written."""


class CheckpointError(StorageError):
    """A checkpoint that could not be written; the run cannot go on (exit code 1)."""


class Checkpoints:
    """The folder `checkpoints` of a workdir; each step is written in the background.

    A step counts only with Orbax's commit file in it, so a run may be killed at any
    moment. Every array is written with a checksum, which is verified when it is read.
    `params` is an item of its own: an encoder is read without the optimiser. A second
    run in the same workdir is refused.

    keep: the newest steps that stay. keep_every_steps: multiples of it stay too; 0 is
    none. keep_best: a value of an evaluation; the step where it is largest stays. Each
    checkpoint knows the values of those before it, so a resumed run does too; its own
    comes after it, and is in the log.
    """

    def __init__(
        self,
        workdir: str,
        *,
        keep: int = 3,
        keep_every_steps: int = 0,
        keep_best: str = "",
    ):
        self._keep_best = keep_best
        self._values: dict[int, float] = {}
        with together(UserError):
            self._lock = lock(epath.Path(workdir))
        self.folder = checkpoints_of(workdir)
        try:
            if self.folder.exists() and not self.folder.is_dir():
                raise UserError(f"{self.folder} is a file; take another --workdir")
            sweep(self.folder)
            write_few_slices()
            kept = _preserved(keep, keep_every_steps, self._values)
            self._manager = open_manager(self.folder, kept)
            newest_of_all(self._manager, self.folder)
        except BaseException:
            self._unlock()
            raise

    def latest(self) -> int | None:
        """The newest committed step."""
        return self._manager.latest_step()

    def last_good(self) -> str:
        """What to go on from, for the end of a message; what is being written is not
        yet."""
        good = committed(self.folder)
        return f"the last good one is step {max(good)}" if good else "none is there yet"

    def evaluated(self, step: int, values: Mapping[str, Any]) -> None:
        """Remembers the evaluation of `step` for keep_best; the same in all processes.

        Raises `UserError` where it has no such value.
        """
        if not self._keep_best:
            return
        if self._keep_best not in values:
            raise UserError(
                f"config.keep_best={self._keep_best!r} is not among what was evaluated:"
                f" {', '.join(sorted(values)) or 'nothing'}"
            )
        if np.isfinite(value := float(values[self._keep_best])):
            self._values[step] = value

    def save(
        self,
        state: TrainState,
        step: int,
        config: Mapping[str, Any],
        data_state: Mapping[str, Any],
    ) -> None:
        """Starts writing `state`; a step that is already there is left as it is.

        data_state: what must be equal for the batches after `step` to be the same.
        Raises `NonFiniteError` for a state with a value that is not finite,
        `CheckpointError` where this or the last step could not be written.
        """
        if step == self.latest():
            return
        if bad := nonfinite(state):
            self.wait()
            raise NonFiniteError(
                f"{bad[0]} is not finite at step {step}, so the state was not saved in"
                f" {self.folder}; {self.last_good()}"
            )
        items = items_of(state)
        meta = {
            "step": step,
            "config": dict(config),
            "data": dict(data_state),
            "digests": {name: digests(tree) for name, tree in items.items()},
            "best": {
                "name": self._keep_best,
                "values": {str(step): value for step, value in self._values.items()},
            },
        }
        args = ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
            meta=ocp.args.JsonSave(meta | {"crc": checksum(meta)}),
        )
        with self._writing(step):
            saved = self._manager.save(step, args=args, force=True)
            if not saved:
                raise RuntimeError("it holds a later one")

    def failed(self) -> bool:
        """Whether a save in the background has failed in this process."""
        return self._manager.failure is not None

    def give_up(self) -> NoReturn:
        """Raises `CheckpointError` in all processes, with the cause of the one whose
        save has failed: no process may wait for it."""
        error = self._manager.failure
        cause = first_word(first_line(error) if error else "")
        raise self._unwritten("a checkpoint", RuntimeError(cause)) from error

    def check(
        self,
        shapes: TrainState,
        data_state: Mapping[str, Any],
        config: Mapping[str, Any],
        spelled_out: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    ) -> dict[str, tuple[Any, Any]]:
        """{key: (old, new value)} of what `config` has otherwise than the checkpoint to
        go on from. spelled_out: a config with its defaults, which a key means that only
        one of the two has.

        Raises `UserError` for what must be the same: the data state, what is learned
        (`SAME`), the shape of a parameter of `shapes` (from `jax.eval_shape`). Compiles
        nothing.
        """
        for step in self._newest_first():
            # `restore` takes one before it.
            with contextlib.suppress(DamagedError, StorageError):
                meta = self._meta(step)
                stored = shapes_of(item_metadata_of(self._manager, self.folder, step))
                break
        else:
            return {}
        stored_data = meta.get("data", {})
        for field, value in stored_data.items():
            if data_state.get(field) != value:
                raise UserError(
                    f"checkpoint {self.folder}/{step} was trained on data with {field}"
                    f" {value!r}, this config has {data_state.get(field)!r}; use its"
                    " own data, seed and batch size, or another --workdir"
                )
        wanted = shapes_of(shapes.params)
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                raise UserError(
                    f"checkpoint {self.folder}/{step} holds {name} of shape"
                    f" {stored.get(name, 'none')}, this config makes"
                    f" {wanted.get(name, 'none')}; use its own config or another"
                    " --workdir"
                )
        changes = changed(spelled_out(meta.get("config", {})), spelled_out(config))
        for path, (old, new) in changes.items():
            # A key that the code has no more has nothing to be compared with.
            if re.match(SAME, path) and new is not NOT_SET:
                raise UserError(
                    f"checkpoint {self.folder}/{step} was trained with config.{path}"
                    f" {old!r}, this config has {new!r}; go on with its own, or begin"
                    " another --workdir from it with --config.init.workdir"
                )
        return changes

    def _newest_first(self) -> list[int]:
        return sorted(self._manager.all_steps(), reverse=True)

    def restore(self, shapes: TrainState) -> TrainState | None:
        """The newest state that can be read, laid out as `shapes` (with shardings).

        None at a start. A damaged step is named, moved to `damaged_checkpoints` beside
        the folder, and the one before it taken; where none is left `UserError`, or
        `StorageError` if the newest may be read another time.
        """
        reasons: dict[int, DamagedError | StorageError] = {}
        for step in self._newest_first():
            try:
                state = self._read(step, shapes)
            except (DamagedError, StorageError) as error:
                reasons[step] = error
                why = str(error).removesuffix(AGAIN)
                print(f"damaged checkpoint: {why}", file=sys.stderr, flush=True)
                continue
            for bad in reasons:
                move_away(self.folder, str(bad))
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged steps moved")
            self._manager.reload()
            return state
        if reasons:
            newest = reasons[max(reasons)]
            said = f"no checkpoint can be read: {newest}"
            if isinstance(newest, StorageError):
                raise StorageError(said) from newest
            raise UserError(
                f"{said}; bring back a copy, or start in another --workdir"
            ) from newest
        return None

    def wait(self) -> None:
        """Until all is written; `CheckpointError` where it could not be."""
        with self._writing(None):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, and lets go of the folder."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # said above, once
                self._manager.close()
            self._unlock()

    def _unlock(self) -> None:
        if self._lock:
            self._lock.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None or jax.process_count() == 1:
            self.close()
            return
        # What is being written may still end; but where one process has failed in it
        # the others wait for that one.
        ending = threading.Thread(target=self._end_quietly, daemon=True)
        ending.start()
        until = time.monotonic() + ENDING_SECONDS
        while ending.is_alive() and not self.failed() and time.monotonic() < until:
            ending.join(0.5)
        self._unlock()

    def _end_quietly(self) -> None:
        with contextlib.suppress(Exception):  # the first failure is the one to be said
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self, step: int | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds
            what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            raise self._unwritten(what, error) from error

    def _unwritten(self, what: str, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{what} could not be written to {self.folder}: {first_line(error)};"
            f" {self.last_good()}"
        )

    def _meta(self, step: int) -> dict[str, Any]:
        return read_meta(Alone(self.folder), self.folder, step)

    def _read(self, step: int, shapes: TrainState) -> TrainState:
        """The state of `step`; `DamagedError` naming the file or the leaf, or
        `StorageError`."""
        targets = items_of(shapes)
        with together(DamagedError):
            meta = self._meta(step)
            alone = Alone(self.folder)
            restored = read_items(alone, self.folder, step, targets)
        # Apart: digests of what is cut are taken by all at once.
        with together(DamagedError):
            verify(self.folder, step, restored, meta)
        best = meta.get("best", {})
        if best.get("name") == self._keep_best:  # else they are of something else
            self._values |= {int(at): v for at, v in best["values"].items()}
        return state_of(restored)


def lock(workdir: epath.Path) -> Any:
    """Held for the life of a run, by its first process; None for a remote workdir."""
    if jax.process_index() != 0 or is_remote(str(workdir)):
        return None
    try:
        file = open(workdir / ".lock", "w")
    except OSError as error:
        raise unusable(f"{workdir} cannot be written", error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(
            f"another run is at work in {workdir}; wait for it, or take another"
            " --workdir"
        ) from error
    except OSError as error:  # some network file systems have no locks
        print(
            f"warning: {workdir} cannot be locked ({error.strerror}): see that no other"
            " run works in it",
            file=sys.stderr,
            flush=True,
        )
    return file


def _preserved(keep: int, every: int, values: Mapping[int, float]) -> Any:
    policies = ocp.checkpoint_managers
    kept: list[Any] = [policies.LatestN(keep), _Best(values)]
    if every:
        kept.append(policies.EveryNSteps(every))
    return policies.AnyPreservationPolicy(kept)


@dataclasses.dataclass
class _Best:
    """Keeps the step with the largest of `values`, the later of equals. Orbax's own
    looks at what was known when a step was saved, which a SIGTERM may be before."""

    values: Mapping[int, float]

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        steps = [info.step for info in checkpoints]
        scored = [step for step in steps if step in self.values]
        best = max(scored, key=lambda step: (self.values[step], step), default=None)
        return [step == best for step in steps]
