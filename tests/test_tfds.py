"""TFDS's own imagenet2012 builder, offline, in both file formats."""

import fcntl
import hashlib
import importlib
import itertools
import pathlib
import shutil
import tarfile
import types

import numpy as np
import pytest
from conftest import tiny_config
from pictures import dirty_records, encoded, imagenet_tars, photograph

from ddae import data
from ddae.data import prepare, tfds
from ddae.data.augment import Augment
from ddae.data.decode import tensorflow
from ddae.data.order import Order
from ddae.settings import UserError
from ddae.train import loop
from ddae.train.metrics import read_metrics

ALL = slice(None)
CROPS = Augment(crop="random_resized", flip=True)
FORMATS = ("array_record", "tfrecord")
SYNSETS = ("n01440764", "n01443537", "n01484850", "n01491361")
# TensorFlow's and TFDS's own Python, not ours, warns.
pytestmark = pytest.mark.filterwarnings("ignore::Warning")


def prepared(folder, train, validation):
    """The set in both formats, made by the command; {format: data_dir}."""
    imagenet_tars(folder / "tars", train, validation)
    for file_format in FORMATS:
        code = prepare.main(
            [
                "imagenet2012",
                f"--manual_dir={folder / 'tars'}",
                f"--data_dir={folder / file_format}",
                f"--file_format={file_format}",
            ]
        )
        assert code == 0
    return {name: folder / name for name in FORMATS}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    images = {
        synset: {f"{synset}_{i}.JPEG": encoded(photograph(7 * k + i)) for i in range(6)}
        for k, synset in enumerate(SYNSETS)
    }
    validation = [encoded(photograph(100 + i)) for i in range(5)]
    return prepared(tmp_path_factory.mktemp("clean"), images, validation)


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    records = dirty_records()
    names = {f"{SYNSETS[0]}_{i}.JPEG": d for i, (d, _) in enumerate(records.values())}
    return prepared(
        tmp_path_factory.mktemp("dirty"),
        {SYNSETS[0]: names},
        [data for data, _ in records.values()],
    )


def splits(data_dir, **settings):
    chosen = {f"data__{key}": value for key, value in settings.items()}
    given = {"data__eval_split": "validation"} | chosen
    config = tiny_config(
        data__name="tfds/imagenet2012", data__dir=str(data_dir), **given
    )
    return data.from_config(config, (16, 16, 3))


