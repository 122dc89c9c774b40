"""Encoded images on their way to batches: audit, restarts, dirt, pixels."""

import dataclasses
import functools
import io
import itertools
import re
import subprocess
import sys
import time
from typing import get_args

import jax
import numpy as np
import pytest
from conftest import tiny_config
from pictures import dirty_records, encoded, photograph
from PIL import Image

from ddae import data
from ddae.cropping import random_window
from ddae.data import decode
from ddae.data.augment import Augment, crop_window
from ddae.data.decode import tensorflow
from ddae.data.folder import FolderRecords
from ddae.data.images import ImageSource
from ddae.data.order import Order
from ddae.settings import UserError

ALL = slice(None)
CROPS = Augment(crop="random_resized", flip=True)
# TensorFlow's own Python, not ours, warns while it traces a function.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def write(root, records):
    """A folder with one class an image, so that labels tell the images apart."""
    for number, image in enumerate(records):
        (root / f"c{number:03d}").mkdir(parents=True)
        (root / f"c{number:03d}" / "image.JPEG").write_bytes(image)
    return root


def source(root, shape=(16, 16, 3), **settings):
    given = {"mean": (0.5,), "std": (0.5,)} | settings
    chosen = data.DataSettings(name="folder", **given)
    return ImageSource(FolderRecords(str(root), "train"), shape, chosen)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    sizes = itertools.cycle([(60, 80), (33, 47), (90, 40)])
    images = [encoded(photograph(i, *next(sizes))) for i in range(24)]
    return source(write(tmp_path_factory.mktemp("photographs"), images))


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    records = dirty_records()
    root = write(tmp_path_factory.mktemp("dirty"), [d for d, _ in records.values()])
    bad = {i for i, (_, good) in enumerate(records.values()) if not good}
    return root, bad


def take(batches, count):
    found = list(itertools.islice(batches, count))
    return (np.concatenate([b[name] for b in found]) for name in ("image", "label"))


@pytest.mark.parametrize("batch_size, dropped", [(8, 0), (20, 4)])
def test_two_epochs_show_each_image_once_on_any_number_of_hosts(
    photographs, batch_size, dropped
):
    order = Order(24, batch_size, seed=3)
    steps = 2 * order.steps_per_epoch
    images, labels = take(photographs.train_batches(order, 0, ALL, CROPS), steps)
    for epoch in np.split(labels, 2):
        assert len(set(epoch.tolist())) == len(epoch) == 24 - dropped
    first, second = np.split(labels, 2)
    assert (first != second).any()
    for hosts in (2, 4):
        share = batch_size // hosts
        rows = [slice(h * share, (h + 1) * share) for h in range(hosts)]
        parts = [
            list(itertools.islice(photographs.train_batches(order, 0, r, CROPS), steps))
            for r in rows
        ]
        for name, whole in (("image", images), ("label", labels)):
            joined = [part[s][name] for s in range(steps) for part in parts]
            np.testing.assert_array_equal(np.concatenate(joined), whole)


def test_a_restart_at_any_step_gives_the_same_pixels(photographs):
    order = Order(24, 8, seed=0)
    images, _ = take(photographs.train_batches(order, 0, ALL, CROPS), 8)
    for step in (1, 3, 7):
        again, _ = take(photographs.train_batches(order, step, ALL, CROPS), 1)
        np.testing.assert_array_equal(again, images[8 * step : 8 * step + 8])
    later, _ = take(photographs.train_batches(order, 10**9, ALL, CROPS), 1)
    assert later.shape == (8, 16, 16, 3)


def test_batches_read_in_several_parts_are_those_read_in_one(photographs, monkeypatch):
    def seen():
        order = Order(24, 8, seed=3)
        training = take(photographs.train_batches(order, 1, ALL, CROPS), 3)
        return [*training, *take(photographs.batches(np.arange(24), 8), 3)]

    whole = seen()
    monkeypatch.setattr("ddae.data.images.CHUNK", 3)
    for found, wanted in zip(seen(), whole, strict=True):
        np.testing.assert_array_equal(found, wanted)


class Unsteady(FolderRecords):
    """A part is read late, and an image of another comes late."""

    def read_many(self, indices):
        time.sleep(0.1 * (0 in indices))
        return super().read_many(indices)

    def parse(self, record, index):
        def late(index):
            time.sleep(0.1 * (index == 10))
            return index

        tf = tensorflow()
        index = tf.ensure_shape(tf.numpy_function(late, [index], tf.int64), ())
        return super().parse(record, index)


