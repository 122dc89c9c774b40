import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny_config

from ddae import tasks
from ddae.cropping import crop_and_flip
from ddae.data.augment import Augment
from ddae.settings import UserError
from ddae.tasks import Task
from ddae.train import loop
from ddae.train.cluster import PreemptedError
from ddae.train.metrics import Meter
from ddae.train.optimizer import (
    OptimizerSettings,
    layer_of,
    make_optimizer,
    path_name,
    rule_table,
    rules_of,
)
from ddae.train.sharding import (
    MIN_SHARDED,
    MeshSettings,
    batch_sharding,
    gathered,
    make_mesh,
    replicated,
    state_sharding,
)
from ddae.train.signals import Signals
from ddae.train.state import make_init
from ddae.train.step import OnDevices, _cropped, _gradient, make_step, make_steps

ROOT = jax.random.key(3)


NOT_HERE = Augment()


def trainer(
    devices=1,
    fsdp=1,
    accumulate=1,
    clip_norm=0.0,
    total_steps=20,
    augment=NOT_HERE,
    **changes,
):
    """(state, jitted step, mesh, task) on that many of the four fake devices."""
    task = tasks.from_config(tiny_config(**changes))
    chosen = jax.devices()[:devices]
    mesh = make_mesh(MeshSettings(fsdp=fsdp), 16, accumulate, chosen)
    settings = OptimizerSettings(
        base_lr=1e-3, clip_norm=clip_norm, accumulate=accumulate
    )
    optimizer = make_optimizer(settings, 256, warmup_steps=2, total_steps=total_steps)
    init = make_init(task, optimizer)
    shardings = state_sharding(jax.eval_shape(init, ROOT), mesh)
    state = jax.jit(init, out_shardings=shardings)(ROOT)
    step = jax.jit(
        make_step(task, optimizer, mesh, total_steps, augment),
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
    )
    return state, step, mesh, task


def place(images, mesh):
    return {"image": jax.device_put(images, batch_sharding(mesh))}


def losses_of(images, steps=4, **options):
    state, step, mesh, _ = trainer(**options)
    found = []
    for _ in range(steps):
        state, metrics = step(state, place(images, mesh), ROOT)
        total, count = metrics["loss"]
        found.append(float(total / count))
    return found, state


def test_one_and_four_devices_agree_data_parallel_and_fsdp(digit_images):
    alone, _ = losses_of(digit_images)
    assert len(set(alone)) == 4
    data_parallel, _ = losses_of(digit_images, devices=4)
    np.testing.assert_allclose(data_parallel, alone, rtol=1e-5)
    fsdp, state = losses_of(digit_images, devices=4, fsdp=4)
    np.testing.assert_allclose(fsdp, alone, rtol=1e-5)
    kernel = state.params["encoder"]["block_00"]["mlp"]["up"]["kernel"]
    assert kernel.size >= MIN_SHARDED
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


def test_devices_agree_on_a_relative_bias(digit_images):
    """Each has its own within a step."""
    own = {"method": {"name": "simmim"}, "model__relative_bias": "shared"}
    alone, state = losses_of(digit_images, **own)
    table = state.params["encoder"]["relative_bias"]["table"]
    assert (table != 0).all() and len(set(alone)) == 4
    found, state = losses_of(digit_images, devices=4, fsdp=2, **own)
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    np.testing.assert_allclose(
        state.params["encoder"]["relative_bias"]["table"], table, atol=1e-5
    )


@pytest.mark.slow
def test_fsdp_in_half_precision_is_the_same_but_for_what_it_sums(digit_images):
    """Once a norm's scale has moved from 1 it multiplies kernels that were rounded to
    be gathered, and alone such that were not: both are rounded after."""
    alone, _ = losses_of(digit_images, dtype="bfloat16")
    fsdp, state = losses_of(digit_images, devices=4, fsdp=4, dtype="bfloat16")
    np.testing.assert_allclose(fsdp[:2], alone[:2], rtol=2e-3)
    np.testing.assert_allclose(fsdp, alone, rtol=2e-2)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype("float32")}


