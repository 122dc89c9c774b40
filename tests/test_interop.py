"""Weights under other names, without torch: keys, shapes, round trips, wrong files."""

import errno
import json
import os
import pathlib
import pickle
import sys
import zipfile
from collections import OrderedDict

import jax
import numpy as np
import pytest
from conftest import tiny_config
from test_classify import classify_config, probe_config

import ddae
from ddae import inspect, tasks
from ddae.interop import beside, huggingface, official, timm
from ddae.interop.convert import Hints, import_weights, write_workdir
from ddae.interop.exported import class_names
from ddae.interop.files import read_beside, read_weights, write_weights
from ddae.interop.huggingface import STANDARDISED
from ddae.interop.names import fixed_positions, flat
from ddae.models.vit import VIT_SPECS
from ddae.settings import UserError
from ddae.storage import StorageError
from ddae.train import loop
from ddae.train.loading import load_params
from ddae.train.partial import load_frozen
from ddae.train.plan import spelled_out

RGB = {"image_size": 16, "model__channels": 3, "model__patch_size": 4}
STATISTICS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def timm_vit(classes=5, pool="mean", depth=2, width=32, patch=4, side=4):
    """Names and shapes of timm's VisionTransformer, with random arrays."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + side * side, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(depth):
        shapes |= {
            f"blocks.{i}.norm1.weight": (width,),
            f"blocks.{i}.norm1.bias": (width,),
            f"blocks.{i}.attn.qkv.weight": (3 * width, width),
            f"blocks.{i}.attn.qkv.bias": (3 * width,),
            f"blocks.{i}.attn.proj.weight": (width, width),
            f"blocks.{i}.attn.proj.bias": (width,),
            f"blocks.{i}.norm2.weight": (width,),
            f"blocks.{i}.norm2.bias": (width,),
            f"blocks.{i}.mlp.fc1.weight": (4 * width, width),
            f"blocks.{i}.mlp.fc1.bias": (4 * width,),
            f"blocks.{i}.mlp.fc2.weight": (width, 4 * width),
            f"blocks.{i}.mlp.fc2.bias": (width,),
        }
    norm = "fc_norm" if pool == "mean" else "norm"
    shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    if classes:
        shapes |= {"head.weight": (classes, width), "head.bias": (classes,)}
    random = np.random.default_rng(0)
    return {k: random.normal(0, 0.1, s).astype(np.float32) for k, s in shapes.items()}


def timm_beit(classes=5, width=32, patch=4, side=4, heads=2):
    """The same of timm's Beit: no key bias, a bias table in each block, gammas."""
    found = timm_vit(classes, "mean", width=width, patch=patch, side=side)
    del found["pos_embed"]
    random = np.random.default_rng(1)
    for i in range(2):
        own = f"blocks.{i}"
        del found[f"{own}.attn.qkv.bias"]
        for name, shape in {
            f"{own}.attn.q_bias": (width,),
            f"{own}.attn.v_bias": (width,),
            f"{own}.gamma_1": (width,),
            f"{own}.gamma_2": (width,),
            f"{own}.attn.relative_position_bias_table": (
                (2 * side - 1) ** 2 + 3,
                heads,
            ),
        }.items():
            found[name] = random.normal(0, 0.1, shape).astype(np.float32)
    return found


def dinov2():
    """Names and shapes of DINOv2's own file, and but for the mask token of timm's."""
    found, random = timm_vit(0, "cls"), np.random.default_rng(2)
    scales = [f"blocks.{i}.ls{n}.gamma" for i in range(2) for n in (1, 2)]
    for name in (*scales, "mask_token"):
        shape = (1, 32) if name == "mask_token" else (32,)
        found[name] = random.normal(0, 0.1, shape).astype(np.float32)
    return found


def files(weights, folder, name="theirs.safetensors"):
    path = str(folder / name)
    write_weights(path, weights)
    return path


@pytest.mark.parametrize(
    "weights",
    [
        timm_vit(5, "mean"),
        timm_vit(5, "cls"),
        timm_vit(0, "cls"),
        timm_beit(5),
    ],
    ids=["fine-tuned", "cls", "encoder", "beit"],
)
def test_timm_round_trip(weights, tmp_path, capsys):
    workdir, out = str(tmp_path / "ours"), str(tmp_path / "out.safetensors")
    path = files(weights, tmp_path)
    assert timm.main(["import", path, f"--workdir={workdir}"]) == 0
    assert "learned" in capsys.readouterr().out or "blocks.0.gamma_1" in weights
    assert timm.main(["export", workdir, out]) == 0
    again = read_weights(out)
    assert set(again) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    images = np.zeros((2, 16, 16, 3), np.float32)
    assert ddae.load_encoder(workdir)(images).patches.shape == (2, 16, 32)


@pytest.mark.parametrize("command", [timm, official])
def test_dinov2_comes_in_and_goes_out_as_a_beit(tmp_path, command):
    """Which has no bias of keys: softmax does not see it."""
    path, workdir = files(dinov2(), tmp_path), str(tmp_path / "ours")
    assert command.main(["import", path, f"--workdir={workdir}"]) == 0
    params, config = load_params(workdir)
    assert config["model"]["layer_scale"] > 0
    for i in range(2):
        block = params["encoder"][f"block_{i:02d}"]
        for ours, theirs in (("attention", "ls1"), ("mlp", "ls2")):
            scale = dinov2()[f"blocks.{i}.{theirs}.gamma"]
            np.testing.assert_array_equal(block[f"scale_{ours}"], scale)
    out, back = str(tmp_path / "out.safetensors"), str(tmp_path / "back")
    assert timm.main(["export", workdir, out]) == 0
    assert timm.main(["import", out, f"--workdir={back}"]) == 0
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    before, after = (ddae.load_encoder(w)(images).patches for w in (workdir, back))
    np.testing.assert_allclose(before, after, atol=1e-5)


def test_a_frozen_teacher_of_another_grid_has_its_positions_resized(tmp_path):
    """DINOv2 has learned at 518 pixels, whom it teaches learn at 224."""
    path, workdir = files(dinov2(), tmp_path), str(tmp_path / "ours")
    assert official.main(["import", path, f"--workdir={workdir}"]) == 0
    model = {"size": "Two", "patch_size": 4, "positions": "learned", "layer_scale": 0.1}
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    teacher = {"workdir": workdir, "model": model, **imagenet}
    config = tiny_config(
        **RGB | {"image_size": 24}, method={"name": "mvp", "teacher": teacher}
    )
    config["data"] |= imagenet
    task = tasks.from_config(config)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    found, (line,) = load_frozen(task.frozen(), config, shapes)
    assert line.endswith(", /encoder/positions resized")
    images = np.random.default_rng(0).random((2, 24, 24, 3), np.float32)
    expected = ddae.load_encoder(workdir, image_size=24)(images).patches
    seen = task.frozen()["teacher"].apply(found["teacher"], images)
    np.testing.assert_allclose(seen, expected, atol=1e-5)


