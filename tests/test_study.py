"""Studies: what is run, what is skipped, and that the numbers are the runs' own."""

import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny import tiny_config

from ddae import data, eval, tasks
from ddae.settings import UserError
from ddae.study import report
from ddae.study.__main__ import main
from ddae.study.runner import Runner, cost_of, known_to, score_workdir
from ddae.study.table import (
    Run,
    config_of,
    read_study,
    runs_of,
    study_from_dict,
)
from ddae.train import loop
from ddae.train.metrics import read_metrics
from ddae.train.signals import Signals
from ddae.train.state import NonFiniteError

ROOT = pathlib.Path(__file__).parents[1]
STUDIES = sorted(
    p.stem
    for p in (ROOT / "configs/studies").glob("*.py")
    if p.stem not in ("__init__", "common")
)
CHOICES = [
    *(f"configs/studies/{name}.py" for name in STUDIES),
    *(f"configs/studies/{name}.py:scale=small" for name in STUDIES),
    "configs/studies/others.py:tokenizer=runs/vqkd_cifar10",
]
CONFIG = """
from ml_collections import ConfigDict
def get_config(text=None):
    return ConfigDict({tiny!r})
"""
STUDY = """
def get_study(text=None):
    config = {config!r}
    rows = [
        {{"name": "a", "config": config, "x": 1, "series": "s"}},
        {{"name": "b", "config": config, "set": {{"method.tap_weight": 0.5}}, "x": 2,
         "series": "s"}},
        {{"name": "long", "repeats": "a", "at_cost_of": "b", "seeds": (0,)}},
    ]
    return {{
        "about": "a test",
        "rows": rows,
        "seeds": (0, 1),
        "scores": {{"knn": {{"k": 5, "num_train": 100, "num_held_out": 50}}}},
        "control": "a",
    }}
"""


@pytest.fixture
def study_file(tmp_path):
    tiny = tiny_config(log_every_steps=1, init__workdir="")
    tiny["method"] |= {"tap_weight": 0.25}
    (tmp_path / "config.py").write_text(CONFIG.format(tiny=tiny))
    path = tmp_path / "small.py"
    path.write_text(STUDY.format(config=str(tmp_path / "config.py")))
    return str(path)


def shape_of(text):
    """Of the images of a study."""
    side = 24 if "/grid.py" in text else 32
    return side, side, 3


