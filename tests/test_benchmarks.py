"""The benchmarks run at tiny size, go on where they were stopped, and make a page."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def run(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
    )


@pytest.mark.slow
def test_a_gpus_table_fills_itself_and_becomes_a_page(tmp_path):
    output = tmp_path / "rows.jsonl"
    command = ["benchmarks/gpu.py", "--smoke", "--no_configs", f"--output={output}"]
    first = run(*command)
    assert first.returncode == 0, first.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    parts = {row["part"]: row for row in rows if row["benchmark"] == "part"}
    assert parts["mae"]["ok"] and parts["attention"]["ok"], parts
    assert {row["benchmark"] for row in rows} >= {"step", "attention"}
    (taken,) = [row for row in rows if row["benchmark"] == "step"]
    assert taken["images_per_second"] > 0 and taken["flops_per_image"] > 0
    assert "mae: in rows.jsonl already" in run(*command).stdout

    page = tmp_path / "page.md"
    made = run("docs/performance.py", output, f"--output={page}")
    assert made.returncode == 0, made.stderr
    assert "**No GPU was at hand.**" in page.read_text()


@pytest.mark.parametrize("name", ["h100", "v4:2x", "gtx:1", "h100:1x2x3"])
def test_a_plan_wants_devices_that_it_knows(name):
    refused = run("benchmarks/plan.py", f"--slice={name}")
    assert refused.returncode == 2
    said = refused.stderr.strip().splitlines()[-1]
    assert f"--slice={name} is not like h100:8 or v4:4x4x4, of a100, " in said


def test_the_page_is_what_its_rows_make_it():
    """Nobody typed a figure into docs/performance.md."""
    sys.path.insert(0, str(ROOT / "docs"))
    import performance

    text = "\n".join(performance.page(performance.read([performance.KEPT])))
    assert (ROOT / "docs" / "performance.md").read_text() == text.rstrip() + "\n"