def test_a_fine_tune_begins_with_imported_weights(tmp_path):
    workdir = str(tmp_path / "ours")
    path = files(timm_vit(5, "mean"), tmp_path)
    assert timm.main(["import", path, f"--workdir={workdir}"]) == 0
    config = probe_config(**RGB, model__positions="learned", total_steps=0)
    config["classifier"] |= {"pool": "mean", "norm": "layer"}
    config["data"] = {"name": "npz", "dir": str(tmp_path), **STATISTICS}
    config["init"] = {"workdir": workdir}
    images = np.zeros((20, 16, 16, 3), np.uint8)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.arange(20) % 10)
    loop.run(config, str(tmp_path / "run"))
    one, _ = load_params(workdir)
    two, _ = load_params(str(tmp_path / "run"))
    for a, b in zip(
        jax.tree.leaves(one["encoder"]), jax.tree.leaves(two["encoder"]), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def official_mae():
    """Names and shapes of MAE's pretraining, with random arrays."""
    weights = timm_vit(0, "cls")
    random = np.random.default_rng(2)
    decoder = {
        k.replace("blocks", "decoder_blocks"): v
        for k, v in timm_vit(0, "cls", depth=1, width=16).items()
        if k.startswith("blocks")
    }
    weights |= decoder | {
        "decoder_embed.weight": random.normal(size=(16, 32)).astype(np.float32),
        "decoder_embed.bias": np.zeros(16, np.float32),
        "decoder_norm.weight": np.ones(16, np.float32),
        "decoder_norm.bias": np.zeros(16, np.float32),
        "decoder_pred.weight": random.normal(size=(48, 16)).astype(np.float32),
        "decoder_pred.bias": np.zeros(48, np.float32),
        "mask_token": random.normal(size=(1, 1, 16)).astype(np.float32),
        "pos_embed": fixed_positions(32, (4, 4)),
        "decoder_pos_embed": fixed_positions(16, (4, 4)),
    }
    return weights


def test_mae_with_its_decoder_from_the_official_names():
    weights = official_mae()
    params, config = import_weights(weights, "mae", Hints(decoder_heads=2))
    assert config["model"]["positions"] == "sincos"
    assert config["method"]["decoder"] == {"depth": 1, "width": 16, "num_heads": 2}
    task = tasks.from_config(config)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes)


def test_timm_leaves_maes_own_files_to_official(tmp_path, capsys):
    file, workdir = str(tmp_path / "mae.safetensors"), str(tmp_path / "run")
    write_weights(file, official_mae())
    assert timm.main(["import", file, f"--workdir={workdir}"]) == 2
    assert "ddae.interop.official import takes it" in capsys.readouterr().err
    assert official.main(["import", file, f"--workdir={workdir}", "--num_heads=2"]) == 0


@pytest.mark.parametrize("make", [timm_vit, timm_beit])
def test_a_poolers_norm_without_a_classifier_stays_behind(tmp_path, capsys, make):
    """transformers' BeitModel, and what timm makes with num_classes=0."""
    weights = {k: v for k, v in make(5).items() if not k.startswith("head.")}
    dialect = "timm_vit" if make is timm_vit else "timm_beit"
    params, config = import_weights(weights, dialect, Hints())
    said = capsys.readouterr().err
    assert "norm of its pooled mean is left out" in said and said.count("\n") == 1
    assert "norm" not in params["encoder"] and "heads" not in params
    write_workdir(str(tmp_path), params, config)
    images = np.zeros((1, 16, 16, 3), np.float32)
    assert ddae.load_encoder(str(tmp_path))(images).patches.shape == (1, 16, 32)
    headless = {k: v for k, v in make(5).items() if k != "head.weight"}
    del weights["blocks.0.norm1.bias"]
    for wrong in (headless, weights):  # one line is said, which is the error
        with pytest.raises(UserError):
            import_weights(wrong, dialect, Hints())
        assert not capsys.readouterr().err


@pytest.mark.parametrize("scale, shift", [(0.0, 0.0), (1.0, 0.1)])
def test_a_decoder_with_other_positions_stays_behind(tmp_path, capsys, scale, shift):
    """Those of a fresh model of transformers are zeros, others' may be learned."""
    weights = official_mae()
    weights["decoder_pos_embed"] = weights["decoder_pos_embed"] * scale + shift
    params, config = import_weights(weights, "mae", Hints(decoder_heads=2))
    said = capsys.readouterr().err
    assert "its decoder is left out: decoder_pos_embed is not MAE's fixed" in said
    assert said.count("\n") == 1
    assert params.keys() == {"encoder"} and config["method"] == {"name": "mae"}
    write_workdir(str(tmp_path), params, config)
    images = np.zeros((1, 16, 16, 3), np.float32)
    assert ddae.load_encoder(str(tmp_path))(images).patches.shape == (1, 16, 32)


@pytest.mark.parametrize(
    "weights, dialect",
    [(official_mae(), "mae"), (timm_vit(5), "timm_vit"), (timm_beit(5), "timm_beit")],
    ids=["mae", "fine-tuned", "beit"],
)
def test_what_goes_out_under_the_official_names_is_what_came_in(
    weights, dialect, tmp_path
):
    workdir = str(tmp_path / "ours")
    params, config = import_weights(weights, dialect, Hints(decoder_heads=2))
    write_workdir(workdir, params, config)
    again, name, _ = timm.named(workdir, None, decoder=True)
    assert name == dialect and set(again) == set(weights)
    for key, value in weights.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)


def test_ddae_goes_out_as_a_mae_with_the_decoder_of_its_last_layer(tmp_path):
    """Nothing of the other taps, nor of what predicts features."""
    config = tiny_config(method={"name": "ddae", "taps": (1, 2)})
    config["method"]["decoder"] = {"depth": 1, "width": 16, "num_heads": 2}
    params = jax.jit(tasks.from_config(config).init)(jax.random.key(0))
    write_workdir(str(tmp_path / "run"), params, config)
    found, name, _ = timm.named(str(tmp_path / "run"), None, decoder=True)
    assert name == "mae" and set(found) == set(official_mae())
    head = params["heads"]["block02"]
    np.testing.assert_array_equal(
        found["decoder_pred.weight"].T, head["pixels"]["kernel"]
    )
    without, name, _ = timm.named(str(tmp_path / "run"), None)
    assert name == "timm_vit" and set(without) == set(timm_vit(0, "cls"))


def beit_run(workdir, **model):
    """A workdir of a BEiT of 9 tokens; its first weights, from a random norm on."""
    tokenizer = {"codes": 9, "model": {"size": "Two", "patch_size": 4}}
    method = {"name": "beit", "tokenizer": tokenizer}
    config = tiny_config(**RGB, data=STATISTICS, method=method)
    config["model"] |= model
    params = jax.jit(tasks.from_config(config).init)(jax.random.key(0))
    norm = params["heads"]["block02"]["input_norm"]
    norm["scale"] = jax.random.normal(jax.random.key(1), norm["scale"].shape)
    write_workdir(workdir, params, config)
    return norm["scale"]


def test_timms_beit_has_no_mask_token_and_no_classifier_of_tokens(tmp_path):
    run, beit = str(tmp_path / "run"), {"positions": "none", "layer_scale": 0.1}
    norm = beit_run(run, **beit, relative_bias="shared")
    found, name, _ = timm.named(run, None)
    official_too, _, _ = timm.named(run, None, decoder=True)
    assert name == "timm_beit"
    more = {"mask_token", "lm_head.weight", "lm_head.bias"}
    assert set(official_too) == set(found) | more and not more & set(found)
    np.testing.assert_array_equal(found["norm.weight"], norm)


def test_a_beit_on_a_plain_vit_goes_out_with_its_norm(tmp_path):
    norm = beit_run(str(tmp_path / "run"))
    found, name, _ = timm.named(str(tmp_path / "run"), None)
    assert name == "timm_vit" and set(found) == set(timm_vit(0, "cls"))
    np.testing.assert_array_equal(found["norm.weight"], norm)


