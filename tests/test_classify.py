"""Fine-tuning and probes: how parameters learn, begin, stay frozen, and are counted."""

import copy
import dataclasses
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from sklearn.linear_model import LogisticRegression

from ddae import data, eval, tasks
from ddae.data.arrays import ArraySource
from ddae.eval.accuracy import make_accuracy, topk
from ddae.interop.convert import write_workdir
from ddae.models.heads import BatchNorm, absorb
from ddae.models.positions import (
    relative_index,
    resize_positions,
    resize_relative_bias,
    sincos,
)
from ddae.models.vit import VIT_SPECS, Encoder
from ddae.settings import UserError
from ddae.train import loop
from ddae.train.loading import load_params, load_state
from ddae.train.metrics import read_metrics
from ddae.train.optimizer import OptimizerSettings, make_optimizer, merge
from ddae.train.partial import (
    InitSettings,
    _frozen_flags,
    load_frozen,
    load_pretrained,
    rest_of,
)
from ddae.train.plan import plan
from ddae.train.sharding import MeshSettings, make_mesh
from ddae.train.step import OnDevices

GOLDENS = pathlib.Path(__file__).with_name("goldens")
sys.path.insert(0, str(GOLDENS))

PROBE = {
    "name": "lars",
    "base_lr": 0.1,
    "weight_decay": 0.0,
    "b1": 0.9,
    "warmup_epochs": 0.0,
    "frozen": ("/encoder/",),
}
PLAIN = {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, "erasing": 0.0}


def classify_config(**changes):
    config = tiny_config(
        task="classify",
        evaluators={"accuracy": {}},
        classifier={"num_classes": 10},
        mixing={},
    )
    del config["method"]
    for key, value in changes.items():
        section, parts = config, key.split("__")
        for part in parts[:-1]:
            section = section.setdefault(part, {})
        section[parts[-1]] = copy.deepcopy(value)  # others have it too
    return config


def probe_config(**changes):
    given = {
        "classifier": {
            "num_classes": 10,
            "pool": "cls",
            "norm": "batch",
            "kernel_deviation": 0.01,
        },
        "optimizer": PROBE,
        "mixing": PLAIN,
    }
    return classify_config(**(given | changes))


def test_an_encoder_that_does_not_learn_drops_no_path():
    config = probe_config(model__drop_path=0.5)
    assert tasks.from_config(config).encoder.drop_path == 0.0
    config["optimizer"] = PROBE | {"frozen": ()}
    assert tasks.from_config(config).encoder.drop_path == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("average", [0.0, 0.5])
def test_a_finished_classifier_is_scored_with_its_own_head(tmp_path, average):
    config = classify_config(total_steps=4, optimizer__base_lr=0.1, mixing=PLAIN)
    config["classifier"]["average"] = average
    loop.run(config, str(tmp_path / "run"))
    config |= {"total_steps": 0, "init": {"workdir": str(tmp_path / "run")}}
    loop.run(config, str(tmp_path / "scored"))
    run, scored = (
        jax.tree.leaves(load_params(str(tmp_path / name))[0]["heads"])
        for name in ("run", "scored")
    )
    assert all(map(np.array_equal, run, scored))
    tops = [
        read_metrics(tmp_path / name / "metrics.jsonl")[-1]["eval/top1"]
        for name in ("run", "scored")
    ]
    assert tops[0] == tops[1]


def test_random_heads_are_said_to_be_random(tmp_path, pretrained, capsys):
    config = probe_config(total_steps=0, init={"workdir": pretrained})
    loop.run(config, str(tmp_path / "scored"))
    said = capsys.readouterr().out
    assert f"warning: {pretrained} has other heads than this config, or none" in said
    config["evaluators"] = {"knn": {"k": 3}}
    loop.run(config, str(tmp_path / "neighbours"))
    assert "other heads" not in capsys.readouterr().out


MAE = {"name": "mae", "layout": "mask_token"}


