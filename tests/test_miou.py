"""Sliding windows by hand, and mIoU against scikit-learn's."""

import json
import os
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import miou_worker
import numpy as np
import pytest
import scenes
from conftest import tiny_config
from sklearn.metrics import accuracy_score, balanced_accuracy_score, jaccard_score

from ddae import data, tasks
from ddae.eval.miou import Sliding, class_table, make_miou, values_of
from ddae.eval.scene_figures import colours, draw_classes
from ddae.eval.sliding import averaged, resized_part, window_grid, windows
from ddae.settings import UserError
from ddae.train.sharding import MeshSettings, make_mesh
from ddae.train.step import OnDevices

# Sizes of images beside a crop of 32: smaller, equal, larger, odd, in one direction.
SIZES = [(20, 27), (32, 32), (33, 31), (61, 75), (32, 90), (9, 64), (64, 64)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    made = [scenes.noise(seed, *size) for seed, size in enumerate(SIZES)]
    scenes.write(folder, [scenes.blocks(n, 50, 70) for n in range(8)])
    return scenes.write(folder, made, "validation")


# Sliding windows.


def by_hand(image, scores, crop, stride, fill):
    """Mean scores of every pixel, by loops over windows and pixels."""
    h, w = image.shape[:2]
    padded = np.empty((max(h, crop), max(w, crop), 3), np.uint8)
    padded[:] = fill
    padded[:h, :w] = image
    k = scores(np.zeros((1, crop, crop, 3))).shape[-1]
    total, count = np.zeros((*padded.shape[:2], k)), np.zeros(padded.shape[:2])
    tops, lefts = (
        sorted(
            {min(t, side - crop) for t in range(0, side, stride)}
            if side > crop
            else {0}
        )
        for side in padded.shape[:2]
    )
    # The last window is the first to reach the end.
    for top in [t for i, t in enumerate(tops) if i == 0 or tops[i - 1] + crop < h]:
        for left in [
            t for i, t in enumerate(lefts) if i == 0 or lefts[i - 1] + crop < w
        ]:
            part = (slice(top, top + crop), slice(left, left + crop))
            total[part] += scenes.bilinear(scores(padded[part][None])[0], (crop, crop))
            count[part] += 1
    return (total / count[..., None])[:h, :w]


def some_scores(images):
    """Of a quarter of the resolution; a window's scores depend on what it shows."""
    x = images.astype(np.float64) / 255.0
    b, h, w, _ = x.shape
    small = x.reshape(b, h // 4, 4, w // 4, 4, 3).mean(axis=(2, 4))
    rows, columns = np.mgrid[0 : h // 4, 0 : w // 4]
    extra = np.stack([np.sin(rows + 3 * small[..., 0]), columns * small[..., 1]], -1)
    return np.concatenate([small, extra], axis=-1).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [21, 32])
def test_windows_average_as_by_hand(size, stride):
    crop, fill = (32, 32), np.array([9, 99, 199], np.uint8)
    image, _ = scenes.noise(3, *size)
    cut = windows(image, crop, (stride, stride), fill)
    grid = window_grid(size, crop, (stride, stride))
    assert len(cut) == grid[0] * grid[1]
    found = averaged(
        jnp.asarray(some_scores(cut)),
        jnp.array(size),
        crop=crop,
        stride=(stride, stride),
        grid=grid,
    )
    expected = by_hand(image, some_scores, 32, stride, fill)
    found = np.asarray(found)[: size[0], : size[1]]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(17, 20), (7, 9), (24, 12)])
def test_scores_are_resized_without_what_lies_beyond_them(shape):
    scores = np.full((20, 16, 2), 1e6, np.float32)
    scores[:9, :12] = np.random.default_rng(0).random((9, 12, 2))
    size, wanted = jnp.array([9, 12]), jnp.array(shape)
    found = resized_part(jnp.asarray(scores), size, wanted, (24, 24))
    expected = scenes.bilinear(scores[:9, :12], shape)
    np.testing.assert_allclose(found[: shape[0], : shape[1]], expected, rtol=1e-4)


def test_ade20k_windows():
    assert window_grid((512, 683), (512, 512), (341, 341)) == (1, 2)
    assert window_grid((512, 512), (512, 512), (341, 341)) == (1, 1)
    assert window_grid((853, 854), (512, 512), (341, 341)) == (2, 3)


# mIoU.


