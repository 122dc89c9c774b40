"""Weights of transformers' models: in, the same answers, and out again."""

import json

import jax
import numpy as np
import pytest
from test_classify import probe_config
from test_interop import mae_run, official_mae

import ddae
from ddae import tasks
from ddae.interop import huggingface, official, timm
from ddae.interop.convert import Hints, import_weights, write_workdir
from ddae.interop.files import read_beside, read_weights, write_weights
from ddae.interop.names import fixed_positions
from ddae.models.vit import VIT_SPECS, ViTSpec
from ddae.train.loading import load_params

pytestmark = pytest.mark.torch

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "image_size": 224,
    "patch_size": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TOLERANCE = 1e-4


def models():
    from transformers import (
        BeitConfig,
        BeitForImageClassification,
        BeitForMaskedImageModeling,
        BeitModel,
        CLIPVisionConfig,
        CLIPVisionModel,
        Dinov2Config,
        Dinov2Model,
        ViTConfig,
        ViTForImageClassification,
        ViTMAEConfig,
        ViTMAEForPreTraining,
        ViTModel,
    )

    decoder = {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 64,
    }
    beit = {"drop_path_rate": 0.0, "layer_scale_init_value": 0.1}
    return {
        "vit": lambda: ViTForImageClassification(ViTConfig(num_labels=7, **SIZE)),
        "vit_alone": lambda: ViTModel(ViTConfig(**SIZE), add_pooling_layer=False),
        "vit_unbiased": lambda: ViTModel(
            ViTConfig(qkv_bias=False, **SIZE), add_pooling_layer=False
        ),
        "vit_tanh_alone": lambda: ViTModel(
            ViTConfig(hidden_act="gelu_pytorch_tanh", **SIZE), add_pooling_layer=False
        ),
        "mae": lambda: ViTMAEForPreTraining(ViTMAEConfig(**SIZE, **decoder)),
        "beit": lambda: BeitForImageClassification(
            BeitConfig(num_labels=7, use_relative_position_bias=True, **SIZE, **beit)
        ),
        "beit_cls": lambda: BeitForImageClassification(
            BeitConfig(
                num_labels=7,
                use_mean_pooling=False,
                use_relative_position_bias=True,
                **SIZE,
                **beit,
            )
        ),
        "beit_absolute": lambda: BeitForImageClassification(
            BeitConfig(
                num_labels=7,
                use_absolute_position_embeddings=True,
                **SIZE,
                **(beit | {"layer_scale_init_value": 0.0}),
            )
        ),
        "beit_masked": lambda: BeitForMaskedImageModeling(
            BeitConfig(
                vocab_size=9,
                use_mask_token=True,
                use_shared_relative_position_bias=True,
                **SIZE,
                **beit,
            )
        ),
        "beit_alone": lambda: BeitModel(
            BeitConfig(
                use_mean_pooling=False,
                use_shared_relative_position_bias=True,
                **SIZE,
                **beit,
            ),
            add_pooling_layer=False,
        ),
        "beit_pooled": lambda: BeitModel(
            BeitConfig(use_relative_position_bias=True, **SIZE, **beit)
        ),
        "clip": lambda: CLIPVisionModel(
            CLIPVisionConfig(**{k: v for k, v in SIZE.items() if "prob" not in k})
        ),
        "dinov2": lambda: Dinov2Model(
            Dinov2Config(layer_norm_eps=1e-6, **SIZE | {"patch_size": 14})
        ),
    }


NAMES = [
    "vit",
    "vit_alone",
    "vit_unbiased",
    "vit_tanh_alone",
    "mae",
    "beit",
    "beit_cls",
    "beit_absolute",
    "beit_masked",
    "beit_alone",
    "beit_pooled",
    "clip",
    "dinov2",
]
IN_ALONE = ("vit_unbiased", "beit_pooled", "clip", "dinov2")
"""Those that go out as another class or with more arrays, or not at all."""


@pytest.fixture(scope="module", autouse=True)
def a_small_size():
    VIT_SPECS["Two"] = ViTSpec(32, 2, 2)


@pytest.fixture(scope="module")
def random_models(tmp_path_factory):
    """Each model with random weights, saved as its users save it."""
    import torch

    torch.manual_seed(0)
    found = {}
    for name, make in models().items():
        model = make().eval()
        # Where a GELU by tanh is another: small values' is the same.
        scale = 0.5 if "tanh" in name else 0.1
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                value = torch.randn_like(parameter) * scale
                if name == "mae" and "pos" in key:
                    fixed = fixed_positions(parameter.shape[-1], (14, 14))
                    value = torch.tensor(fixed)
                parameter.copy_(value)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        if name == "clip":  # as older files have it
            weights = read_weights(str(folder))
            weights["embeddings.position_ids"] = np.arange(197)[None]
            weights = {
                f"vision_model.{key.removeprefix('vision_model.')}": value
                for key, value in weights.items()
            }
            write_weights(str(folder / "model.safetensors"), weights)
        found[name] = (model, folder)
    return found