def test_images_keep_their_order_however_long_each_takes(photographs, monkeypatch):
    monkeypatch.setattr("ddae.data.images.CHUNK", 3)
    records = Unsteady(photographs.records.root, "train")
    unsteady = ImageSource(records, (16, 16, 3), photographs.data)
    _, labels = take(unsteady.batches(np.arange(24), 1), 24)
    assert labels.tolist() == [*range(24)]


def test_colours_are_drawn_by_seed_and_position_too(photographs):
    plain = Augment(crop="random_resized", flip=True)
    colours = dataclasses.replace(plain, rand_augment=2, color_jitter=0.4)
    order = Order(24, 8, seed=0)
    images, _ = take(photographs.train_batches(order, 0, ALL, colours), 3)
    half, _ = take(photographs.train_batches(order, 2, slice(4, 8), colours), 1)
    np.testing.assert_array_equal(half, images[20:24])
    without, _ = take(photographs.train_batches(order, 0, ALL, plain), 3)
    assert (images != without).any(axis=(1, 2, 3)).mean() > 0.9


def test_an_image_is_cut_anew_at_each_position_and_by_each_seed(photographs):
    order = Order(24, 24, seed=0)
    images, labels = take(photographs.train_batches(order, 0, ALL, CROPS), 2)
    first, second = (images[np.flatnonzero(labels == 5)[i]] for i in (0, 1))
    assert (first != second).any()
    other, other_labels = take(
        photographs.train_batches(Order(24, 24, seed=1), 0, ALL, CROPS), 1
    )
    assert (first != other[other_labels == 5][0]).any()


PATHS = {
    "crops": CROPS,
    "fine-tuning": Augment(
        crop="random_resized", flip=True, rand_augment=2, color_jitter=0.4
    ),
    "shift": Augment(crop="shift", pad=2),
    "centre": Augment(),
}


@pytest.mark.parametrize("path", [*PATHS, "held out"])
def test_every_path_gives_each_record_the_same_verdict(dirty, path):
    root, bad = dirty
    skipping = source(root, on_error="skip")
    everything = np.arange(len(skipping))
    if path == "held out":
        labels = [b["label"] for b in skipping.batches(everything, 4)]
        assert np.concatenate(labels).tolist() == sorted({*everything} - bad)
    else:
        order = Order(len(skipping), len(skipping), seed=0)
        # Four epochs, so that a truncated file is cut in several places.
        batches = skipping.train_batches(order, 0, ALL, PATHS[path])
        for batch in itertools.islice(batches, 4):
            assert not bad & set(batch["label"].tolist())
            assert set(batch["label"].tolist()) == {*everything} - bad
    assert set(skipping.bad) == bad
    assert all(skipping.verdict(i) for i in bad)
    assert not any(skipping.verdict(i) for i in {*everything} - bad)


def test_a_bad_record_stops_the_run_by_name_unless_told_otherwise(dirty):
    root, bad = dirty
    strict = source(root)
    for batches in (
        strict.train_batches(Order(len(strict), 4, seed=0), 0, ALL, CROPS),
        strict.batches(np.arange(len(strict)), 4),
    ):
        with pytest.raises(UserError, match=r"image.JPEG: no image .*on_error=skip"):
            list(itertools.islice(batches, 8))


def test_too_many_bad_records_stop_the_run(dirty):
    root, bad = dirty
    few = source(root, on_error="skip", max_bad=len(bad) - 1)
    with pytest.raises(UserError, match="8 bad records, more than .*max_bad=7; the la"):
        list(few.batches(np.arange(len(few)), 4))


def hosts_and_restarts(root, order, steps, restart, crops=CROPS):
    """A run's batches, and the same rows of two hosts and of a later start."""
    one = source(root, on_error="skip")
    whole = take(one.train_batches(order, 0, ALL, crops), steps)
    images, labels = (x.reshape(steps, order.batch_size, *x.shape[1:]) for x in whole)
    parts = [(0, slice(0, 2)), (0, slice(2, None)), (restart, ALL)]
    for first, rows in parts:
        one = source(root, on_error="skip")
        list(one.batches(np.arange(len(one)), 4))  # an evaluation has met all bad ones
        found = take(one.train_batches(order, first, rows, crops), steps - first)
        for x, whole in zip(found, (images, labels), strict=True):
            wanted = whole[first:, rows]
            yield x.reshape(wanted.shape), wanted
    yield labels, None