@pytest.mark.parametrize("text", CHOICES)
def test_every_row_of_every_study_builds(text, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = read_study(text)
    assert study.control and len(runs_of(study)) >= len(study.rows)
    for run in runs_of(study):
        if run.seed == study.seeds[0] and not run.row.repeats:
            task = tasks.from_config(config_of(study, run, "runs", {}))
            assert task.image_shape == shape_of(text)


@pytest.mark.slow
@pytest.mark.parametrize("text", CHOICES)
def test_every_row_of_every_study_plans(text, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    images = np.zeros((600, *shape_of(text)), np.uint8)
    for split in ("train", "test"):
        np.savez(tmp_path / split, images=images, labels=np.arange(600) % 10)
    changes = {"data.name": "npz", "data.dir": str(tmp_path)}
    for run in runs_of(study := read_study(text)):
        if run.seed == study.seeds[0] and not run.row.repeats and not run.follow_up:
            loop.plan(config_of(study, run, "runs", changes))


@pytest.mark.parametrize("text", CHOICES)
def test_what_follows_the_rows_of_a_study_takes_their_arrays(
    text, monkeypatch, tmp_path
):
    monkeypatch.chdir(ROOT)
    images = np.zeros((20, *shape_of(text)), np.uint8)
    for split in ("train", "test"):
        np.savez(tmp_path / split, images=images, labels=np.arange(20) % 10)
    changes = {"data.name": "npz", "data.dir": str(tmp_path)}
    study = read_study(text)
    after = {run.follow_up: run for run in runs_of(study) if run.follow_up}
    for run in after.values():
        data.from_config(config_of(study, run, "runs", changes), shape_of(text))


def test_the_study_that_the_page_shows_builds(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "studies.md").read_text()
    (code,) = re.findall(r"```python\n(.+?)```", page, re.S)
    (tmp_path / "shown.py").write_text(code)
    study = read_study(str(tmp_path / "shown.py"))
    assert [str(run) for run in runs_of(study)] == [
        "mae, seed 0",
        "ddae,short, seed 0",
        "mae,cost-of-ddae, seed 0",
        "mae, seed 0, finetuned",
        "ddae,short, seed 0, finetuned",
        "mae, seed 1",
        "mae,cost-of-ddae, seed 1",
        "mae, seed 1, finetuned",
    ]
    after = config_of(study, runs_of(study)[3], "runs", {})
    assert after["init"]["workdir"] == "runs/runs/mae/seed0"
    tasks.from_config(after)
    for run in runs_of(study)[:3]:
        config = config_of(study, run, "runs", {})
        tasks.from_config(config)
        assert config["total_steps"] == run.row.set.get("total_steps")


def test_most_telling_first(study_file):
    study = read_study(study_file)
    order = [(run.row.name, run.seed) for run in runs_of(study)]
    assert order == [("a", 0), ("b", 0), ("long", 0), ("a", 1), ("b", 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "x y"}, "no folder's name; take letters, digits and any of"),
        ({"config": ""}, "wants a config, or both"),
        ({"repeats": "a"}, "wants a config, or both"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_wrong_row_is_named(change, message):
    row = {"name": "a", "config": "c.py"} | change
    made = {"about": "", "seeds": (0,), "rows": [row]}
    with pytest.raises(UserError, match=message):
        study_from_dict("t", made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": {"a": {"config": "c.py"}}}, "rows is no list; give a list of dicts"),
        ({"rows": ["a"]}, "the row 'a' is no dict"),
        ({"follow_ups": [{"config": "c.py"}]}, "follow_ups is not a dict of dicts"),
        ({"follow_ups": {"knn": "c.py"}}, "follow_ups is not a dict of dicts"),
    ],
)
def test_a_study_of_another_shape_is_one_line(change, message):
    made = {"about": "", "seeds": (0,), "rows": [{"name": "a", "config": "c.py"}]}
    with pytest.raises(UserError, match=message):
        study_from_dict("t", made | change)
    with pytest.raises(UserError, match="what get_study gives is no dict"):
        study_from_dict("t", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.py"], "no file 'nothing.py'"),
        (["STUDY", "--set", "colour"], "expected KEY=VALUE"),
        (["STUDY", "--set", "method.colour=1"], "no key method.colour"),
        (["STUDY", "--set", "method.colour=1", "--list"], "no key method.colour"),
        (["STUDY", "--set", "image_size=9"], "does not divide"),
        (["STUDY", "--only", "zebra"], "leaves no run"),
    ],
)
def test_errors_are_one_line(arguments, message, study_file, tmp_path, capsys):
    arguments = [study_file if a == "STUDY" else a for a in arguments]
    assert main([*arguments, "--workdir", str(tmp_path / "w")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_study_runs_skips_and_reports(study_file, tmp_path, capsys):
    workdir = tmp_path / "w"
    assert main([study_file, "--workdir", str(workdir), "--only", "seed 0"]) == 0
    assert "[3/3] long, seed 0" in capsys.readouterr().out
    done = workdir / "runs/a/seed0/done.json"
    before = done.stat().st_mtime_ns
    assert not (done.parent / "checkpoints").exists()  # weights are not kept
    assert main([study_file, "--workdir", str(workdir)]) == 0
    assert done.stat().st_mtime_ns == before
    assert main([study_file, "--workdir", str(workdir), "--list"]) == 0
    out = capsys.readouterr().out
    assert out.count("done ") == 5 and "to do" not in out

    study = read_study(study_file)
    runner = Runner(study, str(workdir), {})
    results = [runner.result(run) for run in runs_of(study)]
    assert all(
        result and 0 <= result["scores"]["knn5_top1"] <= 100 for result in results
    )
    a, b, long = (next(r for r in results if r["row"] == n) for n in ("a", "b", "long"))
    assert long["steps"] == round(a["steps"] * b["cost"] / a["cost"])
    assert long["config"]["total_steps"] == long["steps"]
    assert (
        read_metrics(workdir / "runs/long/seed0/metrics.jsonl")[-1]["step"]
        == (long["steps"])
    )
    records = report.read_csv(str(workdir / "results.csv"))
    values = report.values_of(records, "a", "knn5_top1")
    assert values == {
        seed: runner.result(Run(study.row("a"), seed))["scores"]["knn5_top1"]
        for seed in (0, 1)
    }
    table = (workdir / "results.md").read_text()
    mean, deviation = np.mean(list(values.values())), np.std([*values.values()], ddof=1)
    assert f"{mean:.2f} ± {deviation:.2f} (2)" in table
    assert (workdir / "figures/knn5_top1.png").exists()

    again = [study_file, "--workdir", str(tmp_path / "w2"), "--only", "^[ab]"]
    assert main([*again, "--adopt", str(workdir)]) == 0
    assert capsys.readouterr().out.count("the same as") == 4
    taken = Runner(study, str(tmp_path / "w2"), {}).result(Run(study.row("a"), 1))
    assert taken == runner.result(Run(study.row("a"), 1))

    # A key that an older version did not have yet is no other config.
    done = workdir / "runs/a/seed0/done.json"
    older = json.loads(done.read_text())
    del older["config"]["log_every_steps"]
    done.write_text(json.dumps(older))
    assert main([study_file, "--workdir", str(workdir)]) == 0

    text = pathlib.Path(study_file).read_text().replace("0.5", "0.75")
    pathlib.Path(study_file).write_text(text)
    assert main([study_file, "--workdir", str(workdir)]) == 2
    assert "another config.method.tap_weight" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_study_goes_on(study_file, tmp_path):
    """Killed in the middle of a run: it resumes, and ends as an undisturbed one."""
    changes = ("total_steps=60", "checkpoint_every_steps=10", "model.size=Pico")
    changes += ("method.taps=(2,4)",)
    changes = [word for change in changes for word in ("--set", change)]

    def command(workdir):
        return [
            *(sys.executable, "-m", "ddae.study", study_file, "--only", "^a, seed 0"),
            *("--workdir", str(workdir), *changes),
        ]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(command(killed), cwd=ROOT, stdout=subprocess.DEVNULL)
    folder = killed / "runs/a/seed0"
    while not list(folder.glob("checkpoints/*/commit_success.txt")):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "done.json").exists()
    for workdir in (killed, whole):
        subprocess.run(command(workdir), cwd=ROOT, check=True)
    results = [
        json.loads((w / "runs/a/seed0/done.json").read_text()) for w in (killed, whole)
    ]
    assert results[0]["scores"] == results[1]["scores"]
    assert "resuming at step" in (folder / "log.txt").read_text()


FOLLOWED = """
def get_study(text=None):
    config = {config!r}
    rows = [{{"name": "a", "config": config}}]
    probe = {{"config": config, "score": "eval/x"}}
    made = {{"about": "", "rows": rows, "seeds": (0, 1), "follow_ups": {{"p": probe}}}}
    return made | {{"scores": {{"knn": {{"k": 5}}}}}} | {changes!r}
"""


@pytest.fixture
def followed(study_file, tmp_path, monkeypatch):
    """Makes a study whose rows have something that follows; its runs take no time."""
    ran = []

    def run(config, folder, signals):
        ran.append(pathlib.Path(folder))
        (ran[-1] / "config.json").write_text("{}")
        (ran[-1] / "checkpoints").mkdir(exist_ok=True)
        (ran[-1] / "metrics.jsonl").write_text('{"step": 4, "eval/x": 1.0}\n')

    monkeypatch.setattr("ddae.study.runner.loop.run", run)
    monkeypatch.setattr("ddae.study.runner.score_workdir", lambda *_: {"knn": 2.0})

    def make(**changes):
        config = str(tmp_path / "config.py")
        path = tmp_path / "followed.py"
        path.write_text(FOLLOWED.format(config=config, changes=changes))
        return str(path), ran

    return make


def test_a_follow_up_whose_score_is_not_finite_has_failed(
    followed, tmp_path, monkeypatch, capsys
):
    """The log has null for it, which no table could be made of."""
    study, _ = followed()

    def run(config, folder, signals):
        score = "null" if folder.endswith("seed0/p") else "1.0"
        rows = f'{{"step": 2, "eval/x": 9}}\n{{"step": 4, "eval/x": {score}}}\n'
        (pathlib.Path(folder) / "metrics.jsonl").write_text(rows)

    monkeypatch.setattr("ddae.study.runner.loop.run", run)
    assert main([study, "--workdir", str(tmp_path / "w")]) == 0
    said = capsys.readouterr().out
    assert "a, seed 0, p: eval/x is not finite" in said
    assert "a, seed 1, p: p 1.00" in said
    table = (tmp_path / "w/results.md").read_text()
    assert "1.00 (1) failed: p: eval/x is not finite" in table
    assert main([study, "--workdir", str(tmp_path / "w"), "--list"]) == 0
    assert "eval/x is not finite a, seed 0, p" in capsys.readouterr().out


def test_a_row_whose_config_is_not_here_says_where_it_was_looked_for(
    tmp_path, monkeypatch, capsys
):
    """As one who runs a study of ours from another folder sees it."""
    study = ROOT / "configs/studies/parts.py"
    monkeypatch.chdir(tmp_path)
    assert main([str(study), "--workdir=runs"]) == 2
    said = capsys.readouterr().err
    assert f"in {tmp_path}; expected a Python file, whose path" in said


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"scores": {"knn": {"kk": 5}}}, "knn.kk is not a setting"),
        (
            {"follow_ups": {"p": {"config": "", "score": "x", "set": {"a.b": 1}}}},
            "expected a Python file",
        ),
        (
            {
                "rows": [
                    {"name": "a", "config": "c.py", "seeds": (1,)},
                    {"name": "r", "repeats": "a", "at_cost_of": "a"},
                ]
            },
            "'r' wants 'a' at seed 0, the study's first",
        ),
        (
            {
                "rows": [
                    {"name": "a", "config": "c.py"},
                    {"name": "r", "repeats": "a", "at_cost_of": "a"},
                    {"name": "q", "repeats": "a", "at_cost_of": "r"},
                ]
            },
            "row 'r' repeats another itself",
        ),
    ],
)
def test_what_comes_after_the_training_is_read_before_it(
    changes, says, followed, tmp_path, capsys
):
    path, ran = followed(**changes)
    assert main([path, "--workdir", str(tmp_path / "w")]) == 2
    assert says in capsys.readouterr().err and not ran


