"""Files that are copied to this machine before they are read."""

import os
import pathlib
import threading
import time
import types

import filelock
import numpy as np
import pytest
from conftest import tiny_config
from requests.exceptions import ChunkedEncodingError
from test_tar import own_cache, shards, splits  # noqa: F401

from ddae import data
from ddae.data import copies
from ddae.data.copies import copied
from ddae.data.order import Order
from ddae.settings import UserError
from ddae.storage import StorageError
from ddae.train import plan as planning
from ddae.train import signals

# TensorFlow's own Python, not ours, warns while it traces a function.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def three(tmp_path):
    """Paths of three files, and a folder for their copies."""
    paths = [tmp_path / "disk" / name for name in ("a", "b", "c")]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(path.name.encode() * 100)
    return [str(path) for path in paths], tmp_path / "here"


@pytest.fixture
def read(monkeypatch):
    """Which files are read to be copied."""
    found, original = [], copies.from_disk

    def noted(path, file):
        found.append(path)
        original(path, file)

    monkeypatch.setattr(copies, "from_disk", noted)
    return found


def contents(paths):
    return [pathlib.Path(path).read_bytes() for path in paths]


def all_files(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.name for path in found if path.name != ".lock")


def test_files_are_copied_once_and_again_where_they_have_changed(three, capsys):
    paths, here = three
    found = copied(paths, str(here))
    assert found == [f"{here}{path}" for path in paths]
    assert contents(found) == [b"a" * 100, b"b" * 100, b"c" * 100]
    assert (
        f"copying 3 files (0.00 GiB), {paths[0]} first, to {here}"
        in capsys.readouterr().err
    )

    assert copied(paths, str(here)) == found
    assert "copying" not in capsys.readouterr().err

    pathlib.Path(paths[1]).write_bytes(b"other" * 20)
    os.utime(paths[1], ns=(0, 0))  # as long, and of another time
    pathlib.Path(paths[2]).write_bytes(b"more")
    assert copied(paths, str(here)) == found
    assert f"copying 2 files (0.00 GiB), {paths[1]} first" in capsys.readouterr().err
    assert contents(found) == [b"a" * 100, b"other" * 20, b"more"]


def test_a_file_of_two_parts_is_copied_once(three, read):
    paths, here = three
    found = copied([paths[0], paths[1], paths[0]], str(here))
    assert found == [f"{here}{paths[i]}" for i in (0, 1, 0)]
    assert sorted(read) == paths[:2]


def test_no_folder_is_no_copy(three):
    paths, _ = three
    assert copied(paths, "") == paths


def test_what_a_kill_left_is_no_copy(three, read, monkeypatch):
    """A file is in its place once it is whole; what was copied before stays."""
    paths, here = three
    monkeypatch.setattr(copies, "AT_ONCE", 1)
    with monkeypatch.context() as patch:
        original = copies.from_disk

        def killed(path, file):
            if path == paths[1]:
                file.write(b"cut short")
                raise KeyboardInterrupt
            original(path, file)

        patch.setattr(copies, "from_disk", killed)
        with pytest.raises(KeyboardInterrupt):
            copied(paths, str(here))
    assert paths[0] in read and "b" not in all_files(here)

    copied(paths, str(here))
    assert sorted(read) == paths
    assert all_files(here) == ["a", "b", "c"]


def test_a_folder_without_room_is_refused_before_anything_is_copied(three, monkeypatch):
    paths, here = three
    room = types.SimpleNamespace(free=299)
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda _: room)
    with pytest.raises(UserError, match=f"copy_to={here} has 0.0 GiB free.* more room"):
        copied(paths, str(here))
    assert all_files(here) == []
    room.free = 300
    assert len(copied(paths, str(here))) == 3


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (OSError(28, "No space left on device"), StorageError, "No space.* again"),
        (OSError(5, "Input/output error"), StorageError, "Input.*the same command"),
        (PermissionError(13, "Permission denied"), UserError, "Permission denied"),
        (ChunkedEncodingError("Connection broken"), StorageError, "Connection.*again"),
    ],
)
def test_a_file_that_cannot_be_copied_is_named(three, monkeypatch, error, kind, says):
    paths, here = three

    def fails(path, file):
        raise error

    monkeypatch.setattr(copies, "from_disk", fails)
    message = f"{paths[0]} cannot be copied to {here}{paths[0]}: {says}"
    with pytest.raises(kind, match=message):
        copied(paths, str(here))
    assert all_files(here) == []


def test_one_process_of_a_machine_copies_and_the_others_wait(three, capsys):
    paths, here = three
    here.mkdir()
    lock = filelock.FileLock(here / ".lock")
    lock.acquire()
    found = []
    waiting = threading.Thread(target=lambda: found.extend(copied(paths, str(here))))
    waiting.start()
    said, until = "", time.monotonic() + 30
    while "waiting for another process" not in said and time.monotonic() < until:
        time.sleep(0.1)
        said += capsys.readouterr().err
    assert "waiting for another process" in said and all_files(here) == []
    lock.release()
    waiting.join()
    assert len(found) == 3 and all_files(here) == ["a", "b", "c"]


def test_tar_files_are_read_where_they_were_copied_to(shards, tmp_path):  # noqa: F811
    here = tmp_path / "here"
    theirs, ours = splits(shards), splits(shards, data__copy_to=str(here))
    names = {path.name for path in shards.glob("*.tar")}
    assert all_files(here) == sorted(names - {"training.tar"})  # of no split here
    assert ours.train.identity == theirs.train.identity
    assert ours.train.key(0) == theirs.train.key(0)  # where the user has it
    expected = next(theirs.train_batches(Order(7, 7, 0), 0, slice(None)))
    for path in shards.glob("*.tar"):
        path.unlink()
    found = next(ours.train_batches(Order(7, 7, 0), 0, slice(None)))
    assert np.array_equal(found["image"], expected["image"])
    held_out = list(ours.held_out.batches(np.arange(len(ours.held_out)), 4))
    assert sum(len(batch["label"]) for batch in held_out) == len(theirs.held_out)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data__name": "digits", "data__copy_to": "/x"}, "copy_to=/x is for tar and"),
        ({"data__copy_to": "gs://bucket/x"}, "gs://bucket/x is no folder of this mach"),
        ({"data__copy_to": "/dev/null/x"}, "/dev/null/x cannot be used: Not a direc"),
    ],
)
def test_folders_and_sources_that_do_not_fit_are_refused(shards, changes, says):  # noqa: F811
    given = {"data__name": "tar", "data__dir": str(shards)} | changes
    with pytest.raises(UserError, match=says):
        data.from_config(tiny_config(**given), (16, 16, 3))


def test_a_long_copy_is_no_hanging_start(shards, tmp_path, monkeypatch):  # noqa: F811
    """The watchdog ends a start of an hour in which nothing is done."""
    monkeypatch.setattr(signals, "BEAT_SECONDS", 0.05)
    original, asked = copies.from_disk, signals.Signals()
    heard = []

    def slowly(path, file):
        before, until = asked.last_beat, time.monotonic() + 60
        while asked.last_beat == before and time.monotonic() < until:
            time.sleep(0.01)
        heard.append(asked.last_beat > before)
        original(path, file)

    monkeypatch.setattr(copies, "from_disk", slowly)
    given = {"image_size": 16, "model__channels": 3, "data__mean": (0.5,) * 3}
    given |= {"data__std": (0.5,) * 3, "data__name": "tar", "data__dir": str(shards)}
    given |= {"data__copy_to": str(tmp_path / "here"), "batch_size": 4}
    planning.plan(tiny_config(**given), asked)
    assert heard == [True] * 4