def test_others_stand_in_for_a_bad_record_whatever_was_seen(dirty):
    root, bad = dirty
    order = Order(len(dirty_records()), 5, seed=1)
    *pairs, (labels, _) = hosts_and_restarts(root, order, 9, 4)
    for found, wanted in pairs:
        np.testing.assert_array_equal(found, wanted)
    asked = np.concatenate([order.batch(step)[1] for step in range(9)])
    kept = ~np.isin(asked, list(bad))
    np.testing.assert_array_equal(labels.ravel()[kept], asked[kept])
    others = labels.ravel()[~kept].tolist()
    assert not bad & set(others) and len(set(others)) > 4  # drawn, not the next


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Every third JPEG has a bogus marker, met by crops that reach the last row."""
    images = [encoded(photograph(i, 60, 80)) for i in range(18)]
    for number in range(0, 18, 3):
        half = len(images[number]) // 2
        images[number] = images[number][:half] + b"\xff\xc4" + images[number][half:]
    return write(tmp_path_factory.mktemp("damaged"), images)


def test_a_damaged_jpeg_is_good_where_its_crop_is_whatever_was_seen(damaged):
    order = Order(18, 6, seed=2)
    crops = dataclasses.replace(CROPS, scale=(0.7, 1.0))
    *pairs, (labels, _) = hosts_and_restarts(damaged, order, 12, 5, crops)
    for found, wanted in pairs:
        np.testing.assert_array_equal(found, wanted)
    asked = np.concatenate([order.batch(step)[1] for step in range(12)])
    own = (labels.ravel() == asked)[asked % 3 == 0]
    assert own.any() and not own.all()  # else this shows nothing


def test_as_many_stand_ins_are_tried_as_may_be_bad_by_seed_and_position(photographs):
    def tried(seed, position, *verdicts):
        one = source(photographs.records.root, on_error="skip", max_bad=2)
        seen, left = [], iter(verdicts)

        def verdict(_, index):
            seen.append(index)
            return next(left, "no image")

        return seen, one._good(seed, position, 5, verdict), one.bad

    seen, found, _ = tried(0, 7)
    # Itself, two that may be bad, and one more: itself may be drawn again.
    assert seen[0] == found == 5 and len(seen) == 4
    assert tried(0, 7)[0] == seen
    assert len({tuple(tried(*at)[0]) for at in ((0, 7), (1, 7), (0, 8))}) == 3
    # Storage that is away for a moment makes no record bad.
    seen, found, bad = tried(0, 7, "cannot be read (away)", "no image", None)
    assert found == seen[2] and bad == {seen[1]: "no image"}


@pytest.mark.parametrize("max_bad", [100, 3])
def test_a_set_of_bad_images_only_ends_in_one_line(tmp_path, max_bad):
    root = write(tmp_path, [b"no image"] * 9)
    says = "all 9 images .* of train are bad; the last: .*image.JPEG: no image"
    if max_bad < 9:
        says = "bad records, more than config.data.max_bad=3; the last: "
    bad = source(root, on_error="skip", max_bad=max_bad)
    with pytest.raises(UserError, match=says):
        next(bad.train_batches(Order(9, 2, seed=0), 0, ALL, CROPS))
    fresh = source(root, on_error="skip", max_bad=max_bad)
    for _ in range(2 if max_bad == 100 else 0):
        with pytest.raises(UserError, match=says):
            list(fresh.batches(np.arange(9), 4))


@pytest.mark.parametrize("batch_size", [2, 1])
def test_a_file_gone_since_it_was_listed_is_a_bad_record(
    tmp_path, batch_size, monkeypatch
):
    monkeypatch.setattr("ddae.data.images.PAUSES", ())
    root = write(tmp_path, [encoded(photograph(i)) for i in range(4)])
    gone = source(root, on_error="skip")
    (root / "c002" / "image.JPEG").unlink()
    labels = [b["label"] for b in gone.batches(np.arange(4), batch_size)]
    assert np.concatenate(labels).tolist() == [0, 1, 3]
    assert "No such file" in gone.bad[2]


def test_an_error_of_which_no_record_is_the_cause_is_of_the_storage(
    photographs, monkeypatch
):
    monkeypatch.setattr("ddae.data.images.PAUSES", ())
    four, error = np.arange(4), ValueError("odd")
    with pytest.raises(OSError, match="images cannot be read, .*c000.* them: odd"):
        photographs._condemn(four, four, lambda *_: None, error)


CRASH = """
import signal, sys, time
from ddae import data
from ddae.data.augment import Augment
from ddae.data.folder import FolderRecords
from ddae.data.images import ImageSource
from ddae.data.order import Order

