import dataclasses
import json
import pathlib
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image
from test_step import ROOT, place, trainer

import ddae
from ddae import eval, inspect
from ddae.data.arrays import ArraySource
from ddae.data.order import Order
from ddae.interop.convert import write_workdir
from ddae.settings import UserError
from ddae.train import loop
from ddae.train.checkpoint import Checkpoints
from ddae.train.loading import load_params, run_of
from ddae.train.metrics import (
    Meter,
    Report,
    duration,
    progress_line,
    read_metrics,
    summary,
)
from ddae.train.partial import Loaded, load_into
from ddae.train.plan import as_begun, said_change

LEAVES = jax.tree.leaves


def targets(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(a, b):
    for left, right in zip(LEAVES(a), LEAVES(b), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_round_trip_onto_another_mesh(tmp_path, digit_images):
    state, step, mesh, _ = trainer(devices=4, fsdp=4)
    state, _ = step(state, place(digit_images, mesh), ROOT)
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(state, 1, tiny_config(), {})
    alone, _, _, _ = trainer(devices=1)
    with Checkpoints(str(tmp_path)) as checkpoints:
        restored = checkpoints.restore(targets(alone))
    assert_same(restored, state)
    assert {len(x.sharding.device_set) for x in LEAVES(restored.params)} == {1}


def test_a_save_cuts_no_small_array_into_slices(tmp_path, monkeypatch):
    """Each would be a program of its own, before the run goes on."""
    mesh = jax.make_mesh((4,), ("data",))
    many = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state, _, _, _ = trainer()
    large = {"kernel": jnp.ones((4, 2**18))}  # 1 MiB for each device
    state = dataclasses.replace(state, params={**state.params, "large": large})
    state = jax.device_put(state, many)
    cut, shapes = jax.lax.slice_in_dim, []

    def counted(array, *arguments, **options):
        shapes.append(array.shape)
        return cut(array, *arguments, **options)

    with Checkpoints(str(tmp_path)) as checkpoints:
        monkeypatch.setattr(jax.lax, "slice_in_dim", counted)
        checkpoints.save(state, 1, tiny_config(), {})
        checkpoints.wait()
        monkeypatch.undo()
        assert shapes == [(4, 2**18)] * 4
        assert_same(checkpoints.restore(targets(state)), state)


def test_another_model_is_named_before_anything_compiles(tmp_path):
    state, _, _, _ = trainer()
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(state, 1, tiny_config(), {})
    with pytest.raises(UserError) as error:
        loop.run(tiny_config(model__patch_size=4), str(tmp_path))
    message = str(error.value)
    assert "/encoder/patch_embedding/kernel" in message
    assert "(4, 32)" in message and "(16, 32)" in message


@pytest.mark.slow
def test_another_teacher_is_named_and_clipping_may_change(tmp_path):
    mae = {"name": "mae", "decoder": {"depth": 1, "width": 16, "num_heads": 2}}
    run(tmp_path, method=mae, total_steps=2)
    rows = run(tmp_path, method=mae, total_steps=4, optimizer__clip_norm=1.0)
    assert rows[-1]["step"] == 4
    with_teacher, _, _, _ = trainer()
    with Checkpoints(str(tmp_path)) as checkpoints:
        state = checkpoints.restore(targets(trainer(method=mae)[0]))
        other = dataclasses.replace(state, ema_params=with_teacher.ema_params)
        with pytest.raises(UserError, match="another optimiser or teacher"):
            checkpoints.restore(targets(other))


def test_a_half_written_step_is_not_a_checkpoint(tmp_path):
    state, _, _, _ = trainer()
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(state, 1, tiny_config(), {})
    (tmp_path / "checkpoints" / "7").mkdir()
    with Checkpoints(str(tmp_path)) as checkpoints:
        assert checkpoints.latest() == 1
    assert not (tmp_path / "checkpoints" / "7").exists()


def run(workdir, **changes):
    loop.run(tiny_config(**changes), str(workdir))
    return read_metrics(str(pathlib.Path(workdir) / "metrics.jsonl"))


def test_resumed_equals_uninterrupted_to_the_bit(tmp_path, monkeypatch):
    """Killed in step 5 of 6, after the save at 4; the rerun starts there."""
    straight = run(tmp_path / "a", total_steps=6, mesh__fsdp=4)

    class Killed(BaseException):
        pass

    original = loop.Meter.add
    monkeypatch.setattr(loop.Meter, "count", 0, raising=False)

    def add(self, *arguments):
        original(self, *arguments)
        loop.Meter.count += 1
        if loop.Meter.count == 5:
            raise Killed

    monkeypatch.setattr(loop.Meter, "add", add)
    with pytest.raises(Killed):
        run(tmp_path / "b", total_steps=6, mesh__fsdp=4)
    resumed = run(tmp_path / "b", total_steps=6, mesh__fsdp=4)
    assert [r["step"] for r in resumed] == [r["step"] for r in straight]
    for a, b in zip(resumed, straight, strict=True):
        assert a.get("train/loss") == b.get("train/loss")
    states = []
    for name in ("a", "b"):
        with Checkpoints(str(tmp_path / name)) as checkpoints:
            assert checkpoints.latest() == 6
            state, _, _, _ = trainer(devices=4, fsdp=4)
            states.append(checkpoints.restore(targets(state)))
    assert_same(*states)


def test_a_run_that_dies_in_evaluations_takes_no_step_again_and_keeps_the_best(
    tmp_path, monkeypatch, capsys
):
    """It dies in the evaluations of steps 2 and 6, and is run again; 6 is the best."""
    scores, deaths, taken = {0: 0.0, 2: 8.0, 4: 3.0, 6: 9.0, 8: 1.0}, [], []

    def scored(task, splits, on_devices):
        def run(params, step):
            if step in deaths:
                deaths.remove(step)
                raise MemoryError
            return {"score": scores[step]}

        return run

    original = loop.Meter.add

    def add(self, *arguments):
        taken.append(1)
        original(self, *arguments)

    monkeypatch.setitem(eval.EVALUATORS, "scored", scored)
    monkeypatch.setattr(loop.Meter, "add", add)
    config = {"evaluators": {"scored": {}}, "keep_best": "eval/score"}
    config |= {"total_steps": 8, "eval_every_steps": 2, "keep_checkpoints": 1}
    straight = run(tmp_path / "a", **config)
    deaths[:], taken[:] = [2, 6], []
    for step in (2, 6):
        with pytest.raises(MemoryError):
            run(tmp_path / "b", **config)
        # Its own evaluation is not known yet; that of those before it is.
        inspect.main([str(tmp_path / "b")])
        said = capsys.readouterr().out
        assert f"({step} is whole)" in said
        assert ("best        2, by eval/score: 8\n" in said) == (step == 6)
    rows = run(tmp_path / "b", **config)
    assert len(taken) == 8
    known = ("step", "train/loss", "eval/score")
    for one, other in zip(straight, rows, strict=True):
        assert [one.get(key) for key in known] == [other.get(key) for key in known]
    for name in ("a", "b"):
        kept = {path.name for path in (tmp_path / name / "checkpoints").iterdir()}
        assert kept == {"6", "8"}
        inspect.main([str(tmp_path / name)])
        assert "best        6, by eval/score: 9\n" in capsys.readouterr().out
    # The best of all is the last, which no later checkpoint knows.
    scores[8] = 10.0
    run(tmp_path / "c", **config)
    inspect.main([str(tmp_path / "c")])
    assert "best        8, by eval/score: 10\n" in capsys.readouterr().out


def test_a_name_of_keep_best_that_is_new_at_a_resume_is_tried_before_any_step(
    tmp_path, monkeypatch
):
    def scored(name):
        return lambda *_: lambda params, step: {name: float(step)}

    monkeypatch.setitem(eval.EVALUATORS, "one", scored("one"))
    monkeypatch.setitem(eval.EVALUATORS, "other", scored("other"))

    def evaluated(total_steps, name, *evaluators):
        given = {"evaluators": {key: {} for key in evaluators}, "keep_best": name}
        rows = run(tmp_path, total_steps=total_steps, **given)
        kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
        return [r["step"] for r in rows if name in r], kept

    evaluated(2, "", "one")
    # Known of step 2, where none is due any more.
    assert evaluated(4, "eval/one", "one") == ([0, 2, 4], {"2", "4"})
    with pytest.raises(UserError, match="keep_best='eval/typo' is not among .*/one"):
        evaluated(6, "eval/typo", "one")
    assert not (tmp_path / "checkpoints" / "6").exists()
    # One more evaluator may give it.
    assert evaluated(6, "eval/other", "one", "other") == ([4, 6], {"2", "4", "6"})


def test_workdir_holds_what_a_user_expects(tmp_path, capsys):
    evaluators = {"knn": {"k": 5}, "reconstruct": {"num_images": 2}}
    rows = run(tmp_path, evaluators=evaluators)
    assert [r["step"] for r in rows] == [0, 2, 4, 4]
    expected = {"loss", "images_per_second", "data_wait"}
    assert {f"train/{name}" for name in expected} <= rows[1].keys()
    assert rows[1]["data/bad_records"] == 0
    assert "eval/knn5_top1" in rows[0] and "eval/knn5_top1" in rows[-1]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["method"]["name"] == "ddae"
    names = {p.name for p in (tmp_path / "figures").iterdir()}
    assert names == {"reconstruction.png", "loss_by_distance.png"}
    assert list((tmp_path / "tensorboard").iterdir())
    said = capsys.readouterr().out
    assert "eta" in said and "at the start" in said and "learning rate" in said
    # Once done, the same command has nothing to do and changes nothing.
    assert run(tmp_path, evaluators=evaluators) == rows


def test_a_resume_with_another_task_is_refused_and_other_settings_are_said(
    tmp_path, capsys
):
    config = {
        "method__mask": {"ratio": 0.75},
        "method__features": {"ramp": 0.5},
        "method__decoder__dtype": "bfloat16",
        "init__workdir": "",
    }
    run(tmp_path, total_steps=2, **config)
    before = (tmp_path / "config.json").read_text()
    for key, then, says in (
        ("data__mean", (0.1,), r"mean \[0.3\], this config has \[0.1\]; go on"),
        ("method__mask", {"ratio": 0.5}, "mask.ratio 0.75, this config has 0.5"),
        ("method__features", {"ramp": 0.0}, "features.ramp 0.5, this config has 0.0"),
        # A key that only one of the two spells out has the code's default in the other.
        ("method__features", {}, "features.ramp 0.5, this config has 0.25"),
        ("method__beta", {"start": 2.0}, "beta.start -1.0, this config has 2.0"),
        ("method__beta__num_steps", 5, "beta.num_steps 4, this config has 5"),
    ):
        with pytest.raises(UserError, match=says):
            run(tmp_path, total_steps=3, **(config | {key: then}))
    assert (tmp_path / "config.json").read_text() == before
    capsys.readouterr()
    again = {"optimizer__base_lr": 2e-2, "method__decoder__dtype": "float32"}
    again |= {"init__workdir": "/elsewhere", "optimizer__b1": 0.0}
    again |= {"optimizer__b2": 0.95, "method__beta": {"limit": 2.0}}
    run(tmp_path, total_steps=2, **(config | again))
    said = capsys.readouterr().out
    assert "with other settings:\n" in said
    assert "\n  config.method.decoder.dtype: 'bfloat16' -> " in said
    assert "\n  config.optimizer.b1: 0.9 -> 0.0\n" in said
    assert "b2" not in said and "limit" not in said  # what the run had already
    assert "\n  config.optimizer.base_lr: 0.01 -> 0.02\n" in said
    # A run that goes on does not begin again, and says so of itself.
    assert "config.init.workdir='/elsewhere' is not read: the run has begun" in said
    for given in ({"init": {"workdir": "b"}}, {}):
        told = as_begun(given, {"init.workdir": ("a", "b")})
        assert told == {"init": {"workdir": "a"}}
    # Nor does it read a teacher again, whose weights its state has.
    given = {"method": {"teacher": {"workdir": "b", "mean": (0.3,)}}, "seed": 0}
    changes = {"method.teacher.workdir": ("a", "b"), "seed": (1, 0)}
    told = as_begun(given, changes)
    assert told == {"method": {"teacher": {"workdir": "a", "mean": (0.3,)}}, "seed": 0}
    assert [said_change(change) for change in changes.items()] == [
        "config.method.teacher.workdir='b' is not read: the run has begun with 'a'",
        "config.seed: 1 -> 0",
    ]
    kept = (tmp_path / "config.json").read_text()
    run(tmp_path, total_steps=1, **config)  # trains nothing
    assert (tmp_path / "config.json").read_text() == kept


def test_a_resume_on_other_data_names_the_field(tmp_path):
    """What `loop.plan` says of the data is saved, and compared before any compile."""
    random = np.random.default_rng(0)

    def write(name):
        images = random.integers(0, 255, (32, 8, 8, 1)).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(32) % 3)

    write("train"), write("test")
    npz = {"data__name": "npz", "data__dir": str(tmp_path)}
    state, _, _, _ = trainer()

    def resume(workdir, **changes):
        job = loop.plan(tiny_config(**changes))
        with Checkpoints(str(workdir)) as checkpoints:
            checkpoints.check(job.shapes, job.data_state, job.config)
            if checkpoints.latest() is None:
                checkpoints.save(state, 1, job.config, job.data_state)

    for name, given, cases in (
        (
            "digits",
            {},
            [
                ({"seed": 1}, "data with seed 0, this config has 1"),
                ({"batch_size": 32}, "data with batch_size 16, this config has 32"),
                (npz, "data with name 'digits', this config has 'npz'"),
            ],
        ),
        (
            "npz",
            npz,
            [({"data__train_split": "test"}, "split 'train', this config has 'test'")],
        ),
    ):
        (tmp_path / name).mkdir()
        resume(tmp_path / name, **given)
        resume(tmp_path / name, **given)
        for changes, says in cases:
            with pytest.raises(UserError, match=says):
                resume(tmp_path / name, **(given | changes))
    write("train")  # other pixels under the same name
    with pytest.raises(UserError, match=r"data with fingerprint \d+, this config has"):
        resume(tmp_path / "npz", **npz)


def test_inspect_says_what_a_workdir_holds(tmp_path, capsys):
    run(tmp_path, evaluators={"knn": {"k": 5}})
    assert inspect.main([str(tmp_path), "--parameters"]) == 0
    said = capsys.readouterr().out
    for words in (
        "checkpoints 2, 4 (4 is whole)",
        "task        pretrain, method ddae",
        "ViT-Two, patch 2, 8 px, 34,664 parameters, ",
        "heads       block01: features, pixels; block02: features, pixels",
        "images      standardised by mean (0.3,), std (0.4,)",
        "trained     4 steps of 16, 0.04 epochs of 1437 images",
        "data        digits, split train, seed 0",
        "knn5_top1",
        "encoder/patch_embedding/kernel",
    ):
        assert words in said, words
    assert inspect.main([str(tmp_path / "nothing")]) == 2
    assert "error: no checkpoint in" in capsys.readouterr().err


def test_weights_go_into_another_tree_with_a_report():
    stored = {"encoder": {"a": np.ones((2, 3)), "b": np.zeros(4)}, "heads": np.ones(1)}
    wanted = {"encoder": {"a": np.zeros((2, 3)), "b": np.zeros(6), "c": np.full(2, 5)}}
    options = {"may_miss": ("/c$",), "may_leave": ("^/heads",)}

    def resize(path, x, shape):
        return np.resize(x, shape) if path == "/encoder/b" else None

    tree, loaded = load_into(wanted, stored, resize=resize, **options)
    np.testing.assert_array_equal(tree["encoder"]["a"], 1.0)
    np.testing.assert_array_equal(tree["encoder"]["c"], 5)
    assert tree["encoder"]["b"].shape == (6,)
    assert loaded == Loaded(["/encoder/a"], ["/encoder/b"], ["/encoder/c"], ["/heads"])
    assert "1 matched (/encoder/a, ...), 1 resized" in str(loaded)
    with pytest.raises(UserError, match=r"/encoder/b has shape \(4,\), wanted"):
        load_into(wanted, stored, **options)
    with pytest.raises(UserError, match="1 parameters are not among .* /encoder/c"):
        load_into(wanted, stored, may_leave=("heads",))
    with pytest.raises(UserError, match="1 parameters of the weights have no place"):
        load_into(wanted, stored, may_miss=("c",))


def test_params_alone_with_their_config(tmp_path):
    run(tmp_path)
    params, config = load_params(str(tmp_path))
    assert config["data"]["mean"] == [0.3] and config["model"]["size"] == "Two"
    assert set(params) == {"encoder", "heads"}
    teacher, _ = load_params(str(tmp_path), average=True)
    assert set(teacher) == {"encoder"}
    theirs, own = LEAVES(teacher), LEAVES(params["encoder"])
    for one, other in zip(theirs, own, strict=True):
        assert one.shape == other.shape
    assert any((x != y).any() for x, y in zip(theirs, own, strict=True))
    with pytest.raises(UserError, match="no checkpoint in"):
        load_params(str(tmp_path / "nothing"))


def test_non_finite_steps_stop_the_run_and_keep_the_last_checkpoint(
    tmp_path, monkeypatch
):
    images = ArraySource.train_batches

    def poisoned(self, order, first_step, rows, augment):
        for step, batch in enumerate(images(self, order, first_step, rows, augment)):
            if step >= 5:
                batch["image"] = np.full_like(batch["image"], np.nan)
            yield batch

    monkeypatch.setattr(ArraySource, "train_batches", poisoned)
    with pytest.raises(loop.NonFiniteError, match="steps 6 to 8 .* step 4$"):
        run(tmp_path, total_steps=40, checkpoint_every_steps=4, max_nonfinite_steps=3)
    params, _ = load_params(str(tmp_path))
    assert all(np.isfinite(x).all() for x in LEAVES(params))
    named = json.loads((tmp_path / "nonfinite.json").read_text())
    taken = Order(1437, 16, 0).batch(5)[1]
    assert list(named) == ["6", "7", "8"]
    assert named["6"] == [f"record {index} of train" for index in taken]


def test_load_encoder_gives_features_of_the_run(tmp_path, digit_images):
    run(tmp_path)
    encoder = ddae.load_encoder(str(tmp_path))
    features = encoder(digit_images)
    assert features.patches.shape == (16, 16, 32)
    assert jnp.isfinite(features.prefix).all()
    np.testing.assert_array_equal(encoder(digit_images).patches, features.patches)
    # An earlier step by its folder.
    early = ddae.load_encoder(str(tmp_path / "checkpoints" / "2"))
    assert np.abs(early(digit_images).patches - features.patches).max() > 1e-6
    with pytest.raises(UserError, match="no step 3 in .*; there are 2, 4"):
        load_params(str(tmp_path / "checkpoints" / "3"))
    assert run_of(str(tmp_path / "checkpoints" / "2")) == (str(tmp_path), 2)
    named = tmp_path / "checkpoints" / "2024"
    (named / "checkpoints").mkdir(parents=True)
    assert run_of(str(named)) == (str(named), None)
    # Of a method that nobody here knows, too.
    params, config = load_params(str(tmp_path))
    config["method"]["name"] = "of_a_user"
    write_workdir(str(tmp_path / "own"), params, config)
    with pytest.raises(UserError, match="own keeps no moving average"):
        load_params(str(tmp_path / "own"), average=True)
    own = ddae.load_encoder(str(tmp_path / "own"))
    np.testing.assert_array_equal(own(digit_images).patches, features.patches)


def test_metrics_cut_short_by_a_kill_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "tra')
    assert read_metrics(str(path)) == [{"step": 1}]


def test_a_damaged_line_of_the_log_costs_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr("ddae.train.metrics._tensorboard", lambda workdir: None)
    bad = [b'{"step": 1, "tra', b'{"s\xf4ep": 2}', b"\0" * 40, b'{"stop": 3}', b"5"]
    text = b"\n".join([b'{"step": 0}', *bad, b'{"step": 4}'])
    (tmp_path / "metrics.jsonl").write_bytes(text)
    assert [row["step"] for row in Report(str(tmp_path), 4).rows()] == [0, 4]


def test_progress_line_and_durations():
    values = {
        "train/loss": 0.5,
        "train/images_per_second": 1234.0,
        "train/step_seconds": 0.5,
        "train/data_wait": 0.021,
    }
    line = progress_line(10, 250, values)
    assert line == "step  10/250  loss 0.5000  1,234 images/s  data wait 2 %  eta 2m00s"
    skipped = progress_line(10, 250, values | {"train/nonfinite_steps": 9.0})
    assert skipped == line + "  9 skipped, not finite"
    assert progress_line(10, 250, values | {"train/nonfinite_steps": 0.0}) == line
    del values["train/loss"]  # all steps of the interval were skipped
    assert "  loss nan  1,234 images/s" in progress_line(10, 250, values)
    assert duration(3723) == "1h02m" and duration(6.6) == "7s"


def test_a_meter_counts_all_steps_of_its_interval(monkeypatch):
    now = [100.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0], process_time=lambda: now[0])
    monkeypatch.setattr("ddae.train.metrics.time", clock)
    meter = Meter()
    for _ in range(2):
        metrics = {"loss": (jnp.float32(6.0), jnp.float32(2.0))}
        meter.add(metrics, waited=0.5, steps=2)
    now[0] += 9.0
    meter.skip(1.0, 5.0)
    with meter.aside():
        now[0] += 70.0
    assert meter.take(batch_size=16) == pytest.approx(
        {
            "train/loss": 3.0,
            "train/images_per_second": 8.0,
            "train/step_seconds": 2.0,
            "train/cpu_seconds": 1.0,
            "train/data_wait": 0.125,
        }
    )
    now[0] += 1.0
    found = meter.take(batch_size=16)
    assert found["train/images_per_second"] == 0.0
    assert found["train/cpu_seconds"] == found["train/step_seconds"] == 1.0


