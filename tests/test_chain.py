"""From pretraining to another library: the same answers there."""

import importlib.util
import pathlib

import pytest
from conftest import tiny_config
from test_classify import classify_config

from ddae.interop import huggingface
from ddae.train import loop
from ddae.train.metrics import read_metrics

pytestmark = pytest.mark.torch

FILE = pathlib.Path(__file__).parents[1] / "examples" / "compare_with_transformers.py"


def test_a_fine_tuned_run_answers_alike_in_transformers(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    pretrained, finetuned, exported = (str(tmp_path / name) for name in "abc")
    loop.run(tiny_config(total_steps=2), pretrained)
    init = {"workdir": pretrained, "may_leave": ("/mask_token$", "^/encoder/norm/")}
    loop.run(classify_config(total_steps=20, init=init), finetuned)
    (top1,) = [
        row["eval/top1"]
        for row in read_metrics(finetuned + "/metrics.jsonl")
        if row.get("eval/top1") and row["step"] == 20
    ]
    assert huggingface.main(["export", finetuned, exported]) == 0
    capsys.readouterr()
    assert example.main([finetuned, exported, "--images=0"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"360 images: top-1 {top1:.2f} here, {top1:.2f} in")
    # Another run's export is told apart.
    assert example.main([finetuned, exported_of_another(tmp_path), "--images=0"]) == 1


def exported_of_another(tmp_path):
    loop.run(classify_config(total_steps=1), str(tmp_path / "other"))
    folder = str(tmp_path / "other_exported")
    assert huggingface.main(["export", str(tmp_path / "other"), folder]) == 0
    return folder
