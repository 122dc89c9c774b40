"""UPerNet's parts, the task of segmentation, and whole runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scenes
from conftest import tiny_config

from configs import segment_ade20k
from ddae import tasks
from ddae.eval.sliding import resized_part
from ddae.models.heads import absorb
from ddae.models.positions import resize_positions, sincos
from ddae.models.segmenter import (
    Rescale,
    average_pool,
    batch_norm,
    drop_channels,
    resize,
)
from ddae.settings import UserError
from ddae.tasks.segment import pixel_losses, taps_of
from ddae.train import loop
from ddae.train.loading import load_params
from ddae.train.metrics import read_metrics
from ddae.train.optimizer import OptimizerSettings, make_optimizer, rules_of
from ddae.train.partial import InitSettings, load_pretrained
from ddae.train.sharding import MeshSettings, batch_sharding, make_mesh, to_devices
from ddae.train.state import make_init
from ddae.train.step import make_step


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    made = [scenes.blocks(seed, 50, 70) for seed in range(8)]
    return scenes.write(scenes.write(folder, made), made[:1], "validation")


# The parts of the network.


@pytest.mark.parametrize("size, bins", [((8, 8), 2), ((7, 5), 3), ((4, 4), 6)])
def test_average_pool_covers_the_map(size, bins):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    found = average_pool(jnp.asarray(x), bins)
    for i in range(bins):
        for j in range(bins):
            cell = [
                slice(int(np.floor(n * s / bins)), int(np.ceil((n + 1) * s / bins)))
                for n, s in zip((i, j), size, strict=True)
            ]
            expected = x[:, cell[0], cell[1]].mean(axis=(1, 2))
            np.testing.assert_allclose(found[:, i, j], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("old, new", [((3, 4), (12, 16)), ((9, 7), (4, 11))])
def test_resize_is_bilinear_by_pixel_centres(old, new):
    x = np.random.default_rng(0).normal(size=(*old, 2)).astype(np.float32)
    expected = scenes.bilinear(x, new)
    found = resize(jnp.asarray(x)[None], new)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # The same with sizes that are traced, also in the corner of larger arrays.
    whole = resized_part(jnp.asarray(x), jnp.array(old), jnp.array(new), new)
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-5)
    padded = np.pad(x, ((0, 5), (0, 2), (0, 0)), constant_values=99.0)
    cut = resized_part(
        jnp.asarray(padded), jnp.array(old), jnp.array(new), (new[0] + 3, new[1] + 1)
    )
    np.testing.assert_allclose(cut[: new[0], : new[1]], expected, rtol=1e-4, atol=1e-5)


def test_a_maximum_has_its_gradient_where_xla_rounds_twice():
    """x + scale y is one operation in one place and two in another: no value that is
    computed again need equal the maximum."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, y = (jax.random.normal(key, (2, 4, 4, 16)) for key in keys[:2])
    kernel = jax.random.normal(keys[2], (16, 16))
    neck = Rescale(8, 16, jnp.float32)

    def loss(x, y, scale):
        found, _ = neck.apply({}, x + (y @ kernel) * scale, True)
        return (found**2).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 2)))
    found, of_scale = gradient(x, y, jnp.full(16, 0.1))
    product = np.asarray(y @ kernel)
    sums = np.asarray(x) + 0.1 * product
    maxima = sums.reshape(2, 2, 2, 2, 2, 16).max(axis=(2, 4), keepdims=True)
    near = np.abs(sums.reshape(2, 2, 2, 2, 2, 16) - maxima) < 1e-5
    expected = 2 * sums * near.reshape(sums.shape)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    total = (expected * product).sum(axis=(0, 1, 2))
    np.testing.assert_allclose(of_scale, total, rtol=1e-4, atol=1e-3)


def test_whole_channels_of_an_example_are_dropped():
    x = jnp.ones((64, 3, 4, 50))
    keys = jax.random.split(jax.random.key(0), 64)
    found = np.asarray(drop_channels(x, 0.1, keys))
    assert (found == found[:, :1, :1]).all()
    assert set(np.unique(found)) == {0.0, np.float32(1 / 0.9)}
    assert 0.08 < (found[:, 0, 0] == 0).mean() < 0.12
    again = drop_channels(x[5:6], 0.1, keys[5:6])
    np.testing.assert_array_equal(again[0], found[5])
    assert drop_channels(x, 0.1, None) is x


