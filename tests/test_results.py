"""docs/results.md and the README's table are what the committed numbers give."""

import importlib.util
import pathlib

import pytest

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
        ((1.0, 0.51, 3), "no difference is shown"),
        ((1.0, 0.49, 3), "ahead by more than two"),
        ((-1.0, 0.49, 8), "behind by more than two"),
    ],
)
def test_nothing_within_two_standard_errors_is_called_a_difference(
    results, found, words
):
    assert words in results.verdict(found)
