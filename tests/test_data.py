import io
import itertools
import os
import re
import shutil
from typing import get_args

import numpy as np
import pytest
from conftest import tiny_config
from ml_collections.config_flags import tuple_parser
from pictures import encoded, photograph
from PIL import Image

from ddae import data
from ddae.data import decode, pack, stats
from ddae.data.arrays import ArraySource
from ddae.data.augment import Augment, of_arrays, of_bytes
from ddae.data.folder import FolderRecords
from ddae.data.images import ImageSource
from ddae.data.order import Order, _permutation
from ddae.eval.evaluator import over
from ddae.settings import UserError
from ddae.train.metrics import write_config

ALL = slice(None)
# TensorFlow's own Python, not ours, warns while it traces a function.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_order_shows_each_example_once_an_epoch_and_is_a_function_of_the_step():
    order = Order(num_examples=23, batch_size=5, seed=1)
    assert order.steps_per_epoch == 4
    for epoch in range(3):
        steps = range(epoch * 4, epoch * 4 + 4)
        seen = np.concatenate([order.batch(step)[1] for step in steps])
        assert len(set(seen.tolist())) == 20
    positions, indices = order.batch(6)
    assert positions.tolist() == list(range(30, 35))
    again = Order(num_examples=23, batch_size=5, seed=1)
    _permutation.cache_clear()
    np.testing.assert_array_equal(again.batch(6)[1], indices)
    assert (order.batch(0)[1] != order.batch(4)[1]).any()
    assert (order.batch(0)[1] != Order(23, 5, seed=2).batch(0)[1]).any()


def test_a_batch_larger_than_the_set_is_an_error():
    with pytest.raises(UserError, match="batch_size=24 is larger than .* 23 images"):
        Order(23, 24, 0)
    assert Order(23, 23, 0).steps_per_epoch == 1


def test_digits_are_split_without_overlap():
    splits = data.from_config(tiny_config(), (8, 8, 1))
    assert len(splits.train) + len(splits.held_out) == 1797
    assert len(splits.held_out) == 360
    assert splits.train.num_classes == splits.held_out.num_classes == 10
    assert 0 <= splits.train.images.min() and splits.train.images.max() == 1


def test_arrays_restart_at_any_step_and_on_any_rows():
    splits = data.from_config(tiny_config(), (8, 8, 1))
    order = Order(len(splits.train), 12, seed=4)
    augment = Augment(crop="shift", pad=1, flip=True)
    whole = splits.train.train_batches(order, 0, ALL, augment)
    batches = list(itertools.islice(whole, 4))
    later = next(splits.train.train_batches(order, 3, ALL, augment))
    np.testing.assert_array_equal(later["image"], batches[3]["image"])
    half = next(splits.train.train_batches(order, 2, slice(6, 12), augment))
    np.testing.assert_array_equal(half["image"], batches[2]["image"][6:])
    np.testing.assert_array_equal(half["label"], batches[2]["label"][6:])