def test_pth_files_want_torch(tmp_path, capsys, monkeypatch):
    params, config = import_weights(official_mae(), "mae", Hints(decoder_heads=2))
    write_workdir(str(tmp_path / "run"), params, config)
    monkeypatch.setitem(sys.modules, "torch", None)
    for name, says in [
        ("out.pth", "torch writes .pth files and is not installed: pip"),
        ("out.safetensors", "out.safetensors does not end in .pth"),
    ]:
        command = ["export", str(tmp_path / "run"), str(tmp_path / name)]
        assert official.main(command) == 2
        assert says in capsys.readouterr().err
        assert not (tmp_path / name).exists()


@pytest.mark.slow
def test_a_probe_is_exported_with_its_batch_norm_folded(tmp_path):
    """What transformers' ViT computes, cls -> Linear, gives our logits."""
    loop.run(probe_config(classifier__rates=(1.0, 3.0)), str(tmp_path / "run"))
    out = str(tmp_path / "folder")
    assert huggingface.main(["export", str(tmp_path / "run"), out]) == 2  # which head?
    assert not os.path.exists(out)
    command = ["export", str(tmp_path / "run"), out, "--head=lr_3"]
    assert huggingface.main(command) == 0
    weights = read_weights(out)
    params, config = load_params(str(tmp_path / "run"))
    task = tasks.from_config(config)
    images = np.random.default_rng(0).random((3, 8, 8, 1)).astype(np.float32)
    features = ddae.load_encoder(str(tmp_path / "run"))(images)
    ours = task.logits(params, images)["lr_3"]
    theirs = features.prefix[:, 0] @ weights["classifier.weight"].T
    np.testing.assert_allclose(
        ours, theirs + weights["classifier.bias"], rtol=1e-4, atol=1e-5
    )
    pos = weights["vit.embeddings.position_embeddings"]
    np.testing.assert_array_equal(pos, fixed_positions(32, (4, 4)))


def test_every_method_has_an_export(tmp_path, capsys):
    loop.run(tiny_config(total_steps=1), str(tmp_path / "ddae"))
    command = ["export", str(tmp_path / "ddae"), str(tmp_path / "folder")]
    assert huggingface.main(command) == 0
    assert "ViTMAEForPreTraining" in capsys.readouterr().out
    assert huggingface.main(command) == 2  # it is there already
    assert timm.main([*command[:2], str(tmp_path / "out.safetensors")]) == 0
    assert "head.weight" not in read_weights(str(tmp_path / "out.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, decoder",
    [
        ({"name": "ddae", "taps": (2,)}, (2, 512, 16)),
        ({"name": "mae", "decoder": {"width": 16, "num_heads": 2}}, (8, 16, 2)),
    ],
)
def test_a_decoder_left_at_its_default_goes_out(tmp_path, method, decoder):
    config = tiny_config(method=method)
    params = jax.jit(tasks.from_config(config).init)(jax.random.key(0))
    run, out, back = (str(tmp_path / name) for name in ("run", "out", "back"))
    write_workdir(run, params, config)
    assert huggingface.main(["export", run, out]) == 0
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    assert tuple(said[f"decoder_{key}"] for key in keys) == decoder
    assert huggingface.main(["import", out, f"--workdir={back}"]) == 0
    ours, again = (flat(x["heads"]) for x in (params, load_params(back)[0]))
    ours = {name: x for name, x in ours.items() if "/features/" not in name}
    assert ours.keys() == again.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_a_method_of_ones_own_goes_out_as_its_encoder(tmp_path, capsys, monkeypatch):
    """It need not be known here, nor may its decoder, left at its default, be."""
    config = tiny_config(method={"name": "mae", "decoder": {"depth": 1, "width": 16}})
    params = jax.jit(tasks.from_config(config).init)(jax.random.key(0))
    config["method"]["name"] = "of_mine"
    write_workdir(str(tmp_path / "run"), params, config)
    command = ["export", str(tmp_path / "run"), str(tmp_path / "out")]
    assert huggingface.main(command) == 0
    assert "ViTModel" in capsys.readouterr().out


TRAINED = {"mask": {"ratio": 0.6}, "standardise_pixels": False}


def mae_run(workdir):
    """A workdir of a MAE of raw pixels, its decoder's heads not the usual ones."""
    config = tiny_config(method={"name": "mae", **TRAINED})
    config["method"]["decoder"] = {"depth": 1, "width": 16, "num_heads": 4}
    params = jax.jit(tasks.from_config(config).init)(jax.random.key(0))
    write_workdir(workdir, params, config)
    return config


def test_how_a_mae_was_trained_goes_to_transformers_and_back(tmp_path, capsys):
    run, out, back = (str(tmp_path / name) for name in ("run", "out", "back"))
    config = mae_run(run)
    assert huggingface.main(["export", run, out]) == 0
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (said["mask_ratio"], said["norm_pix_loss"]) == (0.6, False)
    assert huggingface.main(["import", out, f"--workdir={back}"]) == 0
    assert load_params(back)[1]["method"] == config["method"]
    assert "assumed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "said, crop",
    [
        ({}, 0.8),  # 8 of 10
        ({"size": 10, "crop_size": 8}, 0.8),  # as older files have it
        ({"do_center_crop": False}, None),
        ({"size": {"height": 10, "width": 10}}, None),  # stretched: not ours
        ({"size": {"shortest_edge": 4}}, None),
    ],
)
def test_the_crop_of_held_out_images_goes_out_and_comes_back(tmp_path, said, crop):
    run, out, file = (str(tmp_path / n) for n in ("run", "out", "out.safetensors"))
    params, config = import_weights(timm_vit(0, "cls"), "timm_vit", Hints())
    config["data"]["eval_crop"] = 0.8
    config["image_size"] = 16
    write_workdir(run, params, config)
    assert huggingface.main(["export", run, out]) == 0
    path = tmp_path / "out" / "preprocessor_config.json"
    whole = json.loads(path.read_text())
    assert whole["size"] == {"shortest_edge": 20}
    halves = {"size": {"shortest_edge": 10}, "crop_size": {"height": 8, "width": 8}}
    path.write_text(json.dumps(whole | halves | said))
    back = str(tmp_path / "back")
    assert huggingface.main(["import", out, f"--workdir={back}"]) == 0
    assert load_params(back)[1]["data"].get("eval_crop") == crop
    assert timm.main(["export", run, file]) == 0
    assert timm.main(["import", file, f"--workdir={tmp_path / 'timm'}"]) == 0
    assert load_params(str(tmp_path / "timm"))[1]["data"]["eval_crop"] == 0.8


def test_of_images_in_memory_nothing_is_cut_elsewhere_either(tmp_path):
    run, out, file = (str(tmp_path / n) for n in ("run", "out", "out.safetensors"))
    params, config = import_weights(timm_vit(0, "cls"), "timm_vit", Hints())
    config |= {"data": config["data"] | {"name": "npz", "eval_crop": 0.8}}
    write_workdir(run, params, config)
    assert huggingface.main(["export", run, out]) == 0
    said = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert said["size"]["shortest_edge"] == said["crop_size"]["height"]
    assert timm.main(["export", run, file]) == 0
    assert "eval_crop" not in read_beside(file)


