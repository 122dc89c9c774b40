"""What lies in a folder of checkpoints, and what can go wrong in reading it."""

import contextlib
import json
import logging
import re
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from ddae.settings import UserError
from ddae.storage import (
    AGAIN,
    StorageError,
    absolute,
    of_bucket,
    of_storage,
    patiently,
    unusable,
)
from ddae.train.digest import digests
from ddae.train.optimizer import path_name
from ddae.train.processes import of_all
from ddae.train.state import TrainState

Tree = Any


class DamagedError(ValueError):
    """A checkpoint that cannot be read, or reads otherwise than it was written."""


COMMIT = "commit_success.txt"
"""What Orbax writes into the folder of a step once all of it is there."""

MIN_SLICE_BYTES = 2**20


def write_few_slices() -> None:
    """Has Orbax write an array that several devices hold from one of them, where each
    would write less than `MIN_SLICE_BYTES`; its default cuts however small an array.

    Each cut is a program to compile, a dispatch and a copy on the device, before a save
    goes to the background: with DDAE-S on eight devices a run waited 10 s at its first
    save and 3 at others, and waits .3 (benchmarks/save.py, on two CPU cores). Orbax has
    one such setting for the process.
    """
    handler = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=MIN_SLICE_BYTES
    )
    log = logging.getLogger("absl")
    log.disabled, was = True, log.disabled  # that there is another is no warning
    try:
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    finally:
        log.disabled = was


def checkpoints_of(workdir: str) -> epath.Path:
    """The folder of a run's checkpoints."""
    return absolute(workdir) / "checkpoints"


class Manager(ocp.CheckpointManager):
    """Orbax's, with the error of a save in the background in `failure` as soon as it is
    there. Orbax itself raises it only once all processes have met, and those that did
    not fail would wait for this one. It overrides a private method: should Orbax rename
    that, a failure is merely seen later."""

    failure: Exception | None = None

    def _wait_for_checkpointers(self) -> None:
        try:
            super()._wait_for_checkpointers()
        except Exception as error:  # Orbax and TensorStore raise many kinds
            self.failure = error
            raise


class Brief:
    """A `sys.unraisablehook` that passes errors on to `shown`, but for repeated ones:
    where one array cannot be read or written, all the other arrays raise too, a
    traceback each, some only when they are garbage collected."""

    def __init__(self, shown: Callable[[Any], object]):
        self._shown = shown

    def __call__(self, what: Any) -> None:
        of_reads = "_read_array_index" in repr(what.object)
        if not of_reads and "Event loop is closed" not in str(what.exc_value):
            self._shown(what)


def _no_echo(record: logging.LogRecord) -> bool:
    """A filter of the log: False for errors of files, which are raised as well, and
    which each thread that they pass through logs with a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    named = re.search("os_error_code|OCDBT|schedule new futures", str(error))
    of_files = named or isinstance(error, OSError)
    raised = "(future|async_checkpointer|checkpoint_manager|asyncio/.*)\\.py$"
    return not of_files or not re.search(raised, record.pathname)


def _handlers(**options: Any) -> dict[str, Any]:
    """What writes and reads each item of a step."""
    return {
        "params": ocp.StandardCheckpointHandler(**options),
        "training": ocp.StandardCheckpointHandler(**options),
        "meta": ocp.JsonCheckpointHandler(**options),
    }


class Alone:
    """Reads what this process needs of a step of `folder`, and waits for no other:
    where only one cannot read its part, Orbax's own way has the others wait for it."""

    def __init__(self, folder: epath.Path):
        self._folder = folder

    def restore(self, step: int, args: Any) -> Any:
        mine = jax.process_index()
        one = ocp.options.MultiprocessingOptions(
            primary_host=mine, active_processes={mine}
        )
        handlers = _handlers(multiprocessing_options=one)
        options = ocp.CompositeOptions(multiprocessing_options=one)
        handler = ocp.CompositeCheckpointHandler(composite_options=options, **handlers)
        with ocp.Checkpointer(handler, multiprocessing_options=one) as reader:
            return reader.restore(self._folder / str(step), args=args)