@pytest.mark.parametrize("dtype", ["", "float32"])
def test_a_decoder_may_be_in_full_precision_beside_an_encoder_in_half(dtype):
    """Its blocks, their kernels as FSDP gathers them, and what it predicts."""
    config = tiny_config(
        dtype="bfloat16", model__size="Wide", method__decoder__dtype=dtype
    )
    task = tasks.from_config(config)
    mesh = make_mesh(MeshSettings(fsdp=4), 16, 1, jax.devices())
    params = jax.eval_shape(task.init, ROOT)
    found = jax.eval_shape(lambda x: gathered(x, mesh, task.dtype_of), params)
    kernels = {
        path_name(path): x.dtype.name
        for path, x in jax.tree_util.tree_leaves_with_path(found)
        if re.search(r"/block_\d+/.*/kernel$", path_name(path))
    }
    heads = {d for name, d in kernels.items() if name.startswith("/heads/")}
    assert heads == {dtype or "bfloat16"}
    others = {d for name, d in kernels.items() if name.startswith("/encoder/")}
    assert others == {"bfloat16"} and len(kernels) == 16

    def predict(params):
        mask = task.method.masking.draw(jax.random.split(ROOT, 2), (4, 4))
        return task.predict(params, jnp.zeros((2, 8, 8, 1)), mask)

    predictions, features = jax.eval_shape(predict, params)
    assert {x.dtype.name for x in jax.tree.leaves(predictions)} == heads
    assert {x.dtype.name for x in jax.tree.leaves(features)} == {"bfloat16"}


@pytest.mark.slow
def test_crops_in_the_step_do_not_depend_on_how_a_batch_is_cut(digit_images):
    whole = Augment(crop="random_resized", flip=True, on_device=True)
    alone, _ = losses_of(digit_images, steps=2, augment=whole)
    parts, _ = losses_of(digit_images, steps=2, augment=whole, devices=2, accumulate=2)
    np.testing.assert_allclose(parts, alone, rtol=2e-5)
    elsewhere = dataclasses.replace(whole, on_device=False)
    uncut, _ = losses_of(digit_images, steps=2, augment=elsewhere)
    assert not np.allclose(uncut, alone, rtol=1e-3)


@pytest.mark.slow
def test_gradient_accumulation_is_the_whole_batch(digit_images):
    whole, _ = losses_of(digit_images, devices=2)
    parts, _ = losses_of(digit_images, devices=2, accumulate=4)
    np.testing.assert_allclose(parts, whole, rtol=2e-5)


class Labelled(Task):
    """The mean of a weight times the labelled pixels of single-pixel images."""

    def init(self, rng):
        return {"encoder": {"scale": jnp.ones((1,))}}

    def loss(self, params, ema_params, batch, progress, rngs):
        known = batch["label"] >= 0
        values = params["encoder"]["scale"] * batch["image"]
        total, count = (values * known).sum(), known.astype(jnp.float32).sum()
        loss = total / jnp.maximum(count, 1.0)
        return loss, {"loss": (loss * count, count)}, {}


@pytest.mark.parametrize("labels", [[0, -1, 0, 0], [-1, 0, -1, 0], [-1] * 4])
def test_a_micro_batch_weighs_what_its_loss_counts(labels):
    task, images = Labelled(), jnp.array([1.0, 2.0, 4.0, 9.0])
    batch = {"image": images, "label": jnp.array(labels)}
    for accumulate in (1, 2):
        settings = OptimizerSettings(accumulate=accumulate)
        optimizer = make_optimizer(settings, 4, 0, 10)
        mesh = make_mesh(MeshSettings(), 4, accumulate, jax.devices()[:1])
        state = make_init(task, optimizer)(ROOT, {"encoder": {"scale": None}})
        step = make_step(task, optimizer, mesh, 10)
        state, metrics = step(state, batch, ROOT)
        known = np.array(labels) >= 0
        expected = float(images[known].mean()) if known.any() else 0.0
        assert float(metrics["gradient_norm"][0]) == pytest.approx(expected)
        assert metrics["loss"][1] == known.sum()
        assert metrics["nonfinite_steps"][0] == 0


