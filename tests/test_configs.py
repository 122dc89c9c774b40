"""Every config parses, builds at smoke size, and takes two steps on fake data."""

import importlib
import pathlib
import re

import jax
import numpy as np
import pytest
import scenes
from absl import flags
from ml_collections import config_flags

from configs import common
from ddae import data, settings, tasks
from ddae.data.arrays import ArraySource
from ddae.methods import METHODS
from ddae.mixing import Mixing
from ddae.models.vit import VIT_SPECS, Encoder
from ddae.train import loop
from ddae.train.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[1]
NAMES = sorted(
    p.stem
    for p in (ROOT / "configs").glob("*.py")
    if p.stem not in ("__init__", "common")
)


def load(name, text=None):
    return importlib.import_module(f"configs.{name}").get_config(text)


def shrink(config):
    """The same experiment on a network of two blocks and a handful of fake images."""
    config = config.to_dict()
    steps = 2 if config["total_steps"] is None else min(2, config["total_steps"])
    config |= {"batch_size": 8, "total_steps": steps, "eval_every_steps": 0}
    config["model"] |= {"size": "Two"}
    config["image_size"] = 4 * config["model"]["patch_size"]
    config["data"]["augment"] = {"crop": "none"}
    if config["task"] == "segment":
        small = {"channels": 16, "auxiliary_channels": 8, "pool_scales": (1, 2)}
        config["segmenter"] |= small
        config["evaluators"]["miou"] |= {"stride": 0, "scale": (0, 0)}
    method = config.get("method", {})
    if "decoder" in method:
        method["decoder"] = {"depth": 1, "width": 16, "num_heads": 2}
    if "taps" in method:
        method["taps"] = (1, 2)
    if method.get("dds"):
        method["dds"]["taps"] = (1, 2)
    for key, value in (("early", 1), ("mean_of", 2)):
        if key in method:
            method[key] = value
    if config["task"] == "tokenize":
        config["tokenizer"] |= {"codes": 8, "code_dim": 4, "decoder_depth": 1}
    if config["task"] == "classify":
        config["classifier"]["num_classes"] = 3
    if "knn" in config["evaluators"]:
        config["evaluators"]["knn"]["k"] = 2
    return config


def give_frozen(config, folder):
    """Workdirs for the frozen networks that a config asks for."""
    for section in (config.get("method", {}), config.get("tokenizer", {})):
        for name in {"teacher", "tokenizer"} & section.keys():
            own = section[name]
            own["model"]["size"] = "Two"
            own |= {key: config["data"][key] for key in ("mean", "std")}
            task = classify()
            if name == "tokenizer":
                own |= {"codes": 8, "code_dim": 4}
                task = shrink(load("vqkd_digits"))
                inner = task["tokenizer"]["teacher"]["model"]
                inner |= {key: own["model"][key] for key in ("patch_size", "channels")}
                task |= {"image_size": config["image_size"], "data": config["data"]}
                give_frozen(task, folder / "inner")
            task |= {"model": own["model"], "image_size": config["image_size"]}
            task["data"] = config["data"]
            task["total_steps"] = 0
            own["workdir"] = str(folder / name)
            loop.run(task, own["workdir"])


def classify():
    config = shrink(load("knn"))
    config["evaluators"] = {}
    return config


def write_scenes(config, folder):
    """Eight scenes and one of the validation set, in the layout that is read."""
    made = [scenes.blocks(seed) for seed in range(8)]
    scenes.write(folder, made)
    config["data"]["dir"] = str(scenes.write(folder, made[:1], "validation"))


def fake_data(config, monkeypatch):
    """Twenty-four images of noise in three classes, whatever the config names."""

    def fake(settings, shape):
        random = np.random.default_rng(0)
        images = random.integers(0, 255, (24, *shape)).astype(np.uint8)
        labels = np.arange(24) % 3
        return tuple(ArraySource(images, labels, "fake", s) for s in ("train", "test"))

    monkeypatch.setitem(data.SOURCES, config["data"]["name"].split("/")[0], fake)