def test_the_images_of_what_follows_are_looked_for_before_the_training(
    followed, tmp_path, capsys
):
    probe = {"config": str(tmp_path / "config.py"), "score": "x"}
    path, ran = followed(follow_ups={"p": probe | {"set": {"data.name": "npz"}}})
    assert main([path, "--workdir", str(tmp_path / "w")]) == 2
    assert "no file train.npz" in capsys.readouterr().err and not ran


def test_a_study_that_is_asked_to_stop_begins_no_other_run(
    followed, tmp_path, monkeypatch, capsys
):
    path, ran = followed()

    def score(workdir, scores, signals):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"knn": 2.0}

    with monkeypatch.context() as patch:
        patch.setattr("ddae.study.runner.score_workdir", score)
        assert main([path, "--workdir", str(tmp_path / "w")]) == 75
    assert "3 runs are left" in capsys.readouterr().err and len(ran) == 1
    assert main([path, "--workdir", str(tmp_path / "w")]) == 0
    assert len(ran) == 4


def test_a_moved_study_and_one_adopted_are_as_they_were(followed, tmp_path, capsys):
    path, ran = followed()
    assert main([path, "--workdir", str(tmp_path / "w"), "--keep_weights"]) == 0
    (tmp_path / "w").rename(tmp_path / "moved")
    assert main([path, "--workdir", str(tmp_path / "moved")]) == 0
    assert len(ran) == 4
    again = [path, "--workdir", str(tmp_path / "again")]
    assert main([*again, "--adopt", str(tmp_path / "moved")]) == 0
    assert [p.name for p in ran[4:]] == ["p", "p"]  # what follows is trained here
    assert main(again) == 0 and len(ran) == 6
    # Killed in the copy, nothing counts as done.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "_keep", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            main([*again[:2], str(tmp_path / "k"), "--adopt", str(tmp_path / "moved")])
    assert not list((tmp_path / "k").rglob("done.json"))