@pytest.mark.parametrize(
    "config, changes, flags",
    [
        (
            tiny_config(),
            {"method__standardise_pixels": False},
            "--config.method.standardise_pixels=True",
        ),
        (
            tiny_config(),
            {"method__decoder__num_heads": 4},
            "--config.method.decoder.num_heads=2",
        ),
        (
            tiny_config(method=MAE),
            {"method": {"name": "simmim"}},
            "--config.method.name=mae --config.method.standardise_pixels=True",
        ),
        (
            probe_config(classifier__pool="mean"),
            {"classifier__pool": "cls", "classifier__tap": 1},
            "--config.classifier.tap=2 --config.classifier.pool=mean",
        ),
        (tiny_config(), {"method__mask": {"ratio": 0.5}}, ""),
        (probe_config(), {"classifier__tap": 2}, ""),  # the last, by its number
    ],
)
def test_heads_of_the_same_shapes_are_read_as_they_were_trained(
    tmp_path, config, changes, flags
):
    shapes = jax.eval_shape(tasks.from_config(config).init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    workdir = str(tmp_path / "run")
    write_workdir(workdir, params, config)
    config = copy.deepcopy(config)
    for key, value in changes.items():
        *parts, last = key.split("__")
        section = config
        for part in parts:
            section = section.setdefault(part, {})
        section[last] = value
    found = load_pretrained(InitSettings(workdir=workdir), config, shapes)
    if flags:
        with pytest.raises(UserError, match=f"trained with other.*; set {flags}$"):
            rest_of(found, config, shapes)
    else:
        assert rest_of(found, config, shapes)[1] == f"heads of {workdir}"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A workdir of two steps of pretraining."""
    workdir = str(tmp_path_factory.mktemp("pretrained"))
    loop.run(tiny_config(total_steps=2), workdir)
    return workdir


@pytest.mark.parametrize(
    "golden, config", [("finetune", "finetune_in1k"), ("linear", "linear_in1k")]
)
def test_how_every_parameter_of_vit_b_learns(golden, config):
    from make_rule_table import table

    assert table(config, "model=B") == (GOLDENS / f"{golden}_vit_b.txt").read_text()


def test_an_update_moves_each_layer_by_its_own_rate():
    settings = OptimizerSettings(
        base_lr=1.0, weight_decay=0.0, layer_decay=0.5, frozen=("cls_token",)
    )
    optimizer = make_optimizer(settings, 256, warmup_steps=0, total_steps=10)
    leaf = lambda: {"kernel": jnp.zeros((2, 2))}  # noqa: E731
    params = {
        "encoder": {
            "patch_embedding": leaf(),
            "cls_token": jnp.zeros((1, 1, 2)),
            "block_00": leaf(),
            "block_01": leaf(),
        },
        "heads": {"classifier": leaf(), "lr_0.3": leaf()},
    }
    trained, frozen = optimizer.split(params)
    assert len(jax.tree.leaves(frozen)) == 1
    grads = jax.tree.map(jnp.ones_like, trained)
    state = optimizer.init(params)
    assert sum(x.size for x in jax.tree.leaves(state)) < 2 * 22  # none for cls_token
    moved, _ = optimizer.update(grads, state, trained, jnp.int32(0))
    moved = jax.tree.map(lambda x: -x.mean(), merge(moved, frozen))
    assert moved["encoder"]["cls_token"] == 0
    whole = moved["heads"]["classifier"]["kernel"]
    for name, share in (("block_01", 0.5), ("block_00", 0.25)):
        np.testing.assert_allclose(
            moved["encoder"][name]["kernel"], share * whole, rtol=1e-6
        )
    embedding = moved["encoder"]["patch_embedding"]["kernel"]
    np.testing.assert_allclose(embedding, 0.125 * whole, rtol=1e-6)
    np.testing.assert_allclose(
        moved["heads"]["lr_0.3"]["kernel"], 0.3 * whole, rtol=1e-6
    )


def test_lars_equals_its_formula():
    settings = OptimizerSettings(name="lars", base_lr=2.0, b1=0.9, weight_decay=0.1)
    optimizer = make_optimizer(settings, 256, warmup_steps=0, total_steps=100)
    random = np.random.default_rng(0)
    params = {"kernel": random.normal(size=(4, 3)), "bias": random.normal(size=3)}
    params = {"heads": jax.tree.map(lambda x: x.astype(np.float32), params)}
    state = optimizer.init(params)
    own = {k: v.astype(np.float64) for k, v in params["heads"].items()}
    momentum = {k: np.zeros_like(v) for k, v in own.items()}
    for step in range(5):
        grads = jax.tree.map(lambda p, s=step: np.cos(p * 3 + s), params)
        rate = float(optimizer.schedule(jnp.int32(step)))
        for name, w in own.items():
            d = np.cos(w * 3 + step)
            if name == "kernel":  # decay and trust ratio are for matrices alone
                d = d + 0.1 * w
                d = d * 0.001 * np.linalg.norm(w) / np.linalg.norm(d)
            momentum[name] = 0.9 * momentum[name] + d
            own[name] = w - rate * momentum[name]
        params, state = optimizer.update(grads, state, params, jnp.int32(step))
    for name, w in own.items():
        np.testing.assert_allclose(params["heads"][name], w, rtol=1e-4)


def test_batch_norm_is_of_the_whole_batch_and_its_running_values_follow():
    x = np.random.default_rng(0).normal(3.0, 2.0, (32, 5)).astype(np.float32)
    module = BatchNorm()
    params = module.init(jax.random.key(0), x, False)["params"]
    y, observed = module.apply({"params": params}, x, True)
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    running = absorb({"batch_norm": params}, observed)["batch_norm"]
    np.testing.assert_allclose(running["mean"], 0.1 * x.mean(0), rtol=1e-5)
    unbiased = 0.9 + 0.1 * x.var(0, ddof=1)
    np.testing.assert_allclose(running["variance"], unbiased, rtol=1e-5)
    still, nothing = module.apply({"params": params}, x, False)
    np.testing.assert_allclose(still, x, rtol=1e-5)
    assert not nothing


def test_frozen_means_frozen(pretrained, tmp_path):
    config = probe_config(init={"workdir": pretrained}, total_steps=3)
    loop.run(config, str(tmp_path))
    before, _ = load_params(pretrained)
    after, _ = load_params(str(tmp_path))
    before["encoder"].pop("mask_token", None)
    for old, new in zip(
        jax.tree.leaves(before["encoder"]),
        jax.tree.leaves(after["encoder"]),
        strict=True,
    ):
        assert np.asarray(old).tobytes() == np.asarray(new).tobytes()
    norm = after["heads"]["classifier"]["batch_norm"]
    assert (norm["variance"] != 1).any() and (norm["mean"] != 0).any()


def test_a_fine_tune_begins_at_step_0_with_a_report(pretrained, tmp_path, capsys):
    settings = InitSettings(
        workdir=pretrained, may_leave=("/mask_token$", "^/encoder/norm/")
    )
    config = classify_config(init=dataclasses.asdict(settings), total_steps=2)
    config["model"]["drop_path"] = 0.2
    config["optimizer"]["layer_decay"] = 0.75
    loop.run(config, str(tmp_path))
    said = capsys.readouterr().out
    assert f"encoder of {pretrained}" in said and "2 unexpected" in said
    assert "times the rate" in said
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in rows if "eval/top1" in r] == [0, 2]
    assert [r["step"] for r in rows if "train/loss" in r] == [2]
    # The weights that it begins with are those of the other run.
    task = tasks.from_config(config)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    begun = load_pretrained(settings, config, shapes).encoder
    theirs, _ = load_params(pretrained)
    np.testing.assert_array_equal(
        begun["block_01"]["mlp"]["up"]["kernel"],
        theirs["encoder"]["block_01"]["mlp"]["up"]["kernel"],
    )
    # A resume of it does not look at the other run any more.
    config["init"]["workdir"] = "/nowhere"
    config["total_steps"] = 3
    loop.run(config, str(tmp_path))
    assert "resuming at step 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"model__size": "Pico"}, "with config.model.size=Two, here it is Pico"),
        (
            {"model__patch_size": 4},
            "patch_size=2, here it is 4; set --config.model",
        ),
        ({"init__workdir": "/nowhere"}, "no checkpoint in /nowhere"),
        ({"init__may_leave": ()}, "of the weights have no place.*/encoder/norm"),
        (
            {"model__layer_scale": 0.1},
            "are not among the weights.*scale_attention; set"
            " --config.model.layer_scale=0.0$",
        ),
        (
            {"model__positions": "none", "model__relative_bias": "shared"},
            "config.model.positions=sincos, here it is none; set"
            " --config.model.positions=sincos --config.model.relative_bias=none",
        ),
        ({"classifier__num_classes": 12}, "num_classes=12, but the data has 10"),
        ({"classifier__num_classes": 1}, "num_classes=1"),
        (
            {"classifier__num_classes": 9, "evaluators": {}},
            "config.classifier.num_classes=9, but the data has 10 classes; give at lea",
        ),
        ({"classifier__tap": 3}, "classifier.tap=3"),
        ({"classifier__pool": "max"}, "pool='max'"),
        ({"classifier__rates": (1.0, 3.0)}, "want a frozen encoder"),
        ({"classifier__rates": (1.0, 1.0000001, 3.0)}, "rates=.* are alike"),
        ({"classifier__rates": (0.1, -0.1)}, r"rates=\(0.1, -0.1\) must be positive"),
        ({"classifier__kernel_deviation": -1.0}, "deviation=-1.0 must not be negative"),
        ({"model__drop_path": 1.0}, "drop_path=1.0"),
        ({"model__position_grid": (0, 4)}, "position_grid=.* is no grid"),
        ({"optimizer__frozen": ("^encoder/",)}, "'.encoder/' matches no parameter"),
        ({"optimizer__no_decay": ("/cls_tokn$",)}, "no_decay: '/cls_tokn.' matches no"),
        ({"optimizer__frozen": ("/",)}, "leaves nothing to learn"),
        ({"optimizer__final_lr": -1.0}, "final_lr=-1.0 must not be negative"),
        ({"optimizer__step_at": 7.0}, "step_at=7.0 is not a share"),
        ({"optimizer__layer_decay": 0.0}, "layer_decay=0.0"),
        ({"optimizer__name": "sgd"}, "name='sgd'"),
        ({"mixing__smoothing": 2.0}, "smoothing=2.0"),
    ],
)
def test_wrong_beginnings_are_one_line(pretrained, tmp_path, changes, says):
    init = {
        "init__workdir": pretrained,
        "init__may_leave": ("/mask_token$", "^/encoder/norm/"),
    }
    with pytest.raises(UserError, match=says) as error:
        loop.run(classify_config(**(init | changes)), str(tmp_path / "run"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_fine_tuned_encoder_has_no_last_norm_and_the_mend_is_named(tmp_path):
    config = classify_config()
    params = jax.jit(tasks.from_config(config).init)(jax.random.key(0))
    workdir = str(tmp_path)
    write_workdir(workdir, params, config)
    config = probe_config()
    shapes = jax.eval_shape(tasks.from_config(config).init, jax.random.key(0))
    with pytest.raises(UserError, match="/encoder/norm/") as error:
        load_pretrained(InitSettings(workdir=workdir), config, shapes)
    flag = """; set --config.init.may_miss="('/encoder/norm/',)\""""
    assert str(error.value).endswith(flag)
    settings = InitSettings(workdir=workdir, may_miss=("/encoder/norm/",))
    found = load_pretrained(settings, config, shapes)
    assert found.encoder["norm"] == {"scale": None, "bias": None}  # a fresh one
    with pytest.raises(UserError, match="have no place") as error:
        load_pretrained(InitSettings(workdir=workdir), config, {"encoder": {}})
    assert "config.init" not in str(error.value)


def test_positions_of_another_grid_are_resized(pretrained, tmp_path):
    """Pretrained on 4 x 4 patches of 2 pixels, used on 2 x 2 of them."""
    config = probe_config(image_size=4, model__position_grid=(4, 4))
    task = tasks.from_config(config)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    settings = InitSettings(workdir=pretrained)
    begun = load_pretrained(settings, config, shapes)
    assert len(begun.loaded.matched) == len(jax.tree.leaves(shapes["encoder"]))
    known = resize_positions(sincos(32, (4, 4)), (4, 4), (2, 2))
    plain = dataclasses.replace(task.encoder, position_grid=None)
    images = jnp.zeros((1, 4, 4, 1))
    variables = {"params": begun.encoder}
    resized, native = (e.apply(variables, images)[2] for e in (task.encoder, plain))
    assert np.abs(known - sincos(32, (2, 2))).max() > 0.1
    assert np.abs(resized.patches - native.patches).max() > 1e-3


@pytest.mark.parametrize("size", [8, 4])
def test_fixed_positions_may_learn_from_here_on(pretrained, tmp_path, size):
    """As MAE's fine-tuning has them: at first the encoder is what it was."""
    init = InitSettings(workdir=pretrained, may_miss=("/relative_bias/table$",))
    images = jax.random.uniform(jax.random.key(0), (2, size, size, 1))
    found = []
    for own in (
        {"model__position_grid": (4, 4)},
        {"model__positions": "learned", "model__relative_bias": "block"},
    ):
        config = probe_config(image_size=size, **own)
        task = tasks.from_config(config)
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        encoder = load_pretrained(init, config, shapes).encoder
        encoder = jax.tree.map(  # tables begin at zero
            lambda x, s: np.zeros(s.shape) if x is None else x,
            *(encoder, shapes["encoder"]),
            is_leaf=lambda x: x is None,
        )
        features = task.encoder.apply({"params": encoder}, images)[2]
        found.append(jnp.concatenate([features.prefix, features.patches], axis=1))
    np.testing.assert_allclose(*found, atol=1e-6)


@pytest.mark.slow
def test_learned_positions_and_biases_are_resized_at_loading(tmp_path):
    old = tiny_config(
        total_steps=1,
        method={"name": "mae", "layout": "mask_token"},
        model__positions="learned",
        model__relative_bias="shared",
    )
    loop.run(old, str(tmp_path / "old"))
    new = probe_config(
        image_size=12, model__positions="learned", model__relative_bias="block"
    )
    shapes = jax.eval_shape(tasks.from_config(new).init, jax.random.key(0))
    begun = load_pretrained(InitSettings(workdir=str(tmp_path / "old")), new, shapes)
    assert begun.loaded.resized == [
        "/encoder/block_00/relative_bias/table",
        "/encoder/block_01/relative_bias/table",
        "/encoder/positions",
    ]
    assert begun.encoder["positions"].shape == (1, 37, 32)


def test_grids_of_as_many_patches_are_resized_too(tmp_path):
    """2 x 8 patches are not 4 x 4 of them, though the arrays have one shape."""
    old = tiny_config(
        total_steps=0,
        data=npz_images(tmp_path, (4, 16)),
        image_size=(4, 16),
        method={"name": "mae", "layout": "mask_token"},
        model__positions="learned",
        model__relative_bias="shared",
    )
    loop.run(old, str(tmp_path / "old"))
    new = probe_config(
        image_size=8, model__positions="learned", model__relative_bias="shared"
    )
    shapes = jax.eval_shape(tasks.from_config(new).init, jax.random.key(0))
    begun = load_pretrained(InitSettings(workdir=str(tmp_path / "old")), new, shapes)
    assert "/encoder/positions" in begun.loaded.resized
    theirs, _ = load_params(str(tmp_path / "old"))
    expected = resize_positions(theirs["encoder"]["positions"][0, 1:], (2, 8), (4, 4))
    np.testing.assert_array_equal(begun.encoder["positions"][0, 1:], expected)
    cls = (x["positions"][0, 0] for x in (begun.encoder, theirs["encoder"]))
    np.testing.assert_array_equal(*cls)
    table = theirs["encoder"]["relative_bias"]["table"]
    expected = resize_relative_bias(table, (2, 8), (4, 4))
    np.testing.assert_array_equal(begun.encoder["relative_bias"]["table"], expected)


def npz_images(folder, size):
    for split in ("train", "test"):
        images = np.random.default_rng(0).integers(0, 255, (16, *size, 1), np.uint8)
        np.savez(folder / f"{split}.npz", images=images, labels=np.arange(16) % 2)
    return {"name": "npz", "dir": str(folder), "mean": (0.3,), "std": (0.4,)}


def test_resizing_keeps_what_it_must():
    flat = np.full((6, 3), 2.5, np.float32)
    np.testing.assert_allclose(resize_positions(flat, (2, 3), (5, 4)), 2.5, rtol=1e-6)
    same = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    assert resize_positions(same, (2, 3), (2, 3)) is same
    # A linear ramp of offsets stays one, away from the edges.
    table = np.concatenate([np.repeat(np.arange(7.0), 7), [90.0, 91.0, 92.0]])[:, None]
    bigger = resize_relative_bias(table, (4, 4), (7, 7))
    inner = bigger[:-3].reshape(13, 13)[1:-1, 5]
    np.testing.assert_allclose(np.diff(inner), 7 / 13, rtol=1e-6)
    np.testing.assert_array_equal(bigger[-3:, 0], [90, 91, 92])


def test_relative_index_is_by_offset():
    h, w = 2, 3
    index = relative_index((h, w))
    pairs = {}
    for a in range(h * w):
        for b in range(h * w):
            offset = (a // w - b // w, a % w - b % w)
            assert pairs.setdefault(offset, index[a + 1, b + 1]) == index[a + 1, b + 1]
    assert len(set(pairs.values())) == len(pairs) == (2 * h - 1) * (2 * w - 1)
    assert set(index[0, 1:]) == {15} and set(index[1:, 0]) == {16} and index[0, 0] == 17


def test_drop_path_is_by_example_and_keeps_the_mean(keys):
    encoder = Encoder(VIT_SPECS["Two"], (2, 2), 2, channels=1, drop_path=0.5)
    images = jnp.broadcast_to(jnp.arange(16.0).reshape(1, 4, 4, 1) / 16, (8, 4, 4, 1))
    params = encoder.init(jax.random.key(0), images)
    still = encoder.apply(params, images)[2].patches
    np.testing.assert_array_equal(still, encoder.apply(params, images)[2].patches)
    moved = encoder.apply(params, images, keys=keys)[2].patches
    again = encoder.apply(params, images[:3], keys=keys[:3])[2].patches
    np.testing.assert_allclose(moved[:3], again, rtol=1e-5, atol=1e-6)
    # Of two blocks the first never drops and the second drops two branches, by half.
    assert len({np.asarray(row).tobytes() for row in moved.round(4)}) in (2, 3, 4)
    tap = encoder.apply(params, images, taps=(1,), keys=keys)[1].patches
    np.testing.assert_array_equal(
        tap, encoder.apply(params, images, taps=(1,))[1].patches
    )


def outcome(config, tmp_path, name):
    loop.run(config, str(tmp_path / name))
    return load_params(str(tmp_path / name))[0]["heads"]


@pytest.mark.slow
def test_a_sweep_is_each_of_its_runs(tmp_path):
    both = outcome(probe_config(classifier__rates=(0.5, 3.0)), tmp_path, "both")
    alone = outcome(probe_config(classifier__rates=(3.0,)), tmp_path, "alone")
    rows = read_metrics(tmp_path / "both" / "metrics.jsonl")
    last = rows[-1]
    assert last["eval/top1"] == max(last["eval/top1/lr_0.5"], last["eval/top1/lr_3"])
    for a, b in zip(
        jax.tree.leaves(both["lr_3"]), jax.tree.leaves(alone["lr_3"]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    start = jax.jit(tasks.from_config(probe_config()).init)(jax.random.key(0))
    assert set(both) == {"lr_0.5", "lr_3"} and start["heads"].keys() == {"classifier"}


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_every_pool_learns_its_classes(tmp_path, pool):
    """Digits 0 to 9 from an untrained encoder's features."""
    config = probe_config(
        classifier__pool=pool,
        total_steps=60,
        batch_size=128,
        log_every_steps=60,
        checkpoint_every_steps=60,
        optimizer={"base_lr": 0.05, "frozen": ("/encoder/",), "warmup_epochs": 0.0},
    )
    loop.run(config, str(tmp_path))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    tops = [row["eval/top1"] for row in rows if "eval/top1" in row]
    assert tops[0] < 30 and tops[-1] > 60


@pytest.mark.slow
def test_the_average_of_weights_is_what_others_load(pretrained, tmp_path):
    config = classify_config(classifier__average=0.5, total_steps=2)
    loop.run(config, str(tmp_path))
    job = plan(config)
    state = load_state(str(tmp_path), job.shapes)
    found, _ = load_params(str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, found, state.ema_params)
    kernel = state.params["heads"]["classifier"]["linear"]["kernel"]
    assert (found["heads"]["classifier"]["linear"]["kernel"] != kernel).any()


def test_the_average_of_weights_is_what_is_evaluated():
    task = tasks.from_config(classify_config(classifier__average=0.9))
    params = {"encoder": {}, "heads": {}}
    assert task.ema_of(params) is params
    assert task.evaluated(params, {"average": 1}) == {"average": 1}
    assert float(task.momentum(jnp.zeros(()), 1)) == pytest.approx(0.9)
    plain = tasks.from_config(classify_config())
    assert plain.ema_of(params) == {} and plain.evaluated(params, {}) is params


@pytest.mark.parametrize("held_out", [0, 37])
def test_every_held_out_image_counts_once_on_any_devices(held_out):
    config = classify_config(evaluators={"accuracy": {"num_held_out": held_out}})
    task = tasks.from_config(config)
    params = jax.jit(task.init)(jax.random.key(1))
    params["heads"]["classifier"]["linear"]["kernel"] *= 1e4  # scores without ties
    splits = data.from_config(config, task.image_shape)
    found = []
    for number in (1, 3, 4):
        mesh = make_mesh(MeshSettings(), 12, 1, jax.devices()[:number])
        (run,) = eval.from_config(config, task, splits, OnDevices(mesh)).values()
        found.append(run(params, 0))
    assert found[0] == found[1] == found[2]
    if not held_out:
        scores = np.asarray(
            jax.jit(task.logits)(params, splits.held_out.images)["classifier"]
        )
        right = (scores.argmax(axis=1) == splits.held_out.labels).mean()
        np.testing.assert_allclose(found[0]["top1"], 100 * right, atol=1e-4)
        assert found[0]["top5"] > found[0]["top1"]


def test_the_best_of_a_sweeps_heads_is_the_accuracy():
    config = probe_config()
    task = tasks.from_config(config)
    splits = data.from_config(config, task.image_shape)
    labels = splits.held_out.labels[:40]
    right = np.eye(10)[labels]
    half = np.where(np.arange(40)[:, None] < 20, right, -right)
    given = {"lr_1": half, "lr_2": right, "lr_3": -right}
    splits = types.SimpleNamespace(
        train=splits.train,
        held_out=ArraySource(splits.held_out.images[:40], labels, "digits", "test"),
    )
    found = make_accuracy(task, splits, lambda _: lambda params, images: given)({}, 0)
    each = [found[f"top1/{name}"] for name in given]
    assert each == [50.0, 100.0, 0.0] and found["top1"] == 100.0


def test_topk_counts_ties_against_the_label():
    scores = np.array([[0.0, 0, 0], [3, 2, 1], [1, 2, 3]], np.float32)
    assert topk(scores, np.array([0, 0, 0]), 1) == pytest.approx(100 / 3)
    assert topk(scores, np.array([0, 1, 1]), 2) == pytest.approx(200 / 3)
    assert topk(np.full((3, 3), np.nan, np.float32), np.array([0, 1, 2]), 1) == 0


@pytest.mark.slow
def test_linear_probe_equals_scikit_learns_logistic_regression(tmp_path):
    """Weight decay of LARS is its L2 penalty: both go to one optimum."""
    config = probe_config(
        batch_size=1436,
        total_steps=400,
        log_every_steps=400,
        checkpoint_every_steps=400,
        model__patch_size=4,
        classifier__pool="mean",
        optimizer=PROBE | {"base_lr": 5.0, "lr_batch": 1436, "weight_decay": 0.01},
    )
    loop.run(config, str(tmp_path))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    task = tasks.from_config(config)
    params, _ = load_params(str(tmp_path))
    splits = data.from_config(config, task.image_shape)
    features = {}
    for name, source in (("train", splits.train), ("test", splits.held_out)):
        tokens = jax.jit(task.encode)(params, source.images)
        features[name] = np.asarray(tokens.patches.mean(axis=1), np.float64)
    model = LogisticRegression(C=1 / (0.01 * 1437), max_iter=1000)
    centre, spread = features["train"].mean(0), features["train"].std(0)
    scaled = {name: (x - centre) / spread for name, x in features.items()}
    model.fit(scaled["train"], splits.train.labels)
    scores = np.asarray(
        jax.jit(task.logits)(params, splits.held_out.images)["classifier"]
    )
    theirs = model.decision_function(scaled["test"])
    same = (scores.argmax(axis=1) == theirs.argmax(axis=1)).mean()
    top1 = 100 * model.score(scaled["test"], splits.held_out.labels)
    assert same > 0.995
    assert abs(top1 - rows[-1]["eval/top1"]) < 0.3


def test_a_frozen_network_is_what_its_run_trained(pretrained):
    """Nothing of a teacher is left out in silence: what differs is named, as flags."""
    teacher = {
        "workdir": pretrained,
        "mean": (0.3,),
        "std": (0.5,),
        "model": {"size": "Two", "patch_size": 2, "channels": 1},
    }
    teacher["model"] |= {"positions": "learned", "layer_scale": 0.1}
    config = tiny_config(
        task="tokenize",
        tokenizer={"codes": 8, "code_dim": 4, "decoder_depth": 1, "teacher": teacher},
    )
    del config["method"]
    teacher = config["tokenizer"]["teacher"]

    def begun():
        job = loop.plan(config)
        return load_frozen(job.task.frozen(), config, job.shapes.params)

    with pytest.raises(UserError, match="than config.tokenizer.teacher says") as error:
        begun()
    assert str(error.value).endswith(
        "set --config.tokenizer.teacher.model.positions=sincos"
        " --config.tokenizer.teacher.model.layer_scale=0.0"
        " --config.tokenizer.teacher.std='(0.4,)'"
    )
    teacher["model"] |= {"positions": "sincos", "layer_scale": 0.0}
    teacher["std"] = (0.4,)
    found, (line,) = begun()
    theirs, _ = load_params(pretrained)
    jax.tree.map(
        np.testing.assert_array_equal, found["teacher"]["encoder"], theirs["encoder"]
    )
    assert line.startswith(f"teacher of {pretrained}, frozen: ")
    teacher["workdir"] = ""
    with pytest.raises(UserError, match="--config.tokenizer.teacher.workdir=DIR$"):
        begun()


def test_no_flag_is_named_where_none_could_mend_a_frozen_network(pretrained):
    """A run that trained no tokenizer, and one of other patches than the student's."""
    model = {"size": "Two", "patch_size": 2, "channels": 1}
    own = {"codes": 8, "code_dim": 4, "model": model, "workdir": pretrained}
    config = tiny_config(method={"name": "beit_v2", "tokenizer": own})
    networks = tasks.from_config(config).frozen()
    says = (
        f"^{pretrained}, .*tokenizer.workdir, is a run of task pretrain, not tokenize"
    )
    with pytest.raises(UserError, match=says):
        load_frozen(networks, config, None)
    model = {"size": "Two", "patch_size": 4, "channels": 1}
    config = tiny_config(
        method={"name": "mvp", "teacher": {"workdir": pretrained, "model": model}},
        image_size=16,
        model__patch_size=4,
    )
    networks = tasks.from_config(config).frozen()
    says = "is of patches of 2 pixels and 1 channels, this run of patches of 4 pixels"
    with pytest.raises(UserError, match=says):
        load_frozen(networks, config, None)


def test_fixed_positions_of_another_grid_are_named_for_a_frozen_network():
    model = {"size": "Two", "patch_size": 2, "channels": 1}
    for image_size, known, flags in (
        (8, None, ""),
        (12, None, "--config.tokenizer.model.position_grid='(4, 4)'"),
        (12, (4, 4), ""),
    ):
        own = {"model": model | {"position_grid": known}, "mean": (0.3,), "std": (0.4,)}
        config = tiny_config(
            image_size=image_size, method={"name": "beit_v2", "tokenizer": own}
        )
        network = tasks.from_config(config).frozen()["tokenizer"]
        said = _frozen_flags(network, tiny_config(image_size=8), "config.tokenizer")
        assert said == flags


def test_a_tokenizer_with_other_codes_names_their_flags():
    model = {"size": "Two", "patch_size": 2, "channels": 1}
    own = {"codes": 8, "code_dim": 4, "model": model, "mean": (0.3,), "std": (0.4,)}
    config = tiny_config(method={"name": "beit_v2", "tokenizer": own})
    network = tasks.from_config(config).frozen()["tokenizer"]
    for theirs, flags in (
        ({"codes": 8, "code_dim": 4}, ""),
        ({"codes": 16, "code_dim": 4}, "--config.tokenizer.codes=16"),
        ({"codes": 8, "code_dim": 2}, "--config.tokenizer.code_dim=2"),
    ):
        said = _frozen_flags(
            network, {**config, "tokenizer": theirs}, "config.tokenizer"
        )
        assert said == flags


@pytest.mark.slow
def test_what_a_fine_tune_does_to_its_batch_reaches_the_loss(digit_images):
    plain = {"mixing": PLAIN, "classifier__kernel_deviation": 1.0}
    batch = {"image": digit_images, "label": jnp.arange(16) % 10}
    keys = jax.random.split(jax.random.key(5), 16)
    params, found = None, []
    for changes in (
        {},
        {"mixing__smoothing": 0.5},
        {"mixing__erasing": 1.0},
        {"model__drop_path": 0.5},
    ):
        task = tasks.from_config(classify_config(**(plain | changes)))
        if params is None:
            params = jax.jit(task.init)(jax.random.key(0))
        loss = jax.jit(lambda p, t=task: t.loss(p, {}, batch, 0.0, keys)[0])
        found.append(float(loss(params)))
    assert len(set(found)) == 4


@pytest.mark.slow
def test_a_probe_reads_the_block_that_it_names(digit_images):
    task = tasks.from_config(probe_config(classifier__tap=1))
    assert task.tap == 1
    params = jax.jit(task.init)(jax.random.key(0))
    found = task.logits(params, digit_images)["classifier"]
    own = task.encode(params, digit_images).prefix[:, 0]
    np.testing.assert_array_equal(
        own, task.encode(params, digit_images, 1).prefix[:, 0]
    )
    linear = params["heads"]["classifier"]["linear"]  # the batch norm begins as nothing
    np.testing.assert_allclose(found, own @ linear["kernel"], rtol=1e-4, atol=1e-5)


def test_evaluators_see_what_the_task_says_is_evaluated():
    seen = []
    job = types.SimpleNamespace(
        evaluators={"one": lambda params, step: seen.append(params) or {"x": 1.0}},
        task=types.SimpleNamespace(evaluated=lambda params, ema: ema),
        signals=types.SimpleNamespace(beat=lambda: None),
    )
    report = types.SimpleNamespace(
        say=lambda line: None, active=False, write=lambda step, values: None
    )
    state = types.SimpleNamespace(params="params", ema_params="average")
    assert loop.evaluate(job, state, 3, report) == {"eval/x": 1.0}
    assert seen == ["average"]


def test_another_standardisation_is_said(pretrained):  # noqa: F811
    config = probe_config(data__mean=(0.5,))
    shapes = jax.eval_shape(tasks.from_config(config).init, jax.random.key(0))
    begun = load_pretrained(InitSettings(workdir=pretrained), config, shapes)
    assert "data.mean (0.3,), this run has (0.5,)" in str(begun)
    assert "data.std" not in str(begun)


def test_batch_norms_epsilon_is_maes_and_parts_of_a_batch_are_averaged():
    x = np.random.default_rng(0).normal(0, 2e-3, (32, 5)).astype(np.float32)
    module = BatchNorm()
    params = module.init(jax.random.key(0), x, False)["params"]
    y, observed = module.apply({"params": params}, x, True)
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)
    # As two micro-batches of a step add up.
    twice = jax.tree.map(lambda a: a + a, observed)
    once, both = (
        absorb({"batch_norm": params}, seen)["batch_norm"] for seen in (observed, twice)
    )
    for name, value in once.items():
        np.testing.assert_allclose(both[name], value)


def test_positions_are_resized_with_pytorchs_cubic():
    """Weights of a = -0.75 a quarter of a sample beside a place."""
    one = np.zeros((8, 1), np.float32)
    one[4] = 1.0
    found = resize_positions(one, (1, 8), (1, 16))[:, 0]
    far, near, nearer, edge = -0.10546875, 0.26171875, 0.87890625, -0.03515625
    expected = [edge, far, near, nearer, nearer, near, far, edge]
    np.testing.assert_allclose(found[5:13], expected, atol=1e-7)
    assert not found[:5].any() and not found[13:].any()


def test_offsets_are_those_of_the_query_from_the_key():
    index = relative_index((2, 3))
    assert index[1, 6] == 0 and index[6, 1] == 14  # from (-1, -2) to (1, 2)
    assert index[1, 2] == 1 * 5 + 1 and index[2, 1] == 1 * 5 + 3


@pytest.mark.slow
def test_a_sweeps_loss_is_the_sum_of_its_heads_on_the_batchs_own_statistics(
    digit_images,
):
    task = tasks.from_config(probe_config(classifier__rates=(0.5, 3.0)))
    params = jax.jit(task.init)(jax.random.key(0))
    for number, name in enumerate(("lr_0.5", "lr_3")):
        params["heads"][name]["linear"]["kernel"] *= 10.0 * (1 + number)
    x = np.asarray(task.encode(params, digit_images).prefix[:, 0], np.float64)
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
    logits = {
        name: x @ np.asarray(head["linear"]["kernel"])
        for name, head in params["heads"].items()
    }
    said = logits["lr_0.5"].argmax(axis=1)
    labels = np.where(np.arange(16) < 4, said, (said + 1) % 10)  # a quarter right
    batch = {"image": digit_images, "label": jnp.asarray(labels)}
    keys = jax.random.split(jax.random.key(5), 16)
    total, metrics, observed = jax.jit(task.loss)(params, {}, batch, 0.0, keys)
    expected = 0.0
    for name, scores in logits.items():
        shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        loss = -np.log(shares[np.arange(16), labels]).mean()
        found, count = metrics[f"loss/{name}"]
        np.testing.assert_allclose(found / count, loss, rtol=1e-4)
        right, count = metrics[f"top1/{name}"]
        hits = (scores.argmax(axis=1) == labels).mean()
        np.testing.assert_allclose(right / count, 100 * hits, rtol=1e-6)
        expected += loss
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    np.testing.assert_array_equal(metrics["loss"], (total, 1.0))
    moved = task.absorb(params, observed)["heads"]["lr_3"]["batch_norm"]["mean"]
    np.testing.assert_allclose(
        moved, 0.1 * observed["lr_3"]["batch_norm"]["mean"], rtol=1e-5
    )


def test_a_batch_mixes_by_a_key_that_erases_nothing(digit_images, monkeypatch):
    given = {}

    def erase(images, keys, probability):
        given["erase"] = keys
        return images

    def mix(images, labels, classes, mixing, key):
        given["mix"] = key
        return images, jax.nn.one_hot(labels, classes)

    monkeypatch.setattr("ddae.tasks.classify.erase", erase)
    monkeypatch.setattr("ddae.tasks.classify.mix", mix)
    task = tasks.from_config(classify_config())
    params = jax.jit(task.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(5), 16)
    batch = {"image": digit_images, "label": jnp.arange(16) % 10}
    task.loss(params, {}, batch, 0.0, keys)
    own, others = (
        np.asarray(jax.random.key_data(given[name])) for name in ("mix", "erase")
    )
    assert not (others == own).all(axis=-1).any()


def test_five_of_five_classes_are_no_success():
    task = tasks.from_config(probe_config(classifier__num_classes=5))
    labels = np.arange(20) % 5
    splits = types.SimpleNamespace(
        train=types.SimpleNamespace(num_classes=5),
        held_out=ArraySource(np.zeros((20, 8, 8, 1)), labels, "digits", "test"),
    )
    given = {"classifier": np.eye(5)[labels]}
    found = make_accuracy(task, splits, lambda _: lambda params, images: given)({}, 0)
    assert found == {"top1": 100.0}