class Slow(FolderRecords):
    def read_many(self, indices):
        time.sleep(1.0)
        return super().read_many(indices)

def begun():
    settings = data.DataSettings(name="folder", mean=(0.5,), std=(0.5,))
    source = ImageSource(Slow(sys.argv[1], "train"), (16, 16, 3), settings)
    order = Order(len(source), 8, seed=1)
    return source.train_batches(order, 0, slice(None), Augment())

def crash(*_):
    raise ValueError("a crash")

def train():
    batches = begun()
    signal.signal(signal.SIGALRM, crash)
    next(batches)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    while True:
        next(batches)
        next(kept)

kept = begun()
next(kept)
train()
"""


def test_a_crash_while_images_are_read_ends_the_process(photographs):
    """Two pipelines go on reading: a module's, and one in the frames of the error."""
    command = [sys.executable, "-c", CRASH, photographs.records.root]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and ended.stderr.endswith("ValueError: a crash\n")


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_out_of_range_is_a_bad_record(tmp_path, label):
    wrong = source(write(tmp_path, [encoded(photograph(i)) for i in range(4)]))
    wrong.records.labels[1] = label
    with pytest.raises(UserError, match=f"image.JPEG: label {label} is not below 4"):
        list(wrong.batches(np.arange(4), 4))


def test_folders_of_the_held_out_set_keep_the_numbers_of_the_training_set(tmp_path):
    for split, names in (("train", ("a", "b", "c")), ("test", ("a", "c"))):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            path = tmp_path / split / name / "0.jpg"
            path.write_bytes(encoded(photograph(0)))
    config = tiny_config(data__name="folder", data__dir=str(tmp_path))
    splits = data.from_config(config, (8, 8, 1))
    (batch,) = splits.held_out.batches(np.arange(2), 2)
    assert batch["label"].tolist() == [0, 2]
    for same in ("train", "train/", "./train"):  # and kNN says nothing of it
        both = data.from_config(
            config | {"data": config["data"] | {"eval_split": same}}, (8, 8, 1)
        )
        assert both.train.identity == both.held_out.identity
    (tmp_path / "train" / "b").rename(tmp_path / "train" / "caf\xe9")
    (tmp_path / "test" / "c").rename(tmp_path / "test" / "cafe\u0301")
    says = re.escape(r"; it has 'caf\xe9', and this is 'cafe\u0301': rename one")
    with pytest.raises(UserError, match=says):
        data.from_config(config, (8, 8, 1))
    (tmp_path / "test" / "cafe\u0301").rename(tmp_path / "test" / "d")
    with pytest.raises(UserError, match="a folder 'd', which the training set has not"):
        data.from_config(config, (8, 8, 1))


def test_images_without_folders_have_one_class(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(photograph(number)))
    flat = source(tmp_path)
    assert (len(flat), flat.num_classes, flat.class_names) == (3, 1, ())


def held_out_pixels(tmp_path, image, shape, share):
    root = write(tmp_path, [encoded(image, "PNG")])
    (batch,) = source(root, shape, eval_crop=share).batches(np.arange(1), 1)
    return batch["image"][0].astype(int)


@pytest.mark.parametrize(
    "height, width, shape, share, covering, corner",
    [
        (60, 80, (28, 28, 3), 0.875, (32, 43), (2, 7)),
        (80, 60, (28, 28, 3), 0.875, (43, 32), (7, 2)),
        (60, 80, (24, 32, 3), 1.0, (24, 32), (0, 0)),
        (20, 30, (40, 40, 3), 1.0, (40, 60), (0, 10)),
    ],
)
def test_held_out_images_are_resized_and_cut_as_pillow_does(
    tmp_path, height, width, shape, share, covering, corner
):
    image = photograph(3, height, width)
    found = held_out_pixels(tmp_path, image, shape, share)
    resized = Image.fromarray(image).resize(covering[::-1], Image.Resampling.BICUBIC)
    (top, left), (h, w) = corner, shape[:2]
    expected = np.asarray(resized, int)[top : top + h, left : left + w]
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("share", [1.0, 0.875])
@pytest.mark.parametrize("shape", [(6, 200), (300, 16), (40, 900), (40, 16), (70, 60)])
def test_of_a_thin_image_no_more_is_resized_than_its_centre(shape, share, monkeypatch):
    resize, resized = decode.resize, []
    image = (photograph(5, *shape) > 127).astype(np.uint8) * 255  # kernels overshoot

    def kept(image, size, kernel):
        resized.append(size)
        return resize(image, size, kernel)

    monkeypatch.setattr(decode, "resize", kept)
    found = decode.centre(image, (16, 24), share).numpy().astype(int)
    thin = max(shape) / min(shape) > 9
    assert bool(resized) == (not thin)
    monkeypatch.setattr(decode, "THIN", 10**6)
    whole = decode.centre(image, (16, 24), share).numpy()
    assert np.abs(found - whole).max() <= thin  # to the bit where it is none
    assert np.abs((found - whole).mean()) < 0.02


