"""Checkpoints that were damaged, and folders that cannot be written."""

import errno
import gc
import json
import logging
import os
import pathlib
import re
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from etils import epath
from jax.experimental import multihost_utils
from test_checkpoint import assert_same, targets
from test_step import trainer

from ddae.settings import UserError
from ddae.storage import AGAIN, StorageError, of_storage
from ddae.train import loop, stored
from ddae.train.checkpoint import CheckpointError, Checkpoints, lock
from ddae.train.cluster import run_to_end
from ddae.train.digest import digests, nonfinite
from ddae.train.loading import load_params, load_state
from ddae.train.metrics import read_metrics
from ddae.train.processes import first_word, together
from ddae.train.sharding import MeshSettings, make_mesh, state_sharding
from ddae.train.state import NonFiniteError, TrainState

# After an error Orbax leaves coroutines behind that nobody awaits.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def collect():
    """They are complained of here, and not in the middle of another file's test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with steps 1 and 2, and the state of each."""
    workdir = tmp_path_factory.mktemp("saved")
    state, _, _, _ = trainer()
    states = {}
    for step in (1, 2):
        changed = jax.tree.map(lambda x, by=step: x + by, state.params)
        states[step] = type(state)(**(vars(state) | {"params": changed}))
        with Checkpoints(str(workdir)) as checkpoints:
            checkpoints.save(states[step], step, tiny_config(), {"seed": 0})
    return workdir, states


def data_files(item):
    return [path for path in item.rglob("d/*") if path.is_file()]