def test_a_meter_waits_for_the_steps_that_it_times(monkeypatch):
    """They are only begun when it is told of them."""
    now = [100.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0], process_time=lambda: now[0])
    monkeypatch.setattr("ddae.train.metrics.time", clock)

    def get(sums, original=jax.device_get):
        now[0] += 6.0
        return original(sums)

    monkeypatch.setattr(jax, "device_get", get)
    meter = Meter()
    for _ in range(2):
        meter.add({"loss": (jnp.float32(6.0), jnp.float32(2.0))}, waited=1.5)
    found = meter.take(batch_size=16)
    assert found["train/step_seconds"] == found["train/cpu_seconds"] == 3.0
    assert found["train/data_wait"] == 0.5


def test_a_resumed_report_keeps_the_steps_that_were_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("ddae.train.metrics._tensorboard", lambda workdir: None)
    first = Report(str(tmp_path), None)
    for step in (1, 2, 3):
        first.write(step, {"train/loss": float(step), "eval/x": 10.0 * step})
    again = Report(str(tmp_path), 2)
    assert [row["step"] for row in again.rows()] == [1, 2]
    again.write(3, {"train/loss": float("nan"), "eval/x": float("inf")})
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(text) == {"step": 3, "train/loss": None, "eval/x": None}
    assert again.evaluation(2) == {"eval/x": 20.0} and again.evaluation(4) == {}
    again.write(3, {"train/loss": 1.0})
    assert np.isnan(again.evaluation(3)["eval/x"])
    assert np.isnan(again.evaluation(None)["eval/x"]), "the last that there was"
    # One that was asked to stop at once goes on at step 0, and keeps what it has of it.
    first = Report(str(tmp_path / "new"), None)
    first.write(0, {"eval/x": 1.0})
    assert Report(str(tmp_path / "new"), 0).evaluation(0) == {"eval/x": 1.0}
    assert not list((tmp_path / "new").glob("*.jsonl.*"))