@pytest.fixture
def images():
    return np.random.default_rng(0).random((2, 224, 224, 3)).astype(np.float32)


def standardised(images, mean, std):
    import torch

    x = (images - np.float32(mean)) / np.float32(std)
    return torch.tensor(x.transpose(0, 3, 1, 2))


def brought_in(name, folder, tmp_path):
    workdir = str(tmp_path / "ours")
    assert huggingface.main(["import", str(folder), f"--workdir={workdir}"]) == 0
    params, config = load_params(workdir)
    return workdir, params, config, tasks.from_config(config)


def hidden(model, pixels, **options):
    """Their last layer, before what they classify it with."""
    inner = next(
        (
            getattr(model, name)
            for name in ("vit", "beit", "vision_model")
            if hasattr(model, name)
        ),
        model,
    )
    return inner(pixels, **options).last_hidden_state.detach().numpy()


@pytest.mark.parametrize("name", NAMES)
def test_features_and_logits(random_models, images, tmp_path, name):
    model, folder = random_models[name]
    workdir, params, config, task = brought_in(name, folder, tmp_path)
    data = config["data"]
    pixels = standardised(images, data["mean"], data["std"])
    ours = ddae.load_encoder(workdir)(images)
    tokens = np.concatenate([ours.prefix, ours.patches], axis=1)
    if name == "mae":
        # Their encoder masks; noise in ascending order keeps the order of patches.
        noise = np.broadcast_to(np.arange(196.0), (2, 196))
        import torch

        model.config.mask_ratio = model.vit.config.mask_ratio = 0.0
        expected = hidden(model, pixels, noise=torch.tensor(noise.copy()))
    elif name == "clip":
        # Ours has gone through the norm that they keep for the pooled token.
        expected = hidden(model, pixels)
        inner = getattr(model, "vision_model", model)
        import torch

        expected = inner.post_layernorm(torch.tensor(expected)).detach().numpy()
    else:
        expected = hidden(model, pixels)
    np.testing.assert_allclose(tokens, expected, atol=TOLERANCE, rtol=TOLERANCE)
    if "classifier" in config:
        logits = jax.jit(task.logits)(params, images)["classifier"]
        theirs = model(pixels).logits.detach().numpy()
        np.testing.assert_allclose(logits, theirs, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_their_images_are_ours(tmp_path, crop):
    """A photograph that is not square, through the exported folder's own processor."""
    from PIL import Image
    from sklearn.datasets import load_sample_image
    from tiny import tiny_config
    from transformers import AutoImageProcessor

    from ddae import data
    from ddae.train import loop

    photograph = Image.fromarray(load_sample_image("china.jpg")).crop((0, 0, 600, 300))
    for split in ("train", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        for number in range(4):
            photograph.save(tmp_path / "images" / split / f"{number}.png")
    given = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "eval_crop": crop}
    config = tiny_config(
        data={"name": "folder", "dir": str(tmp_path / "images"), **given},
        image_size=64,
        total_steps=0,
        batch_size=4,
        model={"size": "Two", "patch_size": 16, "channels": 3},
    )
    loop.run(config, str(tmp_path / "run"))
    out = str(tmp_path / "out")
    assert huggingface.main(["export", str(tmp_path / "run"), out]) == 0
    theirs = AutoImageProcessor.from_pretrained(out)(photograph, return_tensors="np")
    splits = data.from_config(config, (64, 64, 3))
    (batch,) = splits.held_out.batches(np.arange(1), 1)
    ours = standardised(batch["image"] / 255.0, given["mean"], given["std"])
    apart = np.abs(np.asarray(theirs["pixel_values"]) - np.asarray(ours)) * 0.2 * 255
    assert apart.max() < 2.5 and apart.mean() < 0.3  # of 255


@pytest.mark.parametrize("name", [n for n in NAMES if n not in IN_ALONE])
def test_round_trip(random_models, tmp_path, name, recwarn):
    model, folder = random_models[name]
    workdir, *_ = brought_in(name, folder, tmp_path)
    out = tmp_path / "theirs"
    assert huggingface.main(["export", workdir, str(out)]) == 0
    before, after = read_weights(str(folder)), read_weights(str(out))
    before = {
        key.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): x
        for key, x in before.items()
    }
    assert set(before) == set(after)
    for key, value in before.items():
        np.testing.assert_allclose(after[key], value, atol=2e-6, err_msg=key)
    # It loads as what it was, with nothing missing and nothing over.
    alone = {"add_pooling_layer": False} if name.endswith("alone") else {}
    again, said = type(model).from_pretrained(out, output_loading_info=True, **alone)
    assert not said["missing_keys"] and not said["unexpected_keys"], said
    assert not said["mismatched_keys"]
    theirs, ours = (
        json.loads((path / "config.json").read_text()) for path in (folder, out)
    )
    same = ("model_type", "hidden_size", "num_attention_heads", "image_size")
    for key in (*same, "hidden_act"):
        assert theirs[key] == ours[key]
    if name.startswith("beit"):
        assert theirs["use_mean_pooling"] == ours["use_mean_pooling"]
    for (key, a), b in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-6, err_msg=key)