def test_what_is_followed_is_not_adopted_without_weights(followed, tmp_path, capsys):
    """As a study leaves its runs, what follows would find nothing to begin with."""
    path, ran = followed()
    assert main([path, "--workdir", str(tmp_path / "w")]) == 0
    again = [path, "--workdir", str(tmp_path / "again"), "--adopt"]
    capsys.readouterr()
    assert main([*again, str(tmp_path / "w")]) == 0
    assert [p.name for p in ran[4:]] == ["seed0", "p", "seed1", "p"]
    assert "a, seed 1: trained anew" in capsys.readouterr().out


def test_a_workdir_to_adopt_is_there_and_of_any_name(followed, tmp_path, capsys):
    path, ran = followed(follow_ups={})
    command = [path, "--workdir", str(tmp_path / "w"), "--adopt"]
    assert main([*command, str(tmp_path / "wrong")]) == 2 and not ran
    assert "wrong is no study's workdir: it has no runs/" in capsys.readouterr().err
    assert main([path, "--workdir", str(tmp_path / "of [1]")]) == 0
    assert main([*command, str(tmp_path / "of [1]")]) == 0
    assert len(ran) == 2


def test_runs_that_wait_for_others_are_said(followed, tmp_path, capsys):
    path, ran = followed()
    assert main([path, "--workdir", str(tmp_path / "w"), "--only=, p$"]) == 0
    assert "not begun: 2 runs, a, seed 0, p among them" in capsys.readouterr().out
    assert not ran