def open_manager(folder: epath.Path, kept: Any = None) -> Manager:
    """Of the steps in `folder`, each with a commit file; `kept`: which of them stay."""
    mode = ocp.options.AtomicityMode.COMMIT_FILE
    options = ocp.CheckpointManagerOptions(
        preservation_policy=kept,
        atomicity_options=ocp.options.AtomicityOptions(mode=mode),
    )
    if not isinstance(sys.unraisablehook, Brief):
        sys.unraisablehook = Brief(sys.unraisablehook)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_no_echo)
    try:
        return Manager(folder, options=options, item_handlers=_handlers())
    except Exception as error:
        if not isinstance(error, OSError) and not of_bucket(error):
            raise
        raise unusable(f"{folder} cannot be used", error) from error


LISTED_SECONDS = 60.0
"""How long a process looks for a step that another one sees."""


def newest_of_all(manager: Manager, folder: epath.Path) -> int | None:
    """The newest step that any process sees, once all do; a network's folder may lag.

    Each process must call this. Raises `UserError` in all where one does not see it.
    """

    def after() -> int:  # the newest step that this process sees; 0 is none
        step = manager.latest_step()
        return 0 if step is None else step + 1

    newest = int(of_all(after()).max()) - 1
    until = time.monotonic() + LISTED_SECONDS
    while after() <= newest and time.monotonic() < until:
        time.sleep(0.5)
        manager.reload()
    sees = of_all(newest in (-1, *manager.all_steps()))
    if not sees.all():
        raise UserError(
            f"process {sees.argmin()} of {len(sees)} does not see step {newest} in"
            f" {folder}; it must be one folder for all processes"
        )
    return None if newest < 0 else newest


def committed(folder: epath.Path) -> list[int]:
    """The steps that are whole, whatever is being written."""
    with contextlib.suppress(OSError):  # as a disk's that is full or gone
        return [
            int(entry.name)
            for entry in folder.iterdir()
            if entry.name.isdigit() and (entry / COMMIT).exists()
        ]
    return []


def sweep(folder: epath.Path) -> None:
    """Removes what killed saves left, and moves other numbered folders away."""
    if jax.process_index() != 0 or not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.name.isdigit() and not (entry / COMMIT).exists():
            ours = {"params", "training", "meta", "metrics", "_CHECKPOINT_METADATA"}
            if {inner.name for inner in entry.iterdir()} <= ours:
                with contextlib.suppress(OSError):  # it does no harm
                    entry.rmtree()
            else:
                move_away(folder, entry.name)


def move_away(folder: epath.Path, name: str) -> None:
    """The step `name` to damaged_checkpoints/, beside `folder`."""
    if jax.process_index() != 0:
        return
    aside = folder.parent / "damaged_checkpoints"
    aside.mkdir(exist_ok=True)
    number = sum(entry.name.split(".")[0] == name for entry in aside.iterdir())
    target = aside / (f"{name}.{number}" if number else name)
    (folder / name).rename(target)
    print(f"moved {folder / name} to {target}", file=sys.stderr, flush=True)


PAUSES = (2.0, 8.0)
"""Seconds before another look where the storage, and no file of it, fails."""


def again(where: str, read: Callable[[], Any]) -> Any:
    """What `read` gives. A network's file system or a bucket may fail for a moment: its
    error is raised after the last of `PAUSES`, that of a file at once."""

    def failing(error: Exception) -> str:
        said = f"{where} cannot be read: {first_line(error)}"
        return said if of_storage(error) else ""

    return patiently(read, PAUSES, failing)


def unread(where: str, error: Exception) -> DamagedError | StorageError:
    """What to raise for `error`, met there: the storage may be well again, or never."""
    said = f"{where}: {first_line(error)}"
    return StorageError(f"{said}{AGAIN}") if of_storage(error) else DamagedError(said)