def test_the_first_process_alone_reads_the_log(tmp_path, monkeypatch):
    """Which it writes anew, while the others begin."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    (tmp_path / "metrics.jsonl").mkdir()
    report = Report(str(tmp_path), 2)
    assert report.evaluation(2) == {} and summary(report) == "done"


def test_a_fresh_start_keeps_the_log_of_an_earlier_one(tmp_path, monkeypatch, capsys):
    """The folder of its checkpoints may only have been moved."""
    monkeypatch.setattr("ddae.train.metrics._tensorboard", lambda workdir: None)
    log = tmp_path / "metrics.jsonl"
    for step in (7, 8):
        Report(str(tmp_path), None).write(step, {"train/loss": 1.0})
    said = f"no checkpoint to resume; the log of an earlier start is now {log}.1\n"
    assert capsys.readouterr().out == said
    Report(str(tmp_path), None)
    assert [row["step"] for row in read_metrics(f"{log}.1")] == [7]
    assert [row["step"] for row in read_metrics(f"{log}.2")] == [8]
    assert read_metrics(log) == []
    # There is nothing to keep, or it goes on.
    capsys.readouterr()
    Report(str(tmp_path), None).write(9, {"train/loss": 1.0})
    Report(str(tmp_path), 9)
    assert not capsys.readouterr().out and len(list(tmp_path.glob("*.jsonl*"))) == 3


def test_what_was_never_counted_has_no_mean_and_waiting_is_a_share(monkeypatch):
    now = [0.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0], process_time=lambda: now[0])
    monkeypatch.setattr("ddae.train.metrics.time", clock)
    meter = Meter()
    meter.add({"x": (jnp.zeros(()), jnp.zeros(()))}, waited=3.0)
    now[0] += 2.0
    found = meter.take(batch_size=4)
    assert "train/x" not in found and found["train/data_wait"] == 1.0


def test_numbers_and_pictures_go_to_tensorboard_too(tmp_path, monkeypatch):
    board = mock.Mock()
    monkeypatch.setattr("ddae.train.metrics._tensorboard", lambda workdir: board)
    report = Report(str(tmp_path), None)
    picture = np.full((4, 5, 3), 9, np.uint8)
    report.write(3, {"eval/x": 2.0, "eval/figure": picture})
    report.close()
    said = [name for name, *_ in board.method_calls]
    assert said == ["write_scalars", "write_images", "flush", "close"]
    step, scalars = board.write_scalars.call_args.args
    # Python's own numbers TensorFlow would keep for ever.
    assert (step, scalars) == (3, {"eval/x": 2.0})
    assert isinstance(step, np.integer)
    assert isinstance(scalars["eval/x"], np.float32)
    _, pictures = board.write_images.call_args.args
    np.testing.assert_array_equal(pictures["eval/figure"], picture[None])
    found = np.asarray(Image.open(tmp_path / "figures" / "figure.png"))
    np.testing.assert_array_equal(found, picture)
    assert report.rows() == [{"step": 3, "eval/x": 2.0}]


def test_the_last_line_has_the_last_evaluation_beside_the_first():
    first = {"step": 0, "eval/a": 1.0, "eval/b": None, "eval/iou/c": 3.0, "eval/d": 2.0}
    last = {"step": 9, "eval/a": 2.5, "eval/b": 1.0, "eval/iou/c": 4.0, "eval/d": None}
    last |= {"train/loss": 1.0, "eval/new": 1.0}
    first["train/loss"] = 2.0
    first["eval/z"], last["eval/z"] = 0.0, 4.0

    def said(*rows):
        return summary(types.SimpleNamespace(rows=lambda: list(rows)))

    says = "done: a 2.5, 1 at the start; z 4, 0 at the start"
    assert said(first, {"step": 5}, last) == says
    assert said({"step": 5, "eval/a": 1.0}, last) == "done"
    assert said(first) == "done: a 1; d 2; z 0" and said() == "done"