def test_what_other_processes_have_is_said(followed, tmp_path, capsys):
    path, ran = followed()
    claim = tmp_path / "w" / "runs/a/seed0/.claim"
    claim.parent.mkdir(parents=True)
    with claim.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main([path, "--workdir", str(tmp_path / "w")]) == 0
    assert "with other processes: 1 runs" in capsys.readouterr().out
    assert len(ran) == 2


def test_scores_are_given_anew_to_what_has_its_weights(
    followed, tmp_path, monkeypatch, capsys
):
    path, ran = followed()
    command = [path, "--workdir", str(tmp_path / "w")]
    assert main([*command, "--keep_weights"]) == 0
    shutil.rmtree(tmp_path / "w/runs/a/seed1/checkpoints")
    given = []

    def score(workdir, scores, signals):
        given.append((pathlib.Path(workdir).name, scores))
        return {"knn": 7.0}

    monkeypatch.setattr("ddae.study.runner.score_workdir", score)
    capsys.readouterr()
    assert main([*command, "--rescore", "knn"]) == 0
    assert given == [("seed0", {"knn": {"k": 5}})] and len(ran) == 4
    assert "a, seed 0: knn 7.00\n" in capsys.readouterr().out
    records = report.read_csv(str(tmp_path / "w/results.csv"))
    assert report.values_of(records, "a", "knn") == {0: 7.0, 1: 2.0}
    assert report.values_of(records, "a", "p") == {0: 1.0, 1: 1.0}
    assert main([*command, "--rescore", "kn"]) == 2
    assert "--rescore=kn: followed has scores ['knn']" in capsys.readouterr().err


def test_a_picture_is_no_score(monkeypatch):
    config = tiny_config()
    found = {"found": 1.0, "picture": np.zeros((2, 2, 3))}
    monkeypatch.setattr("ddae.study.runner.load_params", lambda _: ({}, config))
    monkeypatch.setitem(eval.EVALUATORS, "seen", lambda *_: lambda *_: found)
    assert score_workdir("w", {"seen": {}}, Signals()) == {"found": 1.0}


def test_what_is_adopted_is_of_the_row_here_and_scored_here(
    followed, tmp_path, monkeypatch
):
    path, ran = followed(follow_ups={})
    command = [path, "--keep_weights", "--workdir"]
    assert main([*command, str(tmp_path / "w")]) == 0
    shutil.rmtree(tmp_path / "w/runs/a/seed1/checkpoints")
    rows = [{"name": "b", "config": str(tmp_path / "config.py")}]
    followed(follow_ups={}, rows=rows)
    monkeypatch.setattr("ddae.study.runner.score_workdir", lambda *_: {"knn": 7.0})
    again = [*command, str(tmp_path / "again"), "--adopt", str(tmp_path / "w")]
    assert main(again) == 0 and len(ran) == 2
    records = report.read_csv(str(tmp_path / "again/results.csv"))
    assert report.values_of(records, "b", "knn") == {0: 7.0, 1: 2.0}


def test_weights_stay_for_as_long_as_something_waits_for_them(followed, tmp_path):
    path, _ = followed()
    run = tmp_path / "w/runs/a/seed0"
    for only, kept in (("seed 0$", [run]), (", p$", [])):
        command = [path, "--workdir", str(tmp_path / "w"), f"--only={only}"]
        assert main(command) == 0
        assert [p.parent for p in run.rglob("checkpoints")] == kept