def test_shift_moves_by_at_most_the_pad():
    images = np.zeros((200, 5, 5, 1), np.float32)
    images[:, 2, 2] = 1
    source = ArraySource(images, np.zeros(200, int), "points", "train")
    augment = Augment(crop="shift", pad=1)
    batch = next(source.train_batches(Order(200, 200, 0), 0, ALL, augment))
    landed = set(map(tuple, np.argwhere(batch["image"][..., 0])[:, 1:].tolist()))
    assert landed == {(i, j) for i in (1, 2, 3) for j in (1, 2, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of photographs of several sizes, one of them grey, one a PNG."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, name, count in (
        ("train", "cat", 5),
        ("train", "dog", 4),
        ("test", "cat", 1),
    ):
        (root / split / name).mkdir(parents=True)
        for i in range(count):
            height, width = random.integers(20, 60, size=2)
            pixels = random.integers(0, 255, (height, width, 3)).astype(np.uint8)
            image = Image.fromarray(pixels)
            if i == 1:
                image = image.convert("L")
            suffix = "png" if i == 2 else "jpg"
            image.save(root / split / name / f"{i}.{suffix}")
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    return root


def folder_source(path, shape, **settings):
    chosen = data.DataSettings(name="folder", mean=(0.5,), std=(0.5,), **settings)
    return ImageSource(FolderRecords(str(path), path.name), shape, chosen)


def test_hidden_files_are_no_images_and_unread_ones_are_counted(tmp_path, capsys):
    for name in ("a/0.JPG", "b/1.png", "b/._1.png", ".cache/2.png", "b/3.tif", "b/4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    records = FolderRecords(str(tmp_path), "train")
    assert records.files == ["a/0.JPG", "b/1.png"]
    assert records.class_names == ("a", "b")
    said = capsys.readouterr().err
    assert "1 end in nothing, 1 end in .tif, which is not read" in said
    (tmp_path / "a/0.JPG").unlink(), (tmp_path / "b/1.png").unlink()
    with pytest.raises(UserError, match="no images under .*, 1 end in .tif, which"):
        FolderRecords(str(tmp_path), "train")


def test_links_that_lead_back_and_folders_that_are_closed_are_named(
    tmp_path, monkeypatch
):
    for name in ("a/0.jpg", "b/1.jpg", "elsewhere/2.jpg"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    root = str(tmp_path / "train")
    (tmp_path / "train/elsewhere").rename(tmp_path / "elsewhere")
    (tmp_path / "train/c").symlink_to(tmp_path / "elsewhere")
    assert FolderRecords(root, "train").files == ["a/0.jpg", "b/1.jpg", "c/2.jpg"]
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", closed)
        with pytest.raises(UserError, match="train/b cannot be read: Permission"):
            FolderRecords(root, "train")
    (tmp_path / "train/a/all").symlink_to("..")
    with pytest.raises(UserError, match="a/all links back to .*train, which holds it"):
        FolderRecords(root, "train")
    (tmp_path / "train/a/all").unlink()
    (tmp_path / "elsewhere/d").symlink_to(tmp_path / "train/a")  # and so two a round
    assert "c/d/0.jpg" in FolderRecords(root, "train").files
    (tmp_path / "train/a/e").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="(a/e/d|c/d/e) links back to .*, which holds"):
        FolderRecords(root, "train")


def test_a_name_that_is_no_text_is_a_name(tmp_path):
    name = os.fsencode(tmp_path) + b"/b\xfcld.png"
    with open(name, "wb") as file:
        Image.new("RGB", (8, 8)).save(file, "PNG")
    source = folder_source(tmp_path, (8, 8, 3))
    assert len(next(source.batches(np.arange(1), 1))["image"]) == 1
    assert source.records.key(0).endswith("b\\xfcld.png")


def test_a_class_whose_name_is_no_text_is_a_class(tmp_path):
    names = tuple(os.fsdecode(name) for name in (b"b\xfcld", "b\xfcld".encode()))
    write_config(str(tmp_path), {}, names)
    written = (tmp_path / "classes.txt").read_text("utf-8")
    assert written == "b\\udcfcld\nb\xfcld\n"


def test_images_beside_classes_are_a_class_of_their_own_and_said(tmp_path, capsys):
    for name in ("a/0.jpg", "1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    records = FolderRecords(str(tmp_path), "train")
    assert records.labels.tolist() == [0, 1] and records.class_names == ("", "a")
    assert "1 images lie in" in capsys.readouterr().err


def test_storage_that_is_away_for_a_while_is_waited_for(folder, tmp_path, monkeypatch):
    from ddae.data import images

    here, away = tmp_path / "train", tmp_path / "away"
    shutil.copytree(folder / "train", here)
    source = folder_source(here, (16, 24, 3), on_error="skip")
    here.rename(away)
    monkeypatch.setattr(images.time, "sleep", lambda _: away.rename(here))
    batches = list(source.batches(np.arange(9), 4))
    assert sum(len(batch["label"]) for batch in batches) == 9 and not source.bad
    here.rename(away)
    monkeypatch.setattr(images, "PAUSES", ())
    with pytest.raises(OSError, match="images cannot be read, .*train/cat/0.*among"):
        next(source.batches(np.arange(9), 4))


@pytest.mark.parametrize(
    "name", ["Aborted", "DeadlineExceeded", "ResourceExhausted", "Unknown"]
)
def test_what_the_system_says_of_a_file_is_no_image_that_is_bad(
    folder, monkeypatch, name
):
    """A stale handle, a server that does not answer, too many files, or input/output:
    TensorFlow's errors of these."""
    tf = decode.tensorflow()
    error = getattr(tf.errors, f"{name}Error")(None, None, "train/cat/0.png; away")
    monkeypatch.setattr(FolderRecords, "parse", failing(error))
    monkeypatch.setattr("ddae.data.images.PAUSES", ())
    source, four = folder_source(folder / "train", (16, 24, 3)), np.arange(4)
    assert source.verdict(0) == "cannot be read now (train/cat/0.png; away)"
    with pytest.raises(OSError, match="images cannot be read, .*train/cat/0.*among"):
        source._condemn(four, four, lambda _, index: source.verdict(index), error)


def test_storage_that_gives_some_files_alone_is_waited_for(folder, monkeypatch):
    """As where one of a file system's servers is down; a file that stays so is bad."""
    tf = decode.tensorflow()
    error = tf.errors.UnknownError(None, None, "0.png; Input/output error")
    waits = []
    monkeypatch.setattr("ddae.data.images.time.sleep", waits.append)
    monkeypatch.setattr("ddae.data.images.PAUSES", (1.0, 2.0))
    source, four = folder_source(folder / "train", (16, 24, 3)), np.arange(4)
    said = {1: "cannot be read now (0.png; Input/output error)"}
    for _ in range(2):
        source._condemn(four, four, lambda _, index: said.get(index), error)
    assert waits == [1.0, 2.0] and not source.bad
    with pytest.raises(UserError, match="cannot be read now .*; mend or remove it"):
        source._condemn(four, four, lambda _, index: said.get(index), error)


def failing(error):
    def fails(*_):
        raise error

    return fails


def test_folder_reads_every_image_at_one_size(folder):
    source = folder_source(folder / "train", (16, 24, 3))
    assert source.class_names == ("cat", "dog") and len(source) == 9
    batches = list(source.batches(np.arange(9), 4))
    assert [len(b["label"]) for b in batches] == [4, 4, 1]
    assert batches[0]["image"].shape == (4, 16, 24, 3)
    assert batches[0]["image"].dtype == np.uint8
    labels = np.concatenate([b["label"] for b in batches])
    assert labels.tolist() == [0] * 5 + [1] * 4


def test_folder_restarts_at_any_step_pixel_for_pixel(folder):
    source = folder_source(folder / "train", (16, 16, 3))
    augment = Augment(crop="random_resized", flip=True)
    order = Order(9, 4, seed=5)
    batches = list(itertools.islice(source.train_batches(order, 0, ALL, augment), 4))
    later = next(source.train_batches(order, 3, ALL, augment))
    np.testing.assert_array_equal(later["image"], batches[3]["image"])
    half = next(source.train_batches(order, 3, slice(2, 4), augment))
    np.testing.assert_array_equal(half["image"], batches[3]["image"][2:])
    # The same image at another position of the run is cut differently.
    first = {int(i): 0 for i in order.batch(0)[1]}
    assert first and (batches[0]["image"] != batches[2]["image"]).any()


def test_folder_in_grey(folder):
    source = folder_source(folder / "train", (8, 8, 1))
    assert next(source.batches(np.arange(2), 2))["image"].shape == (2, 8, 8, 1)


def test_resize_is_bicubic_with_antialias_against_pillow(folder):
    """PIL's bicubic is antialiased too; equal sizes in, so no crop differs."""
    path = folder / "square"
    (path / "a").mkdir(parents=True, exist_ok=True)
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8) * 2
    image = Image.fromarray(np.stack([ramp] * 3, axis=-1))
    image.save(path / "a" / "0.png")
    found = next(folder_source(path, (16, 16, 3)).batches(np.arange(1), 1))
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC), int)
    assert np.abs(found["image"][0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"data__dir": ""}, "config.data.dir is empty"),
        ({"data__dir": "/nowhere"}, "no folder /nowhere/train; expected"),
        ({"data__name": "imagnet"}, "'imagnet' is not one of"),
        ({"data__eval_crop": 0.0}, "eval_crop=0.0 is not in"),
        ({"data__on_error": "ignore"}, "on_error='ignore' is not one of .*'skip'"),
        (
            {"data__augment": {"resize": "nearest"}},
            "augment.resize='nearest' is not one of",
        ),
        ({"data__augment": {"scale": (0.5, 0.2)}}, "not an increasing pair"),
        ({"data__augment": {"scale": (0.0, 1.0)}}, "not an increasing pair"),
        ({"data__augment": {"magnitude": 11.0}}, "magnitude=11.0 is not between"),
        ({"data__augment": {"pad": -1}}, "pad=-1 must not be negative"),
        ({"data__augment": {"rand_augment": -1}}, "rand_augment=-1 must not be neg"),
        ({"data__augment": {"magnitude_std": -0.1}}, "magnitude_std=-0.1 must not be"),
        ({"data__augment": {"color_jitter": -0.1}}, "color_jitter=-0.1 must not be"),
        ({"data__augment": {"crop": "centre"}}, "crop='centre' is not one of"),
        ({"data__augment": {"corp": "none"}}, "config.data.augment.corp .*'crop'"),
    ],
)
def test_wrong_data_is_named(changes, says):
    config = tiny_config(**({"data__name": "folder", "image_size": 32} | changes))
    with pytest.raises(UserError, match=says):
        data.from_config(config, (32, 32, 3))


