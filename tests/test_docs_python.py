"""The pieces of docs/python.md, in order, on the weights a quickstart begins with."""

import importlib
import pathlib
import re
import shlex

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from configs import quickstart
from ddae.train import loop

ROOT = pathlib.Path(__file__).parents[1]
DOC = ROOT / "docs" / "python.md"
PIECES = re.findall(r"```(python|sh)\n(.+?)```", DOC.read_text(), re.S)


def train(command, monkeypatch):
    """The run of a command of train.py, cut to two steps, kNN left out."""
    first, second, file, *argv = shlex.split(command.replace("\\\n", ""))
    assert (first, second) == ("python", "train.py")
    name, text = re.fullmatch(r"--config=configs/(\w+)\.py:?(.*)", file).groups()
    config = importlib.import_module(f"configs.{name}").get_config(text or None)
    monkeypatch.setattr("sys.argv", ["train.py", *argv])
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values)
    workdir = flags.DEFINE_string("workdir", None, "", values)
    assert values(["train.py", *argv]) == ["train.py"]
    config = config.to_dict()
    config["total_steps"] = min(2, config["total_steps"])
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


def test_it_has_the_pieces_that_its_sections_promise():
    assert [kind for kind, _ in PIECES].count("python") >= 7
    sections = re.split(r"^## ", DOC.read_text(), flags=re.M)[1:]
    assert all("```python" in section for section in sections)
