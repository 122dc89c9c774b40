"""The pieces of docs/python.md, in order, on the weights a quickstart begins with, and
the commands of docs/own_images.md."""

import importlib
import pathlib
import re
import shlex

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from configs import mae_in1k, quickstart
from ddae.interop import huggingface
from ddae.train import loop

ROOT = pathlib.Path(__file__).parents[1]
DOC = ROOT / "docs" / "python.md"
PIECES = re.findall(r"```(python|sh)\n(.+?)```", DOC.read_text(), re.S)
OWN = (ROOT / "docs" / "own_images.md").read_text()


def train(command, monkeypatch, changed=dict):
    """The run of a command of train.py with its config `changed`, cut to two steps, kNN
    left out."""
    first, second, file, *argv = shlex.split(command.replace("\\\n", ""))
    assert (first, second) == ("python", "train.py")
    name, text = re.fullmatch(r"--config=configs/(\w+)\.py:?(.*)", file).groups()
    config = importlib.import_module(f"configs.{name}").get_config(text or None)
    monkeypatch.setattr("sys.argv", ["train.py", *argv])
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values)
    workdir = flags.DEFINE_string("workdir", None, "", values)
    assert values(["train.py", *argv]) == ["train.py"]
    config = changed(config.to_dict())
    config["total_steps"] = 0 if config["total_steps"] == 0 else 2
    config["evaluators"].pop("knn", None)
    loop.run(config, workdir.value)


@pytest.mark.slow  # half a minute of CPU time, most of it compiling
def test_the_page_runs_as_it_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = quickstart.get_config().to_dict()
    loop.run(first | {"total_steps": 0, "evaluators": {}}, "runs/quickstart")
    found = {}
    for kind, code in PIECES:
        if kind == "sh":
            train(code, monkeypatch)
            continue
        capsys.readouterr()
        try:
            exec(compile(code, str(DOC), "exec"), found)
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}, of\n{code}")
        said = capsys.readouterr().out
        for comment in re.findall(r"^print\(.+\)  # (.+)$", code, re.M):
            shapes = re.findall(r"\([\d, ]+\)", comment)
            assert all(shape in said for shape in shapes), (said, comment)
    assert found["losses"][-1] < 0.95 * found["losses"][0]
    maps = np.stack(found["maps"])
    np.testing.assert_allclose(maps.sum(axis=-1), 1.0, rtol=1e-5)
    assert (tmp_path / "runs/redrawn/figures/reconstruction.png").exists()
    # What several blocks give at once is what each gives.
    for tap in (1, 2, 4):
        alone = found["encoder"](found["images"], tap=tap).patches
        np.testing.assert_allclose(found["found"][tap].patches, alone, atol=1e-4)


def small(config):
    """A config for photographs, cut to what a test bears."""
    config |= {"image_size": 64, "batch_size": 8, "dtype": "float32"}
    config["model"]["size"] = "Pico"
    if "method" in config:
        config["method"]["decoder"] |= {"depth": 1, "width": 64, "num_heads": 2}
    if "taps" in config.get("method", {}):
        config["method"]["taps"] = (2, 4)
    return config


@pytest.mark.slow  # four programs to compile
def test_the_way_for_images_of_your_own_runs_as_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw = np.random.default_rng(0)
    for split, each in (("train", 8), ("test", 3)):
        for file in (f"DIR/{split}/{c}/{i}.jpg" for c in "abc" for i in range(each)):
            pathlib.Path(file).parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 255, (70, 90, 3), np.uint8)
            Image.fromarray(pixels).save(file)
    lines = "".join(re.findall(r"```sh\n(.+?)```", OWN, re.S)).replace("\\\n", "")
    (data,) = re.findall(r'^DATA="(.+)"$', lines, re.M)
    commands = [line.replace("$DATA", data) for line in lines.splitlines()]
    for command in commands:
        program, *argv = shlex.split(command)
        if program == "hf":  # as transformers has a MAE, whose weights nobody fetches
            theirs = small(mae_in1k.get_config().to_dict())
            theirs |= {"total_steps": 0, "evaluators": {}}
            theirs["data"] |= {"name": "folder", "dir": "DIR", "eval_split": "test"}
            loop.run(theirs, "theirs")
            assert huggingface.main(["export", "theirs", "vit-mae-base"]) == 0
        elif command.startswith("python train.py"):
            train(command, monkeypatch, small)
        elif program == "python":
            assert importlib.import_module(argv[1]).main(argv[2:]) == 0, command
    assert len(np.load("features.npz")["files"]) == 9
    assert pathlib.Path("finetuned.safetensors").exists()
    assert (pathlib.Path("exported") / "config.json").exists()
    assert sum(command.startswith("python train.py") for command in commands) == 4


def test_it_has_the_pieces_that_its_sections_promise():
    assert [kind for kind, _ in PIECES].count("python") >= 7
    sections = re.split(r"^## ", DOC.read_text(), flags=re.M)[1:]
    assert all("```python" in section for section in sections)