def test_a_folder_without_held_out_images_is_told_what_to_do(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "train" / "a" / "0.png")
    given = {"data__name": "folder", "data__dir": str(tmp_path), "image_size": 32}
    with pytest.raises(
        UserError, match="of held-out images, .* has train; .*eval_split=train$"
    ):
        data.from_config(tiny_config(**given), (32, 32, 3))


def test_a_folder_that_is_not_above_the_splits_is_told_what_it_has(tmp_path):
    for name in ("train/cat", "train/dog", ".hidden", "test/cat"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "notes").touch()
    for below, changes, says in (
        (
            "train",
            {},
            "no folder .*/train/train; .*/train has cat, dog; set config.data",
        ),
        ("", {"train_split": "tran"}, "no folder .*/tran; .* has test, train; set "),
    ):
        config = tiny_config(image_size=32)
        config["data"] |= {"name": "folder", "dir": str(tmp_path / below), **changes}
        with pytest.raises(UserError, match=says):
            data.from_config(config, (32, 32, 3))


def test_what_is_passed_over_in_a_split_that_is_both_is_said_once(tmp_path, capsys):
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "train" / "a" / "0.png")
    (tmp_path / "train" / "1.tif").touch()
    assert stats.main(["folder", "--dir", str(tmp_path), "--image_size=8"]) == 0
    assert capsys.readouterr().err.count("1 end in .tif") == 1


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    config = tiny_config(data__name="folder", data__dir=str(tmp_path))
    with pytest.raises(UserError, match="no images under .*train; expected"):
        data.from_config(config, (32, 32, 3))


