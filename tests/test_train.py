"""The command line: exit codes, one-line errors, and a run without TensorFlow."""

import contextlib
import json
import math
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from conftest import tiny_config

from ddae import eval
from ddae.settings import UserError
from ddae.train import loop
from ddae.train.cluster import PreemptedError
from ddae.train.feed import cut
from ddae.train.loading import load_params
from ddae.train.metrics import Meter, Report, read_metrics
from ddae.train.plan import overview, plan
from ddae.train.signals import Signals

ROOT = pathlib.Path(__file__).parents[1]


def train(*arguments, program=("train.py",)):
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


WRONG = [
    ({"optimizer__base_rl": 1.0}, "config.optimizer.base_rl .*'base_lr'"),
    ({"sed": 1}, "config.sed .*'seed'"),
    ({"method__beta": {"strat": 0.0}}, "config.method.beta.strat .*'start'"),
    (
        {"model__patch_size": 3},
        "patch_size=3 does not divide .*image_size=8; use 6 or 9",
    ),
    ({"batch_size": 18}, "config.batch_size=18 does not divide over 4 devices"),
    ({"batch_size": 4096}, "batch_size=4096 is larger than the training set of 1437"),
    ({"mesh__fsdp": 3}, "config.mesh.fsdp=3 does not divide 4 devices"),
    ({"model__patch_size": 1}, "a patch of one value .* standardise_pixels=False"),
    (
        {"method__mask": {"kind": "cell", "cell": 3}},
        "config.method.mask: a cell of 3 patches does not divide the grid",
    ),
    (
        {"method__decoder": {"width": 30, "num_heads": 4}},
        "config.method.decoder: width=30 must be divisible by 4 and by num_heads=4",
    ),
    (
        {"method__features": {"target": "mean", "mean_of": 9}},
        "features.mean_of=9 is not between 1 and 2 blocks",
    ),
    (
        {"method__decoder": {"dtype": "float16"}},
        "config.method.decoder: dtype='float16' is not one of .*'float32'",
    ),
    ({"method__mask": {"ratio": 0.99}}, "config.method.mask: .*would stay visible"),
    ({"method__mask": {"ratio": 0.0}}, "config.method.mask: mask ratio 0.0"),
    ({"method__taps": (2, 9)}, "tap 9 lies outside the network's blocks 1 to 2"),
    ({"method__name": "mea"}, "config.method.name='mea'"),
    (
        {"method__features": {"loss": "l7"}},
        "config.method.features.loss='l7' is not one of",
    ),
    ({"method__metric": "taxi"}, "config.method.metric='taxi' is not one of"),
    ({"model__size": "XL"}, "config.model: size='XL' is not one of"),
    ({"model__channels": 3}, "config.data.mean has 1 entries"),
    ({"dtype": "float8"}, "config.dtype='float8'"),
    ({"task": "dance"}, "config.task='dance'"),
    ({"data__name": "folder", "data__dir": "/nowhere"}, "no folder /nowhere/train"),
    ({"evaluators": {"knn": {"k": 5000}}}, "knn.k=5000"),
    ({"data__std": (0.0,)}, "config.data: std=.* must be positive"),
    ({"total_steps": -1}, "total_steps=-1 must not be negative"),
    ({"epochs": 0}, "epochs=0.0 must be positive"),
    ({"keep_checkpoints": 0}, "keep_checkpoints=0 must be positive"),
    ({"max_nonfinite_steps": 0}, "max_nonfinite_steps=0 must be positive"),
    ({"eval_every_steps": -1}, "eval_every_steps=-1 must not be negative"),
    ({"data__mean": 0.3}, "config.data.mean=0.3 is not a tuple of numbers"),
    (
        {"model__position_grid": (7,)},
        r"config.model.position_grid=\(7,\) is not a tuple of 2 like a whole number",
    ),
    (
        {"method__standardise_pixels": "no"},
        "config.method.standardise_pixels='no' is not True or False",
    ),
    ({"data__mean": (125.0,)}, "config.data.mean=.*: pixels lie in .0, 1. here"),
    ({"method__beta": {"end": 1000.0}}, "end=1000.0 lies beyond limit=2.0"),
    ({"method__beta": {"start": math.nan}}, "start=nan is not a finite number"),
    ({"method__momentum": {"start": 1.5}}, "momentum start=1.5 is not in"),
    ({"method__momentum": {"steps": -1}}, "momentum steps=-1 must not be negative"),
    ({"method__features": {"weight": -1.0}}, "weight=-1.0 must not be negative"),
    ({"method__tap_weight": -1.0}, "tap_weight=-1.0 must not be negative"),
    ({"model__remat": "on"}, r"model.remat='on' is not one of \['off', 'dots', 'full'"),
    ({"optimizer__schedule": "line"}, "config.optimizer.schedule='line' is not one of"),
    ({"evaluators": {"knn": {"pool": "max"}}}, "evaluators.knn.pool='max' is not one"),
    ({"optimizer__lr_batch": 0}, "config.optimizer: lr_batch=0 must be positive"),
    ({"optimizer__b2": 1.5}, r"config.optimizer: b2=1.5 is not in \[0, 1\)"),
    ({"optimizer__clip_norm": -1.0}, "clip_norm=-1.0 must not be negative"),
    ({"optimizer__frozen": ("(",)}, r"config.optimizer: '\(' is no pattern"),
    (
        {"optimizer__warmup_epochs": 101.0},
        "warmup_epochs=101 is longer than config.epochs=100",
    ),
    (
        {"method__decoder": {"width": 0}},
        "width=0 must be divisible by 4 and by num_heads=16, and b",
    ),
    ({"method__decoder": {"depth": -1}}, "depth=-1 must not be negative"),
    ({"method__features": {"ramp": -1.0}}, "ramp=-1.0 is not a share of the run"),
    (
        {"model__relative_bias": "shared"},
        "config.model and config.method: a relative position bias wants layout",
    ),
    ({"evaluators": {"knn": {"temperature": 0.0}}}, "temperature=0.0 must be positive"),
    (
        {"evaluators": {"reconstruct": {"num_images": 0}}},
        "reconstruct.num_images=0 must be positive",
    ),
    (
        {"evaluators": {"knn": {"k": 1, "num_train": -1}}},
        "config.evaluators.knn.num_train=-1 must not be negative",
    ),
    ({"profile": "9:3"}, "config.profile='9:3' is not FIRST:LAST"),
    ({"steps_per_dispatch": 0}, "steps_per_dispatch=0 must be positive"),
    (
        {"data__on_device": True, "data__augment": {"flip": True}},
        "set config.data.augment.on_device=True too",
    ),
    ({"image_size": (8, 7)}, r"patch_size=2 does .*\(8, 7\); use \(8, 6\) or \(8, 8\)"),
    ({"image_size": 0}, "config.image_size=0 is not 1 pixel or more"),
    ({"image_size": (-8, 8)}, r"config.image_size=\(-8, 8\) is not 1 pixel or more"),
    ({"model__channels": 0}, "config.model: channels=0 is not 1 or more"),
    ({"model__layer_scale": -0.1}, "layer_scale=-0.1 must not be negative"),
    ({"data__max_bad": -1}, "config.data: max_bad=-1 must not be negative"),
    (
        {"method": {"name": "mvp", "teacher": {"model": {"size": "XL"}}}},
        "config.method.teacher.model: size='XL' is not one of",
    ),
    (
        {"method": {"name": "mvp", "teacher": {"model": {"patch_size": 16}}}},
        "config.method: a frozen network with patches of 16 pixels",
    ),
    ({"evaluators": None}, "config.evaluators=None is not a section of keys"),
    ({"method__dds": True}, "config.method.dds=True is not a section of keys"),
    ({"data__augment": None}, "config.data.augment=None is not a section of keys"),
    ({"optimizer__frozen": None}, "config.optimizer.frozen=None is not a tuple"),
    ({"optimizer__base_lr": {}}, "config.optimizer.base_lr={} is not a finite number"),
]