@pytest.mark.parametrize("devices", [1, 4])
def test_batch_norm_sees_the_whole_batch(devices):
    x = np.random.default_rng(0).normal(3.0, 2.0, (8, 4, 5, 6)).astype(np.float32)
    x[:2] += 5.0  # the examples of one device differ from the others'
    mesh = make_mesh(MeshSettings(), 8, 1, jax.devices()[:devices])
    norm = batch_norm(jnp.float32)
    params = {
        "scale": np.linspace(1, 2, 6, dtype=np.float32),
        "bias": np.linspace(-1, 1, 6, dtype=np.float32),
        "mean": np.zeros(6, np.float32),
        "variance": np.ones(6, np.float32),
    }
    placed = to_devices({"x": x}, batch_sharding(mesh))["x"]
    apply = jax.jit(lambda x: norm.apply({"params": params}, x, True))
    found, observed = apply(placed)
    flat = x.reshape(-1, 6).astype(np.float64)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    expected = expected * params["scale"] + params["bias"]
    np.testing.assert_allclose(
        np.asarray(found).reshape(-1, 6), expected, rtol=1e-4, atol=1e-5
    )
    tree = absorb({"a": {"batch_norm": params}}, {"a": observed})
    running = tree["a"]["batch_norm"]
    np.testing.assert_allclose(running["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        running["variance"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5
    )
    np.testing.assert_array_equal(running["scale"], params["scale"])
    still, nothing = norm.apply({"params": running}, x, False)
    expected = (flat - running["mean"]) / np.sqrt(running["variance"] + 1e-5)
    expected = expected * params["scale"] + params["bias"]
    assert nothing == {}
    np.testing.assert_allclose(
        np.asarray(still).reshape(-1, 6), expected, rtol=1e-4, atol=1e-5
    )


# The task.


def test_blocks_are_read_at_the_same_shares_of_any_depth():
    assert taps_of(12) == (4, 6, 8, 12)  # 3, 5, 7, 11 from 0 on
    assert taps_of(24) == (8, 12, 16, 24)
    assert taps_of(6) == (2, 3, 4, 6)


# Of them in biases of 63 x 63 + 3 offsets and in positions of 32 x 32 + 1: 1.4 and 2.6.
@pytest.mark.parametrize("model, millions", [("B", 163.9), ("L", 441.5)])
def test_the_config_of_ade20k_builds_at_full_size(model, millions):
    config = segment_ade20k.get_config(f"model={model}").to_dict()
    task = tasks.from_config(config)
    assert task.image_shape == (512, 512, 3)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(shapes)) / 1e6
    assert count == pytest.approx(millions, rel=1e-3)
    rules_of(shapes, OptimizerSettings())


def batch_of(count, seed=0, side=32):
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (count, side, side, 3)).astype(np.uint8),
        "label": random.integers(-1, scenes.CLASSES, (count, side, side)).astype(
            np.int32
        ),
    }


def test_the_loss_is_the_mean_over_labelled_pixels():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 3, 4, 5)).astype(np.float32)
    labels = random.integers(-1, 5, (2, 3, 4))
    lost, count, hits = pixel_losses(jnp.asarray(logits), jnp.asarray(labels))
    expected, right = 0.0, 0
    for place in np.ndindex(*labels.shape):
        if labels[place] >= 0:
            row = logits[place].astype(np.float64)
            expected -= row[labels[place]] - np.log(np.exp(row).sum())
            right += row.argmax() == labels[place]
    assert (count, hits) == ((labels >= 0).sum(), right)
    np.testing.assert_allclose(lost, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def task(root):
    return tasks.from_config(scenes.config(root))


@functools.partial(jax.jit, static_argnums=0)
def loss_of(task, params, batch):
    keys = jax.random.split(jax.random.key(0), len(batch["image"]))
    return task.loss(params, {}, batch, jnp.zeros(()), keys)


def test_the_auxiliary_head_weighs_its_part_and_no_label_teaches_nothing(task):
    params = jax.jit(task.init)(jax.random.key(0))
    batch = batch_of(4)
    total, metrics, _ = loss_of(task, params, batch)
    parts = {n: metrics[f"loss/{n}"] for n in ("segmenter", "auxiliary")}
    means = {name: lost / count for name, (lost, count) in parts.items()}
    np.testing.assert_allclose(
        total, means["segmenter"] + 0.4 * means["auxiliary"], rtol=1e-5
    )
    assert parts["segmenter"][1] == (batch["label"] >= 0).sum()
    blank = batch | {"label": np.full_like(batch["label"], -1)}
    assert loss_of(task, params, blank)[0] == 0.0


@pytest.mark.slow
def test_a_step_on_four_devices_is_that_on_one(task):
    """Losses, gradients and running statistics; the mesh is not to be seen."""
    settings = OptimizerSettings(base_lr=1e-2, lr_batch=8, warmup_epochs=0.0)
    found = []
    for devices in (1, 4):
        mesh = make_mesh(MeshSettings(), 8, 1, jax.devices()[:devices])
        optimizer = make_optimizer(settings, 8, 0, 10)
        state = jax.jit(make_init(task, optimizer))(jax.random.key(0))
        step = jax.jit(make_step(task, optimizer, mesh, 10))
        placed = to_devices(batch_of(8), batch_sharding(mesh))
        first = jax.tree.map(np.asarray, state.params)
        state, metrics = step(state, placed, jax.random.key(1))
        found.append((jax.tree.map(np.asarray, state.params), metrics["loss"][0]))
    (one, loss), (four, other) = found
    np.testing.assert_allclose(loss, other, rtol=1e-5)
    norms = [
        (a, b)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(four), strict=True
        )
        if jax.tree_util.keystr(path).endswith(("['mean']", "['variance']"))
    ]
    # Two of the pyramid, three laterals, three of the FPN, two bottlenecks, auxiliary.
    assert len(norms) == 2 * 11
    for a, b in norms:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), one, first)
    still = [
        jax.tree_util.keystr(path)
        for path, value in jax.tree_util.tree_leaves_with_path(moved)
        if not value
    ]
    assert not still, still


