"""Runs, data and weights on gs://, against a fake of Google's storage."""

import itertools
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import types

import numpy as np
import pytest
from conftest import tiny_config
from fake_gcs import running
from orbax.checkpoint._src.path import gcs_utils
from PIL import Image
from tensorflow.compat.v1.train import summary_iterator
from test_tfds import clean  # noqa: F401

import ddae
from ddae import analyse, data, inspect
from ddae.data.copies import copied
from ddae.data.order import Order
from ddae.settings import UserError
from ddae.storage import StorageError, absolute
from ddae.study.__main__ import main as study
from ddae.train import loop
from ddae.train.checkpoint import Checkpoints
from ddae.train.cluster import run_to_end
from ddae.train.metrics import PUSH_SECONDS, Report, read_metrics

ROOT = pathlib.Path(__file__).parents[1]
TIMES = ("seconds", "data_wait", "images_per_second")
ALL = slice(None)
# TensorFlow's and TFDS's own Python, not ours, warns.
pytestmark = pytest.mark.filterwarnings("ignore::Warning")


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    """The fake, for this process."""
    with (
        pytest.MonkeyPatch.context() as patch,
        running(tmp_path_factory.mktemp("fake")) as (bucket, environment),
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        yield bucket


@pytest.fixture
def bucket(fake, tmp_path, monkeypatch):
    """A bucket, empty but for what TensorFlow may still know of the last test, under
    other names; the working directory is empty, and has to stay so."""
    fake.objects.clear()
    monkeypatch.chdir(tmp_path)
    yield fake
    assert not list(tmp_path.glob("gs:*"))
    assert not fake.faults


def numbers(workdir):
    """Rows of a run's log, but for times."""
    rows = read_metrics(f"{workdir}/metrics.jsonl")
    return [{k: v for k, v in r.items() if not k.endswith(TIMES)} for r in rows]


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_on_a_disk(bucket, tmp_path):
    knn = {"evaluators__knn": {"k": 5, "num_train": 64, "num_held_out": 16}}
    for workdir in ("gs://bucket/runs/a", str(tmp_path / "b")):
        loop.run(tiny_config(**knn), workdir)
        loop.run(tiny_config(total_steps=6, **knn), workdir)
    assert numbers("gs://bucket/runs/a") == numbers(tmp_path / "b")
    assert [row["step"] for row in numbers(tmp_path / "b")][-2:] == [6, 6]
    there = {n.partition("/checkpoints/")[2].partition("/")[0] for n in bucket.objects}
    assert there - {""} == {p.name for p in (tmp_path / "b/checkpoints").iterdir()}
    images = np.zeros((2, 8, 8, 1), np.uint8)
    ours, theirs = (
        ddae.load_encoder(workdir)(images).patches
        for workdir in (
            "gs://bucket/runs/a/checkpoints/4",
            tmp_path / "b/checkpoints/4",
        )
    )
    assert np.array_equal(ours, theirs)
    assert inspect.main(["gs://bucket/runs/a"]) == 0
    assert analyse.main(["gs://bucket/runs/a", "--num_images=8"]) == 0
    assert "runs/a/analysis/analysis.json" in bucket.objects


def test_the_log_of_a_run_in_a_bucket_is_uploaded_now_and_then(bucket, monkeypatch):
    """No object can grow: each row would be an upload of all rows."""
    now = [0.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("ddae.storage.time", clock)
    log, picture = "gs://bucket/log/metrics.jsonl", np.full((4, 5, 3), 9, np.uint8)

    def steps():
        return [row["step"] for row in read_metrics(log)]

    report = Report("gs://bucket/log", None)
    for step in range(1, 30):
        report.write(step, {"train/a": 1.0, "train/b": 2.0, "eval/figure": picture})
    assert not bucket.objects and len(report.rows()) == 29
    now[0] += PUSH_SECONDS
    report.write(30, {"train/a": 1.0})
    assert steps() == list(range(1, 31))
    assert bucket.objects["log/figures/figure.png"][0].startswith(b"\x89PNG")
    before = {name: generation for name, (_, generation) in bucket.objects.items()}
    report.write(31, {"train/a": 1.0})
    monkeypatch.setattr("ddae.train.metrics.EVENTS_BYTES", 1)
    report.push()  # before a save
    assert steps()[-1] == 31
    report.write(32, {"train/a": 1.0})
    report.close()
    assert steps()[-1] == 32
    after = {name: generation for name, (_, generation) in bucket.objects.items()}
    written = {name for name in after if after[name] != before.get(name)}
    events = sorted(n for n in after if n.startswith("log/tensorboard/events"))
    assert len(events) == 2 and written == {"log/metrics.jsonl", *events}
    found = [
        event.step
        for name in events
        for event in summary_iterator(f"gs://bucket/{name}")
        if event.HasField("summary")
    ]
    assert sorted(set(found)) == list(range(1, 33))
    again = Report("gs://bucket/log", 20)
    assert len(again.rows()) == 20 and steps()[-1] == 32, "until it is pushed"
    again.close()
    assert steps() == list(range(1, 21))
    Report("gs://bucket/log", None).close()
    assert not steps() and len(read_metrics(f"{log}.1")) == 20


def test_a_bucket_that_takes_no_log_does_not_end_the_run(bucket, capsys):
    report = Report("gs://bucket/refused", None)
    report.write(1, {"train/a": 1.0})
    bucket.faults.append(("POST /upload", 403))
    report.push()
    said = "the log could not be uploaded, and will be later: Error executing an HTTP"
    assert said in capsys.readouterr().out
    report.push()
    assert len(read_metrics("gs://bucket/refused/metrics.jsonl")) == 1
    report.write(2, {"train/a": 1.0})
    bucket.faults.append(("POST /upload", 403))
    report.close()
    said = capsys.readouterr().out
    kept = re.search("the log, in (.*), could not be uploaded: Error", said).group(1)
    assert len(read_metrics(f"{kept}/metrics.jsonl")) == 2
    shutil.rmtree(kept)
    closed = Report("gs://bucket/taken", None)
    closed.close()
    assert not closed.path.parent.exists() and "taken/metrics.jsonl" in bucket.objects


def test_a_run_saves_its_log_before_its_weights(tmp_path, monkeypatch):
    """A resumed run writes no row of a step that it does not take."""
    said = []
    monkeypatch.setattr(Report, "push", lambda report: said.append("log"))
    monkeypatch.setattr(Checkpoints, "save", lambda *_: said.append("weights"))
    loop.run(tiny_config(), str(tmp_path))
    assert said == ["log", "weights"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("damage", ("uncommitted", "flipped", "lost"))
def test_a_damaged_step_in_a_bucket_is_put_aside(bucket, capsys, damage):
    workdir, step = f"gs://bucket/{damage}", f"{damage}/checkpoints/4/"
    loop.run(tiny_config(), workdir)
    if damage == "uncommitted":
        del bucket.objects[f"{step}commit_success.txt"]
    for name in [n for n in bucket.objects if n.startswith(f"{step}params/")]:
        content = bytearray(bucket.objects[name][0])
        if "/d/" in name and damage == "lost":
            del bucket.objects[name]
        elif "/d/" in name and damage == "flipped":
            content[len(content) // 2] ^= 1
            bucket.put(name, content)
    capsys.readouterr()
    loop.run(tiny_config(), workdir)
    assert f"resuming at step 2 of {workdir}/checkpoints" in capsys.readouterr().out
    assert f"{step}commit_success.txt" in bucket.objects
    aside = [n for n in bucket.objects if n.startswith(f"{damage}/damaged_")]
    assert bool(aside) == (damage != "uncommitted")


@pytest.mark.slow
def test_a_bucket_that_fails_for_a_while_is_asked_again(bucket):
    for part in ("POST /upload", "/checkpoints/2/", "DELETE", "metrics.jsonl"):
        bucket.faults.append((part, 503))
    loop.run(tiny_config(total_steps=8, keep_checkpoints=1), "gs://bucket/again")
    assert "again/checkpoints/8/commit_success.txt" in bucket.objects
    assert not [n for n in bucket.objects if n.startswith("again/checkpoints/2/")]


@pytest.mark.parametrize("status", (403, 404))
def test_a_bucket_that_may_not_be_asked_is_one_line(bucket, capsys, status):
    """Orbax asks for the bucket itself, which roles of objects do not cover."""
    workdir = f"gs://bucket/{status}"
    gcs_utils.get_bucket.cache_clear()
    bucket.faults.append(("GET /storage/v1/b/bucket?", status))
    assert run_to_end(loop.run, tiny_config(), workdir) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: {workdir}/checkpoints cannot be used: {status} GET" in error


@pytest.mark.parametrize("file_format", ("array_record", "tfrecord"))
def test_tfds_sets_in_a_bucket(bucket, clean, file_format):  # noqa: F811
    given = {"data__name": "tfds/imagenet2012", "data__eval_split": "validation"}
    assert_same_batches(bucket, given, clean[file_format])


def test_a_set_in_a_bucket_that_may_not_be_read_is_one_line(bucket):
    bucket.put("locked/imagenet2012/5.1.0/dataset_info.json", b"{}")
    bucket.faults.append(("GET /bucket/locked", 403))
    given = {"data__name": "tfds/imagenet2012", "data__dir": "gs://bucket/locked"}
    with pytest.raises(UserError, match="^imagenet2012 cannot be read: Perm.* 403$"):
        data.from_config(tiny_config(**given), (16, 16, 3))


def test_tar_files_in_a_bucket_that_may_not_be_read_are_not_said_to_be_missing(bucket):
    bucket.put("no_tars/README", b"")
    given = {"data__name": "tar", "data__dir": "gs://bucket/no_tars"}
    with pytest.raises(UserError, match="^no tar files gs://bucket/no_tars/train.tar"):
        data.from_config(tiny_config(**given), (16, 16, 3))
    bucket.faults.append(("GET /storage/v1/b/bucket/o/no_tars", 403))
    with pytest.raises(UserError, match="^gs://bucket/no_tars cannot be read: .*403$"):
        data.from_config(tiny_config(**given), (16, 16, 3))


@pytest.mark.slow
def test_a_record_in_a_bucket_is_not_read_with_all_that_follows(bucket, tmp_path):
    """TensorFlow fetches 64 MB a read, unless it is told before it is imported."""
    draw, count = np.random.default_rng(0), 32
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for number in range(count):
            path = tmp_path / f"{number}.png"
            Image.fromarray(draw.integers(0, 255, (256, 256, 3), np.uint8)).save(path)
            tar.add(path, path.name)
    data = (tmp_path / "train.tar").read_bytes()
    bucket.put("noise/train.tar", data)
    before = bucket.traffic["down"]
    command = "ddae.data.stats tar --dir=gs://bucket/noise --image_size=8"
    command = [sys.executable, "-m", *command.split()]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0 and str(count) in made.stdout, made.stderr
    read = bucket.traffic["down"] - before
    assert len(data) > 6e6 and read < len(data) + 1.2 * count * 2**20


def test_tar_files_in_a_bucket(bucket, tmp_path, clean):  # noqa: F811
    folder = tmp_path / "tars"
    folder.mkdir()
    for split in ("train", "test"):
        shutil.copy(
            clean["tfrecord"].parent / "tars/ILSVRC2012_img_val.tar",
            folder / f"{split}.tar",
        )
    assert_same_batches(bucket, {"data__name": "tar"}, folder)


@pytest.mark.parametrize("file_format", ("array_record", "tfrecord"))
def test_sets_are_copied_from_a_bucket(
    bucket,
    tmp_path,
    clean,  # noqa: F811
    file_format,
):
    """A request for each file, and none for images."""
    given = {"data__name": "tfds/imagenet2012", "data__eval_split": "validation"}
    folder, here = clean[file_format], tmp_path / "here"
    ours = assert_same_batches(bucket, given, folder, data__copy_to=str(here))
    copies = [path for path in here.rglob(f"*{file_format}*") if path.is_file()]
    assert len(copies) == 2
    for path in copies:
        there = folder / path.relative_to(here / "bucket/sets_1" / folder.name)
        assert path.read_bytes() == there.read_bytes()
    before = bucket.traffic["requests"]
    next(ours.train.train_batches(Order(24, 4, seed=1), 0, ALL, ours.augment))
    assert bucket.traffic["requests"] == before


@pytest.mark.parametrize("fault", ("checksum", 403, 404))
def test_a_file_that_does_not_come_as_it_is_in_its_bucket(bucket, tmp_path, fault):
    name, here = f"files/{fault}", tmp_path / "here"
    bucket.put(name, b"abc")
    if fault == "checksum":
        bucket.checksums[name] = "AAAAAA=="
    else:
        bucket.faults.append((f"GET /download/storage/v1/b/bucket/o/{name}", fault))
    kind = StorageError if fault == "checksum" else UserError
    said = (
        f"(?i)^gs://bucket/{name} cannot be copied to {here}/bucket/{name}: .*{fault}"
    )
    with pytest.raises(kind, match=said):
        copied([f"gs://bucket/{name}"], str(here))
    assert not list(here.rglob(f"{fault}*"))


def assert_same_batches(bucket, given, folder, **own):
    """Of the set in `folder`, and of its copy in the bucket, under a name of its own:
    TensorFlow keeps what it has read. Gives that of the bucket, which has settings of
    its `own` too."""
    copy = f"sets_{len(own)}/{folder.name}"
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.put(f"{copy}/{path.relative_to(folder)}", path.read_bytes())
    ours, theirs = (
        data.from_config(tiny_config(**settings, data__dir=str(place)), (16, 16, 3))
        for place, settings in ((f"gs://bucket/{copy}", given | own), (folder, given))
    )
    order = Order(len(ours.train), 4, seed=0)
    batches = [s.train_batches(order, 0, ALL) for s in (ours, theirs)]
    for one, other in itertools.islice(zip(*batches, strict=True), 3):
        assert np.array_equal(one["image"], other["image"])
        assert np.array_equal(one["label"], other["label"])
    return ours


def test_what_a_bucket_is_not_for_is_said(bucket, capsys):
    for kind in data.ON_DISK:
        given = {"data__name": kind, "data__dir": "gs://bucket/sets"}
        with pytest.raises(UserError, match=f"{kind} reads from a disk, not gs://"):
            data.from_config(tiny_config(**given), (16, 16, 3))
    config = pathlib.Path(__file__).parents[1] / "configs/studies/long.py"
    assert study([f"{config}:scale=small", "--workdir=gs://bucket/study"]) == 2
    assert "a study is kept on a disk" in capsys.readouterr().err


def test_what_orbax_wants_for_a_bucket_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(UserError, match="pip install google-cloud-storage"):
        absolute("gs://bucket/run")
    assert str(absolute("s3://bucket/run")) == "s3://bucket/run"
    assert absolute("run").is_absolute()