def test_what_builds_on_a_failed_run_is_not_begun_and_nobody_adopts_it(
    followed, tmp_path, monkeypatch, capsys
):
    path, ran = followed()

    def run(config, folder, signals, original=loop.run):
        if folder.endswith("seed0"):
            (pathlib.Path(folder) / "checkpoints").mkdir()
            raise NonFiniteError("not finite")
        original(config, folder, signals)

    monkeypatch.setattr("ddae.study.runner.loop.run", run)
    assert main([path, "--workdir", str(tmp_path / "w"), "--keep_weights"]) == 0
    said = capsys.readouterr().out
    assert "a, seed 0: not finite" in said
    assert "not begun: 1 runs, a, seed 0, p among them" in said
    records = report.read_csv(str(tmp_path / "w/results.csv"))
    assert [r.get("failed") for r in records] == ["not finite", None]
    again = [path, "--workdir", str(tmp_path / "x"), "--adopt", str(tmp_path / "w")]
    assert main(again) == 0
    said = capsys.readouterr().out
    assert "a, seed 1: the same" in said and "a, seed 0: the same" not in said


def test_no_run_is_begun_after_the_budget(followed, tmp_path, capsys):
    path, ran = followed()
    command = [path, "--workdir", str(tmp_path / "w"), "--budget"]
    assert main([*command, "0"]) == 0 and not ran
    assert "the budget is spent; 4 runs are left" in capsys.readouterr().out
    assert main([*command, "60"]) == 0 and len(ran) == 4


def test_what_is_done_is_counted_and_what_is_left_takes_as_long(followed, tmp_path):
    """And a run that another process has done since is not claimed."""
    path, _ = followed()
    assert main([path, "--workdir", str(tmp_path / "w"), "--only=seed 0$"]) == 0
    runner = Runner(study := read_study(path), str(tmp_path / "w"), {})
    runs = runs_of(study)
    with runner.claimed(runs[0]) as mine:
        assert not mine
    with runner.claimed(runs[1]) as mine:
        assert mine
    result = {"scores": {"knn": 2.0, "iou/x": 1.0}, "cost": 9.0, "cost_unit": "s"}
    line = runner._line(runs[0], result, runs, 60.0)
    assert line == "[1/4] a, seed 0: knn 2.00, 9 s; left 3m00s"


def test_what_is_set_for_all_runs_is_more_than_what_a_row_sets(study_file):
    study = read_study(study_file)
    row = Run(study.row("b"), 1)
    for changes, weight in (({}, 0.5), ({"method.tap_weight": "0.75"}, 0.75)):
        config = config_of(study, row, "runs", changes)
        assert config["method"]["tap_weight"] == weight and config["seed"] == 1


def test_seeds_of_a_row_alone_are_run_too():
    rows = [{"name": "a", "config": "c.py"}]
    rows += [{"name": "b", "config": "c.py", "seeds": (5, 0)}]
    study = study_from_dict("t", {"about": "", "seeds": (0, 1), "rows": rows})
    order = [(run.row.name, run.seed) for run in runs_of(study)]
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 5)]


def test_what_a_study_scores_itself_is_not_evaluated_in_training(followed, tmp_path):
    tiny = tiny_config(init__workdir="", evaluators={"knn": {"k": 5}})
    path, _ = followed()
    (tmp_path / "config.py").write_text(CONFIG.format(tiny=tiny))
    study = read_study(path)
    for run in runs_of(study):
        found = set(config_of(study, run, "w", {})["evaluators"])
        assert found == ({"knn"} if run.follow_up else set())


def test_a_row_takes_as_many_steps_as_another_costs(study_file, tmp_path):
    study = read_study(study_file)
    runner = Runner(study, str(tmp_path / "w"), {})
    a, b, long = runs_of(study)[:3]

    def done(run, **result):
        with runner.claimed(run):
            runner._keep(run, result)

    assert runner.config(long)["total_steps"] == 4 and not runner.ready(long)
    done(a, steps=4, cost=2.0)
    done(b, failed="not finite")
    assert runner.config(long)["total_steps"] == 4 and not runner.ready(long)
    done(b, steps=7, cost=3.0)
    config = runner.config(long)
    assert config["total_steps"] == 6 and config["method"]["tap_weight"] == 0.25
    assert runner.ready(long)


def records(**values):
    return [
        {
            "row": row,
            "seed": seed,
            "steps": 4,
            "cost": 2.0,
            "cost_unit": "s",
            "x": value,
        }
        for row, every in values.items()
        for seed, value in enumerate(every)
    ]