def flip(folder):
    for path in data_files(folder / "params"):  # not all of them are still in use
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def truncate(folder):
    for path in data_files(folder / "training"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(folder):
    for path in data_files(folder / "params"):
        path.unlink()


def rewrite_meta(folder):
    path = folder / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["data"]["seed"] = 1
    path.write_text(json.dumps(meta))


DAMAGE = {
    "a flipped bit": (flip, "2/params/.*checksum differs|2, .*"),
    "truncated files": (truncate, "2/training/.*checksum differs|2, .*"),
    "files that are gone": (remove, "2, (array|file) .*"),
    "an item that is gone": (lambda f: shutil.rmtree(f / "training"), "2.*training"),
    "half a manifest": (
        lambda f: (f / "params" / "manifest.ocdbt").write_bytes(b"half"),
        "2, file .*params/manifest.ocdbt",
    ),
    "half of the metadata": (
        lambda f: (f / "params" / "_METADATA").write_text("{"),
        "2: .*",
    ),
    "an optimiser without metadata": (
        lambda f: (f / "training" / "_METADATA").unlink(),
        "2/training/_METADATA is not there",
    ),
    "another seed": (rewrite_meta, "2/meta: its checksum differs"),
    "no metadata": (lambda f: shutil.rmtree(f / "meta"), "2/meta: .*"),
    "metadata of nothing": (
        lambda f: (f / "meta" / "metadata").write_text("null"),
        "2/meta: it has no config",
    ),
}


@pytest.mark.parametrize("damage, says", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_step_is_named_and_the_one_before_it_used(
    saved, damage, says, tmp_path, capsys
):
    workdir, states = saved
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    damage(copy / "checkpoints" / "2")
    with Checkpoints(str(copy)) as checkpoints:
        restored = checkpoints.restore(targets(states[1]))
        assert_same(restored, states[1])
        assert checkpoints.latest() == 1
        # What comes next can be saved again.
        checkpoints.save(states[2], 2, tiny_config(), {"seed": 0})
    said = capsys.readouterr().err
    (line,) = (line for line in said.splitlines() if line.startswith("damaged"))
    assert re.search(f"checkpoints/{says}", line), line
    assert "again in" not in said
    assert (copy / "damaged_checkpoints" / "2").is_dir()
    with Checkpoints(str(copy)) as checkpoints:
        assert_same(checkpoints.restore(targets(states[2])), states[2])


class Pauses:
    """Of no length; before the last of them `mend` is called."""

    def __init__(self, mend):
        self._mend = mend

    def __iter__(self):
        yield 0.0
        self._mend()
        yield 0.0


@pytest.mark.parametrize("passes", [True, False], ids=["passes", "stays"])
@pytest.mark.parametrize("name", ["meta/metadata", "params/_METADATA"])
def test_a_step_is_read_again_where_the_storage_fails(
    saved, name, passes, tmp_path, monkeypatch, capsys
):
    """Linux gives EIO for the memory of a process at 0, where nothing lies."""
    workdir, states = saved
    shutil.copytree(workdir, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "2" / name
    content = path.read_bytes()

    def put(there):
        path.unlink()
        path.write_bytes(content) if there else path.symlink_to("/proc/self/mem")

    put(False)
    monkeypatch.setattr(stored, "PAUSES", Pauses(lambda: put(passes)))
    with Checkpoints(str(tmp_path / "run")) as checkpoints:
        step = 2 if passes else 1
        assert_same(checkpoints.restore(targets(states[1])), states[step])
        assert checkpoints.latest() == step
    said = capsys.readouterr().err
    tries = said.count("Input/output error; again in 0 s\n")
    assert tries == (1 if passes else 2)
    assert ("damaged checkpoint: " in said) != passes
    assert (tmp_path / "run" / "damaged_checkpoints").exists() != passes


@pytest.mark.parametrize(
    "error, found",
    [
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (ValueError("Error opening: Permission denied [os_error_code='13']"), False),
        (ValueError("Error opening: Timer expired [os_error_code='62']"), True),
        (ValueError("Error reading: Input/output error [os_error_code='5']"), True),
        (ValueError("NOT_FOUND: No such file [os_error_code='2']"), False),
        (ValueError("UNAVAILABLE: HTTP response code: 503"), True),
        (ValueError("DATA_LOSS: Error decoding manifest"), False),
    ],
)
def test_errors_of_the_storage_are_none_of_a_file(error, found):
    assert of_storage(error) == found
    outer = RuntimeError("reading has failed")
    outer.__cause__ = error
    assert of_storage(outer) == found


@pytest.mark.parametrize("gone", ["meta/metadata", "params/_METADATA"])
def test_behind_a_damaged_step_the_one_before_it_is_compared(saved, gone, tmp_path):
    workdir, states = saved
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "2" / gone).unlink()
    with Checkpoints(str(tmp_path / "run")) as checkpoints:
        assert not checkpoints.check(states[1], {"seed": 0}, tiny_config())
        with pytest.raises(UserError, match="checkpoints/1 was trained on .* seed 0"):
            checkpoints.check(states[1], {"seed": 7}, tiny_config())


def test_where_no_step_can_be_read_it_says_so_in_one_line(saved, tmp_path):
    workdir, states = saved
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    for step in (1, 2):
        flip(copy / "checkpoints" / str(step))
    with Checkpoints(str(copy)) as checkpoints:
        with pytest.raises(UserError, match="no checkpoint can be read: .*/2") as error:
            checkpoints.restore(targets(states[1]))
    assert "\n" not in str(error.value)
    assert (copy / "checkpoints" / "2").is_dir()  # nothing was moved
    with pytest.raises(UserError, match="damaged checkpoint: .*/2"):
        load_params(str(copy))


def test_where_the_storage_fails_for_all_steps_they_may_be_read_later(
    saved, tmp_path, monkeypatch
):
    """Exit code 1, after which what starts runs tries again; as above it gives EIO."""
    workdir, states = saved
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    for step in (1, 2):
        path = copy / "checkpoints" / str(step) / "meta" / "metadata"
        path.unlink()
        path.symlink_to("/proc/self/mem")
    monkeypatch.setattr(stored, "PAUSES", ())
    says = f"/2/meta: .*Input/output error{AGAIN}$"
    with Checkpoints(str(copy)) as checkpoints:
        assert not checkpoints.check(states[1], {"seed": 0}, tiny_config())
        with pytest.raises(StorageError, match=f"no checkpoint can be read: .*{says}"):
            checkpoints.restore(targets(states[1]))
    assert (copy / "checkpoints" / "2").is_dir()  # nothing was moved
    with pytest.raises(StorageError, match=says):
        load_params(str(copy))


def test_folders_that_are_no_checkpoints_are_not_taken_for_one(saved, tmp_path):
    workdir, states = saved
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    folder = copy / "checkpoints"
    (folder / "9").mkdir()
    (folder / "9" / "mine.txt").write_text("not a checkpoint")
    (folder / "notes").mkdir()
    shutil.copytree(folder / "2", folder / "7")
    (folder / "7" / "commit_success.txt").unlink()
    with Checkpoints(str(copy)) as checkpoints:
        assert checkpoints.latest() == 2
        assert_same(checkpoints.restore(targets(states[2])), states[2])
    # Half a save is gone, and what is none is out of the way.
    assert sorted(os.listdir(copy / "damaged_checkpoints")) == ["9"]
    assert sorted(os.listdir(folder)) == ["1", "2", "notes"]


def test_a_second_run_in_the_same_workdir_is_refused(saved, tmp_path):
    with Checkpoints(str(tmp_path)):
        with pytest.raises(UserError, match="another run is at work in"):
            Checkpoints(str(tmp_path))
    with Checkpoints(str(tmp_path)):
        pass


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    state, _, _, _ = trainer()
    bad = state.ema_params["encoder"]["norm"]["scale"].at[3].set(jnp.nan)
    state.ema_params["encoder"]["norm"]["scale"] = bad
    with Checkpoints(str(tmp_path)) as checkpoints:
        with pytest.raises(
            NonFiniteError,
            match="/ema_params/encoder/norm/scale is not .*none is",
        ):
            checkpoints.save(state, 1, tiny_config(), {})
        assert checkpoints.latest() is None


def test_a_full_disk_keeps_the_last_good_step(saved, tmp_path):
    """Files may grow no further than a few blocks: what a full disk does."""
    workdir, states = saved
    shutil.copytree(workdir, tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(CheckpointError, match="File too large; .* is step 2$"):
        with Checkpoints(str(tmp_path / "run")) as checkpoints:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
            try:
                checkpoints.save(states[2], 3, tiny_config(), {"seed": 0})
                checkpoints.close()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Checkpoints(str(tmp_path / "run")) as checkpoints:
        assert checkpoints.latest() == 2
        assert_same(checkpoints.restore(targets(states[2])), states[2])


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match="checkpoints is a file; take another"):
        Checkpoints(str(tmp_path))
    with pytest.raises(UserError, match="nowhere cannot be written: No such file"):
        Checkpoints(str(tmp_path / "nowhere"))


def failing(error):
    def fails(*_, **__):
        raise error

    return fails


class UnavailableError(Exception):
    """As TensorFlow's, of a bucket."""


def of_system(number):
    return OSError(number, os.strerror(number), "/at/run")


STARTS = [
    (of_system(errno.EIO), 1),
    (of_system(errno.ESTALE), 1),
    (of_system(errno.ETIMEDOUT), 1),
    (of_system(errno.ENOSPC), 1),
    (of_system(errno.EACCES), 2),
    (of_system(errno.EROFS), 2),
    (UnavailableError("503: try later\nat some length"), 1),
    (type("NotFoundError", (Exception,), {})("no such bucket"), 2),
]


@pytest.mark.parametrize(("error", "code"), STARTS)
def test_a_start_whose_storage_may_be_well_again_is_no_wrong_path(
    tmp_path, monkeypatch, capsys, error, code
):
    """Exit code 1, after which what starts runs tries again, in one line."""
    monkeypatch.setattr(type(epath.Path("/")), "mkdir", failing(error))
    assert run_to_end(loop.run, tiny_config(), str(tmp_path)) == code
    cause = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    again = "; give the same command again" * (code == 1)
    said = f"error: --workdir={tmp_path} cannot be made: {cause}{again}\n"
    assert capsys.readouterr().err == said


def test_a_lock_that_fails_as_storage_may_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.open", failing(of_system(errno.EIO)))
    with pytest.raises(StorageError, match="cannot be written: Input/output error; g"):
        lock(epath.Path(tmp_path))


@pytest.mark.parametrize("kind", [StorageError, UserError])
def test_what_fails_in_one_process_is_of_its_kind_in_all(monkeypatch, kind):
    said = f"a word{AGAIN if kind is StorageError else ''}".encode()
    words = np.zeros((2, 1024), np.uint8)
    words[1, : len(said)] = np.frombuffer(said, np.uint8)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: words)
    with pytest.raises(kind, match="process 1: a word"), together(UserError):
        pass


@pytest.mark.parametrize("kind", [StorageError, UserError])
def test_what_fails_in_this_process_is_told_to_all(monkeypatch, kind):
    told = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def gather(mine):
        told.append(bytes(mine))
        return np.stack([mine, mine])

    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    with pytest.raises(kind, match="^a word$"), together(UserError):
        raise kind("a word")
    assert told[0].rstrip(b"\0") == b"a word"


def test_what_names_a_file_that_is_no_text_is_told_to_all(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "process_allgather", lambda mine: np.stack([mine, mine])
    )
    assert first_word("no folder \udcfcber") == r"process 0: no folder \udcfcber"
    with pytest.raises(UserError, match="no folder"), together(UserError):
        raise UserError("no folder \udcfcber")


def test_of_long_words_the_beginning_is_told(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def gather(mine):
        return np.stack([0 * mine, mine])

    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    said = first_word("a" + "\xe9" * 2000)  # the last is cut in half
    assert said == "process 1: a" + "\xe9" * 511 + "\N{REPLACEMENT CHARACTER}"
    # What may pass is known by its last words.
    said = first_word("a" * 2000 + AGAIN)
    assert said == f"process 1: {'a' * (1024 - len(AGAIN))}{AGAIN}"


def test_newest_every_kth_and_best_steps_stay(tmp_path):
    state, _, _, _ = trainer()
    scores = {1: 10.0, 2: 70.0, 3: 20.0, 4: 30.0, 5: None, 6: 40.0}
    options = {"keep": 1, "keep_every_steps": 4, "keep_best": "eval/top1"}
    with Checkpoints(str(tmp_path), **options) as checkpoints:
        for step, score in scores.items():
            if score is not None:
                checkpoints.evaluated(step, {"eval/top1": score})
            checkpoints.save(state, step, tiny_config(), {})
    assert kept_steps(tmp_path) == [2, 4, 6]


def kept_steps(workdir):
    return sorted(int(name) for name in os.listdir(workdir / "checkpoints"))


def test_the_best_step_stays_whose_evaluation_a_sigterm_put_off(tmp_path):
    """Saved before it was evaluated; and every checkpoint knows of those before it."""
    states = trainer()[0]
    for first, score in ((1, 20.0), (3, 70.0), (5, 30.0)):
        with Checkpoints(str(tmp_path), keep=1, keep_best="eval/top1") as checkpoints:
            state = checkpoints.restore(targets(states)) or states
            if first > 1:
                checkpoints.evaluated(first - 1, {"eval/top1": score})
            for step in (first, first + 1):
                checkpoints.save(state, step, tiny_config(), {})
    assert kept_steps(tmp_path) == [2, 6]
    with Checkpoints(str(tmp_path), keep_best="eval/tpo1") as checkpoints:
        with pytest.raises(
            UserError, match="keep_best='eval/tpo1' is not among .*top1"
        ):
            checkpoints.evaluated(6, {"eval/top1": 1.0})


def test_the_best_by_another_value_is_another(tmp_path):
    """Losses of one run, up to 90, are no top-1 of the next, up to 20."""
    state, _, _, _ = trainer()
    values = {"eval/loss": (90.0, 1.0, 1.0), "eval/top1": (10.0, 20.0, 5.0)}
    step = 0
    for name, found in values.items():
        with Checkpoints(str(tmp_path), keep=1, keep_best=name) as checkpoints:
            checkpoints.restore(targets(state))
            for value in found:
                step += 1
                checkpoints.evaluated(step, {name: value})
                checkpoints.save(state, step, tiny_config(), {})
    assert kept_steps(tmp_path) == [5, 6]


def test_a_digest_does_not_depend_on_the_mesh_and_sees_every_bit():
    tree = {
        "a": jax.random.normal(jax.random.key(0), (64, 96)),
        "b": jnp.arange(7, dtype=jnp.int32),
        "c": jnp.ones((5, 3), jnp.bfloat16),
        "d": jnp.zeros((), jnp.float32),
        "e": jnp.array([True, False]),
    }
    found = digests(tree)
    assert found == digests(jax.tree.map(np.asarray, tree))
    mesh = make_mesh(MeshSettings(fsdp=4), 8, 1)
    assert digests(jax.device_put(tree, state_sharding(tree, mesh))) == found
    random = np.random.default_rng(0)
    for _ in range(20):
        damaged = np.array(tree["a"])
        bits = damaged.view(np.uint32).reshape(-1)
        bits[random.integers(bits.size)] ^= np.uint32(1) << random.integers(32)
        assert digests({"a": damaged})["/a"] != found["/a"]
    swapped = np.array(tree["b"])[[1, 0, 2, 3, 4, 5, 6]]
    assert digests({"b": swapped})["/b"] != found["/b"]
    assert digests({"a": tree["a"].T})["/a"] != found["/a"]
    assert nonfinite(tree) == []
    assert nonfinite(tree | {"c": tree["c"].at[2, 1].set(jnp.inf)}) == ["/c"]


@pytest.mark.slow
def test_a_resume_after_damage_goes_back_and_repeats_the_steps(tmp_path):
    def run():
        loop.run(tiny_config(checkpoint_every_steps=1), str(tmp_path))
        rows = read_metrics(str(tmp_path / "metrics.jsonl"))
        return {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}

    before = run()
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    flip(tmp_path / "checkpoints" / "3")
    assert run() == before
    assert pathlib.Path(tmp_path / "damaged_checkpoints" / "3").is_dir()


def small_state():
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, {"heads": {"kernel": jnp.ones((2, 3))}}, {}, {}, zero, zero)


def test_arrays_that_read_otherwise_than_written_are_damaged(tmp_path, monkeypatch):
    """Orbax finds nothing wrong with them; only our checksums do."""
    state, config = small_state(), {"task": "pretrain"}
    with monkeypatch.context() as patch:
        wrong = lambda tree: {k: v ^ 1 for k, v in digests(tree).items()}  # noqa: E731
        patch.setattr("ddae.train.checkpoint.digests", wrong)
        with Checkpoints(str(tmp_path)) as checkpoints:
            checkpoints.save(state, 1, config, {})
    shapes = jax.eval_shape(lambda: state)
    with pytest.raises(UserError, match="/heads/kernel: its checksum differs"):
        load_params(str(tmp_path))
    with pytest.raises(UserError, match="its checksum differs"):
        load_state(str(tmp_path), shapes)
    with Checkpoints(str(tmp_path)) as checkpoints:
        with pytest.raises(UserError, match="no checkpoint can be read: .*checksum"):
            checkpoints.restore(state)


def test_what_a_run_has_learned_is_not_changed_by_a_resume(tmp_path):
    old = {"task": "pretrain", "image_size": 8, "data": {"mean": [0.3], "std": [0.4]}}
    old |= {name: {"x": 1} for name in ("classifier", "mixing", "segmenter")}
    old["model"] = {"positions": "sincos"}
    state = small_state()
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(state, 1, old, {})
    with Checkpoints(str(tmp_path)) as checkpoints:
        for key in (
            *("task", "image_size", "data.mean", "data.std", "mixing.x"),
            "model.positions",
        ):
            section, _, last = key.rpartition(".")
            new = old | {key: 9}
            if section:
                new = old | {section: old[section] | {last: [9]}}
            with pytest.raises(UserError, match=f"trained with config.{key} "):
                checkpoints.check(state, {}, new)
        del new["mixing"]["x"]  # the code has it no more
        new["model"] = {"positions": "sincos"}
        assert list(checkpoints.check(state, {}, new)) == ["mixing.x"]


@pytest.mark.parametrize(
    "place, error, kept",
    [
        ("orbax/checkpoint/_src/futures/future.py", OSError(28, "full"), False),
        ("orbax/checkpoint/checkpoint_manager.py", ValueError("in OCDBT at"), False),
        ("asyncio/base_events.py", ValueError("[os_error_code='28']"), False),
        (
            "orbax/checkpoint/_src/futures/future.py",
            RuntimeError("cannot schedule new futures after shutdown"),
            False,
        ),
        ("orbax/checkpoint/_src/futures/future.py", ValueError("a bug"), True),
        ("orbax/checkpoint/_src/path/storage_backend.py", OSError("not removed"), True),
        ("somewhere/else.py", OSError("of others"), True),
        ("orbax/checkpoint/checkpoint_manager.py", None, True),
    ],
)
def test_what_is_raised_too_is_not_logged_before(place, error, kept):
    exc_info = error and (type(error), error, None)
    record = logging.LogRecord("absl", logging.ERROR, place, 1, "said", (), exc_info)
    assert stored._no_echo(record) == kept


SPEC = " [tensorstore_spec='{\"create\":true}']"


@pytest.mark.parametrize(
    "said, line",
    [
        (
            'OCDBT database at local file "/x/": Failed writing: "/x/d/02": Failed to'
            " write 18 bytes to file 8: No space left on device [os_error_code='28']",
            "Failed to write 18 bytes to file 8: No space left on device",
        ),
        (
            f"\"/x\": Too many open files{SPEC} [os_error_code='24']",
            "Too many open files",
        ),
        (f'Error reading "/x"{SPEC}\nmore', 'Error reading "/x"'),
        ("", "ValueError"),
    ],
)
def test_of_what_a_file_system_says_the_cause_is_left(said, line):
    assert stored.first_line(ValueError(said)) == line
