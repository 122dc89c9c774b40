"""The README keeps its promises: two commands, every config, files that exist."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def quickstart():
    section = README.split("## Quickstart", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```sh\n(.+?)\n```", section, re.S)


def test_quickstart_is_exactly_two_one_line_commands():
    commands = quickstart()
    assert len(commands) == 2 and not any("\n" in c for c in commands)
    assert "--workdir=runs/quickstart" in commands[0]
    assert commands[1].endswith("python3 -m pytest -n 2")


def test_the_first_command_names_files_that_exist():
    words = shlex.split(quickstart()[0])
    assert (ROOT / "train.py").exists() and "train.py" in words
    (config,) = [w for w in words if w.startswith("--config=")]
    assert (ROOT / config.removeprefix("--config=")).exists()


def test_every_config_has_a_status_row():
    first = re.findall(r"^\| (`[^|]+) \|", README, re.M)
    rows = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    files = {p.stem for p in (ROOT / "configs").glob("*.py")} - {"__init__", "common"}
    assert rows == files


def test_links_and_pictures_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_readme_stays_under_three_screens():
    assert len(README.splitlines()) < 150


def test_speeds_are_the_newest():
    kept = (ROOT / "docs" / "results" / "performance.jsonl").read_text().splitlines()
    speeds = {
        row["method"]: f"{row['images_per_second']:,.0f}"
        for row in map(json.loads, kept)
        if row["benchmark"] == "step" and row.get("batch") == 512 and row["size"] == "B"
    }
    said = re.search(r"ViT-B at ([\d,]+) and ([\d,]+) images/s", README)
    assert said.groups() == (speeds["mae"], speeds["ddae"])


def config_py(*arguments):
    return subprocess.run(
        [sys.executable, "docs/config.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )


def test_the_page_of_keys_is_what_the_code_reads(tmp_path):
    config_py(f"--output={tmp_path / 'config.md'}")
    assert (ROOT / "docs/config.md").read_text() == (tmp_path / "config.md").read_text()


def test_help_for_the_page_of_keys_writes_none():
    page = ROOT / "docs" / "config.md"
    before = page.stat().st_mtime_ns
    assert "--output" in config_py("--help").stdout
    assert page.stat().st_mtime_ns == before