@pytest.mark.parametrize("changes, says", WRONG, ids=[str(c) for c, _ in WRONG])
def test_wrong_config_is_one_clear_line_before_anything_compiles(
    changes, says, tmp_path, monkeypatch
):
    def compiles(*_, **__):
        raise AssertionError("compiled before the config was checked")

    monkeypatch.setattr(loop, "Checkpoints", compiles)
    with pytest.raises(UserError, match=says) as error:
        loop.run(tiny_config(**changes), str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (
            ["--config=configs/quickstart.py", "--config.modle.size=B"],
            "--config.modle.size: the config has no such key; did you mean 'model'?",
        ),
        (
            ["--config=configs/quickstart.py", "--config.model.sise=B"],
            "--config.model.sise: the config has no such key; did you mean 'size'?",
        ),
        (
            ["--config=configs/nothing.py"],
            "No such file or directory: 'configs/nothing",
        ),
        (["--config", "configs/nothing.py"], "No such file or directory: 'configs/not"),
        (["--config=configs/mae_in1k.py:modle=B"], "modle"),
        ([], "--config is missing"),
        (
            ["--config=configs/quickstart.py", "--config.model.patch_size=3"],
            "use 6 or 9",
        ),
        (["--config=configs/quickstart.py:typo=7"], "argument 'typo': it takes none"),
        (["--config=configs/quickstart.py", "--workdir="], "--workdir is missing"),
    ],
)
def test_the_command_line_exits_2_with_one_line(arguments, says, tmp_path):
    result = train(f"--workdir={tmp_path}", *arguments)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ") and says in lines[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "text, says",
    [
        ("import nothing", "config.py:1: ModuleNotFoundError: No module named 'nothi"),
        ("def get_config(:", "config.py:1: SyntaxError: invalid syntax"),
        ("def get_config():\n    return 1 / 0", "config.py:2: ZeroDivisionError: div"),
        ("x = 1", "config.py: it has no get_config()"),
    ],
)
def test_a_config_file_that_fails_is_named_with_its_line(text, says, tmp_path):
    (tmp_path / "config.py").write_text(text)
    result = train(f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path}")
    assert result.returncode == 2, result.stderr
    assert says in result.stderr and result.stderr.count("\n") == 1