def test_images_that_the_step_will_crop_are_left_as_they_are(folder):
    changes = {"data__augment": {"crop": "shift", "pad": 1, "on_device": True}}
    splits = data.from_config(tiny_config(**changes), (8, 8, 1))
    order = Order(len(splits.train), 12, seed=4)
    batch = next(splits.train.train_batches(order, 0, ALL, splits.augment))
    _, indices = order.batch(0)
    np.testing.assert_array_equal(batch["image"], splits.train.images[indices])
    changes |= {"data__name": "folder", "data__dir": str(folder)}
    with pytest.raises(UserError, match="on_device=True is for images in memory"):
        data.from_config(tiny_config(**changes), (8, 8, 3))


def test_arrays_refuse_what_needs_files():
    for asked in ({"color_jitter": 0.4}, {"rand_augment": 2}):
        with pytest.raises(UserError, match="give .*rand_augment=0, or color_jitter=0"):
            data.from_config(tiny_config(data__augment=asked), (8, 8, 1))
    with pytest.raises(UserError, match=r"digits are \(8, 8, 1\), not \(16, 16, 3\)"):
        data.from_config(tiny_config(), (16, 16, 3))


def test_half_precision_arrays_are_floats(tmp_path):
    images = np.full((3, 8, 8, 1), 0.5, np.float16)
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(3))
    config = tiny_config(data__name="npz", data__dir=str(tmp_path))
    assert data.from_config(config, (8, 8, 1)).train.images.dtype == np.float32


def test_arrays_from_npz_files(tmp_path):
    random = np.random.default_rng(0)
    for name, count in (("train", 12), ("test", 5)):
        images = random.integers(0, 255, (count, 8, 16, 2)).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(count) % 3)
    config = tiny_config(
        data__name="npz",
        data__dir=str(tmp_path),
        data__mean=(0.5, 0.5),
        data__std=(0.2, 0.2),
    )
    splits = data.from_config(config, (8, 16, 2))
    assert (len(splits.train), len(splits.held_out)) == (12, 5)
    batch = next(splits.train.train_batches(Order(12, 4, 0), 0, ALL, splits.augment))
    assert batch["image"].shape == (4, 8, 16, 2) and batch["image"].dtype == np.uint8
    with pytest.raises(UserError, match=r"images of \(8, 16, 2\), not \(8, 8, 1\)"):
        data.from_config(config, (8, 8, 1))