QUICK = ("quickstart", "knn")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in NAMES
    ],
)
def test_takes_two_steps(name, tmp_path, monkeypatch):
    config = shrink(load(name))
    if config["task"] == "segment":
        write_scenes(config, tmp_path / "set")
    else:
        fake_data(config, monkeypatch)
    give_frozen(config, tmp_path)
    loop.run(config, str(tmp_path))
    rows = read_metrics(str(tmp_path / "metrics.jsonl"))
    losses = [r["train/loss"] for r in rows if "train/loss" in r]
    assert np.isfinite(losses).all() and (losses or name == "knn")
    assert any(key.startswith("eval/") for key in rows[-1])


@pytest.mark.parametrize("model", ["S", "B", "L", "H"])
@pytest.mark.parametrize("name", ["ddae_in1k", "mae_in1k"])
def test_imagenet_configs_build_at_full_size(name, model):
    config = load(name, f"model={model},epochs=300")
    assert config.epochs == 300
    task = tasks.from_config(config.to_dict())
    assert task.image_shape == (224, 224, 3)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(shapes["encoder"]))
    millions = {"S": 21.6, "B": 85.6, "L": 303, "H": 630}[model]
    np.testing.assert_allclose(count / 1e6, millions, rtol=0.01)


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("finetune_in1k", "model=Ti", "model='Ti' is not one of"),
        ("finetune_in1k", "model=H,family=beit", "model='H' is not one of"),
        ("finetune_in1k", "family=vit", "family='vit' is not one of"),
        ("mae_cifar10", "dds=yes", "dds='yes' is not like False"),
        ("mae_cifar10", "patch=four", "patch='four' is not like 4"),
        ("ddae_cifar10", "dds", "argument 'dds' is not one of"),
        ("ddae_in1k", "dds=1", "argument 'dds' is not one of"),
        ("quickstart", "model=B", "argument 'model': it takes none"),
        ("knn", "data=folder", "a folder of images is --config.data.name=folder"),
    ],
)
def test_wrong_arguments_are_named(name, text, says):
    with pytest.raises(ValueError, match=says):
        load(name, text)


@pytest.mark.parametrize("text", ["dds", "dds=1", "dds=True", "dds=true"])
def test_deep_dynamic_supervision_is_switched_on(text):
    assert load("simmim_cifar10", text)["method"]["dds"]
    assert not load("simmim_cifar10", "dds=False")["method"]["dds"]


def test_cifar_configs_take_patch_two():
    config = load("ddae_cifar10", "size=S,patch=2,epochs=7")
    assert (config.model.size, config.model.patch_size, config.epochs) == ("S", 2, 7)


@pytest.mark.parametrize(
    "said, size", [("(32,64)", (32, 64)), ("32,64", (32, 64)), ("64", 64)]
)
def test_a_flag_says_the_size_of_images(monkeypatch, said, size):
    argv = ["train.py", f"--config.image_size={said}"]
    monkeypatch.setattr("sys.argv", argv)
    values = flags.FlagValues()
    config = load("mae_cifar10")
    config_flags.DEFINE_config_dict("config", config, flag_values=values)
    values(argv)
    found = config.to_dict()
    assert found["image_size"] == size
    height, width, _ = tasks.from_config(found).image_shape
    assert (height, width) == (size if isinstance(size, tuple) else (size, size))


def keys_of(section, before=""):
    for key in section:
        yield before + key
        if hasattr(section.get(key), "keys"):
            yield from keys_of(section[key], f"{before}{key}.")


def test_keys_that_pages_name_are_flags_of_some_config():
    known = {key for name in NAMES for key in keys_of(load(name))}
    sections = "data|evaluators|init|model|optimizer|method|segmenter|classifier|mixing"
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        if page.stem == "config":  # it has those that configs leave out too
            continue
        named = re.findall(rf"`((?:{sections})(?:\.[a-z]\w*)+)\b", page.read_text())
        flagged = re.findall(r"--config\.(\w+(?:\.\w+)*)", page.read_text())
        assert not set(named + flagged) - known, page.name