def test_means_and_errors_are_numpys():
    a, b = [1.0, 4.0, 2.5], [2.0, 4.5, 4.0]
    mean, deviation = report.mean_and_deviation(a)
    assert (mean, deviation) == pytest.approx((np.mean(a), np.std(a, ddof=1)))
    assert np.isnan(report.mean_and_deviation([3.0])[1])
    found = report.difference(records(a=a, b=b), "b", "a", "x")
    pairs = np.subtract(b, a)
    expected = (pairs.mean(), pairs.std(ddof=1) / np.sqrt(3), 3)
    assert found == pytest.approx(expected)
    assert report.difference(records(a=a), "b", "a", "x") is None


def test_csv_is_read_as_it_was_written(tmp_path):
    every = records(a=[1.25, 2.0], b=[3.5])
    del every[2]["cost"]
    report.write_csv(every, str(tmp_path / "r.csv"))
    assert report.read_csv(str(tmp_path / "r.csv")) == every


def small(*rows, **changes):
    """A study of such rows, a name or a dict each."""
    rows = [{"name": r} if isinstance(r, str) else r for r in rows]
    made = {"rows": [{"config": "c.py"} | row for row in rows], "seeds": (0, 1)}
    return study_from_dict("t", {"about": ""} | made | changes)


def test_a_follow_up_adds_its_score_alone():
    def result(row, follow_up="", **more):
        return {"row": row, "seed": 0, "follow_up": follow_up} | more

    first = {"steps": 4, "cost": 2.0, "cost_unit": "s"}
    results = [
        result("a", **first, scores={"x": 1.0}),
        None,
        result("b", **first, scores={"x": 5.0}),
        result("a", "p", steps=9, cost=7.0, cost_unit="CPU-s", scores={"p": 3.0}),
    ]
    assert report.collect(small("b", "a"), results) == [
        {"row": "b", "seed": 0, **first, "x": 5.0},
        {"row": "a", "seed": 0, **first, "x": 1.0, "p": 3.0},
    ]


def test_the_table_has_the_mean_cost_and_the_difference_from_the_control():
    every = records(b=[1.0, 2.0], a=[3.0, 5.0])
    every[3] |= {"steps": 6, "cost": 4.0}
    study = small("b", "a", "c", control="b")
    assert report.markdown(study, every, ["x"]).splitlines() == [
        "| row | steps | cost, s | x | x against b |",
        "|---|---|---|---|---|",
        "| b | 4 | 2 | 1.50 ± 0.71 (2) |  |",
        "| a | 4 to 6 | 3 | 4.00 ± 1.41 (2) | +2.50 (s.e. 0.50) |",
    ]
    assert report.against(study, every[:3], study.rows[1], "x") == "+2.00"


def bars_of(axis):
    """(x, y, ends of the bar) of every mean on an axis."""
    found = []
    for bars in axis.containers:
        ((x, y),) = bars.lines[0].get_xydata()
        (ends,) = bars.lines[2][0].get_segments()
        found.append((x, y, *ends.reshape(-1)))
    return found


def test_a_rows_point_is_its_mean_with_its_deviation_beside_its_own_cost(monkeypatch):
    seen, every = [], records(a=[1.0, 2.0, 6.0], b=[4.0])
    every[3]["cost"] = 5.0
    monkeypatch.setattr(report, "to_array", seen.append)
    report.draw(small("b", "c", "a"), every, "x")
    left, right = seen[0].axes
    deviation = np.std([1, 2, 6], ddof=1)
    low, high = 3 - deviation, 3 + deviation
    named = [text.get_text() for text in left.get_yticklabels()]
    assert named == ["b  1", "a  2"]
    expected = [(4, 0, 4, 0, 4, 0), (3, 1, low, 1, high, 1)]
    assert np.allclose(bars_of(left), expected)
    seeds = [
        line.get_xydata().tolist() for line in left.lines if line.get_marker() == "|"
    ]
    assert [[4, 0]] in seeds and [[1, 1], [2, 1], [6, 1]] in seeds
    assert np.allclose(bars_of(right), [(5, 4, 5, 4, 5, 4), (2, 3, 2, low, 2, high)])
    numbers = {text.get_text().strip(): text.get_position() for text in right.texts}
    assert numbers == {"1": (5, 4), "2": (2, 3)}


