"""Scenes with a label for every pixel: reading, order, joint augmentation, dirt."""

import itertools
import os
import re
import types
import zipfile

import numpy as np
import pytest
import scenes
from conftest import tiny_config
from PIL import Image

from ddae import data
from ddae.data.order import Order
from ddae.data.scene_augment import (
    IGNORED,
    SceneSettings,
    augmented,
    fitted,
    photometric,
    resized_labels,
)
from ddae.data.scenes import AHEAD
from ddae.settings import UserError
from ddae.storage import StorageError
from ddae.train import cluster, loop
from ddae.train.plan import plan

ALL = slice(None)
FILL = np.array([127, 127, 127], np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    sizes = itertools.cycle([(60, 80), (47, 33), (90, 41)])
    made = [scenes.blocks(seed, *next(sizes)) for seed in range(24)]
    scenes.write(folder, made)
    return scenes.write(folder, made[:5], "validation")


def splits_of(place, shape=(32, 32, 3), **changes):
    return data.from_config({"data": scenes.section(place, **changes)}, shape)


def take(splits, order, step, rows, count):
    batches = splits.train.train_batches(order, step, rows, splits.augment)
    found = list(itertools.islice(batches, count))
    batches.close()
    return tuple(np.concatenate([b[name] for b in found]) for name in found[0])


def test_pixels_and_labels_of_the_files_arrive(root):
    splits = splits_of(root)
    assert (len(splits.train), len(splits.held_out)) == (24, 5)
    image, labels = splits.held_out.scene(1)
    expected, values = scenes.blocks(1, 47, 33)
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(labels, values.astype(int) - 1)
    assert IGNORED == -1 and labels.min() == -1 and labels.dtype == np.int32
    assert splits.held_out.shape(1) == (47, 33)


@pytest.mark.parametrize("prefix", ["ADEChallengeData2016/", "", "a/b/"])
def test_a_zip_is_read_in_place_and_gives_the_same(root, tmp_path, prefix):
    path = scenes.zipped(root, tmp_path / "ADEChallengeData2016.zip", prefix)
    order = Order(24, 8, seed=0)
    expected = take(splits_of(root), order, 0, ALL, 3)
    for place in (path, tmp_path):
        found = splits_of(place)
        assert found.train.identity == splits_of(root).train.identity
        for one, other in zip(take(found, order, 0, ALL, 3), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert found.held_out.shape(1) == (47, 33)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_release_is_found_in_its_folder_and_names_its_classes(root, tmp_path):
    inner = tmp_path / "ADEChallengeData2016"
    inner.symlink_to(root)
    assert splits_of(tmp_path).train.class_names[4] == "class 5"
    copy = scenes.write(tmp_path / "copy", [scenes.blocks(0)])
    scenes.write(copy, [scenes.blocks(0)], "validation")
    lines = ["Idx\tRatio\tTrain\tVal\tName"]
    lines += [f"{k}\t0.1\t5\t5\tname {k}, other" for k in range(1, 6)]
    (copy / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    assert splits_of(copy).train.class_names == tuple(f"name {k}" for k in range(1, 6))
    own = splits_of(copy, scenes={"names": tuple("abcde")})
    assert own.train.class_names == tuple("abcde")


def test_each_position_has_its_crop_on_any_number_of_hosts(root):
    splits, order = splits_of(root), Order(24, 8, seed=3)
    images, labels = take(splits, order, 0, ALL, 6)
    assert images.shape == (48, 32, 32, 3) and labels.shape == (48, 32, 32)
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    halves = [take(splits, order, 0, slice(h, h + 4), 6) for h in (0, 4)]
    for step in range(6):
        for whole, one, other in zip((images, labels), *halves, strict=True):
            rows = slice(4 * step, 4 * step + 4)
            joined = np.concatenate([one[rows], other[rows]])
            np.testing.assert_array_equal(joined, whole[8 * step : 8 * step + 8])
    again, _ = take(splits, order, 4, ALL, 1)
    np.testing.assert_array_equal(again, images[32:40])
    other, _ = take(splits, Order(24, 8, seed=4), 0, ALL, 6)
    assert (other != images).any()


def test_an_epoch_shows_every_scene_once(root, tmp_path):
    """Each scene has a colour of its own here."""
    made = [scenes.blocks(0) for _ in range(24)]
    made = [(np.full_like(i, 5 + 10 * n), v) for n, (i, v) in enumerate(made)]
    place = scenes.write(scenes.write(tmp_path, made), made[:1], "validation")
    splits = splits_of(place, scenes={"ratio": (1.0, 1.0)})
    images, _ = take(splits, Order(24, 8, seed=0), 0, ALL, 6)
    for epoch in np.split(images.max(axis=(1, 2, 3)), 2):
        assert len(set(epoch.tolist())) == 24


def test_image_and_labels_move_together(root):
    """The grey of a pixel says its class, away from the edges of blocks."""
    splits = splits_of(root, scenes={"ratio": (0.5, 2.0)})
    images, labels = take(splits, Order(24, 8, seed=0), 0, ALL, 12)
    grey = images[..., 0].astype(int)
    exact = grey % scenes.STEP == 0
    inside = np.ones_like(exact)
    for axis, shift in itertools.product((1, 2), (-2, -1, 1, 2)):
        inside &= np.roll(grey, shift, axis) == grey
    sure = exact & inside & (grey > 0)
    assert sure.mean() > 0.2
    np.testing.assert_array_equal(labels[sure], grey[sure] // scenes.STEP - 1)
    assert set(np.unique(labels)) == {-1, 0, 1, 2, 3, 4}


def crop_of(image, values, seed, flip=False, **settings):
    chosen = {"num_classes": 5, "scale": (0, 0), "photometric": False} | settings
    return augmented(
        image,
        values.astype(np.int32) - 1,
        (32, 32),
        SceneSettings(**chosen),
        flip,
        FILL,
        np.random.default_rng(seed),
    )


def test_flip_takes_both_sides_alike():
    image, values = scenes.blocks(2, 32, 32, side=8)
    plain = crop_of(image, values, 0, ratio=(1.0, 1.0))
    np.testing.assert_array_equal(plain[0], image)
    flipped = 0
    for seed in range(40):
        pixels, labels = crop_of(image, values, seed, flip=True, ratio=(1.0, 1.0))
        if (pixels != image).any():
            flipped += 1
            np.testing.assert_array_equal(pixels, image[:, ::-1])
            np.testing.assert_array_equal(labels, values[:, ::-1].astype(int) - 1)
    assert 8 < flipped < 32


@pytest.mark.parametrize("size", [(20, 28), (20, 60), (60, 20)])
def test_a_smaller_image_is_filled_up_and_ignored_there(size):
    image, values = scenes.blocks(1, *size)
    image += 3  # no pixel is FILL's
    pixels, labels = crop_of(image, values, 0, ratio=(1.0, 1.0))
    h, w = min(size[0], 32), min(size[1], 32)
    assert pixels.shape == (32, 32, 3)
    for outside in (np.s_[h:], np.s_[:, w:]):
        assert (pixels[outside] == FILL).all() and (labels[outside] == IGNORED).all()
    assert (pixels[:h, :w] != FILL).any(axis=-1).all()


def test_a_crop_of_one_class_is_cut_anew():
    """One class has nearly all of the image; a band of two others is thin."""
    values = np.full((200, 200), 3, np.uint8)
    values[:, 90:105], values[:, 105:120] = 1, 2
    image = np.zeros((200, 200, 3), np.uint8)

    def largest(share, **settings):
        found = []
        for seed in range(150):
            _, labels = crop_of(
                image, values, seed, ratio=(1.0, 1.0), max_share=share, **settings
            )
            found.append(np.bincount(labels[labels >= 0]).max() / (labels >= 0).sum())
        return np.array(found)

    # Any crop of two classes does for a share of 1; a quarter obey .75, and ten
    # tries find none in a twentieth of cases.
    assert (largest(1.0) > 0.75).mean() > 0.12
    assert (largest(0.75) > 0.75).mean() < 0.08
    values[:] = 3  # no crop obeys: the last is taken
    assert (largest(0.75) == 1.0).all()


def test_unlabelled_pixels_have_no_share():
    """Most pixels have no label; of the rest each crop has two classes about alike, so
    the first is taken, as without the rule."""
    values = np.zeros((100, 100), np.uint8)
    values[:, ::16], values[:, 8::16] = 1, 2
    image = np.arange(100 * 100).reshape(100, 100, 1).repeat(3, -1) % 251
    image = image.astype(np.uint8)
    for seed in range(20):
        crops = [
            crop_of(image, values, seed, ratio=(1.0, 1.0), max_share=share)[0]
            for share in (0.75, 1.0)
        ]
        np.testing.assert_array_equal(*crops)


@pytest.mark.parametrize(
    "shape, scale, expected",
    [
        ((360, 480), (2048, 512), (512, 683)),
        ((480, 360), (2048, 512), (683, 512)),
        ((100, 1000), (2048, 512), (205, 2048)),
        ((512, 512), (2048, 512), (512, 512)),
        ((7, 9), (0, 0), (7, 9)),
    ],
)
def test_images_fit_into_the_sides_of_the_scale(shape, scale, expected):
    assert fitted(shape, scale) == expected


@pytest.mark.parametrize("scale", [(64, 64), (0, 0)])
def test_the_ratio_is_uniform_and_covers_its_range(scale):
    """A square of a quarter of the image comes back with a side that tells it."""
    values = np.ones((64, 64), np.uint8)
    values[:16, :16] = 2
    image = np.zeros((64, 64, 3), np.uint8)
    sides = []
    for seed in range(300):
        _, labels = augmented(
            image,
            values.astype(np.int32) - 1,
            (200, 200),
            SceneSettings(num_classes=2, scale=scale, photometric=False),
            False,
            FILL,
            np.random.default_rng(seed),
        )
        sides.append((labels[0] == 1).sum() / 16)
    assert 0.5 <= min(sides) < 0.6 and 1.9 < max(sides) <= 2.01
    assert 1.15 < np.mean(sides) < 1.35


def test_labels_are_resized_to_the_nearest():
    labels = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(
        resized_labels(labels, (4, 6)), labels.repeat(2, 0).repeat(2, 1)
    )
    picture = Image.fromarray(labels.astype(np.uint8))
    for shape in ((5, 7), (1, 2), (3, 2)):
        expected = picture.resize(shape[::-1], Image.Resampling.NEAREST)
        np.testing.assert_array_equal(resized_labels(labels, shape), expected)


def test_colours_move_within_their_range_and_labels_do_not(root):
    image = np.full((4, 4, 3), (200, 120, 80), np.uint8)
    found = np.stack(
        [photometric(image, np.random.default_rng(s))[0, 0] for s in range(400)]
    ).astype(int)
    assert len(set(map(tuple, found.tolist()))) > 200
    assert (found == image[0, 0]).all(axis=1).mean() > 0.02
    assert np.abs(np.median(found, axis=0) - image[0, 0]).max() < 25
    plain = splits_of(root)
    moved = splits_of(root, scenes={"photometric": True})
    order = Order(24, 8, seed=0)
    one, other = (take(s, order, 0, ALL, 1) for s in (plain, moved))
    np.testing.assert_array_equal(one[1], other[1])
    assert (one[0] != other[0]).any(axis=(1, 2, 3)).mean() > 0.7


def test_held_out_batches_are_central_crops(root):
    (batch,) = splits_of(root).held_out.batches(np.arange(5), 8)
    assert batch["image"].shape == (5, 32, 32, 3)
    assert batch["label"].shape == (5, 32, 32)


# What is wrong with a set, and what a user is told.


def break_sizes(root):
    path = root / "annotations" / "training" / "scene_003.png"
    Image.fromarray(np.ones((9, 8), np.uint8)).save(path)


def break_held_out_sizes(root):
    path = root / "annotations" / "validation" / "scene_002.png"
    Image.fromarray(np.ones((9, 8), np.uint8)).save(path)


def break_labels(root):
    path = root / "annotations" / "training" / "scene_003.png"
    values = np.array(Image.open(path))
    values[7, 5] = 6
    Image.fromarray(values).save(path)


def twin(root):
    for folder in ("images", "annotations"):
        path = root / folder / "training" / "scene_002.png"
        Image.open(path).convert("L").save(path.with_suffix(".jpg"))


def break_pair(root):
    (root / "annotations" / "training" / "scene_003.png").unlink()


def break_other_pair(root):
    (root / "images" / "validation" / "scene_000.png").unlink()


def break_colours(root):
    path = root / "annotations" / "training" / "scene_003.png"
    Image.open(path).convert("RGB").save(path)


def break_bytes(root):
    path = root / "images" / "training" / "scene_003.png"
    path.write_bytes(path.read_bytes()[:60])


BROKEN = {
    break_sizes: r"scene_003.png.*the image is 33 x 47, its labels are 8 x 9",
    break_held_out_sizes: r"validation/scene_002.png.*its labels are 8 x 9",
    break_labels: r"annotations/training/scene_003.png: label 6 at row 7, column 5 is"
    r" above config.data.scenes.num_classes=5",
    twin: r"images/training has both scene_002.jpg and scene_002.png; keep one",
    break_pair: r"images/training/scene_003.png has no labels in .*annotations",
    break_other_pair: r"annotations/validation/scene_000.png has no image in",
    break_colours: r"scene_003.png: labels are RGB, not one whole number each",
    break_bytes: r"scene_003.png: cannot be decoded",
}


def small_set(tmp_path):
    sizes = [(60, 80), (50, 40), (70, 41), (47, 33)]
    made = [scenes.blocks(seed, *size) for seed, size in enumerate(sizes)]
    return scenes.write(scenes.write(tmp_path, made), made, "validation")


@pytest.mark.parametrize("fault", BROKEN, ids=lambda f: f.__name__)
def test_wrong_input_is_named_and_exits_with_2(fault, tmp_path, capfd, monkeypatch):
    root = small_set(tmp_path / "set")
    fault(root)
    # Neither evaluation nor steps compile: what is wrong is in the data.
    monkeypatch.setattr(loop, "evaluate", lambda *_: {})
    monkeypatch.setattr(
        loop,
        "jit_step",
        lambda *_, **__: lambda state, *_: (_ for _ in ()).throw(KeyError),
    )
    config = scenes.config(root, batch_size=4, eval_every_steps=0)
    code = cluster.run_to_end(loop.run, config, str(tmp_path / "run"))
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert code == 2, said
    assert said.startswith("error: ") and re.search(BROKEN[fault], said), said


def test_a_class_an_image_is_told_from_one_a_pixel(tmp_path):
    segment = scenes.config(small_set(tmp_path), batch_size=4, evaluators={})
    section = segment.pop("segmenter")
    classes = {"num_classes": scenes.CLASSES}
    classify = segment | {"task": "classify", "classifier": classes, "mixing": {}}
    with pytest.raises(UserError, match="class an image, .*=scenes has one a pixel"):
        plan(classify)
    section["head"] = "linear"  # of images of any size
    digits = tiny_config(task="segment", segmenter=section, evaluators={})
    del digits["method"]
    with pytest.raises(UserError, match="class a pixel, .*=digits has one an image"):
        plan(digits)


def test_scenes_whose_names_are_no_text_are_read(tmp_path, capfd):
    root = small_set(tmp_path)
    for folder in ("images", "annotations"):
        for file in list((root / folder / "training").iterdir()):
            number = os.fsencode(file.stem)[-1:]
            file.rename(os.fsdecode(os.fsencode(file.parent) + b"/\xfc%b.png" % number))
    splits = splits_of(root, on_error="skip")
    (root / "images/training" / os.fsdecode(b"\xfc3.png")).write_bytes(b"no image")
    take(splits, Order(4, 4, seed=0), 0, ALL, 1)
    assert "images/training/\\udcfc3.png with " in capfd.readouterr().err


@pytest.mark.parametrize("fault", [break_sizes, break_labels, break_bytes])
def test_a_bad_scene_may_be_passed_over(fault, tmp_path, capfd):
    root = small_set(tmp_path)
    fault(root)
    splits = splits_of(root, on_error="skip")
    order = Order(4, 4, seed=0)
    (images, _), (again, _) = (take(splits, order, 0, ALL, 2) for _ in range(2))
    np.testing.assert_array_equal(images, again)  # known as bad or not yet
    assert list(splits.train.bad) == [3] and splits.num_bad == 1
    assert "bad record" in capfd.readouterr().err
    # It may be met in a later batch first, and the one before has its substitute.
    with pytest.raises(UserError, match="more than config.data.max_bad=0"):
        take(splits_of(root, on_error="skip", max_bad=0), order, 0, ALL, 1 + AHEAD)


@pytest.mark.parametrize("passes", [True, False])
def test_a_scene_is_read_again_where_the_storage_fails(tmp_path, monkeypatch, passes):
    """Linux gives EIO for the memory of a process at 0, where nothing lies."""
    root = small_set(tmp_path)
    path = root / "images/training/scene_003.png"
    content = path.read_bytes()

    def put(there):
        path.unlink()
        path.write_bytes(content) if there else path.symlink_to("/proc/self/mem")

    put(False)
    monkeypatch.setattr("ddae.storage.time.sleep", lambda _: put(passes))
    skipping, strict = (splits_of(root, on_error=what) for what in ("skip", "raise"))
    found = skipping.train.scene(3)
    assert (found is None) != passes and list(skipping.train.bad) == [3] * (not passes)
    put(False)
    if passes:
        assert strict.train.shape(3) == found[1].shape
        return
    with pytest.raises(StorageError, match="_003.png cannot be read: Input/out"):
        strict.train.scene(3)


def test_places_without_scenes_are_named(tmp_path):
    with pytest.raises(UserError, match="config.data.dir is empty"):
        splits_of("")
    with pytest.raises(UserError, match="no images/ in .*expected .*annotations"):
        splits_of(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="no images under .*images/training; expected"):
        splits_of(tmp_path)
    text = tmp_path / "set.zip"
    text.write_text("no zip")
    with pytest.raises(UserError, match="set.zip is not a zip that can be read"):
        splits_of(text)


def changed(content, *places):
    """A zip with another number in each entry's own header and in the list of them.
    places: where that is after PK 3 4 and after PK 1 2, and which number."""
    content = bytearray(content)
    for start, at, number in places:
        place = content.find(start)
        while place >= 0:
            content[place + at] = number
            place = content.find(start, place + 4)
    return bytes(content)


OWN, LISTED = b"PK\3\4", b"PK\1\2"


@pytest.mark.parametrize(
    "places, says",
    [
        ([(OWN, 6, 1), (LISTED, 8, 1)], "is encrypted, or packed .*; unpack the"),
        (
            [(OWN, 8, 9), (LISTED, 10, 9)],
            "is encrypted, or packed .*; unpack the",
        ),
        ([(LISTED, 6, 99)], "set.zip is not a zip that can be read: zip file version"),
        ([(LISTED, 8, 64)], "objectInfo150.txt cannot be read: strong encryption"),
    ],
)
def test_a_zip_that_python_does_not_unpack_is_named(root, tmp_path, places, says):
    path = scenes.zipped(root, tmp_path / "set.zip", "")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("objectInfo150.txt", "Idx\tName\n")
    path.write_bytes(changed(path.read_bytes(), *places))
    with pytest.raises(UserError, match=says):
        splits_of(path)


def test_a_scene_that_its_zip_does_not_give_is_bad(root, tmp_path):
    path = scenes.zipped(root, tmp_path / "set.zip", "")
    path.write_bytes(changed(path.read_bytes(), (LISTED, 8, 64)))
    splits = splits_of(path, on_error="skip")
    assert splits.held_out.scene(0) is None and splits.held_out.shape(1) is None
    assert "is no image that can be read" in splits.held_out.bad[0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"augment": {"crop": "random_resized"}}, "cut and coloured as"),
        ({"augment": {"crop": "none", "color_jitter": 0.4}}, "color_jitter=0"),
        ({"eval_crop": 0.875}, "eval_crop=1"),
        ({"scenes": {"names": ("a",)}}, "names has 1 entries for 5 classes"),
        (
            {"scenes": {"names": ("a b", "a_b", "c", "d", "e")}},
            "two classes are called 'a_b' in the log",
        ),
        ({"scenes": {"ratio": (2.0, 0.5)}}, "not an increasing positive pair"),
        ({"scenes": {"scale": (-1, 512)}}, r"scale=\(-1, 512\) is not a pair of sides"),
        ({"scenes": {"scale": (512, 0)}}, r"scale=\(512, 0\) is not a pair of sides"),
        ({"scenes": {"num_classes": 1}}, "num_classes=1 is not in 2 to 1000"),
        ({"scenes": {"max_share": 0.0}}, r"max_share=0.0 is not in \(0, 1\]"),
        ({"scenes": {"scael": (2, 3)}}, "did you mean 'scale'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(root, changes, message):
    with pytest.raises(UserError, match=message):
        splits_of(root, **changes)
    with pytest.raises(UserError, match="config.data.scenes is missing"):
        section = scenes.section(root)
        del section["scenes"]
        data.from_config({"data": section}, (32, 32, 3))


def test_a_crop_whose_few_labels_are_of_one_class_is_cut_anew():
    """As above, with no label in every other row."""
    values = np.full((200, 200), 3, np.uint8)
    values[:, 90:105], values[:, 105:120] = 1, 2
    values[::2] = 0
    image, shares = np.zeros((200, 200, 3), np.uint8), []
    for seed in range(150):
        given = {"ratio": (1.0, 1.0), "max_share": 0.75}
        _, labels = crop_of(image, values, seed, **given)
        known = labels[labels >= 0]
        shares.append(np.bincount(known).max() / known.size)
    assert (np.array(shares) > 0.75).mean() < 0.08


def test_colours_move_as_far_as_ssds():
    grey = np.full((2, 2, 3), 128, np.uint8)
    draws = [np.random.default_rng(seed) for seed in range(1500)]
    levels = np.array([photometric(grey, r)[0, 0, 0] for r in draws], int)
    # By up to 32, then by .5 to 1.5 in half of the cases.
    assert 48 <= levels.min() < 56 and 215 < levels.max() <= 240
    far = (levels < 96) | (levels > 160)
    assert 0.2 < far.mean() < 0.32
    red = np.full((1, 1, 3), (200, 100, 100), np.uint8)
    hsv = np.concatenate(
        [
            np.asarray(Image.fromarray(photometric(red, r)).convert("HSV"))[0]
            for r in map(np.random.default_rng, range(1500))
        ]
    ).astype(int)
    hues = (hsv[:, 0] + 128) % 256 - 128
    assert -31 < hues.min() < -22 and 22 < hues.max() < 31
    assert hsv[:, 1].min() < 75 and hsv[:, 1].max() > 185
    white = np.full((2, 2, 3), 250, np.uint8)
    found = [photometric(white, np.random.default_rng(seed)) for seed in range(20)]
    assert np.max(found) == 255


def test_each_change_of_colours_is_made_without_the_others_too():
    image = np.full((1, 1, 3), (100, 60, 40), np.uint8)
    hsv = np.array(Image.fromarray(image).convert("HSV"))

    def found(*chosen):
        """brightness, contrast before the others, contrast, saturation, hue; each as
        far as it goes"""
        draws = (0.0 if some else 0.9 for some in chosen)
        ends = types.SimpleNamespace(
            random=lambda: next(draws), uniform=lambda low, high: high
        )
        return photometric(image, ends)

    np.testing.assert_array_equal(found(0, 0, 0, 0, 0), image)
    np.testing.assert_array_equal(found(1, 0, 0, 0, 0), image + 32)
    for first in (0, 1):
        np.testing.assert_array_equal(found(0, first, 1, 0, 0), image * 1.5)
    for chosen, moved in (
        ((1, 0), hsv * [1, 1.5, 1]),
        ((0, 1), hsv + [26, 0, 0]),
        ((1, 1), hsv * [1, 1.5, 1] + [26, 0, 0]),
    ):
        moved = Image.fromarray(moved.astype(np.uint8), "HSV").convert("RGB")
        np.testing.assert_array_equal(found(0, 0, 0, *chosen), moved)