def cut(image, window, size, kernel, kind):
    """`window` of an encoded image, as training cuts it."""
    tf = decode.tensorflow()
    record = tf.constant(encoded(image, kind))
    piece = decode.decode_window(record, 3, size, lambda _: tf.constant(window))
    return decode.resize(piece, size, kernel).numpy().astype(int), piece.shape


@pytest.mark.parametrize("kernel", get_args(decode.Kernel))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_window_is_cut_and_resized(kind, kernel):
    image = photograph(4, 300, 400)
    window = (21, 40, 150, 200)
    found, shape = cut(image, window, (96, 128), kernel, kind)
    assert tuple(shape) == (150, 200, 3)
    method = getattr(Image.Resampling, kernel.partition("_")[0].upper())
    whole = np.asarray(Image.open(io.BytesIO(encoded(image, kind))))
    piece = Image.fromarray(whole[21:171, 40:240])
    expected = np.asarray(piece.resize((128, 96), method), int)
    # Only the last kernel averages as Pillow does; the noise of the image is +-8.
    limit = 1.0 if kernel == "bicubic_antialias" else 4.0
    assert np.abs(found - expected).mean() < limit


@pytest.mark.parametrize("kernel", ["bicubic", "bicubic_antialias"])
def test_what_a_kernel_overshoots_is_clipped(kernel):
    edge = np.zeros((8, 8, 3), np.uint8)
    edge[:, 4:] = 255
    found = decode.resize(tensorflow().constant(edge), (16, 32), kernel).numpy()
    wanted = Image.fromarray(edge).resize((32, 16), Image.Resampling.BICUBIC)
    assert np.abs(found.astype(int) - np.asarray(wanted)).max() <= 1


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_a_large_jpeg_is_decoded_small_and_never_aliased(ratio):
    stripes = np.zeros((640, 640, 3), np.uint8)
    stripes[:, ::2] = 255  # aliases to black or white where pixels are skipped
    size = (640 // ratio - 20,) * 2
    found, shape = cut(stripes, (0, 0, 640, 640), size, "bicubic", "JPEG")
    assert tuple(shape) == (640 // ratio, 640 // ratio, 3)
    assert abs(found.mean() - 127.5) < 2 and found.std() < 12
    found, _ = cut(stripes, (0, 0, 640, 640), size, "bilinear", "PNG")
    assert abs(found.mean() - 127.5) < 2 and found.std() < 12


def test_crops_cover_the_share_and_the_aspect_asked_for(tmp_path):
    """A picture of its own coordinates says where each crop came from."""
    rows, columns = np.mgrid[0:200, 0:256]
    image = np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    root = write(tmp_path, [encoded(image, "PNG")])
    augment = Augment(crop="random_resized", scale=(0.3, 0.6), flip=True)
    images, _ = take(source(root).train_batches(Order(1, 1, 0), 0, ALL, augment), 300)
    images = images.astype(float)
    span = (images[:, 8, -1, 0] - images[:, 8, 0, 0]) * 16 / 15
    width, flipped = np.abs(span), span < 0
    height = (images[:, -1, 8, 1] - images[:, 0, 8, 1]) * 16 / 15
    area, aspect = width * height / (200 * 256), width / height
    assert 0.27 < area.min() < 0.36 and 0.54 < area.max() < 0.66
    assert 0.7 < aspect.min() < 0.85 and 1.2 < aspect.max() < 1.43
    assert 0.4 < flipped.mean() < 0.6
    for drawn in (area, aspect):  # say nothing of each other
        assert abs(np.corrcoef(flipped, drawn)[0, 1]) < 0.2


def windows_of(shape, image_shape, augment, number):
    """[number, 4]: (top, left, height, width) of crops of an image of `shape`."""
    tf = tensorflow()
    seeds = tf.stack([tf.zeros(number, tf.int64), tf.range(number, dtype=tf.int64)], 1)

    @tf.function  # one by one it takes half a minute
    def drawn(seeds):
        one = functools.partial(crop_window, tf.constant(shape), image_shape, augment)
        return tf.map_fn(one, seeds, fn_output_signature=tf.int32)

    return drawn(seeds).numpy()


@pytest.mark.parametrize("image_shape", [(16, 16), (16, 32), (48, 16)])
def test_crops_are_stretched_by_a_third_at_most(image_shape):
    """Whatever the proportions of the image, and of what it becomes."""
    augment = Augment(crop="random_resized", scale=(0.2, 1.0))
    for shape in [(375, 500, 3), (500, 375, 3)]:
        *_, height, width = windows_of(shape, image_shape, augment, 500).T
        stretch = np.log(width / height * image_shape[0] / image_shape[1])
        assert np.abs(stretch).max() < np.log(4 / 3) + 0.01
        assert stretch.min() < -0.2 and 0.2 < stretch.max()


def test_a_panorama_gives_its_middle_where_no_crop_fits():
    augment = Augment(crop="random_resized", scale=(1.0, 1.0))
    for shape, window in [
        ((300, 1200, 3), [0, 400, 300, 400]),
        ((1200, 300, 3), [400, 0, 400, 300]),
        ((300, 300, 3), [0, 0, 300, 300]),
    ]:
        found = windows_of(shape, (224, 224), augment, 2)
        np.testing.assert_array_equal(found, [window, window])
    one_pixel = windows_of((1, 1, 3), (64, 16), augment, 1)
    np.testing.assert_array_equal(one_pixel, [[0, 0, 1, 1]])


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.08, 1.0)])
def test_the_area_of_a_crop_is_uniform_as_on_the_device(scale):
    """Of a photograph's shape, where a tenth of the windows drawn do not fit."""
    augment = Augment(crop="random_resized", scale=scale)
    shape, number = (375, 500, 3), 4000
    found = windows_of(shape, shape, augment, number)
    keys = jax.random.split(jax.random.key(0), number)
    windows = jax.vmap(lambda key: random_window(shape, key, scale))
    wanted = np.asarray(jax.jit(windows)(keys))
    for values in (lambda w: w[:, 2] * w[:, 3], lambda w: w[:, 3] / w[:, 2]):
        own, other = (np.sort(values(w.astype(float))) for w in (found, wanted))
        # Both empirical distributions: 4,000 each differ by .04 once in 300 times.
        at = np.searchsorted(other, own) / number
        assert np.abs(at - np.arange(number) / number).max() < 0.04
    top, left, height, width = found.T
    assert (top + height <= 375).all() and (left + width <= 500).all()
    assert (found >= [0, 0, 1, 1]).all() and (top + height == 375).any()


