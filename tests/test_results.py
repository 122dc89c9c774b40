"""docs/results.md and the README's table are what the committed numbers give."""

import importlib.util
import json
import pathlib

import pytest

from ddae.study.runner import known_to
from ddae.study.table import Run, config_of

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def results(monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("results", ROOT / "docs/results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_generated(results):
    assert (ROOT / "docs/results.md").read_text() == results.page()
    assert all(path.exists() for path in results.FIGURES)


def test_the_readme_has_the_pages_table(results):
    text = (ROOT / "README.md").read_text()
    assert results.BEGIN + results.front() + results.END in text


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "not run"),
        ((1.0, float("nan"), 1), "no verdict"),
        ((1.0, 0.08, 2), "no verdict"),  # t of one degree of freedom: 12.71
        ((1.0, 0.07, 2), "**ahead**"),
        ((1.0, 0.24, 3), "no difference shown"),  # t of 2 degrees of freedom: 4.303
        ((1.0, 0.23, 3), "**ahead**"),
        ((-1.0, 0.42, 8), "**behind**"),  # of 7: 2.365
        ((-1.0, 0.43, 8), "no difference shown"),
    ],
)
def test_nothing_that_a_t_test_does_not_show_is_called_a_difference(
    results, found, words
):
    assert words in results.verdict(found)


@pytest.mark.parametrize(
    "name", ["beta", "epochs", "laws", "long", "others", "parts", "tries"]
)
def test_every_kept_run_has_the_config_of_the_row_it_is_named_after(results, name):
    found = results.study(name)
    assert not {r["row"] for r in found.records} - {r.name for r in found.study.rows}
    logs = {path.stem: path for path in (results.KEPT / name / "logs").glob("*.jsonl")}
    assert set(logs) == {f"{r['row']}.seed{r['seed']}" for r in found.records}
    for record in found.records:
        row, seed = found.study.row(record["row"]), record["seed"]
        text = logs[f"{row.name}.seed{seed}"].read_text()
        kept = json.loads(text.splitlines()[0])["config"]
        says = config_of(found.study, Run(row, seed), "", {"data.name": "npz"})
        says = json.loads(json.dumps(says))
        for config in (kept, says):  # where things lay, and how long one is by cost
            config["data"]["dir"] = ""
            config["method"].get("tokenizer", {})["workdir"] = ""
            if row.repeats:
                config["total_steps"] = None
        # The kept logs have five digits, and no keys that are newer than they.
        assert results.rounded(known_to(says, kept)) == results.rounded(kept)