def test_running_statistics_are_no_optimisers_business(task):
    params = jax.eval_shape(task.init, jax.random.key(0))
    rules = rules_of(params, OptimizerSettings(layer_decay=0.5))
    for path, rule in jax.tree_util.tree_leaves_with_path(
        rules, is_leaf=lambda x: hasattr(x, "frozen")
    ):
        name = jax.tree_util.keystr(path)
        frozen = name.endswith(("['mean']", "['variance']"))
        assert rule.frozen == frozen, name
        assert rule.decays == name.endswith(("['kernel']", "_token']")), name
        if "heads" in name:
            assert rule.scale == 1.0


def test_poly_is_a_line_with_a_warmup():
    settings = OptimizerSettings(
        schedule="poly", base_lr=1e-4, lr_batch=16, warmup_lr=1e-6
    )
    schedule = make_optimizer(settings, 16, 1500, 160_000).schedule
    steps = [0, 750, 1500, 80_000, 160_000]
    line = [1e-4 * (1 - step / 160_000) for step in steps]
    expected = [1e-6, 1e-6 + (line[1] - 1e-6) / 2, *line[2:]]
    found = [float(schedule(jnp.asarray(step))) for step in steps]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model__patch_size": 16, "image_size": 16}, "images of 32 pixels or more"),
        ({"model__patch_size": 2}, "patch_size 4, 8 or 16"),
        ({"segmenter__taps": (1, 2, 2, 3)}, "not among the blocks 1 to 2"),
        ({"segmenter__taps": (1, 2)}, "not four blocks"),
        ({"segmenter__head": "fpn"}, "segmenter.head='fpn' is not one of"),
        ({"segmenter__pool_scales": ()}, r"pool_scales=\(\) are none"),
        ({"segmenter__dropout": 1.0}, r"dropout=1.0 is not in \[0, 1\)"),
        ({"segmenter__auxiliary_weight": -1.0}, "weight=-1.0 must not be negative"),
        ({"segmenter__chanels": 8}, "did you mean 'channels'"),
    ],
)
def test_segmenters_that_do_not_fit_are_refused(root, changes, message):
    config = scenes.config(root)
    for key, value in tiny_config(**changes).items():
        if key in {name.partition("__")[0] for name in changes}:
            config[key] = (config[key] | value) if isinstance(value, dict) else value
    if "model__patch_size" in changes:
        config["model"] |= {"channels": 3, "patch_size": changes["model__patch_size"]}
    with pytest.raises(UserError, match=message):
        tasks.from_config(config)


# Whole runs.


@pytest.mark.slow
@pytest.mark.parametrize(
    "head", [pytest.param("upernet", marks=pytest.mark.slow), "linear"]
)
def test_a_run_learns_blocks_of_grey(tmp_path, head):
    made = [scenes.blocks(seed, 48, 56, side=16) for seed in range(16)]
    place = scenes.write(scenes.write(tmp_path / "set", made), made[:4], "validation")
    config = scenes.config(place, total_steps=30, log_every_steps=10)
    config["segmenter"]["head"] = head
    config["optimizer"] |= {"schedule": "poly", "warmup_epochs": 0.0, "lr_batch": 8}
    loop.run(config, str(tmp_path / "run"))
    rows = read_metrics(str(tmp_path / "run" / "metrics.jsonl"))
    losses = [row["train/loss/segmenter"] for row in rows if "train/loss" in row]
    evaluated = [row for row in rows if "eval/miou" in row]
    assert losses[-1] < 0.9 * losses[0], losses
    assert evaluated[-1]["eval/miou"] > evaluated[-1]["eval/constant_miou"] + 15
    names = {p.name for p in (tmp_path / "run" / "figures").iterdir()}
    assert any("segmentation" in name for name in names), names
    assert any("class_table" in name for name in names), names