def test_what_transformers_makes_without_qkv_bias_comes_in_with_zeros(tmp_path, capsys):
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    config = tiny_config()  # a DDAE: its decoder's blocks have none there either
    params = jax.jit(tasks.from_config(config).init)(jax.random.key(0))
    write_workdir(run, params, config)
    assert huggingface.main(["export", run, out]) == 0
    path = tmp_path / "out" / "config.json"
    of_qkv = tuple(f".{name}.bias" for name in ("query", "key", "value"))
    kept = {k: x for k, x in read_weights(out).items() if not k.endswith(of_qkv)}
    write_weights(os.path.join(out, "model.safetensors"), kept)
    command = ["import", out, f"--workdir={tmp_path / 'back'}"]
    assert huggingface.main(command) == 2  # they are said to be there
    assert "query.bias is missing" in capsys.readouterr().err
    path.write_text(json.dumps(json.loads(path.read_text()) | {"qkv_bias": False}))
    assert huggingface.main(command) == 0
    found = flat(load_params(str(tmp_path / "back"))[0])
    biases = [x for name, x in found.items() if name.endswith("qkv/bias")]
    assert len(biases) == 3 and not any(x.any() for x in biases)
    for name, x in flat(params).items():
        if name in found and not name.endswith("qkv/bias"):
            np.testing.assert_array_equal(found[name], x, err_msg=name)


def test_grey_weights_take_the_mean_that_is_given(tmp_path, capsys):
    run, out, file = (str(tmp_path / n) for n in ("run", "out", "grey.safetensors"))
    mae_run(run)
    assert huggingface.main(["export", run, out]) == 0
    os.remove(os.path.join(out, "preprocessor_config.json"))
    assert timm.main(["export", run, file]) == 0
    write_weights(file, read_weights(file))
    capsys.readouterr()
    for command, path in ((huggingface, out), (timm, file), (official, file)):
        workdir = str(tmp_path / command.__name__)
        ask = ["import", path, f"--workdir={workdir}"]
        assert command.main(ask) == 2
        assert (
            "images of 1 channels, mean and deviation of 3" in capsys.readouterr().err
        )
        assert command.main([*ask, "--mean=0.3"]) == 2  # and a deviation
        assert command.main([*ask, "--mean=0.3", "--std=0.4"]) == 0
        assert "assumed" not in capsys.readouterr().out
        model = load_params(workdir)[1]["model"]
        assert (model["patch_size"], model["channels"]) == (2, 1)
    write_weights(file, timm_vit(0))
    for flags in (["--mean=0.3", "--std=0.4"], ["--mean=0.1,0.2,0.3", "--std=1"]):
        workdir = str(tmp_path / "colours")
        assert timm.main(["import", file, *flags, f"--workdir={workdir}"]) == 2


def test_what_our_files_say_is_read_and_what_others_say_is_not():
    config = tiny_config(image_size=(8, 16), method={"name": "mae", **TRAINED})
    config["method"]["decoder"] = {"num_heads": 4}
    said = beside.said_of(spelled_out(config), decoder=True)
    assert all(isinstance(x, str) for x in said.values())
    assert beside.hints_of(said) == {
        "mean": (0.3,),
        "std": (0.4,),
        "image_size": (8, 16),
        "decoder_heads": 4,
        "mask_ratio": 0.6,
        "standardise_pixels": False,
    }
    assert beside.hints_of({"image_size": "224"}) == {}
    odd = {"gelu": "relu", "image_size": [1], "decoder_heads": "x"}
    assert beside.hints_of(said | odd).keys().isdisjoint(odd)


@pytest.mark.parametrize("command", [huggingface.main, timm.main])
def test_a_size_that_is_not_registered_is_named(tmp_path, capsys, monkeypatch, command):
    monkeypatch.setitem(VIT_SPECS, "Mine", VIT_SPECS["Two"])
    config = tiny_config(model__size="Mine")
    params = jax.jit(tasks.from_config(config).init)(jax.random.key(0))
    write_workdir(str(tmp_path / "run"), params, config)
    monkeypatch.delitem(VIT_SPECS, "Mine")
    out = tmp_path / "out.safetensors"
    assert command(["export", str(tmp_path / "run"), str(out)]) == 2
    said = capsys.readouterr().err
    assert "is a ViT-Mine, which is not registered" in said and said.count("\n") == 1
    assert not out.exists()