def sklearn_values(folder):
    """On all labelled pixels of the set at once."""
    truth, said = [], []
    for seed, size in enumerate(SIZES):
        image, values = scenes.noise(seed, *size)
        known = values > 0
        truth.append(values[known].astype(int) - 1)
        said.append(miou_worker.predicted(image)[known])
    truth, said = np.concatenate(truth), np.concatenate(said)
    each = jaccard_score(truth, said, average=None)
    return {
        "miou": 100.0 * jaccard_score(truth, said, average="macro"),
        "mean_accuracy": 100.0 * balanced_accuracy_score(truth, said),
        "pixel_accuracy": 100.0 * accuracy_score(truth, said),
        **{f"iou/class_{k + 1}": 100.0 * each[k] for k in range(scenes.CLASSES)},
    }


@pytest.mark.parametrize("devices, images", [(1, 1), (1, 3), (4, 1), (4, 2)])
def test_miou_is_that_of_scikit_learn(root, devices, images):
    values = miou_worker.evaluate(root, devices, images_a_device=images)
    expected = sklearn_values(root)
    found = {name: values[name] for name in expected}
    assert found == pytest.approx(expected, abs=1e-9)
    assert values["segmentation"].ndim == values["class_table"].ndim == 3


def on_two_processes(root, out, **env):
    """(exit codes, what each printed) of miou_worker.py."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=2"
    command = [sys.executable, miou_worker.__file__, str(root), str(out)]
    started = [
        subprocess.Popen(
            [*command, f"localhost:{port}", "2", str(number)],
            env=os.environ | {"XLA_FLAGS": flags} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], said


@pytest.mark.slow
def test_miou_is_the_same_on_two_processes(root, tmp_path):
    codes, said = on_two_processes(root, tmp_path / "out")
    assert codes == [0, 0], said
    for number in range(2):
        found = json.loads((tmp_path / f"out.{number}").read_text())
        assert (found["devices"], found["processes"]) == (4, 2)
        expected = sklearn_values(root)
        assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.slow
def test_processes_that_find_other_scenes_say_so(root, tmp_path):
    codes, said = on_two_processes(root, tmp_path / "out", UNSEEN="1")
    assert 0 not in codes
    assert all("UserError: the processes have read different" in text for text in said)


@pytest.mark.slow
def test_a_picture_of_scenes_goes_without_one_that_cannot_be_read(tmp_path):
    scenes.write(tmp_path, [scenes.blocks(n, 50, 70) for n in range(8)])
    made = [scenes.noise(n, 40, 40) for n in range(6)]
    scenes.write(tmp_path, made, "validation")
    bad = tmp_path / "images/validation/scene_004.png"
    bad.write_bytes(bad.read_bytes()[:-200])  # its size can be read
    config = scenes.config(tmp_path)
    config["data"]["on_error"] = "skip"
    task = tasks.from_config(config)
    splits = data.from_config(config, task.image_shape)
    on_devices = OnDevices(make_mesh(MeshSettings(), 8, 1))
    params = jax.jit(task.init)(jax.random.key(0))
    values = make_miou(task, splits, on_devices, num_figures=6)(params, 0)
    assert list(splits.held_out.bad) == [4] and values["segmentation"].std() > 10


@pytest.mark.slow
def test_labels_are_compared_at_their_own_size(root):
    """Scaled up on the way, every labelled pixel still counts once."""
    config = scenes.config(root)
    task = tasks.from_config(config)
    splits = data.from_config(config, task.image_shape)
    mesh = make_mesh(MeshSettings(), 8, 1)
    for scale in ((0, 0), (80, 40)):
        sliding = Sliding(task, splits.held_out, OnDevices(mesh), 0, scale, 1)
        chunks = sliding.plan(np.arange(len(SIZES)))
        seen = sorted(i for chunk in chunks for i in chunk.indices if i >= 0)
        assert seen == list(range(len(SIZES)))
        params = jax.jit(task.init)(jax.random.key(0))
        confusion, predicted = sliding.run(params, chunks, [3, 5])
        truth = [scenes.noise(s, *size)[1] for s, size in enumerate(SIZES)]
        counts = np.bincount(np.concatenate([t.reshape(-1) for t in truth]))[1:]
        np.testing.assert_array_equal(confusion.sum(axis=1), counts)
        assert [predicted[i].shape for i in (3, 5)] == [SIZES[3], SIZES[5]]


def test_a_class_that_is_nowhere_has_no_part_in_the_mean():
    confusion = np.array([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    confusion[0, 3] = 2  # said, never true: its IoU is 0
    values = values_of(confusion, ("a", "b", "c", "d e"))
    iou = [100 * 6 / 11, 100 * 3 / 6, 0.0]
    assert values["miou"] == pytest.approx(np.mean(iou))
    assert values["mean_accuracy"] == pytest.approx(np.mean([60.0, 75.0]))
    assert values["iou/d_e"] == 0.0 and "iou/c" not in values
    assert "accuracy/d_e" not in values
    # "a" everywhere: 10 of 14 pixels right, over the two classes that are true.
    assert values["constant_miou"] == pytest.approx(100 * 10 / 14 / 2)
    with pytest.raises(UserError, match="no held-out image has a labelled pixel"):
        values_of(np.zeros((4, 4), int), ("a", "b", "c", "d"))
    table = draw_classes(("a", "b", "c", "d e"), *class_table(confusion), "title")
    assert table.ndim == 3 and table.dtype == np.uint8


def test_every_class_has_a_colour_of_its_own():
    palette = colours(150)
    assert len(np.unique(palette, axis=0)) == 150
    gaps = np.abs(palette[:12, None].astype(int) - palette[None, :12]).sum(-1)
    assert (gaps + 1000 * np.eye(12, dtype=int)).min() > 40


def test_miou_wants_a_segmenter_and_its_classes(root):
    config = scenes.config(root)
    splits = data.from_config(config, (32, 32, 3))
    on_devices = OnDevices(make_mesh(MeshSettings(), 8, 1))
    other = tasks.from_config(tiny_config())
    with pytest.raises(UserError, match="wants config.task=segment"):
        make_miou(other, splits, on_devices)
    config["segmenter"]["num_classes"] = 6
    with pytest.raises(UserError, match="num_classes=6, but .*num_classes=5"):
        make_miou(tasks.from_config(config), splits, on_devices)
    task = tasks.from_config(scenes.config(root))
    for wrong in (
        {"images_a_device": 0},
        {"stride": -1},
        {"stride": 33},  # there would be pixels that no window has
        {"scale": (80,)},
        {"scale": (80, 0)},  # every image would be one pixel
        {"scale": (-1, 80)},
    ):
        with pytest.raises(UserError, match="stride of 0 to 32 pixels, .* positive"):
            make_miou(task, splits, on_devices, **wrong)


def test_as_many_scenes_are_scored_and_shown_as_were_asked_for(root, monkeypatch):
    asked = []

    def run(self, params, chunks, shown):
        asked.append(([i for c in chunks for i in c.indices if i >= 0], shown))
        return np.eye(scenes.CLASSES, dtype=int), {}

    monkeypatch.setattr(Sliding, "run", run)
    for count in (3, 0):
        options = {"num_held_out": count, "num_figures": 2, "stride": 32}
        values = miou_worker.evaluate(root, 1, **options)
        assert "segmentation" not in values  # none of those shown can be read
        scored, shown = asked.pop()
        assert sorted(scored) == data.sample(SIZES, count).tolist()
        assert len(set(shown)) == 2 and set(shown) <= set(scored)


def test_windows_stand_two_thirds_of_a_crop_apart():
    task = types.SimpleNamespace(image_shape=(32, 48, 3), scores=lambda p, x: x)
    on_devices = OnDevices(make_mesh(MeshSettings(), 8, 1))
    assert Sliding(task, None, on_devices, 0, (0, 0), 1).stride == (21, 32)
    assert Sliding(task, None, on_devices, 9, (0, 0), 1).stride == (9, 9)


def test_a_scaled_scene_is_cut_and_put_together_at_its_size(tmp_path):
    """Two colours, whose classes are the labels, twice as large on the way."""
    values = np.repeat([[1, 4]], 30, axis=1).repeat(40, 0).astype(np.uint8)
    red = [np.flatnonzero(miou_worker.TABLE.argmax(1) == k)[0] for k in (0, 3)]
    image = np.where(values[..., None] == 1, red[0], red[1]).repeat(3, -1)
    made = [(image.astype(np.uint8), values)]
    scenes.write(scenes.write(tmp_path, made * 8), made, "validation")
    found = miou_worker.evaluate(tmp_path, 1, scale=(120, 80))
    assert found["miou"] > 90 and found["constant_miou"] == pytest.approx(25.0)