NO_TENSORFLOW = """
import sys, runpy
sys.modules["tensorflow"] = None
sys.argv = ["train.py"] + sys.argv[1:]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
def test_digits_train_where_tensorflow_is_not_installed(tmp_path):
    result = train(
        "--config=configs/quickstart.py",
        f"--workdir={tmp_path}",
        "--config.total_steps=2",
        "--config.method.taps=(4,)",
        program=("-c", NO_TENSORFLOW),
    )
    assert result.returncode == 0, result.stderr
    assert "no TensorBoard events: tensorflow is not installed" in result.stdout
    assert (tmp_path / "checkpoints" / "2" / "commit_success.txt").exists()


@pytest.mark.slow
def test_exit_code_3_when_the_loss_stays_non_finite(tmp_path):
    result = train(
        "--config=configs/quickstart.py",
        f"--workdir={tmp_path}",
        "--config.optimizer.base_lr=1e30",  # the first update overflows the next loss
        "--config.optimizer.warmup_epochs=0.0",
        "--config.max_nonfinite_steps=2",
        "--config.total_steps=20",
        "--config.eval_every_steps=0",
    )
    assert result.returncode == 3, result.stderr
    assert "not finite in steps 2 to 3" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_it_ends_with_every_step_once(tmp_path):
    command = [
        sys.executable,
        "train.py",
        "--config=configs/quickstart.py",
        f"--workdir={tmp_path}",
        "--config.total_steps=60",
        "--config.log_every_steps=5",
        "--config.checkpoint_every_steps=10",
        "--config.eval_every_steps=0",
    ]
    kills = 0
    for committed in (1, 3):
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            deadline = time.monotonic() + 240
            while time.monotonic() < deadline and process.poll() is None:
                done = list(tmp_path.glob("checkpoints/*/commit_success.txt"))
                if len(done) >= committed:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.05)
    assert kills >= 1
    assert subprocess.run(command, cwd=ROOT, timeout=600).returncode == 0
    rows = read_metrics(str(tmp_path / "metrics.jsonl"))
    trained = [row["step"] for row in rows if "train/loss" in row]
    assert trained == list(range(5, 61, 5))
    assert json.loads((tmp_path / "config.json").read_text())["total_steps"] == 60


@pytest.mark.parametrize(
    ("first", "last", "most", "every", "spans"),
    [
        (0, 3, 1, (2, 0), [[1], [2], [3]]),
        (0, 7, 3, (5, 0), [[1, 2, 3], [4, 5], [6, 7]]),
        (4, 12, 8, (6, 5), [[5], [6], [7, 8, 9, 10], [11, 12]]),
        (3, 3, 8, (2,), []),
    ],
)
def test_spans_of_steps_end_where_something_is_due(first, last, most, every, spans):
    assert [list(span) for span in cut(first, last, most, every)] == spans


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_several_steps_a_dispatch_are_those_steps(tmp_path, fsdp):
    """Images on the devices too: 6 steps as two of 3 beside one by one."""
    crops = {"crop": "shift", "pad": 1, "flip": True, "on_device": True}
    same = {"total_steps": 6, "log_every_steps": 3, "checkpoint_every_steps": 3}
    same |= {"data__augment": crops, "mesh__fsdp": fsdp}
    found = []
    for name, changes in (
        ("one", {}),
        ("three", {"steps_per_dispatch": 4, "data__on_device": True}),
    ):
        loop.run(tiny_config(**same, **changes), str(tmp_path / name))
        saved = {path.name for path in (tmp_path / name / "checkpoints").iterdir()}
        assert saved == {"3", "6"}
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        found.append((rows, load_params(str(tmp_path / name))[0]))
    (one, params), (three, others) = found
    assert [row["step"] for row in one] == [row["step"] for row in three] == [3, 6]
    for a, b in zip(one, three, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"step"}:
            if "second" not in key and "wait" not in key:  # times differ
                assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-6), key
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)


def test_compiling_is_said_and_is_no_time_of_a_step(tmp_path, capsys, monkeypatch):
    now = [100.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0], process_time=lambda: now[0])
    jitted = loop._jitted

    def slow(job):
        step, calls = jitted(job), []

        def take(*operands):
            calls.append(1)
            now[0] += 100.0 if len(calls) == 1 else 2.0
            return step(*operands)

        return take

    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr("ddae.train.metrics.time", clock)
    monkeypatch.setattr(loop, "_jitted", slow)
    loop.run(tiny_config(total_steps=4, log_every_steps=2), str(tmp_path))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["train/step_seconds"] for row in rows] == [1.0, 2.0]
    said = capsys.readouterr().out.splitlines()
    at = said.index("compiling the train step")
    assert said[at + 1] == "compiled in 1m40s" and said[at + 2].startswith("step 2/4")


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_step_is_timed_without_saves_and_evaluations(tmp_path, monkeypatch, at_once):
    """And at each the watchdog hears of it."""
    now, beats = [100.0], []
    clock = types.SimpleNamespace(monotonic=lambda: now[0], process_time=lambda: now[0])

    class Heard(Signals):
        heard = 0

        def beat(self):
            self.heard += 1
            super().beat()

    def later(seconds, function):
        def slow(*operands):
            now[0] += seconds
            return function(*operands)

        return slow

    def waited(*operands, original=loop.feed):
        return map(later(1.0, lambda batch: batch), original(*operands))

    def stepping(job, original=loop._jitted):
        step = later(2.0, original(job))

        def take(*operands):
            beats.append(signals.heard)
            return step(*operands)

        return take

    def scored(task, splits, on_devices):
        return lambda params, step: {"score": 1.0}

    signals = Heard()
    monkeypatch.setitem(eval.EVALUATORS, "scored", scored)
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr("ddae.train.metrics.time", clock)
    monkeypatch.setattr(loop, "feed", waited)
    monkeypatch.setattr(loop, "_jitted", stepping)
    monkeypatch.setattr(loop, "_save", later(1000.0, loop._save))
    monkeypatch.setattr(loop, "evaluate", later(500.0, loop.evaluate))
    every = {f"{name}_every_steps": 2 for name in ("log", "checkpoint", "eval")}
    config = tiny_config(total_steps=6, steps_per_dispatch=at_once, **every)
    loop.run(config | {"evaluators": {"scored": {}}}, str(tmp_path), signals)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    rows = [row for row in rows if "train/step_seconds" in row]
    took = {1: [2.0, 3.0, 3.0], 2: [0.5, 1.5, 1.5]}  # the first one is compiled
    assert [row["train/step_seconds"] for row in rows] == took[at_once]
    rates = [row["train/images_per_second"] for row in rows]
    assert rates == pytest.approx([16 / seconds for seconds in took[at_once]])
    shares = {1: [1 / 2, 1 / 3, 1 / 3], 2: [1.0, 1 / 3, 1 / 3]}
    found = [row["train/data_wait"] for row in rows]
    assert found == pytest.approx(shares[at_once])
    assert len(beats) == 6 / at_once and all(np.diff(beats) > 0)


def done_by(monkeypatch, first=0, bad=(), stop=0, failed=0, **changes):
    """What a run does after which step, in order; its steps compute nothing.

    bad: steps that are not finite; stop: where it is asked to; failed: whose save is.
    """
    done, at, row = [], [first], [0]

    def step(state, batch, root):
        for _ in range(len(batch["image"]) if batch["image"].ndim > 4 else 1):
            at[0] += 1
            row[0] = row[0] + 1 if at[0] in bad else 0
        job.signals.stop_requested = 0 < stop <= at[0]
        counted = {"nonfinite_in_row": (jnp.int32(row[0]), 1)}
        return state, counted | {"stop": (batch["stop"].max(), 1)}

    def written(step, values):
        (kind,) = {name.partition("/")[0] for name in values} - {"train"}
        done.append(("log" if kind == "data" else kind, step))

    def ended():
        done.append(("failed", at[0]))
        raise SystemExit

    config = tiny_config(**changes, evaluators={"scored": {}})
    monkeypatch.setitem(
        eval.EVALUATORS, "scored", lambda *_: lambda *_: {"score": float(at[0])}
    )
    monkeypatch.setattr(loop, "_jitted", lambda job: step)
    monkeypatch.setattr(
        loop, "_begun", lambda _, state, *rest: done.append(("begun", at[0])) or state
    )
    job = plan(config)
    checkpoints = types.SimpleNamespace(
        save=lambda state, step, *_: done.append(("save", step)),
        evaluated=lambda step, found: done.append(("best", step, *found.values())),
        failed=lambda: 0 < failed <= at[0],
        give_up=ended,
        close=lambda: done.append(("closed", at[0])),
    )
    quiet = dict.fromkeys(("say", "push"), lambda *_: None)
    report = types.SimpleNamespace(active=False, write=written, **quiet)
    profile = types.SimpleNamespace(
        before=lambda steps: done.append(("before", *steps)),
        after=lambda steps, _: done.append(("after", *steps)),
    )
    state = types.SimpleNamespace(params=None, ema_params=None)
    with contextlib.suppress(PreemptedError, SystemExit):
        loop.train(job, state, first, checkpoints, report, profile)
    return done


EVERY = {"log_every_steps": 6, "checkpoint_every_steps": 4, "eval_every_steps": 5}


@pytest.mark.parametrize("at_once", [1, 8])
def test_each_is_done_after_its_own_steps_and_after_the_last(at_once, monkeypatch):
    done = done_by(monkeypatch, total_steps=11, steps_per_dispatch=at_once, **EVERY)
    for kind, steps in (
        ("begun", [0]),
        ("log", [6, 11]),
        ("save", [4, 8, 11]),
        ("eval", [5, 10, 11]),
    ):
        assert [what[1] for what in done if what[0] == kind] == steps, kind
    assert [what[1:] for what in done if what[0] == "best"] == [
        (step, float(step)) for step in (5, 10, 11)
    ]
    last = [what for what in done if what[1] == 11 and what[0] != "after"]
    assert [what[0] for what in last[-4:]] == ["log", "save", "eval", "best"]
    # A profile hears of steps before they are taken and after, and misses none.
    heard = [what for what in done if what[0] in ("before", "after")]
    pairs = list(zip(heard[::2], heard[1::2], strict=True))
    assert all(a == ("before", *b[1:]) and b[0] == "after" for a, b in pairs)
    taken = [step for a, _ in pairs for step in a[1:]]
    assert taken == list(range(1, 12)) and (len(pairs) < 11) == (at_once > 1)


def test_a_run_that_goes_on_does_not_begin_again(monkeypatch):
    done = done_by(monkeypatch, first=4, total_steps=6, **EVERY)
    assert "begun" not in {what[0] for what in done}
    assert [what for what in done if what[0] in ("log", "save")] == [
        ("log", 6),
        ("save", 6),
    ]


def test_nothing_is_saved_after_too_many_steps_that_were_not_finite(monkeypatch):
    """They are looked at late, but before a save."""
    given = {"total_steps": 8, "max_nonfinite_steps": 3, **EVERY}
    seen = []

    def check(job, step, bad, checkpoints, original=loop.check_finite):
        seen.append((step, bad))
        if bad == 3:
            raise SystemExit

    monkeypatch.setattr(loop, "check_finite", check)
    done = done_by(monkeypatch, bad=(2, 3, 4), **given)
    assert seen == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert "save" not in {what[0] for what in done}


def test_a_run_that_is_asked_to_stop_saves_once_and_one_at_its_end_ends(monkeypatch):
    def of(stop, **changes):
        done = done_by(monkeypatch, stop=stop, total_steps=8, **EVERY | changes)
        return [w[:2] for w in done if w[0] in ("save", "eval", "closed")][-3:]

    # It is asked in step 1: processes hear of it with step 2, and look LAG steps later.
    assert of(1) == [("save", 4), ("closed", 4)]
    assert of(1, checkpoint_every_steps=2) == [("save", 2), ("closed", 2)]
    assert of(7) == [("eval", 5), ("save", 8), ("eval", 8)]


def test_a_run_that_is_asked_to_stop_in_an_evaluation_saves_first(monkeypatch):
    def evaluate(*_):
        raise PreemptedError

    monkeypatch.setattr(loop, "evaluate", evaluate)
    done = done_by(monkeypatch, total_steps=8, **EVERY)
    saved = [what[:2] for what in done if what[0] in ("save", "closed")]
    assert saved == [("save", 4), ("save", 5), ("closed", 5)]


def test_a_save_that_has_failed_ends_the_run_and_is_more_than_to_stop(monkeypatch):
    for stop in (0, 1):
        done = done_by(monkeypatch, stop=stop, failed=2, total_steps=8, **EVERY)
        assert done[-1] == ("failed", 4) and ("save", 4) not in done


def test_each_evaluation_is_a_sign_of_life_and_reads_the_average_where_asked():
    heard, read, rows, said = [0], [], {}, []
    beat = lambda: heard.append(len(read))  # noqa: E731

    def scored(name):
        return lambda params, step: (
            read.append((name, *params, step)) or {name: 2.0, f"of/{name}": 1.0}
        )

    job = types.SimpleNamespace(
        evaluators={name: scored(name) for name in "ab"},
        signals=types.SimpleNamespace(beat=beat),
        task=types.SimpleNamespace(evaluated=lambda params, average: (params, average)),
    )
    state = types.SimpleNamespace(params="own", ema_params="average")
    report = types.SimpleNamespace(
        active=False,
        say=said.append,
        write=lambda step, values: rows.update({step: values}),
    )
    found = loop.evaluate(job, state, 7, report)
    assert read == [("a", "own", "average", 7), ("b", "own", "average", 7)]
    assert heard == [0, 1, 2]
    scores = {"eval/a": 2.0, "eval/of/a": 1.0, "eval/b": 2.0, "eval/of/b": 1.0}
    assert found == rows[7] == scores
    assert said == ["step 7: evaluating", "step 7: a 2, b 2"]


def test_the_last_good_checkpoint_is_named_once_it_is_written(tmp_path):
    written = []
    checkpoints = types.SimpleNamespace(
        folder=tmp_path / "checkpoints",
        wait=lambda: written.append("step 4"),
        last_good=lambda: f"there is {written}",
    )
    job = types.SimpleNamespace(
        options=types.SimpleNamespace(max_nonfinite_steps=2),
        splits=types.SimpleNamespace(train=types.SimpleNamespace(key=str)),
        order=types.SimpleNamespace(batch=lambda step: (None, [step])),
    )
    loop.check_finite(job, 6, 1, checkpoints)
    with pytest.raises(loop.NonFiniteError, match=r"there is \['step 4'\]"):
        loop.check_finite(job, 6, 2, checkpoints)


@pytest.mark.parametrize(
    "steps, end, says",
    [
        (10, 0.9, "the moving average ends 6 steps behind, 57% of all; a lower"),
        (100, 0.9, "the moving average ends 9 steps behind, 9% of all"),
    ],
)
def test_a_teacher_that_lags_far_behind_is_warned_of(steps, end, says):
    momentum = {"start": 0.5, "middle": 0.9, "end": end, "rise": 0.125}
    config = tiny_config(total_steps=steps, method__momentum=momentum)
    *_, last = overview(plan(config)).splitlines()
    assert last.removeprefix("warning: ").startswith(says)
    assert last.startswith("warning") == (steps == 10)


def test_a_teacher_may_be_behind_by_the_same_share_of_any_run():
    momentum = {"start": 0.9, "middle": 0.95, "end": 0.99, "rise": 0.125}
    for meant_for, differ in ((0, [32]), (800, [0, 1])):
        changed = {"method__momentum": momentum | {"steps": meant_for}}
        said = [
            overview(plan(tiny_config(total_steps=steps, **changed))).splitlines()[-1]
            for steps in (100, 800)
        ]
        short, long = (int(re.search(r"(\d+)% of all", line)[1]) for line in said)
        assert abs(short - long) in differ, said


def test_what_cannot_be_kept_is_warned_of():
    config = tiny_config(total_steps=9, checkpoint_every_steps=4, keep_every_steps=8)
    config |= {"eval_every_steps": 6}
    assert "warning: keep" not in overview(plan(config))
    said = overview(plan(config | {"keep_every_steps": 6, "keep_best": "eval/x"}))
    for name in ("keep_every_steps", "eval_every_steps"):
        line = f"warning: {name}=6 is no multiple of checkpoint_every_steps=4: "
        assert line in said


def test_another_number_of_steps_at_once_compiles_again():
    said = []
    report = types.SimpleNamespace(say=said.append)
    take = loop._compiling(lambda *operands: operands[1], Meter(), report)
    for number in (3, 3, 1, 3):
        batch = {"image": np.zeros((number, 2))}
        assert take(None, batch, None) is batch
    assert said.count("compiling the train step") == 2


def test_what_is_not_finite_is_null_in_the_log(tmp_path):
    """JSON has no NaN; Python's reader alone takes it."""
    report = Report(str(tmp_path), None)
    report.write(1, {"train/loss": math.nan, "train/x": math.inf, "train/y": 2.0})
    report.close()
    row = json.loads(
        (tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail
    )
    assert row == {"step": 1, "train/loss": None, "train/x": None, "train/y": 2.0}


def test_a_row_of_the_log_keeps_no_memory(tmp_path):
    report, draw = Report(str(tmp_path), None), np.random.default_rng(0)
    process, before = psutil.Process(), 0
    for step in range(600):
        if step == 200:
            before = process.memory_info().rss
        report.write(step, {f"train/{k}": float(draw.random()) for k in range(40)})
    report.close()
    # TensorFlow keeps 33 KB of a row of Python's own numbers: 13 MB of these.
    assert process.memory_info().rss - before < 6e6


@pytest.mark.slow
def test_a_profile_lies_where_tensorboard_looks(tmp_path):
    loop.run(tiny_config(profile="2:3"), str(tmp_path))
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.slow
def test_compiled_programs_are_kept_for_the_next_run(tmp_path, monkeypatch):
    """A second process, started anew, compiles no step and reads the first one's. What
    a killed process left unfinished is no obstacle to a third."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_MAX_SIZE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = []
    for name in ("one", "two", "three"):
        if name == "three":
            (kept,) = tmp_path.glob("cache/ddae/xla/cpu-*/jit_step*-cache")
            whole = kept.stat().st_size
            kept.write_bytes(kept.read_bytes()[: whole // 2])
            kept.with_name(kept.name.replace("-cache", "-atime")).unlink()
        result = train(
            "--config=configs/quickstart.py",
            f"--workdir={tmp_path / name}",
            "--config.total_steps=2",
            "--config.eval_every_steps=0",
            program=("-W", "error::UserWarning:jax", "train.py"),
        )
        assert result.returncode == 0, result.stderr
        programs = tmp_path.glob("cache/ddae/xla/cpu-*/jit_step*-cache")
        found.append({p.name: p.stat().st_ino for p in programs})
    one, two, three = found
    assert len(one) == 1 and one == two and one.keys() == three.keys()
    assert kept.stat().st_size > 0.9 * whole


def test_the_warmup_is_a_share_of_the_run():
    job = plan(tiny_config(total_steps=200, optimizer__warmup_epochs=10.0))
    rates = [float(job.optimizer.schedule(jnp.int32(step))) for step in (10, 20, 21)]
    peak = job.optimizer.peak  # 10 of 100 epochs are 20 of 200 steps
    assert rates[:2] == pytest.approx([peak / 2, peak]) and rates[2] < peak