def test_a_vit_reads_the_encoder_of_a_mae_of_ours(random_models, images, tmp_path):
    """And masks nothing, as their ViTMAEModel does."""
    import torch
    from transformers import ViTForImageClassification, ViTModel

    workdir, _, config, _ = brought_in("mae", random_models["mae"][1], tmp_path)
    out, data = tmp_path / "theirs", config["data"]
    assert huggingface.main(["export", workdir, str(out)]) == 0
    model, said = ViTModel.from_pretrained(
        out, add_pooling_layer=False, output_loading_info=True
    )
    classifier = ViTForImageClassification.from_pretrained(out, num_labels=7)
    assert not said["missing_keys"] and not said["mismatched_keys"]
    assert all(key.startswith("decoder.") for key in said["unexpected_keys"])
    pixels = standardised(images, data["mean"], data["std"])
    ours = ddae.load_encoder(workdir)(images)
    tokens = np.concatenate([ours.prefix, ours.patches], axis=1)
    for theirs in (model, classifier):
        with torch.no_grad():
            found = hidden(theirs.eval(), pixels)
        np.testing.assert_allclose(found, tokens, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", ["vit_alone", "mae", "beit_alone", "dinov2"])
def test_at_another_size(random_models, tmp_path, name):
    import torch

    model, folder = random_models[name]
    workdir, _, config, _ = brought_in(name, folder, tmp_path)
    size = 336 if name == "dinov2" else 320
    images = np.random.default_rng(1).random((1, size, size, 3)).astype(np.float32)
    data = config["data"]
    pixels = standardised(images, data["mean"], data["std"])
    options = {"interpolate_pos_encoding": True}
    if name == "mae":
        model.config.mask_ratio = model.vit.config.mask_ratio = 0.0
        options["noise"] = torch.tensor(np.arange(400.0)[None])
    if name in ("beit_alone", "dinov2"):
        options = {}
    expected = hidden(model, pixels, **options)
    ours = ddae.load_encoder(workdir, image_size=size)(images)
    tokens = np.concatenate([ours.prefix, ours.patches], axis=1)
    np.testing.assert_allclose(tokens, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_the_decoder_too(random_models, images, tmp_path):
    """Loss and predictions of the whole ViTMAE, on its mask."""
    import jax.numpy as jnp
    import torch

    from ddae.masking import make_mask

    model, folder = random_models["mae"]
    _, params, config, task = brought_in("mae", folder, tmp_path)
    data = config["data"]
    pixels = standardised(images, data["mean"], data["std"])
    model.config.mask_ratio = model.vit.config.mask_ratio = 0.75
    noise = np.random.default_rng(0).random((2, 196))
    found = model(pixels, noise=torch.tensor(noise))
    hidden_ones = found.mask.detach().numpy().astype(bool)
    mask = make_mask(jnp.asarray(hidden_ones), 147)
    image = jnp.asarray(pixels.numpy().transpose(0, 2, 3, 1))
    predictions, _ = jax.jit(task.predict)(params, image, mask)
    theirs = found.logits.detach().numpy()
    theirs = np.stack([row[m] for row, m in zip(theirs, hidden_ones, strict=True)])
    ours = predictions["block02"]["pixels"]
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)


def test_pth_files_of_torch(random_models, tmp_path):
    """What torch writes is read to the bit, without torch, half precision too."""
    import torch

    model, _ = random_models["vit"]
    state = model.state_dict()
    state["views"] = torch.arange(12.0).reshape(3, 4).T[1:]
    torch.save({"model": state, "epoch": 3}, tmp_path / "whole.pth")
    found = read_weights(str(tmp_path / "whole.pth"))
    assert set(found) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(found[key], value.numpy(), err_msg=key)
    for dtype in (torch.bfloat16, torch.float16):
        halves = {key: value.to(dtype) for key, value in state.items()}
        torch.save(halves, tmp_path / "half.pth")
        found = read_weights(str(tmp_path / "half.pth"))
        for key, value in halves.items():
            np.testing.assert_array_equal(found[key], value.float().numpy())


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_folder_of_parts(random_models, tmp_path, ending):
    """As transformers writes large models, and as it wrote them before version 5."""
    import torch

    model, whole = random_models["mae"]
    before = read_weights(str(whole))
    if ending == "safetensors":
        model.save_pretrained(tmp_path, max_shard_size="40KB")
    else:
        half, index = len(before) // 2, {}
        for number, names in enumerate((list(before)[:half], list(before)[half:])):
            file = f"pytorch_model-{number}.bin"
            part = {name: torch.tensor(before[name]) for name in names}
            torch.save(part, tmp_path / file)
            index |= dict.fromkeys(names, file)
        path = tmp_path / "pytorch_model.bin.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert len(list(tmp_path.glob(f"*.{ending}"))) > 1
    after = read_weights(str(tmp_path))
    assert before.keys() == after.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value, err_msg=key)