def test_what_is_drawn_of_a_crop_says_nothing_of_the_rest():
    augment = Augment(crop="random_resized", scale=(0.2, 0.4))
    shape = (375, 500, 3)
    top, left, height, width = windows_of(shape, shape, augment, 1000).T.astype(float)
    places = [top / (375 - height), left / (500 - width)]
    drawn = [*places, height * width, np.log(width / height)]
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.12


def test_shift_moves_image_files_too(tmp_path):
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 4] = 255
    root = write(tmp_path, [encoded(image, "PNG")])
    batches = source(root, (9, 9, 3)).train_batches(
        Order(1, 1, 0), 0, ALL, Augment(crop="shift", pad=1)
    )
    images, _ = take(batches, 150)
    landed = set(map(tuple, np.argwhere(images[..., 0] == 255)[:, 1:].tolist()))
    assert landed == {(i, j) for i in (3, 4, 5) for j in (3, 4, 5)}


def test_files_refuse_channels_that_they_do_not_have(tmp_path):
    root = write(tmp_path, [encoded(photograph(0))])
    with pytest.raises(UserError, match="1 or 3 channels, not 4; .*npz"):
        source(root, (16, 16, 4))
    with pytest.raises(UserError, match="color_jitter want 3 channels"):
        source(root, (16, 16, 1), augment=Augment(color_jitter=0.4))