@pytest.mark.slow
def test_a_pretrained_encoder_comes_with_its_positions(root, tmp_path):
    """Pretrained at 32 pixels, it is read at 64: the same weights, positions resized
    from the grid that the config names."""
    pretraining = tiny_config(
        image_size=32,
        total_steps=1,
        model={"size": "Two", "patch_size": 8, "channels": 3},
        data=scenes.section(root),
        method__name="mae",
        batch_size=8,
    )
    del pretraining["method"]["taps"]
    workdir = str(tmp_path / "encoder")
    loop.run(pretraining, workdir)
    config = scenes.config(root, image_size=64)
    config["init"] = {
        "workdir": workdir,
        "may_leave": ("/mask_token$", "^/encoder/norm/"),
    }
    with pytest.raises(UserError, match=r"set config.model.position_grid=\(4, 4\)"):
        loop.run(config, str(tmp_path / "refused"))
    config["model"]["position_grid"] = (4, 4)
    task = tasks.from_config(config)
    expected = resize_positions(sincos(32, (4, 4)), (4, 4), (8, 8))
    _, positions = task.encoder.bind({})._positions()
    np.testing.assert_allclose(positions[0], expected, rtol=1e-6)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    init = InitSettings(**config["init"])
    pretrained = load_pretrained(init, config, shapes)
    stored, _ = load_params(workdir)
    del stored["encoder"]["norm"]
    jax.tree.map(np.testing.assert_array_equal, pretrained.encoder, stored["encoder"])


@pytest.mark.slow
def test_a_segmenter_drops_paths(root):  # noqa: F811
    found = []
    for drop_path in (0.0, 0.5):
        config = scenes.config(root, model__drop_path=drop_path)
        config["model"] = scenes.config(root)["model"] | {"drop_path": drop_path}
        config["segmenter"]["head"] = "linear"
        task = tasks.from_config(config)
        params = jax.jit(task.init)(jax.random.key(0))
        found.append(float(loss_of(task, params, batch_of(4))[0]))
    assert found[0] != found[1]


def test_a_pixel_without_a_label_is_no_hit():
    logits = jnp.broadcast_to(jnp.array([9.0, 0.0, 0.0]), (1, 2, 2, 3))
    labels = jnp.array([[[0, -1], [1, -1]]])
    lost, count, hits = pixel_losses(logits, labels)
    assert (count, hits) == (2, 1) and 9 < lost < 9.1


def test_a_linear_head_alone_wants_the_encoders_last_norm(root):
    for head in ("linear", "upernet"):
        task = tasks.from_config(scenes.config(root, segmenter__head=head))
        encoder = jax.eval_shape(task.init, jax.random.key(0))["encoder"]
        assert ("norm" in encoder) == (head == "linear")


@pytest.mark.slow
def test_what_a_segmenters_step_says_and_sees(root):
    """Sums over labelled pixels, per cent, images standardised, channels dropped."""
    config = scenes.config(root, segmenter__dropout=0.5)
    task = tasks.from_config(config)
    params = jax.jit(task.init)(jax.random.key(0))
    batch = batch_of(2)
    total, metrics, observed = loss_of(task, params, batch)
    summed, count = metrics["loss"]
    assert count == (batch["label"] >= 0).sum()
    np.testing.assert_allclose(summed / count, total, rtol=1e-6)
    hits, count = metrics["pixel_accuracy/segmenter"]
    assert hits / count > 2  # per cent; a fifth by chance
    still = dataclasses.replace(task, head=task.head.clone(dropout=0.0))
    assert loss_of(still, params, batch)[0] != total
    blind = dataclasses.replace(task, standardise=lambda x: jnp.zeros(x.shape))
    assert loss_of(blind, params, batch)[0] != total
    moved = task.absorb(params, observed)["heads"]["segmenter"]["decode"]
    norm = moved["lateral_0"]["batch_norm"]
    seen = observed["segmenter"]["decode"]["lateral_0"]["batch_norm"]
    np.testing.assert_allclose(norm["mean"], 0.1 * seen["mean"], rtol=1e-5)