class Evil:
    """A pickle that writes a file when it is loaded as pickles are."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def torch_file(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content))


def wrong_files(folder):
    weights = timm_vit(5, "mean")
    path = files(weights, folder)
    evil = str(folder / "evil.pth")
    torch_file(evil, OrderedDict(model=Evil(str(folder / "was_run"))))
    cut = folder / "cut.safetensors"
    cut.write_bytes(pathlib.Path(path).read_bytes()[:-100])
    half = folder / "half.pth"
    half.write_bytes(pathlib.Path(evil).read_bytes()[:-40])
    old = folder / "old.pth"
    old.write_bytes(pickle.dumps({"a": 1}))
    empty = str(folder / "empty.pth")
    torch_file(empty, {"epoch": 3})
    other = str(folder / "weights.h5")
    pathlib.Path(other).touch()
    beyond = {k: v for k, v in weights.items() if k != "blocks.1.mlp.fc1.bias"}
    wide = weights | {"head.weight": np.zeros((5, 31), np.float32)}
    odd = weights | {"blocks.0.attn.extra": np.zeros(3, np.float32)}
    thin = timm_vit(5, "mean", width=48)
    torn = timm_beit()
    del torn["blocks.0.attn.v_bias"]
    return {
        "code": (evil, "refused: it holds posix.mkdir"),
        "cut": (str(cut), "damaged or no safetensors"),
        "half": (str(half), "cut short, or older than PyTorch 1.6"),
        "old": (str(old), "cut short, or older than PyTorch 1.6"),
        "empty": (empty, "holds no arrays"),
        "format": (other, "unknown format"),
        "none": (str(folder / "none.pth"), "no file"),
        "missing": (files(beyond, folder, "b.safetensors"), "mlp.fc1.bias is missing"),
        "shape": (files(wide, folder, "w.safetensors"), "head.weight makes (31, 5)"),
        "unknown": (files(odd, folder, "o.safetensors"), "attn.extra has no place"),
        "size": (files(thin, folder, "t.safetensors"), "no size of ours has width 48"),
        "torn": (files(torn, folder, "v.safetensors"), "attn.v_bias is missing"),
        "other": (
            files({"a": np.zeros(1, np.float32)}, folder, "a.safetensors"),
            "no blocks named blocks.N",
        ),
    }


KINDS = (
    "code cut half old empty format none missing shape unknown size torn other".split()
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", [timm.main, official.main])
def test_wrong_files_are_one_line_and_nothing_is_written(
    tmp_path, capsys, kind, command
):
    path, says = wrong_files(tmp_path)[kind]
    workdir = tmp_path / "ours"
    assert command(["import", path, f"--workdir={workdir}"]) == 2
    said = capsys.readouterr().err
    assert says in said and len(said.strip().splitlines()) == 1
    assert not workdir.exists() and not (tmp_path / "was_run").exists()


def test_a_pth_file_that_is_compressed_is_not_unpacked(tmp_path, capsys):
    """8 MB of zeros that a file of 9 KB holds."""
    path = tmp_path / "small.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": {}}))
        archive.writestr("archive/data/0", bytes(2**23))
    command = ["import", str(path), f"--workdir={tmp_path / 'ours'}"]
    for main in (timm.main, official.main):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "small.pth is refused: it is compressed" in said
        assert said.count("\n") == 1


@pytest.mark.parametrize("part", ["", ".", "..", "theirs", "../model.safetensors"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_names_files_of_its_folder_alone(tmp_path, capsys, part, name):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    index = {"weight_map": {"vit.layernorm.bias": part}}
    (tmp_path / f"{name}.index.json").write_text(json.dumps(index))
    command = ["import", str(tmp_path), f"--workdir={tmp_path / 'ours'}"]
    assert huggingface.main(command) == 2
    said = capsys.readouterr().err
    assert f"index.json names {part!r}, which" in said and said.count("\n") == 1


def test_the_parts_of_a_pytorch_index_are_arrays_and_nothing_else(tmp_path, capsys):
    index = {"weight_map": {"vit.layernorm.bias": "a.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    torch_file(tmp_path / "a.bin", {"model": Evil(str(tmp_path / "was_run"))})
    command = ["import", str(tmp_path), f"--workdir={tmp_path / 'ours'}"]
    assert huggingface.main(command) == 2
    assert "a.bin is refused: it holds" in capsys.readouterr().err
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    "config, name, says",
    [
        (
            {"architectures": ["ViTForMaskedImageModeling"]},
            "decoder.0.bias",
            "the head of ViTForMaskedImageModeling is none of ours; save its encoder"
            " alone: model.vit.save_pretrained(FOLDER)",
        ),
        ({}, "layers.0.attention.q_proj.weight", "write them with model.save_pre"),
    ],
)
def test_what_else_transformers_saves_is_told_how_to(
    tmp_path, capsys, config, name, says
):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"} | config))
    write_weights(str(tmp_path / "model.safetensors"), {name: np.zeros(3)})
    command = ["import", str(tmp_path), f"--workdir={tmp_path / 'ours'}"]
    assert huggingface.main(command) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_the_evil_file_would_have_run(tmp_path):
    pickle.loads(pickle.dumps(Evil(str(tmp_path / "was_run"))))
    assert (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "config.json cannot be read"),
        ("{", "config.json cannot be read"),
        ("[" * 100_000, "config.json cannot be read"),
        ('{"model_type": "swin"}', "model_type 'swin' is not one of"),
    ],
)
def test_wrong_folders(tmp_path, capsys, content, says):
    if content:
        (tmp_path / "config.json").write_text(content)
    command = ["import", str(tmp_path), f"--workdir={tmp_path / 'ours'}"]
    assert huggingface.main(command) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "config, says",
    [
        (probe_config(classifier__pool="mean"), "transformers has no such classifier"),
        (probe_config(classifier__pool="attention"), "attentive probe has no place"),
        (probe_config(classifier__tap=1), "inner block has no place"),
    ],
)
def test_what_has_no_place_elsewhere_is_refused(tmp_path, capsys, config, says):
    loop.run(config | {"total_steps": 0, "evaluators": {}}, str(tmp_path / "run"))
    command = ["export", str(tmp_path / "run"), str(tmp_path / "out")]
    assert huggingface.main(command) == 2
    said = capsys.readouterr().err
    assert says in said and not (tmp_path / "out").exists()
    assert "warning: " in said and "its classifier is a random one" in said


def test_the_last_block_by_its_number_is_the_last(tmp_path):
    config = probe_config(classifier__tap=2, total_steps=0, evaluators={})
    loop.run(config, str(tmp_path / "run"))
    out = str(tmp_path / "out")
    assert huggingface.main(["export", str(tmp_path / "run"), out]) == 0


def test_a_workdir_is_not_overwritten(tmp_path, capsys):
    path = files(timm_vit(), tmp_path)
    command = ["import", path, f"--workdir={tmp_path / 'ours'}"]
    assert timm.main(command) == 0 and timm.main(command) == 2
    assert "has checkpoints already" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cls_classifier_with_a_norm_is_timms_norm(tmp_path):
    """timm's norm goes over all tokens and cls is read after it, which is the same."""
    config = classify_config(total_steps=1, classifier__pool="cls")
    loop.run(config, str(tmp_path / "run"))
    out = str(tmp_path / "out.safetensors")
    assert timm.main(["export", str(tmp_path / "run"), out]) == 0
    assert timm.main(["export", str(tmp_path / "run"), out]) == 2  # it is there
    assert {"norm.weight", "head.weight"} <= read_weights(out).keys()
    params, theirs = import_weights(
        read_weights(out), "timm_vit", Hints(mean=(0.3,), std=(0.4,))
    )
    images = np.random.default_rng(0).random((3, 8, 8, 1)).astype(np.float32)
    before, _ = load_params(str(tmp_path / "run"))
    ours, again = (
        tasks.from_config(c).logits(p, images)["classifier"]
        for c, p in ((config, before), (theirs, params))
    )
    np.testing.assert_allclose(ours, again, rtol=1e-4, atol=1e-6)


