"""The benchmarks run at tiny size, go on where they were stopped, and make a page."""

import json
import pathlib
import random
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import measure  # noqa: E402
import soak  # noqa: E402


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
    assert all(parts[name]["ok"] for name in ("mae", "attention", "tiles")), parts
    assert {row["benchmark"] for row in rows} >= {"step", "attention", "tiles"}
    assert all(row["seconds"] > 0 for row in rows if row["benchmark"] == "tiles")
    (taken,) = [row for row in rows if row["benchmark"] == "step"]
    assert taken["images_per_second"] > 0 and taken["flops_per_image"] > 0
    assert list(tmp_path.rglob("*.xplane.pb")), "the profile that a GPU's part writes"
    stacks = [row for row in rows if row["benchmark"] == "attention"]
    assert len(stacks) == 8 and all(row["xla_seconds"] > 0 for row in stacks)
    few = [row for row in stacks if row["pallas_seconds"]]
    assert {row["tokens"] for row in few} == {50, 197}
    assert all(row["pallas_difference"] < 0.02 for row in few)
    assert "mae: in rows.jsonl already" in run(*command).stdout

    page = tmp_path / "page.md"
    made = run("docs/performance.py", output, f"--output={page}")
    assert made.returncode == 0, made.stderr
    assert "**No GPU was at hand.**" in page.read_text()


@pytest.mark.slow
def test_a_save_is_timed_as_it_is_and_as_orbax_has_it(tmp_path):
    output = tmp_path / "rows.jsonl"
    command = ["--config=quickstart", "--devices=2", "--times=2", f"--output={output}"]
    made = run("benchmarks/save.py", *command)
    assert made.returncode == 0, made.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["what"] for row in rows] == ["Orbax's own", "as it is"]
    assert all(row["devices"] == 2 and row["later_seconds"] > 0 for row in rows)
    assert rows[0]["arrays"] == rows[1]["arrays"] > 100


@pytest.mark.slow
def test_a_log_in_a_bucket_is_sent_less_often_than_its_rows(tmp_path):
    output = tmp_path / "rows.jsonl"
    command = ["--config=quickstart", "--rows=6", f"--output={output}"]
    made = run("benchmarks/log.py", *command)
    assert made.returncode == 0, made.stderr
    before, now = [json.loads(line) for line in output.read_text().splitlines()]
    assert (before["what"], now["what"]) == ("as on a disk", "as it is")
    assert now["requests"] < before["requests"] / 2 and 0 < now["bytes"]
    assert now["bytes"] < before["bytes"] / 2


@pytest.mark.slow
def test_images_are_read_in_each_way(tmp_path):
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(load_sample_images().images):
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.jpg")
    output = tmp_path / "rows.jsonl"
    command = [f"--dir={tmp_path / 'images'}", "--images=800", "--rounds=1"]
    made = run("benchmarks/reading.py", *command, f"--output={output}")
    assert made.returncode == 0, made.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len({(row["files"], row["what"], row["delay"]) for row in rows}) == 9
    assert all(row["images_per_cpu_second"] > 0 for row in rows)


@pytest.mark.slow
def test_images_of_a_bucket_are_requests_and_those_of_copies_are_none(tmp_path):
    draw = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(40):
        (tmp_path / f"images/{number}").write_bytes(draw.bytes(20000))
    output = tmp_path / "rows.jsonl"
    command = [f"--dir={tmp_path / 'images'}", "--delay=0.01", f"--output={output}"]
    made = run("benchmarks/bucket.py", *command)
    assert made.returncode == 0, made.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    found = {row["what"]: row for row in rows}
    assert found["ArrayRecord, read"]["requests"] >= 1.0
    assert found["TFRecord, read"]["requests"] >= 1.0
    assert 0.0 < found["ArrayRecord, copied"]["requests"] < 0.5
    assert found["copies, read"]["requests"] == 0.0


def test_a_profile_says_what_a_gpus_kernels_were_for(tmp_path, monkeypatch):
    """By the names that kernels had in profiles of an H100, two steps in each."""
    names = {
        "matrix products": ["nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT"],
        "attention": [
            "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob",
            "void cudnn::fusion::compute_dot_do_o<true>(void const*, float)",
            "short_attention_backward",
        ],
        "zeros and copies": ["Memset 3", "MemcpyD2D"],
        "sums over an axis": ["input_convert_reduce_fusion_1", "triton_softmax_2"],
        "of each element alone": ["loop_add_fusion_3", "input_concatenate_fusion"],
    }

    def line(found):
        events = [SimpleNamespace(name=n, duration_ns=3e6) for n in found]
        return SimpleNamespace(events=events)

    lines = [line(found) for found in names.values()]
    planes = [
        SimpleNamespace(name="/device:GPU:0", lines=lines),
        SimpleNamespace(name="/host:CPU", lines=[line(["loop of the host"])]),
    ]
    read = SimpleNamespace(from_file=lambda path: SimpleNamespace(planes=planes))
    monkeypatch.setattr(jax.profiler, "ProfileData", read)
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "host.xplane.pb").touch()
    found = measure.kernel_seconds(tmp_path, 2)
    assert found == {
        kind: pytest.approx([3e-3 * len(kernels) / 2, len(kernels) / 2])
        for kind, kernels in names.items()
    }
    rows = measure.kernel_rows(found)
    assert rows[0] == {
        "kernels": "attention",
        "ms a step": "4.5",
        "share": "30 %",
        "number": "2",
    }
    assert measure.kernel_rows({}) == []


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


def test_a_command_is_said_without_the_places_of_its_files(monkeypatch):
    given = "step.py --config quickstart --output FILE --profile=DIR --set a=(1,2)"
    monkeypatch.setattr(sys, "argv", given.split())
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    said = "python benchmarks/step.py --config quickstart --set 'a=(1,2)'"
    assert measure.command() == said


COUNTS = """
import json, os, pathlib, sys, time

(workdir,) = (pathlib.Path(word[10:]) for word in sys.argv if "workdir" in word)
workdir.mkdir(exist_ok=True)
kept = workdir / "step"
first = int(kept.read_text()) if kept.exists() else 0
for step in range(first, 20):
    time.sleep(0.05)
    row = {"step": step, "loss": step + WRONG * (first > 0), "seconds": time.time()}
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\\n")
    (workdir / "next").write_text(str(step + 1))
    os.replace(workdir / "next", kept)
"""


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_soak_hits_a_run_until_it_is_done_and_finds_what_became_of_it(
    wrong, tmp_path, monkeypatch
):
    """Here of a run that counts, rightly or not after a resume."""
    (tmp_path / "train.py").write_text(COUNTS.replace("WRONG", str(wrong)))
    monkeypatch.setattr(soak, "ROOT", tmp_path)
    hit, chance = str(tmp_path / "elsewhere"), random.Random(0)
    found = soak.soak([], str(tmp_path), hit, 1, chance, (0.5, 0.9), 20.0)
    assert sum(found["hits"].values()) >= 1
    assert found["values"] == 40, "a step and a loss in each row, and no time"
    assert bool(found["different"]) == bool(wrong)