def test_the_step_is_traced_once_while_everything_moves(digit_images):
    state, step, mesh, task = trainer()
    traces = []
    inner = step.__wrapped__

    def counted(*arguments):
        traces.append(1)
        return inner(*arguments)

    jitted = jax.jit(counted, donate_argnums=0)
    seen = []
    for _ in range(5):
        state, metrics = jitted(state, place(digit_images, mesh), ROOT)
        names = ("learning_rate", "teacher_momentum", "beta/pixels/block02")
        seen.append([float(metrics[name][0]) for name in names])
    assert len(traces) == 1
    assert (np.diff(seen, axis=0) != 0).any(axis=0).all(), "something did not move"


def test_teacher_follows_the_ema_formula(digit_images):
    state, step, mesh, task = trainer()
    host = lambda tree: jax.tree.map(np.asarray, jax.device_get(tree))  # noqa: E731
    for i in range(3):
        before = host(state.ema_params)
        state, _ = step(state, place(digit_images, mesh), ROOT)
        momentum = np.float32(task.momentum(i / 20, 20))
        expected = jax.tree.map(
            lambda e, p, m=momentum: m * e + (1 - m) * p,
            before,
            {"encoder": host(state.params)["encoder"]},
        )
        for a, b in zip(
            jax.tree.leaves(host(state.ema_params)),
            jax.tree.leaves(expected),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_mae_has_no_teacher():
    state, _, _, _ = trainer(method={"name": "mae", "decoder": {"depth": 1}})
    assert not jax.tree.leaves(state.ema_params)


@pytest.mark.parametrize("branching", [("cpu",), ()], ids=["a branch", "a choice"])
def test_a_non_finite_batch_changes_only_the_counters(
    digit_images, monkeypatch, branching
):
    """In both ways that a step has of it, one for CPUs and one for the rest."""
    monkeypatch.setattr("ddae.train.step.BRANCHING", branching)
    state, step, mesh, _ = trainer()
    state, _ = step(state, place(digit_images, mesh), ROOT)
    before = jax.device_get(dataclasses.replace(state))
    bad = np.array(digit_images)
    bad[3] = np.nan
    for expected in (1, 2):
        state, metrics = step(state, place(bad, mesh), ROOT)
        assert int(state.nonfinite_in_row) == expected
        assert int(state.step) == 1 + expected
        assert metrics["loss"][1] == 0, "a skipped step counts in no mean"
    for name in ("params", "optimizer", "ema_params"):
        for a, b in zip(
            jax.tree.leaves(getattr(before, name)),
            jax.tree.leaves(jax.device_get(getattr(state, name))),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    state, metrics = step(state, place(digit_images, mesh), ROOT)
    assert int(state.nonfinite_in_row) == 0 and int(state.nonfinite) == 2
    assert np.isfinite(metrics["loss"][0])


def test_clipping_bounds_the_gradient_but_reports_the_true_norm(digit_images):
    _, free = losses_of(digit_images, steps=1)
    state, step, mesh, _ = trainer(clip_norm=1e-3)
    clipped, metrics = step(state, place(digit_images, mesh), ROOT)
    assert metrics["gradient_norm"][0] > 1e-2
    moments = jax.tree.leaves(clipped.optimizer)
    norm = np.sqrt(
        sum((np.asarray(m) ** 2).sum() for m in moments[: len(moments)] if m.ndim)
    )
    free_norm = np.sqrt(
        sum((np.asarray(m) ** 2).sum() for m in jax.tree.leaves(free.optimizer))
    )
    assert norm < free_norm / 10


def test_adamw_against_optax():
    settings = OptimizerSettings(base_lr=0.1, weight_decay=0.05)
    ours = make_optimizer(settings, 256, warmup_steps=0, total_steps=10)
    theirs = optax.adamw(
        lambda count: ours.schedule(count),
        0.9,
        0.95,
        weight_decay=0.05,
        mask={"a": {"kernel": True, "bias": False}},
    )
    params = {"a": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    expected, ours_state, state = params, ours.init(params), theirs.init(params)
    for step in range(4):
        grads = jax.tree.map(lambda p, s=step: jnp.cos(p + s), params)
        params, ours_state = ours.update(grads, ours_state, params, jnp.int32(step))
        grads = jax.tree.map(lambda p, s=step: jnp.cos(p + s), expected)
        updates, state = theirs.update(grads, state, expected)
        expected = optax.apply_updates(expected, updates)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_no_decay_on_biases_and_scales_and_every_parameter_is_covered():
    task = tasks.from_config(tiny_config())
    params = jax.eval_shape(task.init, ROOT)
    rules = rules_of(params, OptimizerSettings())
    flat = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), rule in zip(flat, jax.tree.leaves(rules), strict=True):
        # MAE: none on one-dimensional parameters.
        assert rule.decays == (len(leaf.shape) > 1) and not rule.frozen, path
    with pytest.raises(UserError, match="/encoder/gain is in no optimiser group"):
        rules_of({"encoder": {"gain": jnp.ones(2)}}, OptimizerSettings())


def test_frozen_blocks_count_for_the_rates_of_the_others():
    """The rates are those of the table that is printed, of the whole network."""
    params = jax.eval_shape(tasks.from_config(tiny_config()).init, ROOT)
    settings = OptimizerSettings(layer_decay=0.5, frozen=("/block_01/",))
    optimizer = make_optimizer(settings, 16, 0, 4)
    trained, _ = optimizer.split(params)
    whole = rules_of(params, settings)["encoder"]["block_00"]
    assert rules_of(trained, settings)["encoder"]["block_00"] == whole
    assert jax.tree.leaves(whole)[0].scale == 0.25


@pytest.mark.parametrize(
    "fsdp, batch, accumulate, says",
    [(3, 16, 1, "fsdp=3"), (1, 18, 1, "batch_size=18"), (2, 16, 8, "accumulate=8")],
)
def test_sizes_that_do_not_divide_are_errors(fsdp, batch, accumulate, says):
    with pytest.raises(UserError, match=says):
        make_mesh(MeshSettings(fsdp=fsdp), batch, accumulate)


def test_encode_pads_and_never_masks(digit_images):
    _, _, mesh, task = trainer(devices=4)
    params = jax.jit(task.init)(ROOT)
    encode = OnDevices(mesh)(task.encode)
    images = np.asarray(digit_images)[:5]
    features = encode(params, images)
    assert features.patches.shape == (5, 16, 32)
    expected = jax.jit(task.encode)(params, images)
    np.testing.assert_allclose(features.patches, expected.patches, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(features.patches, encode(params, images).patches)


def test_an_evaluation_ends_where_a_stop_is_asked_for():
    signals = Signals()
    means = OnDevices(make_mesh(MeshSettings(), 16, 1), signals)(
        lambda params, images: images.mean(axis=(1, 2, 3))
    )
    images = np.arange(300, dtype=np.float32).reshape(300, 1, 1, 1)
    signals.last_beat = 0.0
    np.testing.assert_array_equal(means({}, images), images.ravel())
    assert signals.last_beat > 0
    signals.stop_requested = True
    with pytest.raises(PreemptedError):
        means({}, images)


def test_what_the_host_does_alone_for_long_is_no_silence(monkeypatch):
    monkeypatch.setattr("ddae.train.signals.BEAT_SECONDS", 0.01)
    signals = Signals()
    on_devices = OnDevices(make_mesh(MeshSettings(), 16, 1), signals)
    signals.last_beat = 0.0

    def work():
        while not signals.last_beat:
            time.sleep(0.001)
        return 7

    assert on_devices.meanwhile(work) == 7
    with pytest.raises(ZeroDivisionError):
        on_devices.meanwhile(lambda: 1 / 0)


class Toy(Task):
    """One kernel under the loss that it is given; it sees the random keys, too."""

    def __init__(self, loss):
        self.of = loss

    def init(self, rng):
        return {"heads": {"kernel": jnp.zeros((2, 2))}}

    def loss(self, params, ema_params, batch, progress, rngs):
        value = self.of(params["heads"]["kernel"], batch["image"])
        drawn = jax.random.uniform(rngs[0])
        one = jnp.ones(())
        return value, {"loss": (value, one), "drawn": (drawn, one)}, {}


def toy(loss, **settings):
    """(state, jitted step) of a Toy, warmed up over two steps of ten."""
    task = Toy(loss)
    given = {"base_lr": 0.1, "weight_decay": 0.0} | settings
    optimizer = make_optimizer(OptimizerSettings(**given), 256, 2, 10)
    mesh = make_mesh(MeshSettings(), 4, 1, jax.devices()[:1])
    return make_init(task, optimizer)(ROOT), jax.jit(
        make_step(task, optimizer, mesh, 10)
    )


BATCH = {"image": jnp.ones((4, 1, 1, 1))}


def test_every_step_draws_anew_and_its_rate_is_that_of_the_steps_before_it():
    state, step = toy(lambda kernel, _: kernel.sum())
    drawn, kernels = [], []
    for _ in range(3):
        state, metrics = step(state, BATCH, ROOT)
        drawn.append(float(metrics["drawn"][0]))
        kernels.append(float(state.params["heads"]["kernel"][0, 0]))
    assert len(set(drawn)) == 3
    # The first of two steps of warmup is at rate 0; Adam's steps are of length 1.
    np.testing.assert_allclose(kernels, [0.0, -0.05, -0.15], rtol=1e-5)


def test_a_gradient_that_is_not_finite_is_none_though_the_loss_is():
    state, step = toy(lambda kernel, _: jnp.sqrt((kernel**2).sum()))
    for number in (1, 2):
        state, metrics = step(state, BATCH, ROOT)
        assert int(state.nonfinite_in_row) == number
    assert not np.asarray(state.params["heads"]["kernel"]).any()


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_gradient_of_parts_is_that_of_the_whole(accumulate):
    mesh = make_mesh(MeshSettings(), 8, accumulate, jax.devices()[:2])
    x = jnp.arange(8.0)

    def loss(w, x, _):
        value = (w * x).mean()
        return value, ({"loss": (value, jnp.ones(()))}, {})

    gradient = jax.jit(lambda w: _gradient(loss, w, (x, x), accumulate, mesh))
    (metrics, _), found = gradient(jnp.float32(2.0))
    np.testing.assert_allclose(found, 3.5)
    np.testing.assert_allclose(metrics["loss"][0] / metrics["loss"][1], 7.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings, given",
    [
        (
            {"crop": "random_resized", "scale": (0.3, 0.4), "flip": True},
            {"scale": (0.3, 0.4), "flip": True},
        ),
        ({"crop": "shift", "pad": 2, "scale": (0.3, 0.4)}, {"pad": 2}),
    ],
)
def test_the_step_cuts_images_as_it_is_told(settings, given, digit_images, keys):
    batch = {"image": digit_images[:8], "label": jnp.arange(8)}
    found = _cropped(batch, keys, Augment(on_device=True, **settings))
    expected = crop_and_flip(batch["image"], keys, **given)
    np.testing.assert_array_equal(found["image"], expected)
    assert (np.asarray(expected) != batch["image"]).any()
    np.testing.assert_array_equal(found["label"], batch["label"])


def test_moments_may_be_those_of_the_last_gradient_alone():
    settings = OptimizerSettings(base_lr=0.1, weight_decay=0.0, b1=0.0, b2=0.0)
    ours = make_optimizer(settings, 256, warmup_steps=0, total_steps=10)
    params = {"kernel": jnp.zeros((2, 2))}
    found, state = params, ours.init(params)
    for sign in (1.0, -1.0, -1.0):
        grads = {"kernel": jnp.full((2, 2), 3.0 * sign)}
        new, state = ours.update(grads, state, found, jnp.int32(0))
        np.testing.assert_allclose(new["kernel"] - found["kernel"], -0.1 * sign)
        found = new


def test_a_rate_to_begin_from_is_of_the_straight_line_alone():
    for schedule in ("cosine", "step"):
        with pytest.raises(ValueError, match="warmup_lr is of schedule=poly"):
            OptimizerSettings(schedule=schedule, warmup_lr=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_the_rate_goes_by_the_batch_and_ends_where_it_is_told(schedule):
    settings = OptimizerSettings(base_lr=1e-3, final_lr=1e-5, schedule=schedule)
    optimizer = make_optimizer(settings, 1024, warmup_steps=0, total_steps=100)
    assert optimizer.peak == pytest.approx(4e-3)  # per 256 images
    found = [float(optimizer.schedule(jnp.int32(step))) for step in (0, 100)]
    np.testing.assert_allclose(found, [4e-3, 1e-5], rtol=1e-4)


def test_adams_moments_decay_as_they_are_told():
    settings = OptimizerSettings(base_lr=0.1, weight_decay=0.0, b1=0.5, b2=0.8)
    ours = make_optimizer(settings, 256, warmup_steps=0, total_steps=10)
    theirs = optax.scale_by_adam(0.5, 0.8)
    params = {"kernel": jnp.ones((3, 2))}
    state, other = ours.init(params), theirs.init(params)
    for step in range(3):
        grads = jax.tree.map(lambda p, s=step: jnp.cos(p + s), params)
        rate = ours.schedule(jnp.int32(step))
        direction, other = theirs.update(grads, other)
        expected = jax.tree.map(lambda p, d, r=rate: p - r * d, params, direction)
        params, state = ours.update(grads, state, params, jnp.int32(step))
        np.testing.assert_allclose(params["kernel"], expected["kernel"], rtol=1e-5)


def test_what_enters_the_first_block_is_layer_0_and_what_leaves_the_last_is_not():
    names = ["patch_embedding/kernel", "cls_token", "mask_token", "positions"]
    for name in (*names, "norm_embedding/scale"):
        assert layer_of(f"/encoder/{name}", 12) == 0, name
    assert layer_of("/encoder/block_11/norm_mlp/scale", 12) == 12
    for name in ("/encoder/norm/scale", "/encoder/relative_bias/table"):
        assert layer_of(name, 12) == 13, name
    assert layer_of("/heads/block12/mask_token", 12) == 13


def test_positions_and_what_is_named_do_not_decay():
    names = ("positions", "cls_token", "mask_token")
    params = {"encoder": {name: jnp.zeros((1, 4, 8)) for name in names}}
    for no_decay, expected in (((), [False, True, True]), (("cls",), [0, 0, 1])):
        rules = rules_of(params, OptimizerSettings(no_decay=no_decay))["encoder"]
        assert [rules[name].decays for name in names] == expected


def test_what_is_given_and_what_is_counted_does_not_learn():
    counted = {"mean": jnp.zeros(8), "variance": jnp.ones(8)}
    book = {"codes": jnp.zeros((4, 8)), "counts": jnp.zeros(4)}
    params = {
        "frozen": {"teacher": {"encoder": {"norm": {"scale": jnp.ones(8)}}}},
        "heads": {"lr_1": {"batch_norm": counted}, "quantiser": {"codebook": book}},
    }
    rules = jax.tree.leaves(rules_of(params, OptimizerSettings()))
    assert len(rules) == 5 and all(rule.frozen for rule in rules)


def test_the_rate_falls_where_it_is_told():
    settings = OptimizerSettings(schedule="step", step_at=0.75, final_lr=1e-6)
    schedule = make_optimizer(settings, 256, warmup_steps=0, total_steps=100).schedule
    found = [float(schedule(jnp.int32(step))) for step in (0, 74, 75)]
    np.testing.assert_allclose(found, [1.5e-4, 1.5e-4, 1.5e-5], rtol=1e-5)


def test_a_loss_that_is_not_finite_is_none_though_the_gradient_is():
    state, step = toy(lambda kernel, _: kernel.sum() + jnp.inf)
    state, metrics = step(state, BATCH, ROOT)
    assert int(state.nonfinite) == 1 and metrics["gradient_norm"][1] == 0
    assert not np.asarray(state.params["heads"]["kernel"]).any()


@pytest.mark.parametrize("at_once", [1, 3])
def test_steps_that_were_skipped_are_logged_as_counted_at_the_last(at_once):
    state, step = toy(lambda kernel, image: kernel.sum() + image.mean())
    steps = jax.jit(make_steps(step)) if at_once > 1 else step
    images = jnp.ones((6, 4, 1, 1, 1)).at[jnp.array([0, 3, 4, 5])].set(jnp.nan)
    meter, shape = Meter(), (-1, at_once) if at_once > 1 else (-1,)
    for image in images.reshape(*shape, *images.shape[1:]):
        state, metrics = steps(state, {"image": image}, ROOT)
        del metrics["stop"]
        meter.add(metrics, waited=0.0, steps=at_once)
    logged = meter.take(batch_size=4)
    assert [logged[f"train/nonfinite_{name}"] for name in ("steps", "in_row")] == [4, 3]
    assert logged["train/drawn"] < 1, "a mean still"


def test_what_is_asked_for_is_the_same_however_many_steps_are_taken_at_once():
    """Of two steps the sum would ask for something else."""
    state, step = toy(lambda kernel, _: kernel.sum())
    batches = {"image": jnp.ones((2, 4, 1, 1, 1)), "stop": jnp.array([0, 1, 0, 0])}
    _, metrics = jax.jit(make_steps(step))(state, batches, ROOT)
    assert metrics["stop"][0] == loop.STOP != loop.FAILED


def test_progress_and_the_rate_that_is_said_are_of_the_steps_before():
    class Watch(Toy):
        def loss(self, params, ema_params, batch, progress, rngs):
            value, metrics, rest = super().loss(
                params, ema_params, batch, progress, rngs
            )
            return value, metrics | {"progress": (progress, jnp.ones(()))}, rest

    task = Watch(lambda kernel, _: 3.0 * kernel.sum())
    settings = OptimizerSettings(base_lr=0.1, weight_decay=0.0)
    optimizer = make_optimizer(settings, 256, 2, 10)
    mesh = make_mesh(MeshSettings(), 4, 1, jax.devices()[:1])
    state = make_init(task, optimizer)(ROOT)
    step = jax.jit(make_step(task, optimizer, mesh, 10))
    found = []
    for _ in range(3):
        state, metrics = step(state, BATCH, ROOT)
        names = ("progress", "learning_rate", "gradient_norm")
        found.append([float(metrics[name][0]) for name in names])
    expected = [[0.0, 0.0, 6.0], [0.1, 0.05, 6.0], [0.2, 0.1, 6.0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_table_of_rules_counts_what_learns_how():
    kernel = {"kernel": jnp.zeros((4, 1000))}
    params = {
        "encoder": {
            "cls_token": jnp.zeros((1, 1, 4)),
            "block_00": kernel,
            "norm": {"scale": jnp.ones(4)},
        },
        "heads": {"pixels": kernel | {"bias": jnp.zeros(8)}},
    }
    frozen = ("cls_token", "norm")
    found = rule_table(params, OptimizerSettings(layer_decay=0.5, frozen=frozen))
    assert found == [
        "frozen          2 arrays            8 parameters",
        "no decay        1 arrays            8 parameters",
        "weight decay    2 arrays        8,000 parameters, 0.5 to 1 times the rate",
    ]