def test_timms_own_config_says_how_images_are_standardised(tmp_path, capsys):
    file = str(tmp_path / "model.safetensors")
    write_weights(file, timm_vit(0, "cls"))
    (tmp_path / "config.json").write_text('{"pretrained_cfg": null}')
    assert timm.main(["import", file, f"--workdir={tmp_path / 'one'}"]) == 0
    assert "assumed: see --mean and --std" in capsys.readouterr().out
    said = {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert timm.main(["import", file, f"--workdir={tmp_path / 'two'}"]) == 0
    out = capsys.readouterr().out
    assert "mean (0.1, 0.2, 0.3), std (0.4, 0.5, 0.6)\n" in out
    assert inspect.main([str(tmp_path / "two")]) == 0
    out = capsys.readouterr().out
    assert "begun with  imported weights\n" in out
    assert "heads       none: the encoder alone\n" in out
    assert "images      standardised by mean (0.1, 0.2, 0.3), std" in out


def test_gelu_by_tanh_goes_out_and_comes_back(tmp_path, capsys):
    """By what each says of it: timm's config.json or our file, transformers' config."""
    file = files(timm_vit(0, "cls"), tmp_path)
    images = np.random.default_rng(0).random((2, 16, 16, 3)).astype(np.float32)
    found = {}

    def brought_in(name, module, path, *flags):
        workdir = str(tmp_path / name)
        assert module.main(["import", path, f"--workdir={workdir}", *flags]) == 0
        found[name] = ddae.load_encoder(workdir)(images).patches
        return workdir, load_params(workdir)[1]["model"]["gelu"]

    assert brought_in("erf", timm, file)[1] == "erf"
    workdir, gelu = brought_in("tanh", timm, file, "--gelu=tanh")
    assert gelu == "tanh"
    out, folder = str(tmp_path / "out.safetensors"), str(tmp_path / "hf")
    capsys.readouterr()
    assert timm.main(["export", workdir, out]) == 0
    assert "GELU by tanh: act_layer='gelu_tanh'" in capsys.readouterr().out
    assert brought_in("timm", timm, out)[1] == "tanh"
    assert huggingface.main(["export", workdir, folder]) == 0
    assert brought_in("hf", huggingface, folder)[1] == "tanh"
    said = {"architecture": "vit", "model_args": {"act_layer": "gelu_tanh"}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert brought_in("told", timm, file)[1] == "tanh"
    exact = found.pop("erf")
    for name, patches in found.items():
        np.testing.assert_array_equal(patches, found["tanh"], err_msg=name)
    assert 1e-6 < np.abs(exact - found["tanh"]).max() < 0.01


@pytest.mark.slow
def test_a_timm_file_of_ours_says_how_images_are_standardised(tmp_path, capsys):
    config = tiny_config(method={"name": "mae", "layout": "mask_token"})
    params = jax.jit(tasks.from_config(config).init)(jax.random.key(0))
    write_workdir(str(tmp_path / "run"), params, config)
    out = str(tmp_path / "out.safetensors")
    assert timm.main(["export", str(tmp_path / "run"), out]) == 0
    said = {"mean": "0.3", "std": "0.4", "image_size": "8"}
    assert read_beside(out) == {"format": "pt", **said}
    assert timm.main(["import", out, f"--workdir={tmp_path / 'back'}"]) == 0
    assert "mean (0.3,), std (0.4,)\n" in capsys.readouterr().out
    for wrong in ("grey", ""):  # as somebody else's may be
        write_weights(out, timm_vit(0, "cls"), {"mean": wrong, "std": "0.4"})
        assert timm.main(["import", out, f"--workdir={tmp_path / f'x{wrong}'}"]) == 0
        assert "which is assumed" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_positions_are_fixed_ones_only_where_they_are(kind):
    weights = timm_vit(0, "cls")
    fixed = fixed_positions(32, (4, 4))
    for moved, expected in ((0.0, "sincos"), (0.02, "learned")):
        weights["pos_embed"] = (fixed + moved).astype(kind).astype(np.float32)
        _, config = import_weights(weights, "timm_vit", Hints())
        assert config["model"]["positions"] == expected
    weights["pos_embed"] = fixed + np.float32(5e-4)
    _, config = import_weights(weights, "timm_vit", Hints())
    assert config["model"]["positions"] == "learned"


def test_weights_that_are_not_finite_are_named():
    weights = timm_vit(5)
    weights["blocks.1.mlp.fc1.bias"][3] = np.nan
    with pytest.raises(UserError, match="blocks.1.mlp.fc1.bias is not finite"):
        import_weights(weights, "timm_vit", Hints())


@pytest.mark.parametrize(
    "name, says",
    [
        ("pos_embed", "do not tell the size of images; give --image_size"),
        ("cls_token", "there is no cls token"),
        ("patch_embed.proj.weight", "there is no patch embedding"),
    ],
)
def test_arrays_without_what_an_encoder_needs_are_refused(name, says):
    weights = timm_vit(0, "cls")
    del weights[name]
    with pytest.raises(UserError, match=says):
        import_weights(weights, "timm_vit", Hints())
    if name == "pos_embed":
        _, config = import_weights(weights, "timm_vit", Hints(image_size=16))
        assert config["model"]["positions"] == "none"


@pytest.mark.parametrize(
    "number, error", [(errno.ENOSPC, StorageError), (errno.EACCES, UserError)]
)
def test_a_disk_may_be_full_for_a_while(tmp_path, monkeypatch, number, error):
    def fails(*_, **__):
        raise OSError(number, "the system's reason")

    monkeypatch.setattr("ddae.interop.files.save", fails)
    with pytest.raises(error, match="x.safetensors cannot be written: the system's r"):
        write_weights(str(tmp_path / "x.safetensors"), {"a": np.zeros(3)})


def test_oblong_images():
    weights = timm_vit(0, "cls")
    weights["pos_embed"] = weights["pos_embed"][:, :9]
    _, config = import_weights(weights, "timm_vit", Hints(image_size=(8, 16)))
    assert config["image_size"] == (8, 16)
    with pytest.raises(UserError, match="is not whole patches of 4"):
        import_weights(weights, "timm_vit", Hints(image_size=(8, 18)))


def test_oblong_weights_go_out_and_come_back(tmp_path, capsys):
    """transformers' ViTMAE has a decoder for squares alone: the encoder goes."""
    run, out = tmp_path / "run", str(tmp_path / "out.safetensors")
    params, config = import_weights(
        {**timm_vit(0, "cls"), "pos_embed": fixed_positions(32, (2, 4))},
        "timm_vit",
        Hints(image_size=(8, 16)),
    )
    write_workdir(str(run), params, config)
    assert huggingface.main(["export", str(run), str(tmp_path / "folder")]) == 0
    assert "ViTModel" in capsys.readouterr().out
    assert timm.main(["export", str(run), out]) == 0
    assert timm.main(["import", out, f"--workdir={tmp_path / 'back'}"]) == 0
    assert "8, 16" in capsys.readouterr().out
    write_weights(out, read_weights(out))  # as others have it, with nothing beside
    back = ["import", out, f"--workdir={tmp_path / 'again'}"]
    assert timm.main(back) == 2
    assert "of oblong images give --image_size=HEIGHT" in capsys.readouterr().err
    assert timm.main([*back, "--image_size=8,16"]) == 0
    assert timm.main(["export", str(run), "/nowhere/x.safetensors"]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "weights, size, says",
    [
        (timm_vit(0), None, "trained; positions with no row for the cls token"),
        (timm_vit(0), 16, "Two; positions with no row for the cls token"),
        (timm_vit(0), 24, "at image_size=24; import it at the size that it was"),
        (timm_beit(0), 24, "at image_size=24; import it at the size that it was"),
    ],
)
def test_an_import_does_not_resize_and_says_what_does(weights, size, says):
    weights = dict(weights)
    if "no row" in says:
        weights["pos_embed"] = weights["pos_embed"][:, 1:]
    dialect = "timm_vit" if "pos_embed" in weights else "timm_beit"
    with pytest.raises(UserError) as error:
        import_weights(weights, dialect, Hints(image_size=size))
    said = str(error.value)
    assert says in said and "\n" not in said
    assert ("load_encoder(image_size=...)" in said) == (size == 24)


def test_an_oblong_grid_of_a_square_number_comes_back_oblong(tmp_path):
    """4 x 1 patches are as many as 2 x 2."""
    run, out, back = (str(tmp_path / n) for n in ("run", "out.safetensors", "back"))
    weights = {**timm_vit(0, "cls"), "pos_embed": fixed_positions(32, (4, 1))}
    found = import_weights(weights, "timm_vit", Hints(image_size=(16, 4)))
    write_workdir(run, *found)
    assert timm.main(["export", run, out]) == 0
    assert timm.main(["import", out, f"--workdir={back}"]) == 0
    config = load_params(back)[1]
    assert tuple(config["image_size"]) == (16, 4)
    assert config["model"]["positions"] == "sincos"


@pytest.mark.parametrize("positions", ["sincos", "none"])
def test_transformers_beit_has_no_positions_of_oblong_images(
    tmp_path, capsys, positions
):
    config = classify_config(image_size=(8, 16), model__positions=positions)
    params = jax.jit(tasks.from_config(config).init)(jax.random.key(0))
    write_workdir(str(tmp_path / "run"), params, config)
    command = ["export", str(tmp_path / "run"), str(tmp_path / "out")]
    refused = positions == "sincos"
    assert huggingface.main(command) == (2 if refused else 0)
    assert ("--config.classifier.pool=cls" in capsys.readouterr().err) == refused
    assert (tmp_path / "out").exists() != refused


def test_positions_that_were_resized_go_out_as_they_are_read(tmp_path):
    """Pretrained on 4 x 4 patches, used on 6 x 6: learned ones of the same values."""
    config = classify_config(image_size=12, model__position_grid=(4, 4))
    task = tasks.from_config(config)
    params = jax.jit(task.init)(jax.random.key(0))
    run, out, back = (str(tmp_path / name) for name in ("run", "out", "back"))
    write_workdir(run, params, config)
    assert huggingface.main(["export", run, out]) == 0
    assert huggingface.main(["import", out, f"--workdir={back}"]) == 0
    images = np.random.default_rng(0).random((3, 12, 12, 1)).astype(np.float32)
    ours, again = (ddae.load_encoder(path)(images).patches for path in (run, back))
    assert load_params(back)[1]["model"]["positions"] == "learned"
    np.testing.assert_allclose(ours, again, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "model, architecture",
    [
        ({}, "ViTForImageClassification"),
        ({"layer_scale": 0.1}, "BeitForImageClassification"),
        ({"relative_bias": "block"}, "BeitForImageClassification"),
    ],
)
def test_a_cls_classifier_goes_out_as_what_its_encoder_is(
    tmp_path, capsys, model, architecture
):
    run, out, back = (str(tmp_path / name) for name in ("run", "out", "back"))
    config = classify_config(classifier__pool="cls", classifier__norm="none")
    config["model"] |= model
    task = tasks.from_config(config)
    params = jax.jit(task.init)(jax.random.key(0))
    write_workdir(run, params, config)
    assert huggingface.main(["export", run, out]) == 0
    assert architecture in capsys.readouterr().out
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said.get("use_mean_pooling") == (False if model else None)
    assert huggingface.main(["import", out, f"--workdir={back}"]) == 0
    again, config = load_params(back)
    images = np.random.default_rng(0).random((3, 8, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(
        task.logits(params, images)["classifier"],
        tasks.from_config(config).logits(again, images)["classifier"],
        atol=1e-5,
    )


@pytest.mark.slow
def test_fine_tuned_weights_go_out_as_a_beit(tmp_path, capsys):
    loop.run(classify_config(total_steps=1), str(tmp_path / "run"))
    command = ["export", str(tmp_path / "run"), str(tmp_path / "out")]
    assert huggingface.main(command) == 0
    assert "BeitForImageClassification" in capsys.readouterr().out
    names = read_weights(str(tmp_path / "out"))
    assert "beit.pooler.layernorm.weight" in names
    assert not any("key.bias" in name or "lambda" in name for name in names)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {str(i): str(i) for i in range(10)}
    # And back, its classes renamed.
    config["id2label"] = {str(i): f"digit {i}" for i in reversed(range(10))}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    there = ["import", str(tmp_path / "out"), f"--workdir={tmp_path / 'back'}"]
    assert huggingface.main(there) == 0
    lines = (tmp_path / "back" / "classes.txt").read_text().splitlines()
    assert lines == [f"digit {i}" for i in range(10)]
    assert class_names(str(tmp_path / "back"), 9)[-1] == "class 8"  # of other classes
    assert "Two" in VIT_SPECS and len(flat({"a": {"b": np.zeros(1)}})) == 1


def test_images_of_every_family_are_standardised_as_they_were_there():
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    half = ((0.5,) * 3, (0.5,) * 3)
    assert (Hints().mean, Hints().std) == imagenet  # MAE, DINO, timm's ViT
    clip = STANDARDISED["clip"]
    assert {k: v for k, v in STANDARDISED.items() if k != "clip"} == {
        "vit": half,
        "vit_mae": imagenet,
        "beit": half,
        "dinov2": imagenet,
    }
    # OpenAI's, to four digits.
    assert clip == ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758))


def test_what_transformers_leaves_out_of_a_config_is_its_own_default(
    tmp_path, monkeypatch
):
    """As in vision_config, of which some of its versions write no defaults."""
    vision = {"model_type": "clip_vision_model", "patch_size": 16}
    config = {"model_type": "clip", "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = "vision_model.embeddings.class_embedding"
    write_weights(str(tmp_path / "model.safetensors"), {name: np.ones(768)})
    found = {}
    monkeypatch.setattr(
        huggingface.command, "bring_in", lambda *args, **known: found.update(known)
    )
    command = ["import", str(tmp_path), f"--workdir={tmp_path / 'run'}"]
    assert huggingface.main(command) == 0
    assert found["num_heads"] == 12 and found["image_size"] == (224, 224)


def beit_of_both():
    """A bias of all blocks and one of each: transformers' BEiT may add them up."""
    table = np.ones((52, 2), np.float32)
    return {**timm_beit(5), "rel_pos_bias.relative_position_bias_table": table}


def without(weights, *names):
    return {k: v for k, v in weights.items() if k not in names}


NORM = {"norm.weight": np.ones(32, np.float32), "norm.bias": np.ones(32, np.float32)}
FIRST_TABLE = "blocks.0.attn.relative_position_bias_table"


@pytest.mark.parametrize(
    "weights, says",
    [
        (beit_of_both(), "relative_position_bias_table has no place here beside the"),
        (without(timm_beit(5), FIRST_TABLE), f"{FIRST_TABLE[:7]}1.attn.relative"),
        (
            without(timm_beit(5), "blocks.0.gamma_1", "blocks.0.gamma_2"),
            "blocks.1.gamma_1 has no place here beside",
        ),
        ({**timm_vit(5), **NORM}, "norm.bias has no place here beside"),
        (
            {**timm_beit(5), "mask_token": np.zeros((1, 1, 7), np.float32)},
            "mask_token makes (1, 1, 7)",
        ),
        (
            {**timm_beit(5), "mask_token": np.full((1, 1, 32), np.nan, np.float32)},
            "mask_token is not finite",
        ),
        (without(timm_vit(5), "head.bias"), "head.bias is missing"),
        (without(timm_vit(5), "head.weight"), "head.weight is missing"),
    ],
)
def test_an_array_that_nothing_would_read_is_refused(tmp_path, capsys, weights, says):
    """Without it the encoder would be another, and nobody would be told."""
    path, workdir = files(weights, tmp_path), tmp_path / "ours"
    command = ["import", path, f"--workdir={workdir}", "--image_size=16"]
    assert timm.main(command) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not workdir.exists()


def ones(*shape, kind=np.float32):
    return np.ones(shape, kind)


@pytest.mark.parametrize(
    "make, name, array, says",
    [
        (timm_vit, "patch_embed.proj.weight", ones(32, 48), "is (32, 48), wanted is"),
        (timm_vit, "patch_embed.proj.weight", ones(32, 3, 0, 0), "wanted is (width,"),
        (timm_vit, "pos_embed", ones(17 * 32), "is (544,), wanted is (1, 1 + patches"),
        (timm_vit, "pos_embed", ones(1, 17, 31), "wanted is (1, 1 + patches, 32)"),
        (timm_vit, "pos_embed", ones(1, 0, 32), "wanted is (1, 1 + patches, 32)"),
        (timm_vit, "cls_token", np.ones((), np.float32), "pos_embed is (1, 17, 32)"),
        (timm_vit, "head.bias", ones(5, 1), "head.bias makes (5, 1)"),
        (timm_beit, FIRST_TABLE, ones(52), "is (52,), wanted is (offsets + 3, heads)"),
        (timm_beit, "blocks.0.attn.q_bias", ones(32, 1), "do not fit together: block"),
        (
            timm_vit,
            "blocks.0.mlp.fc1.weight",
            ones(128, 32, kind=np.int8),
            "fc1.weight holds int8, and no floating-point numbers",
        ),
    ],
)
def test_an_array_of_another_rank_or_kind_is_named(make, name, array, says):
    weights = {**make(5), name: array}
    dialect = "timm_vit" if make is timm_vit else "timm_beit"
    with pytest.raises(UserError) as error:
        import_weights(weights, dialect, Hints())
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_width_that_has_no_sine_cosine_positions_is_no_size_of_ours():
    with pytest.raises(UserError, match="no size of ours has width 30"):
        import_weights(timm_vit(0, "cls", width=30), "timm_vit", Hints())


def test_kinds_and_names_that_numpy_or_we_do_not_know_are_one_line(tmp_path, capsys):
    header = {"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    eighth = tmp_path / "eighth.safetensors"
    eighth.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    numbers = tmp_path / "numbers.pth"
    with zipfile.ZipFile(numbers, "w") as archive:  # {0: tensor of one float}
        storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0"
        tensor = (
            b"ctorch._utils\n_rebuild_tensor_v2\n(%bcpuK\x01tQK\0K\x01\x85K\x01\x85"
        )
        pickled = b"\x80\x02}K\0" + tensor % storage + b"tRs."
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(4))
    for path, says in (
        (eighth, "has arrays that are not read"),
        (numbers, "no blocks"),
    ):
        workdir = tmp_path / "ours"
        assert timm.main(["import", str(path), f"--workdir={workdir}"]) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1 and not workdir.exists()


@pytest.mark.parametrize(
    "name, change, says",
    [
        ("config.json", None, "holds no JSON object"),
        ("config.json", {"layer_norm_eps": None}, "has a value of another kind"),
        ("config.json", {"hidden_act": ["gelu"]}, "has a value of another kind"),
        ("config.json", {"image_size": [16]}, "has a value of another kind"),
        ("config.json", {"image_size": "16"}, "has a value of another kind"),
        ("config.json", {"id2label": ["a"]}, "has a value of another kind"),
        ("config.json", {"model_type": ["vit"]}, "model_type ['vit'] is not one"),
        ("preprocessor_config.json", None, "holds no JSON object"),
        ("preprocessor_config.json", {"image_mean": 0.5}, "a value of another kind"),
        ("preprocessor_config.json", {"crop_size": "x"}, "a value of another kind"),
        ("preprocessor_config.json", {"image_std": [0.5, 0, 1]}, "must be positive"),
        ("preprocessor_config.json", {"do_rescale": False}, "give --mean and --std"),
        ("preprocessor_config.json", {"rescale_factor": 1 / 127.5}, "give --mean and"),
        ("model.safetensors.index.json", {"weight_map": ["a"]}, "no blocks named"),
    ],
)
def test_what_a_folder_says_otherwise_than_transformers_is_refused(
    tmp_path, capsys, name, change, says
):
    run, out, back = (str(tmp_path / n) for n in ("run", "out", "back"))
    write_workdir(run, *import_weights(timm_vit(5, "cls"), "timm_vit", Hints()))
    assert huggingface.main(["export", run, out]) == 0
    path = tmp_path / "out" / name
    if "index" in name:
        os.remove(os.path.join(out, "model.safetensors"))
    whole = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps([] if change is None else whole | change))
    assert huggingface.main(["import", out, f"--workdir={back}"]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not os.path.exists(back)


def test_images_that_are_not_normalised_there_are_not_here(tmp_path):
    run, out = (str(tmp_path / n) for n in ("run", "out"))
    write_workdir(run, *import_weights(timm_vit(5, "cls"), "timm_vit", Hints()))
    assert huggingface.main(["export", run, out]) == 0
    path = tmp_path / "out" / "preprocessor_config.json"
    whole = json.loads(path.read_text())
    for number, (change, flags, mean) in enumerate(
        [
            ({"do_normalize": False}, [], [0.0] * 3),
            ({"rescale_factor": 1.0}, ["--mean=0.1,0.2,0.3", "--std=1,1,1"], [0.1]),
        ]
    ):
        path.write_text(json.dumps(whole | change))
        back = str(tmp_path / f"back{number}")
        assert huggingface.main(["import", out, f"--workdir={back}", *flags]) == 0
        assert load_params(back)[1]["data"]["mean"][: len(mean)] == mean


@pytest.mark.parametrize("act", ["relu", "quick_gelu", ["gelu"]])
def test_another_activation_that_timms_config_names_is_refused(tmp_path, capsys, act):
    path = files(timm_vit(0, "cls"), tmp_path)
    said = {"pretrained_cfg": [], "model_args": {"act_layer": act}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert timm.main(["import", path, f"--workdir={tmp_path / 'ours'}"]) == 2
    assert f"act_layer {act!r} is not ours" in capsys.readouterr().err
    for other in ({"model_args": ["a"], "pretrained_cfg": "b"}, {"pretrained_cfg": 3}):
        (tmp_path / "config.json").write_text(json.dumps(other))
        workdir = str(tmp_path / str(len(other)))
        assert timm.main(["import", path, f"--workdir={workdir}"]) == 0
        assert "which is assumed" in capsys.readouterr().out


@pytest.mark.parametrize("bias", ["shared", "block"])
def test_transformers_reads_the_bias_of_oblong_images_otherwise(tmp_path, capsys, bias):
    config = tiny_config(method={"name": "simmim"}, model__relative_bias=bias)
    config["model"]["positions"] = "none"
    params = jax.jit(tasks.from_config(config).init)(jax.random.key(0))
    run, oblong, out = (str(tmp_path / n) for n in ("run", "oblong", "out"))
    write_workdir(run, params, config)
    assert huggingface.main(["export", run, out]) == 0
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_size": [8, 16]}))
    back = str(tmp_path / "back")
    assert huggingface.main(["import", out, f"--workdir={back}"]) == 2
    assert "relative bias of images that are not square" in capsys.readouterr().err
    config["image_size"] = (8, 16)
    params = jax.jit(tasks.from_config(config).init)(jax.random.key(0))
    write_workdir(oblong, params, config)
    command = ["export", oblong, str(tmp_path / "none")]
    assert huggingface.main(command) == 2
    assert "export it by ddae.interop.timm" in capsys.readouterr().err
    assert not (tmp_path / "none").exists() and not os.path.exists(back)


def test_a_folder_that_has_weights_is_not_written_over(tmp_path, capsys):
    run = str(tmp_path / "run")
    write_workdir(run, *import_weights(timm_vit(0, "cls"), "timm_vit", Hints()))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "model.safetensors").write_text("of theirs")
    assert huggingface.main(["export", run, str(theirs)]) == 2
    assert "holds a model already" in capsys.readouterr().err
    assert [path.name for path in theirs.iterdir()] == ["model.safetensors"]


def test_an_encoder_without_positions_goes_out_with_zeros(tmp_path):
    """Where there is no array those classes begin with random ones."""
    config = tiny_config(method={"name": "simmim"}, model__positions="none")
    params = jax.jit(tasks.from_config(config).init)(jax.random.key(0))
    run, out, file = (str(tmp_path / n) for n in ("run", "out", "out.safetensors"))
    write_workdir(run, params, config)
    images = np.random.default_rng(0).random((2, 8, 8, 1)).astype(np.float32)
    ours = ddae.load_encoder(run)(images).patches
    for command, path, name in (
        (huggingface, out, "embeddings.position_embeddings"),
        (timm, file, "pos_embed"),
    ):
        assert command.main(["export", run, path]) == 0
        found = read_weights(path)[name]
        assert found.shape == (1, 17, 32) and not found.any()
        back = str(tmp_path / f"back_{name}")
        assert command.main(["import", path, f"--workdir={back}"]) == 0
        again = ddae.load_encoder(back)(images).patches
        np.testing.assert_allclose(ours, again, atol=1e-6)


def test_a_decoder_without_blocks_goes_out_with_its_positions(tmp_path):
    config = tiny_config(method={"name": "mae", **TRAINED})
    config["method"]["decoder"] = {"depth": 0, "width": 16, "num_heads": 2}
    params = jax.jit(tasks.from_config(config).init)(jax.random.key(0))
    write_workdir(str(tmp_path / "run"), params, config)
    found, name, _ = timm.named(str(tmp_path / "run"), None, decoder=True)
    assert name == "mae"
    np.testing.assert_array_equal(
        found["decoder_pos_embed"], fixed_positions(16, (4, 4))
    )
    again, _ = import_weights(found, "mae", Hints(decoder_heads=2, mean=(0,), std=(1,)))
    assert "pixels" in again["heads"]["block02"]


def test_an_encoder_without_a_last_norm_is_told_what_to_export():
    with pytest.raises(UserError, match="as a segmenter's, .*the run that it began"):
        huggingface._class({}, spelled_out(tiny_config()), {})