@pytest.mark.parametrize("x", [(1, 4), ("few", "many")])
def test_a_line_goes_through_the_means_of_its_rows_where_x_puts_them(x, monkeypatch):
    few, many = x
    seen, at = [], (0, 1) if isinstance(few, str) else x
    rows = [
        {"name": name, "series": name[0], "x": where, "panel": panel}
        for name, where, panel in (
            ("s1", few, "p"),
            ("s2", many, "p"),
            ("t2", many, "p"),
            ("s3", few, "q"),
        )
    ]
    every = records(s1=[1.0, 3.0], s2=[5.0], t2=[7.0, 7.5], s3=[9.0])
    monkeypatch.setattr(report, "to_array", seen.append)
    report.draw(small(*rows), every, "x")
    drawn = [
        {
            line.get_label(): line.get_xydata().tolist()
            for line in axis.lines
            if line.get_label() in ("s", "t")
        }
        for axis in seen[0].axes
    ]
    assert drawn[0] == {"s": [[at[0], 2], [at[1], 5]], "t": [[at[1], 7.25]]}
    assert [list(panel.values()) for panel in drawn[1:]] == [[[[at[0], 9]]]]
    deviation = np.std([1, 3], ddof=1)
    first = (at[0], 2, at[0], 2 - deviation, at[0], 2 + deviation)
    assert bars_of(seen[0].axes[0])[0] == pytest.approx(first)


@pytest.mark.parametrize(
    "score, unit",
    [
        ("knn20_top1", ", %"),
        ("tuned", ", %"),
        ("attention_distance/block01", ", patches"),
        ("masked_rmse", ""),
    ],
)
def test_an_axis_says_the_unit_of_its_score(score, unit):
    after = {"tuned": {"config": "c.py", "score": "eval/top1"}}
    rows = [{"name": "a", "config": "c.py"}]
    made = {"about": "", "rows": rows, "seeds": (0,), "follow_ups": after}
    assert report.labelled(study_from_dict("t", made), score) == score + unit


@pytest.mark.usefixtures("busy_machine")
@pytest.mark.parametrize("x", [None, "word", 3])
def test_figures_are_drawn_of_what_is_there(x):
    rows = [{"name": n, "config": "c.py", "x": x, "series": n} for n in "abc"]
    made = {"about": "", "seeds": (0, 1), "rows": rows}
    study = study_from_dict("t", made)
    picture = report.draw(study, records(a=[1.0, 2.0], b=[3.0]), "x")
    assert picture.ndim == 3 and picture.std() > 0
    table = report.markdown(study, records(a=[1.0, 2.0], b=[3.0]), ["x"])
    assert f"1.50 ± {statistics.stdev([1, 2]):.2f} (2)" in table
    assert "3.00 (1)" in table and "| c |" not in table


def test_a_series_has_one_colour_and_a_name_in_whatever_panels_it_is(monkeypatch):
    rows = [
        {"name": f"{series}{panel}", "config": "c.py", "x": 1, "series": series}
        | {"panel": panel}
        for panel, some in (("p", "ab"), ("q", "bc"))
        for series in some
    ]
    study = study_from_dict("t", {"about": "", "seeds": (0,), "rows": rows})
    seen = []
    monkeypatch.setattr(report, "to_array", seen.append)
    report.draw(study, records(**{row["name"]: [1.0] for row in rows}), "x")
    (legend,) = seen[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
    told = [line.get_color() for line in legend.get_lines()]
    drawn = [
        [line.get_color() for line in axis.lines if line.get_label() in ("a", "b", "c")]
        for axis in seen[0].axes
    ]
    assert len(set(told)) == 3 and drawn == [told[:2], told[1:]]


def test_the_cost_is_the_median_step_times_the_steps(tmp_path):
    rows = [
        {"step": s, "train/step_seconds": 9.0, "train/cpu_seconds": c}
        for s, c in ((10, 7.0), (20, 2.0), (30, 2.0))
    ]
    rows.append({"step": 40, "eval/x": 1.0})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert cost_of(str(tmp_path)) == {"steps": 30, "cost": 60.0, "cost_unit": "CPU-s"}


def test_what_is_new_since_an_older_config_is_left_out():
    config = {"a": 1, "b": {"c": 2, "d": 3}, "e": 4}
    assert known_to(config, {"b": {"c": 9}, "e": {}}) == {"b": {"c": 2}, "e": 4}


def test_a_row_that_nothing_follows_needs_no_weights():
    study = small("a", "b", follow_ups={"p": {"config": "c.py", "score": "x"}})
    few = small(
        *("a", "b"),
        follow_ups={"p": {"config": "c.py", "score": "x", "rows": ("a",)}},
    )
    for each, followed in ((study, [True, True]), (few, [True, False])):
        runner = Runner(each, "w", {})
        assert [runner._followed(Run(row, 0)) for row in each.rows] == followed