@pytest.mark.parametrize("name", NAMES)
def test_docstring_gives_the_command(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"python train.py --config=configs/{name}.py" in text


IMAGENET = {"data.mean": (0.485, 0.456, 0.406), "data.std": (0.229, 0.224, 0.225)}


# What the papers' recipes say, apart from the code that says it too.
RECIPES = {
    ("mae_in1k", "model=B,epochs=800"): {
        **IMAGENET,
        "batch_size": 4096,
        "method.mask.kind": "random",
        "method.mask.ratio": 0.75,
        "method.decoder.depth": 8,
        "method.decoder.width": 512,
        "method.decoder.num_heads": 16,
        "optimizer.base_lr": 1.5e-4,
        "optimizer.lr_batch": 256,
        "optimizer.weight_decay": 0.05,
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.95,
        "optimizer.warmup_epochs": 40.0,
        "optimizer.clip_norm": 0.0,
        "data.augment.scale": (0.2, 1.0),
        "data.augment.flip": True,
    },
    ("finetune_in1k", "model=B"): {
        **IMAGENET,
        "batch_size": 1024,
        "epochs": 100,
        "data.eval_crop": 0.875,
        "data.augment.rand_augment": 2,
        "data.augment.magnitude": 9.0,
        "data.augment.magnitude_std": 0.5,
        "model.drop_path": 0.1,
        "mixing.mixup": 0.8,
        "mixing.cutmix": 1.0,
        "mixing.smoothing": 0.1,
        "mixing.erasing": 0.25,
        "optimizer.base_lr": 5e-4,
        "optimizer.lr_batch": 256,
        "optimizer.b2": 0.999,
        "optimizer.weight_decay": 0.05,
        "optimizer.warmup_epochs": 5.0,
        "optimizer.layer_decay": 0.65,
        "optimizer.final_lr": 1e-6,
    },
    ("finetune_in1k", "model=L"): {
        "epochs": 50,
        "model.drop_path": 0.2,
        "optimizer.base_lr": 1e-3,
        "optimizer.layer_decay": 0.75,
    },
    ("finetune_in1k", "model=B,family=beit_v2"): {
        "batch_size": 1024,
        "epochs": 100,
        "model.positions": "none",
        "model.relative_bias": "block",
        "model.layer_scale": 0.1,
        "model.drop_path": 0.1,
        "mixing.mixup": 0.8,
        "mixing.cutmix": 1.0,
        "optimizer.base_lr": 5e-4,
        "optimizer.lr_batch": 1024,
        "optimizer.warmup_epochs": 20.0,
        "optimizer.layer_decay": 0.65,
    },
    ("finetune_in1k", "model=L,family=beit_v2"): {
        "epochs": 50,
        "model.layer_scale": 1e-5,
        "optimizer.layer_decay": 0.8,
    },
    ("finetune_in1k", "family=beit"): {"optimizer.base_lr": 4e-3},
    ("finetune_in1k", "family=data2vec"): {
        "model.drop_path": 0.2,
        "model.relative_bias": "block",
        "optimizer.base_lr": 4e-3,
        "optimizer.lr_batch": 1024,
        "optimizer.warmup_epochs": 10.0,
        "optimizer.weight_decay": 0.0,
        "optimizer.layer_decay": 0.65,
    },
    ("finetune_in1k", "model=S,family=simmim"): {
        "batch_size": 2048,
        "model.relative_bias": "block",
        "optimizer.base_lr": 1.25e-3,
        "optimizer.lr_batch": 512,
        "optimizer.clip_norm": 5.0,
        "optimizer.final_lr": 1e-6,
    },
    ("linear_in1k", "model=B"): {
        "batch_size": 16384,
        "epochs": 90,
        "classifier.pool": "cls",
        "classifier.norm": "batch",
        "classifier.kernel_deviation": 0.01,
        "mixing.smoothing": 0.0,
        "optimizer.name": "lars",
        "optimizer.base_lr": 0.1,
        "optimizer.weight_decay": 0.0,
        "optimizer.warmup_epochs": 10.0,
    },
    ("knn", None): {
        "data.augment.crop": "none",
        "evaluators.knn.k": (10, 20, 100, 200),
        "evaluators.knn.temperature": 0.07,
    },
    ("simmim_in1k", "model=B"): {
        "batch_size": 2048,
        "method.mask.ratio": 0.6,
        "model.drop_path": 0.1,
        "optimizer.base_lr": 1e-4,
        "optimizer.lr_batch": 512,
        "optimizer.b2": 0.999,
        "optimizer.clip_norm": 5.0,
        "optimizer.warmup_epochs": 10.0,
        "optimizer.schedule": "step",
        "optimizer.step_at": 0.875,
        "data.augment.scale": (0.67, 1.0),
    },
    ("beit_in1k", "model=B"): {"model.layer_scale": 0.1},
    ("beit_in1k", "model=L"): {"model.layer_scale": 1e-5},
    ("beit_v2_in1k", "model=B,epochs=300"): {
        "batch_size": 2048,
        "method.mask.kind": "block",
        "method.mask.ratio": 75 / 196,
        "method.mask.min_area": 16,
        "method.early": 9,
        "model.layer_scale": 0.1,
        "optimizer.base_lr": 1.5e-3,
        "optimizer.lr_batch": 2048,
        "optimizer.b2": 0.98,
        "optimizer.clip_norm": 3.0,
        "optimizer.warmup_epochs": 10.0,
        "data.augment.color_jitter": 0.4,
    },
    ("data2vec_in1k", "model=B"): {
        "method.mask.kind": "block",
        "method.mask.ratio": 120 / 196,
        "method.mean_of": 6,
        "optimizer.base_lr": 2e-3,
        "optimizer.lr_batch": 2048,
        "optimizer.clip_norm": 3.0,
    },
    ("maskfeat_in1k", "model=B"): {
        "method.mask.kind": "block",
        "method.mask.ratio": 78 / 196,
        "optimizer.base_lr": 1.6e-3,
        "optimizer.lr_batch": 2048,
        "optimizer.clip_norm": 0.02,
        "optimizer.warmup_epochs": 30.0,
    },
    ("segment_ade20k", "model=B"): {
        "batch_size": 16,
        "model.positions": "learned",
        "model.relative_bias": "block",
        "total_steps": 160_000,
        "image_size": 512,
        "data.scenes.scale": (2048, 512),
        "data.scenes.ratio": (0.5, 2.0),
        "model.drop_path": 0.1,
        "segmenter.auxiliary_weight": 0.4,
        "optimizer.base_lr": 1e-4,
        "optimizer.b2": 0.999,
        "optimizer.schedule": "poly",
        "optimizer.warmup_lr": 1e-10,
        "optimizer.layer_decay": 0.65,
        "evaluators.miou.stride": 341,
    },
}


@pytest.mark.parametrize("config", RECIPES, ids=str)
def test_recipes_are_those_of_the_papers(config):
    found = load(*config)
    expected = RECIPES[config]
    for key, value in expected.items():
        section = found
        for part in key.split("."):
            section = section[part]
        assert section == value, key


def test_ddae_without_settings_is_that_of_its_config():
    section = common.ddae().to_dict()
    del section["name"]
    encoder = Encoder(VIT_SPECS["B"], (14, 14), 16)
    plain = METHODS["ddae"](encoder)
    configured = settings.build(METHODS["ddae"], section, "method.", encoder)
    for name in ("masking", "layout", "heads", "momentum", "teacher_view"):
        assert getattr(plain, name) == getattr(configured, name), name
    for one, other in zip(plain.terms, configured.terms, strict=True):
        for name in ("name", "taps", "target", "loss", "difficulty"):
            assert getattr(one, name) == getattr(other, name), name
        weights = [
            float(t.weight(0.1) if callable(t.weight) else t.weight)
            for t in (one, other)
        ]
        assert weights[0] == weights[1] > 0


def test_mixing_without_settings_is_maes_fine_tuning():
    section = load("finetune_in1k", "model=B").mixing.to_dict()
    assert settings.build(Mixing, section, "mixing.") == Mixing()