def read_meta(manager: Any, folder: epath.Path, step: int) -> dict[str, Any]:
    """What is written beside the arrays of `step`; `DamagedError` naming it, or
    `StorageError`."""
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    where = f"{folder}/{step}/meta"
    try:
        meta = again(where, lambda: manager.restore(step, args=args)["meta"])
    except Exception as error:  # Orbax raises what it meets
        raise unread(where, error) from error
    if not isinstance(meta, dict) or "config" not in meta:
        raise DamagedError(f"{where}: it has no config")
    crc = meta.pop("crc", None)
    if crc is not None and crc != checksum(meta):
        raise DamagedError(f"{where}: its checksum differs")
    return meta


def item_metadata_of(
    manager: Any, folder: epath.Path, step: int, item: str = "params"
) -> Any:
    """Shapes and kinds of the arrays of an item; errors as of `read_meta`."""
    where = f"{folder}/{step}/{item}"
    try:
        found = again(where, lambda: manager.item_metadata(step)[item])
        found = getattr(found, "tree", found)  # Orbax wraps it
    except Exception as error:  # as above
        raise unread(where, error) from error
    if not shapes_of(found):  # Orbax gives None where the file is not there
        raise DamagedError(f"{where}/_METADATA is not there")
    return found


def read_items(
    manager: Any, folder: epath.Path, step: int, targets: Mapping[str, Tree]
) -> dict[str, Tree]:
    """The arrays of items, as `targets` says of each; manager: or `Alone`.

    Raises `DamagedError` naming the file, or `StorageError`; `UserError` for items of
    another structure.
    """
    each = {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}
    args = ocp.args.Composite(**each)
    where = f"{folder}/{step}"
    try:
        restored = again(where, lambda: manager.restore(step, args=args))
        return {name: restored[name] for name in targets}
    except Exception as error:  # as above
        if isinstance(error, ValueError):
            for name in targets:  # to Orbax an item without it is an empty one
                if not (folder / str(step) / name / "_METADATA").exists():
                    raise DamagedError(
                        f"{folder}/{step}/{name}/_METADATA is not there"
                    ) from error
            if "structure" in str(error):
                raise UserError(
                    f"checkpoint {folder}/{step} holds another optimiser or teacher"
                    " than this config makes; use its own config or another --workdir"
                ) from error
        text = str(error)
        arrays = re.findall(r"'path': '([^']+?)/?',?\n    \}", text)
        files = re.findall(r'local file "([^"]+)"', text)
        named = f", array {arrays[0]}" if arrays else ""
        named = f", file {files[-1]}" if files else named
        raise unread(f"{folder}/{step}{named}", error) from error


def checksum(meta: Mapping[str, Any]) -> int:
    """Of what is written beside the arrays."""
    return zlib.crc32(json.dumps(meta, sort_keys=True, default=list).encode())


def first_line(error: BaseException) -> str:
    """What Orbax or TensorStore say, without the rest; of a file, what the system says,
    which comes after all their names."""
    said = re.sub(r" \[tensorstore_spec='.*?'\]", "", str(error))
    if of_system := re.search(r"((?:[^:\n\"]+: )?[^:\n\"]+) \[os_error_code", said):
        return of_system[1].strip()
    line = said.strip().split("\n")[0].split(". See full TensorStore")[0]
    return line[:300] or type(error).__name__


def shapes_of(tree: Tree) -> dict[str, tuple[int, ...]]:
    """The shape of every array, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: hasattr(x, "shape")
    )
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}


def verify(
    folder: epath.Path, step: int, items: Mapping[str, Tree], meta: Mapping[str, Any]
) -> None:
    """Raises `DamagedError` naming the first array of `items` whose checksum is not
    what `meta` says."""
    for item, expected in meta.get("digests", {}).items():
        for name, digest in digests(items[item]).items() if item in items else ():
            if expected.get(name) != digest:
                raise DamagedError(
                    f"{folder}/{step}/{item}{name}: its checksum differs"
                )


def items_of(state: TrainState) -> dict[str, Tree]:
    """The two items of a checkpoint by their names: params, and all the rest."""
    training = dict(vars(state))
    return {"params": training.pop("params"), "training": training}


def state_of(items: Mapping[str, Tree]) -> TrainState:
    """The inverse of `items_of`."""
    return TrainState(params=items["params"], **items["training"])