@pytest.mark.parametrize("make", ["ViTForMaskedImageModeling", "ViTModel"])
def test_an_encoder_with_a_mask_token(tmp_path, capsys, make):
    """Which ViT's features are without; the head on it is told how to be left out."""
    import torch
    import transformers

    given = transformers.ViTConfig(encoder_stride=16, **SIZE)
    model = transformers.ViTForMaskedImageModeling(given).eval()
    inner, folder = model.vit, tmp_path / "theirs"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    if make == "ViTModel":
        inner.save_pretrained(folder)
        workdir, _, config, _ = brought_in(make, folder, tmp_path)
        images = np.random.default_rng(0).random((2, 224, 224, 3)).astype(np.float32)
        data = config["data"]
        expected = hidden(inner, standardised(images, data["mean"], data["std"]))
        ours = ddae.load_encoder(workdir)(images)
        np.testing.assert_allclose(ours.patches, expected[:, 1:], atol=TOLERANCE)
        return
    model.save_pretrained(folder)
    command = ["import", str(folder), f"--workdir={tmp_path / 'ours'}"]
    assert huggingface.main(command) == 2
    assert "model.vit.save_pretrained(FOLDER)" in capsys.readouterr().err


def test_what_torch_reads_of_an_official_file_of_ours(tmp_path, capsys):
    import torch

    weights = official_mae()
    params, config = import_weights(weights, "mae", Hints(decoder_heads=2))
    write_workdir(str(tmp_path / "run"), params, config)
    path = str(tmp_path / "mae.pth")
    assert official.main(["export", str(tmp_path / "run"), path]) == 0
    assert f"{path}: {len(weights)} arrays, mae" in capsys.readouterr().out
    found = torch.load(path, weights_only=True)["model"]
    assert set(found) == set(weights)
    for key, value in weights.items():
        np.testing.assert_array_equal(found[key].numpy(), value, err_msg=key)
    assert official.main(["export", str(tmp_path / "run"), path]) == 2  # is there
    assert official.main(["import", path, f"--workdir={tmp_path / 'back'}"]) == 0
    jax.tree.map(
        np.testing.assert_array_equal, load_params(str(tmp_path / "back"))[0], params
    )
    # Of another run, what arrays do not tell; of somebody else's it is assumed.
    run, path, back = (str(tmp_path / n) for n in ("raw", "raw.pth", "raw_back"))
    config = mae_run(run)
    assert official.main(["export", run, path]) == 0
    whole = torch.load(path, weights_only=True)
    assert whole["ddae"]["standardise_pixels"] == "False"
    assert official.main(["import", path, f"--workdir={back}"]) == 0
    again = load_params(back)[1]
    assert again["method"] == config["method"] and again["data"]["mean"] == [0.3]
    assert "assumed" not in capsys.readouterr().out
    torch.save({"model": found}, tmp_path / "theirs.pth")
    command = ["import", str(tmp_path / "theirs.pth")]
    assert official.main([*command, f"--workdir={tmp_path / 'assumed'}"]) == 0
    assert "assumed: see --mean" in capsys.readouterr().out
    path = str(tmp_path / "none" / "mae.pth")
    assert official.main(["export", str(tmp_path / "run"), path]) == 2
    assert f"error: {path} cannot be written" in capsys.readouterr().err


def test_an_official_file_says_which_head_of_a_sweep_it_has(tmp_path):
    """As a timm file does."""
    import torch

    config = probe_config(classifier__rates=(1.0, 3.0))
    params = jax.jit(tasks.from_config(config).init)(jax.random.key(0))
    run, pth = str(tmp_path / "run"), str(tmp_path / "out.pth")
    write_workdir(run, params, config)
    assert official.main(["export", run, pth, "--head=lr_3"]) == 0
    assert torch.load(pth, weights_only=True)["ddae"]["head"] == "lr_3"
    file = str(tmp_path / "out.safetensors")
    assert timm.main(["export", run, file, "--head=lr_3"]) == 0
    assert read_beside(file)["head"] == "lr_3"