def test_both_formats_give_the_same_images_in_the_same_order(clean):
    one, two = (splits(clean[name]) for name in FORMATS)
    assert one.train.identity == two.train.identity
    assert one.train.identity["name"] == "tfds/imagenet2012/5.1.0"
    assert (len(one.train), len(one.held_out)) == (24, 5)
    assert one.train.num_classes == 1000
    assert one.train.class_names[0] == "n01440764"
    order = Order(24, 8, seed=0)
    batches = zip(
        one.train.train_batches(order, 0, ALL, CROPS),
        two.train.train_batches(order, 0, ALL, CROPS),
        strict=True,
    )
    labels = []
    for a, b in itertools.islice(batches, 6):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])
        labels += a["label"].tolist()
    # The first four synsets of ImageNet, six images each, twice.
    assert sorted(labels) == sorted([0, 1, 2, 3] * 12)
    held_out = [list(s.held_out.batches(np.arange(5), 2)) for s in (one, two)]
    for a, b in zip(*held_out, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_records_come_by_index_in_the_order_in_which_tfds_reads_them(clean):
    import tensorflow_datasets

    skip = {"image": tensorflow_datasets.decode.SkipDecoding()}
    builder = tfds.load_builder("imagenet2012", str(clean["tfrecord"]))
    theirs = builder.as_dataset(split="train", decoders=skip).as_numpy_iterator()
    names = [example["file_name"] for example in theirs]
    for file_format in FORMATS:
        builder = tfds.load_builder("imagenet2012", str(clean[file_format]))
        records = tfds.TfdsRecords(builder, "train")
        ours = [records.read(i) for i in range(24)]
        assert all(name in record for name, record in zip(names, ours, strict=True))
        assert records.read_many(np.array([5, 3])) == [ours[5], ours[3]]


def test_parts_of_a_split(clean):
    for file_format in FORMATS:
        part = splits(clean[file_format], train_split="train[:25%]")
        assert len(part.train) == 6
        with pytest.raises(UserError, match=r"no split 'test', but \['train', 'valid"):
            splits(clean[file_format], eval_split="test")
        with pytest.raises(
            UserError, match=r"1.0 validation\[:5%\]: there is no image"
        ):
            splits(clean[file_format], eval_split="validation[:5%]")


@pytest.mark.parametrize("file_format", FORMATS)
def test_dirty_records_get_the_verdict_they_get_from_a_folder(dirty, file_format):
    both = splits(dirty[file_format], on_error="skip")
    bad = sum(not good for _, good in dirty_records().values())
    order = Order(len(both.train), len(both.train), seed=0)
    list(itertools.islice(both.train.train_batches(order, 0, ALL, CROPS), 3))
    assert len(both.train.bad) == bad
    everything = np.arange(len(both.held_out))
    seen = sum(len(b["label"]) for b in both.held_out.batches(everything, 4))
    assert (seen, len(both.held_out.bad)) == (len(everything) - bad, bad)
    with pytest.raises(UserError, match=r"imagenet2012/5.1.0 train, record \d+: no im"):
        strict = splits(dirty[file_format]).train
        list(itertools.islice(strict.train_batches(order, 0, ALL, CROPS), 2))


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_flipped_bit_is_a_bad_record(clean, file_format, tmp_path):
    shutil.copytree(clean[file_format], tmp_path / "copy")
    (shard,) = (tmp_path / "copy").glob(f"imagenet2012/5.1.0/*train.{file_format}*")
    content = bytearray(shard.read_bytes())
    content[content.index(b"\xff\xd8\xff") + 500] ^= 1  # within a photograph
    shard.write_bytes(content)
    train = splits(tmp_path / "copy", on_error="skip").train
    labels = np.concatenate([b["label"] for b in train.batches(np.arange(24), 24)])
    assert len(labels) == 23
    (reason,) = train.bad.values()
    assert "checksum" in reason or "hash" in reason


def test_a_truncated_tfrecord_is_named(clean, tmp_path):
    shutil.copytree(clean["tfrecord"], tmp_path / "copy")
    (shard,) = (tmp_path / "copy").glob("imagenet2012/5.1.0/*train*")
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(UserError, match="train.* is not a whole TFRecord file of 24 r"):
        splits(tmp_path / "copy")
    shard.unlink()
    with pytest.raises(UserError, match="train.* cannot be read: No such file"):
        splits(tmp_path / "copy")


def test_offsets_are_kept_and_forgotten_with_the_file(clean, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = splits(clean["tfrecord"]).train.records
    assert len(list((tmp_path / "cache" / "ddae").iterdir())) == 2
    monkeypatch.setattr(tfds, "_walk", None)  # it is not walked again
    assert splits(clean["tfrecord"]).train.records.read(7) == first.read(7)


def test_parts_of_several_files_are_read_where_they_are(tmp_path):
    files = []
    for number, (count, skip) in enumerate([(3, 1), (4, 2), (3, 0)]):
        path = str(tmp_path / f"{number}.tfrecord")
        with tensorflow().io.TFRecordWriter(path) as writer:
            for record in range(count):
                writer.write(f"{number}-{record}".encode() * (record + 1))
        file = types.SimpleNamespace(filename=path, examples_in_shard=count)
        file.skip, file.take = skip, 2
        files.append(file)
    records = tfds.TFRecords(files)
    expected = [b"0-1" * 2, b"0-2" * 3, b"1-2" * 3, b"1-3" * 4]
    expected += [b"2-0", b"2-1" * 2]
    assert [records.read(i) for i in range(len(records))] == expected


def test_missing_copies_and_unknown_sets_are_named(tmp_path, caplog):
    with pytest.raises(
        UserError,
        match=r"no prepared copy in .*; make it with python -m ddae.data.prepare imag",
    ):
        splits(tmp_path)
    with pytest.raises(UserError, match="TFDS knows no set 'imagnet2012'"):
        tfds.load_builder("imagnet2012", str(tmp_path))
    with pytest.raises(UserError, match="^TFDS has no 'imagenet2012:9.9.9': .* 9.9.9,"):
        tfds.load_builder("imagenet2012:9.9.9", str(tmp_path))
    assert not caplog.records, "what TFDS warns of is the error"


def test_prepare_wants_both_archives_and_leaves_nothing_half_done(tmp_path, capsys):
    command = ["imagenet2012", f"--data_dir={tmp_path / 'out'}"]
    assert prepare.main(command) == 2
    assert "no file MANUAL_DIR/ILSVRC2012_img_train.tar" in capsys.readouterr().err
    imagenet_tars(tmp_path / "tars", {}, [encoded(photograph(0))])
    (tmp_path / "tars" / "ILSVRC2012_img_val.tar").unlink()
    assert prepare.main([*command, f"--manual_dir={tmp_path / 'tars'}"]) == 2
    assert "ILSVRC2012_img_val.tar; give its folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_prepare_names_what_it_cannot_make(tmp_path, capsys):
    images = {f"{SYNSETS[0]}_{i}.JPEG": encoded(photograph(i)) for i in range(2)}
    imagenet_tars(tmp_path / "tars", {SYNSETS[0]: images}, [encoded(photograph(2))])
    command = [f"--manual_dir={tmp_path / 'tars'}", f"--data_dir={tmp_path / 'out'}"]
    assert prepare.main(["imagenet2012:5.0.0", *command]) == 2
    assert "is too old for this version of TFDS" in capsys.readouterr().err
    archive = tmp_path / "tars" / "ILSVRC2012_img_train.tar"
    whole = archive.read_bytes()
    for content in (whole[: len(whole) // 2], b"no tar" * 999):
        archive.write_bytes(content)
        assert prepare.main(["imagenet2012", *command]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("error: ILSVRC2012_img_train.tar or ILSVRC2012_img_val")
        assert said.endswith("; fetch it again")


def test_a_finished_copy_is_counted_in_whatever_format_it_is(clean, capsys):
    command = ["imagenet2012", f"--data_dir={clean['tfrecord']}"]
    assert prepare.main(command) == 0
    assert "train: 24 records" in capsys.readouterr().out
    assert prepare.main([*command, "--file_format=array_record"]) == 2
    assert "a finished copy in tfrecord, not array_record" in capsys.readouterr().err


def test_prepare_leaves_a_folder_alone_that_another_run_prepares(tmp_path, capsys):
    imagenet_tars(tmp_path / "tars", {}, [])
    folder = tmp_path / "out" / "imagenet2012"
    (folder / "incomplete.ABCDEF_5.1.0").mkdir(parents=True)
    command = [f"--data_dir={tmp_path / 'out'}", f"--manual_dir={tmp_path / 'tars'}"]
    with open(folder / ".prepare.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert prepare.main(["imagenet2012", *command]) == 2
    assert "another run is preparing" in capsys.readouterr().err
    assert (folder / "incomplete.ABCDEF_5.1.0").exists()


@pytest.mark.parametrize("labelled", [True, False])
def test_any_image_set_of_tfds_grey_or_unlabelled(tmp_path, labelled):
    import tensorflow as tf
    import tensorflow_datasets

    features = {"picture": tensorflow_datasets.features.Image(shape=(28, 28, 1))}
    images = np.stack([photograph(i, 28, 28, 1) for i in range(6)])
    columns = {"picture": images}
    if labelled:
        features["kind"] = tensorflow_datasets.features.ClassLabel(num_classes=3)
        columns["kind"] = np.arange(6) % 3
    tensorflow_datasets.dataset_builders.store_as_tfds_dataset(
        name="digits_of_mine",
        version="1.0.0",
        data_dir=str(tmp_path),
        features=tensorflow_datasets.features.FeaturesDict(features),
        split_datasets={"train": tf.data.Dataset.from_tensor_slices(columns)},
        disable_shuffling=True,
    )
    config = tiny_config(
        data__name="tfds/digits_of_mine",
        data__dir=str(tmp_path),
        data__eval_split="train[4:]",
    )
    splits = data.from_config(config, (28, 28, 1))
    assert (len(splits.train), len(splits.held_out)) == (6, 2)
    (batch,) = splits.train.batches(np.arange(6), 6)
    np.testing.assert_array_equal(batch["image"], images)
    assert batch["label"].tolist() == ([0, 1, 2] * 2 if labelled else [0] * 6)


@pytest.mark.parametrize(
    "keys, names, found",
    [
        (("scan", "fine"), ["coarse", "fine", "scan", "label", "image"], "scan fine"),
        (None, ["coarse", "label", "mask", "image"], "image label"),
        (({"a": "scan"}, ("fine",)), ["fine", "coarse", "scan", "mask"], "mask coarse"),
    ],
)
def test_of_several_labels_the_same_is_taken_in_every_process(keys, names, found):
    import tensorflow_datasets

    features, info = tensorflow_datasets.features, types.SimpleNamespace()
    kinds = {
        name: features.Image()
        if name in ("image", "mask", "scan")
        else features.ClassLabel(num_classes=2)
        for name in names
    }
    info.full_name, info.supervised_keys = "mine/1.0.0", keys
    for order in (names, names[::-1]):
        info.features = {name: kinds[name] for name in order}
        assert tfds._features(info) == tuple(found.split())


def test_masks_are_no_images_and_images_of_floats_are_refused():
    import tensorflow_datasets

    features = tensorflow_datasets.features
    mask = features.LabeledImage(labels=3, shape=(8, 8, 1))
    info = types.SimpleNamespace(full_name="mine/1.0.0", supervised_keys=None)
    info.features = {"mask": mask, "scan": features.Image()}
    assert tfds._features(info) == ("scan", None)
    info.features["scan"] = features.Image(shape=(8, 8, 1), dtype=np.float32)
    with pytest.raises(UserError, match="mine/1.0.0: 'scan' holds images of float32; "):
        tfds._features(info)


def test_prepare_clears_what_an_interrupted_run_left_and_keeps_a_finished_copy(
    tmp_path, capsys
):
    imagenet_tars(
        tmp_path / "tars",
        {SYNSETS[0]: {f"{SYNSETS[0]}_1.JPEG": encoded(photograph(0))}},
        [encoded(photograph(1))],
    )
    left = tmp_path / "out" / "imagenet2012" / "incomplete.ABCDEF_5.1.0"
    left.mkdir(parents=True)
    (left / "bucket.tmp").write_bytes(b"half")
    command = [
        "imagenet2012",
        f"--data_dir={tmp_path / 'out'}",
        f"--manual_dir={tmp_path / 'tars'}",
    ]
    assert prepare.main(command) == 0
    assert not left.exists()
    assert (
        "train: 1 records of 1281167 that the whole set has" in capsys.readouterr().out
    )
    files = sorted(pathlib.Path(tmp_path / "out").rglob("*train*"))
    before = [file.stat().st_mtime_ns for file in files]
    assert prepare.main(command) == 0
    assert [file.stat().st_mtime_ns for file in files] == before


PHOTOGRAPHS = pathlib.Path(__file__).parents[2] / "shared" / "data" / "imagenet-250.tar"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """ImageNet's own files: 250 photographs to train on, 40 of them held out."""
    classes = {}
    with tarfile.open(PHOTOGRAPHS) as archive:
        for member in archive.getmembers():
            if member.isfile():
                synset, _, name = member.name.rpartition("/")
                file = archive.extractfile(member)
                classes.setdefault(synset.split("/")[-1], {})[name] = file.read()
    images = [image for files in classes.values() for image in files.values()]
    return prepared(tmp_path_factory.mktemp("photographs"), classes, images[:40])


needs_photographs = pytest.mark.skipif(
    not PHOTOGRAPHS.exists(), reason="needs shared/data/imagenet-250.tar"
)


@pytest.mark.slow
@needs_photographs
def test_two_epochs_of_photographs_are_the_same_for_one_two_and_four_hosts(photographs):
    config = {"data": {"name": "tfds/imagenet2012", "mean": (0.5,), "std": (0.5,)}}
    config["data"] |= {"eval_split": "validation", "on_error": "raise"}
    digests = {}
    for file_format, hosts in itertools.product(FORMATS, (1, 2, 4)):
        config["data"]["dir"] = str(photographs[file_format])
        train = data.from_config(config, (224, 224, 3)).train
        order = Order(len(train), 20, seed=5)  # 12 steps an epoch, 10 images dropped
        share = 20 // hosts
        parts = [
            train.train_batches(order, 0, slice(h * share, (h + 1) * share), CROPS)
            for h in range(hosts)
        ]
        labels, pixels = [], hashlib.sha256()
        for _ in range(24):
            batches = [next(part) for part in parts]
            labels += [batch["label"] for batch in batches]
            pixels.update(b"".join(batch["image"].tobytes() for batch in batches))
        labels = np.concatenate(labels)
        # Every photograph is the only one of its class.
        for epoch in np.split(labels, 2):
            assert len(set(epoch.tolist())) == 240
        digests[file_format, hosts] = (labels.tolist(), pixels.hexdigest())
    first, *others = digests.values()
    assert all(other == first for other in others)


@pytest.mark.slow
@needs_photographs
def test_photographs_pretrain_alike_from_both_formats(photographs, tmp_path):
    losses = []
    for file_format in FORMATS:
        config = importlib.import_module("configs.ddae_in1k").get_config("model=S")
        config = config.to_dict()
        config |= {"batch_size": 8, "total_steps": 4, "log_every_steps": 1}
        config["model"]["size"] = "Two"
        config["method"]["taps"] = (1, 2)
        config["method"]["decoder"] = {"depth": 1, "width": 32, "num_heads": 2}
        config["data"]["dir"] = str(photographs[file_format])
        config["evaluators"] = {"knn": {"k": 5, "num_train": 32, "num_held_out": 16}}
        workdir = tmp_path / file_format
        workdir.mkdir()
        loop.run(config, str(workdir))
        rows = read_metrics(str(workdir / "metrics.jsonl"))
        losses.append([row["train/loss"] for row in rows if "train/loss" in row])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4 and all(0 < loss < 100 for loss in losses[0])