def test_a_pickle_in_an_npz_file_is_refused(tmp_path):
    anything = np.array([{"run": "me"}], dtype=object)
    np.savez(tmp_path / "train.npz", images=anything, labels=np.zeros(1))
    config = tiny_config(data__name="npz", data__dir=str(tmp_path))
    with pytest.raises(UserError, match="train.npz is not an archive .*pickle"):
        data.from_config(config, (8, 8, 1))
    with pytest.raises(UserError, match="no file /nowhere/train.npz; .*eval_split"):
        data.from_config(
            config | {"data": config["data"] | {"dir": "/nowhere"}}, (8, 8, 1)
        )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_file_is_named_wherever_it_is_damaged(tmp_path, save):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 1), np.uint8)
    for name in ("train", "test"):
        save(tmp_path / f"{name}.npz", images=pixels, labels=np.arange(3))
    config = tiny_config(data__name="npz", data__dir=str(tmp_path))
    path, whole = tmp_path / "train.npz", (tmp_path / "train.npz").read_bytes()
    refused = 0
    for at in (*range(0, len(whole), 7), *range(len(whole) - 230, len(whole), 2)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            data.from_config(config, (8, 8, 1))
        except UserError:
            refused += 1
    assert refused > 50
    path.write_bytes(whole)
    np.save(tmp_path / "one.npy", pixels)
    (tmp_path / "one.npy").rename(path)
    with pytest.raises(UserError, match="train.npz is not an archive of images and l"):
        data.from_config(config, (8, 8, 1))


def test_random_crops_of_arrays_of_any_channels_and_dtype():
    rows, columns = np.mgrid[0:32, 0:32]
    image = np.stack([rows, columns, rows, columns, rows], axis=-1) * 8
    augment = Augment(crop="random_resized", scale=(0.3, 0.6), flip=True)
    for dtype, top in ((np.uint8, 255), (np.float32, 1.0)):
        images = (image[None] * (top / 255)).astype(dtype)
        source = ArraySource(images, np.zeros(1, int), "ramp", "train")
        batches = source.train_batches(Order(1, 1, 0), 0, ALL, augment)
        found = np.stack([b["image"][0] for b in itertools.islice(batches, 60)])
        assert found.dtype == dtype and found.shape == (60, 32, 32, 5)
        # Every channel of a crop is cut alike; a ramp stays a ramp.
        np.testing.assert_array_equal(found[..., 0], found[..., 2])
        height = (found[:, -1, 0, 0].astype(float) - found[:, 0, 0, 0]) / top
        assert 0.4 < height.min() < height.max() < 0.95


@pytest.mark.parametrize(
    "labels, says",
    [
        (np.array([0, -1, 1]), "label -1 of record 1 is < 0"),
        (np.array([0.5, 1, 2]), "labels must be a row of whole numbers"),
        (np.array([0, 2**32, 1]), "label 4294967296 of record 1 is no class number"),
        (np.array([0, 2**31 - 1, 1]), "label 2147483647 of record 1 is no class numbe"),
        (np.zeros((3, 2), int), "labels must be a row of whole numbers"),
        (np.zeros(0, int), "3 images but 0 labels"),
    ],
)
def test_wrong_labels_in_an_npz_file_are_named(tmp_path, labels, says):
    images = np.zeros((3, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    np.savez(tmp_path / "test.npz", images=images, labels=np.array([0, 1, 3]))
    config = tiny_config(data__name="npz", data__dir=str(tmp_path))
    with pytest.raises(UserError, match=says):
        data.from_config(config, (8, 8, 1))
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(3))
    with pytest.raises(UserError, match="test.npz: label 3 of record 2 is not below t"):
        data.from_config(config, (8, 8, 1))
    names = {"labels": np.arange(3), "class_names": ["a", "b"]}
    np.savez(tmp_path / "train.npz", images=images, **names)
    with pytest.raises(UserError, match="class_names has 2 names, the labels go up to"):
        data.from_config(config, (8, 8, 1))
    names["class_names"] = ["a", "b", "c"]
    np.savez(tmp_path / "train.npz", images=images, **names)
    swapped = names | {"class_names": np.array([b"a", b"c", b"b"])}
    np.savez(tmp_path / "test.npz", images=images, **swapped)
    with pytest.raises(UserError, match="test.npz: class 1 is 'c', and 'b' in the tra"):
        data.from_config(config, (8, 8, 1))
    names["class_names"] = [["a"], ["b"], ["c"]]
    np.savez(tmp_path / "train.npz", images=images, **names)
    with pytest.raises(UserError, match="class_names must be a row of names"):
        data.from_config(config, (8, 8, 1))


@pytest.mark.parametrize(
    "images, says",
    [
        (np.full((3, 8, 8, 1), 200), "images of int64, from 200 to 200; give uint8"),
        (np.full((3, 8, 8, 1), 200.0, np.float32), "images of float32, from 200.0 to"),
        (np.full((3, 8, 8, 1), -0.5, np.float32), "of float32, from -0.5 to -0.5;"),
        (np.zeros((3, 8, 8), np.uint8), r"of \(8, 8\), .*; save images\[..., None\]"),
        (np.zeros((0, 8, 8, 1), np.uint8), "npz train: there is no image in it"),
        (np.zeros((0, 8, 8, 1), int), "images of int64; give uint8"),
        (np.full((3, 8, 8, 1), "x"), "images of <U1; give uint8"),
    ],
)
def test_wrong_images_in_an_npz_file_are_named(tmp_path, images, says):
    labels = np.zeros(len(images), int)
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    config = tiny_config(data__name="npz", data__dir=str(tmp_path))
    with pytest.raises(UserError, match=says):
        data.from_config(config, (8, 8, 1))


def test_a_set_of_which_nothing_can_be_read_is_named(tmp_path):
    (tmp_path / "0.jpg").write_bytes(b"no image")
    source = folder_source(tmp_path, (8, 8, 3), on_error="skip")
    with pytest.raises(UserError, match="all 1 images .*; the last: .*0.jpg: no image"):
        over(source, np.arange(1), None, None, "kNN")


def test_stats_print_what_a_config_wants(tmp_path, capsys):
    random = np.random.default_rng(0)
    root = tmp_path / "train" / "a"
    root.mkdir(parents=True)
    images = random.integers(0, 255, (5, 8, 8, 3)).astype(np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(root / f"{number}.png")
    (root / "9.png").write_bytes(b"not an image")
    command = ["folder", f"--dir={tmp_path}", "--image_size=8"]
    assert stats.main(command) == 0
    printed = capsys.readouterr()
    found = {}
    exec(printed.out.replace("config.data.", ""), found)
    np.testing.assert_allclose(found["mean"], images.mean((0, 1, 2)) / 255, atol=1e-4)
    np.testing.assert_allclose(found["std"], images.std((0, 1, 2)) / 255, atol=1e-4)
    assert "5 images, 1 bad records" in printed.out and "9.png" in printed.err
    flags = printed.out.splitlines()[-1].removeprefix("# ")
    assert not re.search(r"[^\w.,=\- ]", flags)  # bash reads it as it is
    for flag in flags.split():
        key, _, text = flag.removeprefix("--config.data.").partition("=")
        assert tuple_parser.TupleParser().parse(text) == found[key]
    assert stats.main([*command, "--limit=2", "--split=train"]) == 0
    assert "2 images" in capsys.readouterr().out
    assert stats.main([*command[:2], "--image_size=4,8", "--limit=2"]) == 0
    assert "2 images" in capsys.readouterr().out
    assert stats.main(["scenes", "--dir=/nowhere"]) == 2
    assert "read as those of a folder" in capsys.readouterr().err
    assert stats.main(["folder", "--dir=/nowhere"]) == 2
    assert "error: no folder /nowhere/train" in capsys.readouterr().err


def test_stats_are_of_the_split_that_is_named_and_of_floats_too(tmp_path, capsys):
    images = np.random.default_rng(0).random((6, 8, 8, 2), np.float32)
    np.savez(tmp_path / "kept.npz", images=images, labels=np.zeros(6, int))
    command = ["npz", f"--dir={tmp_path}", "--split=kept", "--channels=2"]
    assert stats.main([*command, "--image_size=8"]) == 0
    found = {}
    exec(capsys.readouterr().out.replace("config.data.", ""), found)
    np.testing.assert_allclose(found["mean"], images.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(found["std"], images.std((0, 1, 2)), atol=1e-4)


def test_other_labels_or_names_of_files_are_another_set(tmp_path):
    images = np.zeros((3, 2, 2, 1), np.uint8)
    arrays = [
        ArraySource(x, np.array(labels), "npz", "train").identity
        for x, labels in (
            (images, [0, 1, 2]),
            (images, [0, 2, 1]),
            (images + 1, [0, 1, 2]),
        )
    ]
    (tmp_path / "0.jpg").touch()
    folders = [FolderRecords(str(tmp_path), "train").identity]
    (tmp_path / "0.jpg").rename(tmp_path / "1.jpg")
    folders.append(FolderRecords(str(tmp_path), "train").identity)
    for sets in (arrays, folders):
        assert len({identity["fingerprint"] for identity in sets}) == len(sets)


def test_a_packed_folder_gives_what_the_folder_gives(tmp_path, capsys):
    random = np.random.default_rng(0)
    for name in ("train/a/0.png", "train/b/1.png", "test/a/2.png", "test/b/3.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    out, folder = str(tmp_path / "out"), str(tmp_path / "images")
    assert pack.main([out, "--dir", folder, "--image_size", "8"]) == 0
    with np.load(tmp_path / "out/test.npz") as file:
        expected = np.asarray(Image.open(tmp_path / "images/test/b/3.png"))
        np.testing.assert_array_equal(file["images"][1], expected)
        assert file["labels"].tolist() == [0, 1]
    settings = data.DataSettings(name="npz", dir=out, mean=(0.5,) * 3, std=(0.5,) * 3)
    splits = data.from_settings(settings, (8, 8, 3))
    assert splits.train.class_names == splits.held_out.class_names == ("a", "b")
    swapped = ["--train_split=test", "--eval_split=train", "--image_size=8"]
    assert pack.main([f"{out}2", "--dir", folder, *swapped]) == 0
    for own, other in (("train", "test"), ("test", "train")):
        found, wanted = f"{out}2/{own}.npz", f"{out}/{other}.npz"
        with np.load(found) as one, np.load(wanted) as two:
            np.testing.assert_array_equal(one["images"], two["images"])
    assert pack.main([out, "--dir", str(tmp_path / "none")]) == 2
    (tmp_path / "images/train/b/4.png").write_bytes(b"no image")
    grey = [out, "--dir", folder, "--image_size", "8", "--channels", "1"]
    assert pack.main(grey) == 2
    assert pack.main([*grey, "--on_error", "skip"]) == 0
    with np.load(tmp_path / "out/train.npz") as file:
        assert file["images"].shape == (2, 8, 8, 1)
    oblong = [out, "--dir", folder, "--image_size=4,8", "--on_error=skip"]
    assert pack.main(oblong) == 0
    with np.load(tmp_path / "out/train.npz") as file:
        assert file["images"].shape == (2, 4, 8, 3)
    # A class of which nothing is left to train on is one all the same.
    (tmp_path / "images/train/b/1.png").write_bytes(b"no image")
    assert pack.main([*oblong[:2], folder, "--image_size=8", "--on_error=skip"]) == 0
    splits = data.from_settings(settings, (8, 8, 3))
    assert splits.train.num_classes == splits.held_out.num_classes == 2
    for file in (tmp_path / "images/test").rglob("*.png"):
        file.write_bytes(b"no image")
    capsys.readouterr()
    assert pack.main(oblong) == 2
    assert "error: all 2 images that were to be read of te" in capsys.readouterr().err


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("lossless", [True, False])
def test_webp_with_transparency_or_frames_is_what_pillow_makes_of_it(frames, lossless):
    images = []
    for i in range(frames):
        image = Image.fromarray(np.asarray(photograph(i))).resize((40, 30))
        alpha = np.random.default_rng(i).integers(0, 256, (30, 40), np.uint8)
        image.putalpha(Image.fromarray(alpha))
        images.append(image)
    buffer = io.BytesIO()
    kept = {"append_images": images[1:], "save_all": frames > 1, "exact": True}
    images[0].save(buffer, "WEBP", lossless=lossless, **kept)
    wanted = Image.open(buffer).convert("RGB")
    found = decode.decode(buffer.getvalue(), 3).numpy()
    np.testing.assert_array_equal(found, np.asarray(wanted))
    grey = decode.decode(buffer.getvalue(), 1).numpy()[..., 0].astype(int)
    assert np.abs(grey - np.asarray(wanted.convert("L"), int)).max() <= 1


def test_what_is_transparent_in_a_gif_is_black():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert decode.decode(encoded(image, "GIF"), 3).numpy().all()
    content = encoded(image, "GIF", transparency=1)
    assert not decode.decode(content, 3).numpy().any()


@pytest.mark.parametrize("kind", ["BMP", "GIF", "WEBP", "PNG", "JPEG"])
def test_every_kind_is_read_in_grey_and_in_colour(kind):
    image = Image.fromarray(np.asarray(photograph(0))).resize((40, 30))
    for channels, mode in ((3, "RGB"), (1, "L")):
        settings = {"lossless": True} if kind == "WEBP" else {}
        content = encoded(image, kind, **settings)
        found = decode.decode(content, channels).numpy().astype(float)
        wanted = np.asarray(Image.open(io.BytesIO(content)).convert(mode), float)
        assert np.abs(found - wanted.reshape(found.shape)).mean() < 2


def test_a_bmp_of_numbered_colours_is_refused_one_of_greys_is_read():
    image = Image.fromarray(np.asarray(photograph(0)))
    grey = image.convert("L")
    content = bytearray(encoded(grey, "BMP"))
    for unused in (bytes(256), bytes(range(256))):  # as Pillow has it, and had it
        content[57:1078:4] = unused
        found = decode.decode(bytes(content), 3).numpy()
        np.testing.assert_array_equal(found, np.asarray(grey.convert("RGB")))
    with pytest.raises(Exception, match="numbered colours; save it as PNG"):
        decode.decode(encoded(image.quantize(64), "BMP"), 3)


def test_half_of_the_arrays_are_flipped():
    images = np.zeros((200, 4, 4, 1), np.float32)
    images[:, 1, 0] = 1.0
    source = ArraySource(images, np.zeros(200, int), "points", "train")
    flip = Augment(flip=True, pad=1)  # pad is of shifts alone
    batches = source.train_batches(Order(200, 200, 0), 0, ALL, flip)
    places = np.argwhere(next(batches)["image"][..., 0])[:, 1:]
    assert set(map(tuple, places.tolist())) == {(1, 0), (1, 3)}
    assert 70 < (places[:, 1] == 3).sum() < 130


def test_crops_of_rgb_arrays_are_those_of_their_channels():
    images = np.random.default_rng(0).integers(0, 256, (6, 12, 20, 3), np.uint8)
    augment = Augment(crop="random_resized", scale=(0.3, 0.6), flip=True)
    found = of_arrays(images, np.arange(6), 0, augment)
    for c in range(3):
        alone = of_arrays(images[..., c : c + 1], np.arange(6), 0, augment)
        np.testing.assert_array_equal(found[..., c : c + 1], alone)
    assert (found != images).any(axis=(1, 2, 3)).all()
    floats = of_arrays((images > 127).astype(np.float32), np.arange(6), 0, augment)
    assert floats.min() == 0 and floats.max() == 1, "the kernel reaches beyond"


def test_files_are_resized_and_coloured_as_they_are_told(monkeypatch):
    tf = decode.tensorflow()
    data, position = encoded(photograph(0, 24, 30), "PNG"), tf.constant(7, tf.int64)

    def made(**settings):
        augment = Augment(crop="random_resized", scale=(0.9, 1.0), **settings)
        return of_bytes(tf.constant(data), (16, 16, 3), augment, 0, position).numpy()

    pictures = [made(resize=kernel).tobytes() for kernel in get_args(decode.Kernel)]
    assert len(set(pictures)) == 3
    asked, drawn = {}, []

    def operations(image, seeds, **given):
        asked.update(given)
        drawn.append(seeds.numpy().tolist())
        return image

    def jitter(image, seeds, strength):
        asked["strength"] = strength
        drawn.append(seeds.numpy().tolist())
        return image

    monkeypatch.setattr("ddae.data.randaugment.rand_augment", operations)
    monkeypatch.setattr("ddae.data.randaugment.color_jitter", jitter)
    made(rand_augment=3, magnitude=10.0, magnitude_std=0.2, color_jitter=0.3)
    expected = {"num_ops": 3, "magnitude": 10.0, "magnitude_std": 0.2, "strength": 0.3}
    assert asked == expected
    # What is drawn is drawn apart, and from the crop's and the flip's seeds.
    assert len({0, 1 << 32, *(seed for seed, _ in drawn)}) == 4
    assert [at for _, at in drawn] == [7, 7]


def test_an_epoch_of_one_seed_is_none_of_anothers():
    one, other = (Order(num_examples=23, batch_size=5, seed=s) for s in (1, 2))
    assert (one.batch(4)[1] != other.batch(0)[1]).any()


def test_batches_and_indices_of_arrays_are_of_their_rows_and_of_the_seed():
    images = np.random.default_rng(0).random((20, 8, 8, 1), np.float32)
    source = ArraySource(images, np.arange(20), "noise", "train")
    order, rows = Order(20, 6, seed=3), slice(2, 5)
    shift = Augment(crop="shift", pad=2)
    batch = next(source.train_batches(order, 2, rows, shift))
    positions, indices = (ids[rows] for ids in order.batch(2))
    shifted = of_arrays(images[indices], positions, 3, shift)
    np.testing.assert_array_equal(batch["image"], shifted)
    found = next(source.index_batches(order, 2, rows))
    for given in (found["index"], found["label"], batch["label"]):
        np.testing.assert_array_equal(given, indices)


def test_crops_of_arrays_come_from_all_of_an_image_and_by_the_seed():
    images = np.broadcast_to(np.linspace(0, 1, 64), (60, 16, 64))[..., None]
    images = images.astype(np.float32)
    augment = Augment(crop="random_resized", scale=(0.1, 0.2))
    found = of_arrays(images, np.arange(60), 0, augment)
    assert found[:, 0, 0].min() < 0.1 and found[:, 0, -1].max() > 0.9
    assert (of_arrays(images, np.arange(60), 1, augment) != found).any()
    # One too small for any window is taken whole.
    long = images[:4, :4]
    whole = Augment(crop="random_resized", scale=(1.0, 1.0))
    np.testing.assert_allclose(of_arrays(long, np.arange(4), 0, whole), long, atol=1e-6)


def test_crops_of_oblong_arrays_are_stretched_by_a_third_at_most():
    rows, columns = np.mgrid[0:32, 0:96].astype(np.float32)
    image = np.stack([rows / 32, columns / 96], axis=-1)
    augment = Augment(crop="random_resized", scale=(0.3, 0.6))
    images = np.broadcast_to(image, (200, *image.shape))
    found = of_arrays(images, np.arange(200), 0, augment)
    height = found[:, 24, 48, 0] - found[:, 8, 48, 0]
    width = found[:, 16, 72, 1] - found[:, 16, 24, 1]
    middle = found[:, 16, 48].T  # down says nothing of across
    assert abs(np.corrcoef(middle)[0, 1]) < 0.25
    stretch = np.log(width / height)
    assert np.abs(stretch).max() < np.log(4 / 3) + 0.01
    assert stretch.min() < -0.2 and 0.2 < stretch.max()
