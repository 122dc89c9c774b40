"""Attention distance and CKA against brute force, and the page of an analysis."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from ddae import analyse, eval, tasks
from ddae.analyse import (
    cka_matrix,
    figures,
    loss_by_distance,
    main,
    open_run,
    sample_sizes,
)
from ddae.data import sample
from ddae.eval.locality import attention_distance, linear_cka, patch_distances
from ddae.methods import ddae
from ddae.models.attention import attention_probabilities
from ddae.models.blocks import Mlp
from ddae.models.linear import Normed
from ddae.models.vit import VIT_SPECS, Encoder
from ddae.settings import UserError
from ddae.train import loop
from ddae.train.step import OnDevices

GRID = (3, 4)


def test_attention_distance_by_hand():
    n = GRID[0] * GRID[1]
    every = [(i, j) for i in range(3) for j in range(4)]
    pairs = [np.hypot(a - c, b - d) for a, b in every for c, d in every]
    uniform = jnp.full((2, 1, n + 1, n + 1), 1 / (n + 1))
    assert attention_distance(uniform, GRID) == pytest.approx(np.mean(pairs), rel=1e-5)
    itself = jnp.eye(n + 1)[None, None]
    assert attention_distance(itself, GRID)[0, 0] == 0.0
    # Everything to the right-hand neighbour, the last column to itself; cls to the end.
    right = np.eye(n + 1)
    for i in range(1, n + 1):
        if i % 4:
            right[i] = np.eye(n + 1)[i + 1]
    found = attention_distance(jnp.asarray(right)[None, None], GRID)
    assert found[0, 0] == pytest.approx(9 / 12)


def test_what_cls_takes_does_not_count():
    n = GRID[0] * GRID[1]
    probabilities = np.zeros((1, 1, n + 1, n + 1))
    probabilities[..., 0] = 0.75
    probabilities[..., 1:] = 0.25 / n
    expected = patch_distances(GRID).mean()
    found = attention_distance(jnp.asarray(probabilities), GRID)
    assert found[0, 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bias", ["none", "shared", "block"])
def test_probabilities_give_back_the_blocks_own_output(bias):
    encoder = Encoder(
        VIT_SPECS["Two"], GRID, patch_size=2, relative_bias=bias, final_norm=False
    )
    images = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
    params = encoder.init(jax.random.key(1), images)["params"]
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params
    )
    taps = encoder.apply({"params": params}, images, taps=(0, 1, 2))
    found = list(attention_probabilities(encoder, params, images))
    assert len(found) == 2
    for layer, probabilities in enumerate(found):
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0, rtol=1e-5)
        block = params[f"block_{layer:02d}"]
        x, after = (
            jnp.concatenate([taps[t].prefix, taps[t].patches], axis=1)
            for t in (layer, layer + 1)
        )
        y = norm(x, block["norm_attention"])
        qkv = (
            y @ block["attention"]["qkv"]["kernel"] + block["attention"]["qkv"]["bias"]
        )
        v = qkv[..., -32:].reshape(2, -1, 2, 16)
        y = jnp.einsum("bhqk,bkhd->bqhd", probabilities, v).reshape(x.shape)
        out = block["attention"]["out"]
        x = x + y @ out["kernel"] + out["bias"]
        normed = Normed(
            tokens=norm(x, block["norm_mlp"]), scale=jnp.ones(32), shift=jnp.zeros(32)
        )
        mlp = Mlp(128, jnp.float32).apply({"params": block["mlp"]}, normed)
        np.testing.assert_allclose(x + mlp, after, atol=2e-5)


def norm(x, params):
    x = (x - x.mean(axis=-1, keepdims=True)) / jnp.sqrt(
        x.var(axis=-1, keepdims=True) + 1e-6
    )
    return x * params["scale"] + params["bias"]


def test_cka_of_known_matrices():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(200, 5)), random.normal(size=(200, 3))
    turn = np.linalg.qr(random.normal(size=(5, 5)))[0]
    assert linear_cka(x, x) == pytest.approx(1.0)
    assert linear_cka(x, 3.0 * x @ turn + 7.0) == pytest.approx(1.0)
    stretched = x * np.array([10.0, 1, 1, 1, 1])
    assert linear_cka(x, stretched) < 0.9
    # The definition, through the n x n matrices of similarities.
    centre = np.eye(200) - 1 / 200
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert linear_cka(x, y) == pytest.approx(expected)
    assert linear_cka(np.ones((9, 2)), y[:9]) == 0.0


def test_layers_of_the_first_are_the_rows_of_a_matrix_of_cka():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(4, 2, 3, 5)), random.normal(size=(4, 3, 3, 6))
    found = np.array(cka_matrix(x, y))
    assert found.shape == (2, 3)
    expected = linear_cka(x[:, 0].reshape(12, 5), y[:, 2].reshape(12, 6))
    assert found[0, 2] == pytest.approx(expected)


def test_sample_sizes_are_one_where_beta_is_nought():
    task = tasks.from_config(
        tiny_config(method__beta={"start": -1.0, "end": 1.0, "depth_tilt": 0.0})
    )
    found = sample_sizes(task)
    assert set(found["taps"]) == {"0.5", "1.0"}
    curve = dict(found["taps"]["1.0"])
    assert curve[0.5] == pytest.approx(1.0)
    assert curve[0.0] < 1.0 and curve[1.0] < 1.0
    assert dict(found["beta"])[0.0] == pytest.approx(1.0)
    assert sample_sizes(tasks.from_config(tiny_config(method={"name": "mae"}))) == {}


def test_sample_sizes_are_those_of_the_methods_own_law():
    def of(law):
        task = tasks.from_config(tiny_config())
        method = ddae(task.method.encoder, law)
        return sample_sizes(dataclasses.replace(task, method=method))

    def below(distance, beta, errors):
        weights = (distance <= beta + 2.5).astype(jnp.float32)
        return weights / weights.mean(axis=-1, keepdims=True)

    # A threshold that the schedule moves, under which there may be no patch.
    found = of(below)
    shares = [share for _, share in found["taps"]["1.0"]]
    assert shares == sorted(shares) and 0 < shares[0] < 0.9 < shares[-1] <= 1
    assert min(beta for beta, _ in found["beta"]) == -1.5
    assert of(lambda d, beta, errors: d * errors) == {}


def test_sample_sizes_are_of_each_taps_own_depth_and_of_the_methods_metric():
    """Which is even at t = 1/2 halfway down, and looks nearer at the end of it."""

    def of(**changes):
        return sample_sizes(tasks.from_config(tiny_config(**changes)))["taps"]

    own = of()
    half, whole = (dict(own[depth])[0.5] for depth in ("0.5", "1.0"))
    assert half == pytest.approx(1.0) and whole < 0.99
    other = of(method__metric="chebyshev")
    assert dict(other["1.0"])[0.5] != pytest.approx(whole, rel=1e-3)


@pytest.mark.slow
def test_the_loss_is_that_of_every_image():
    """Of 70, taken 64 at a time."""
    task = tasks.from_config(tiny_config(method={"name": "mae"}))
    params = jax.jit(task.init)(jax.random.key(0))
    images = np.random.default_rng(0).random((70, 8, 8, 1), np.float32)
    batch = {"image": images, "label": np.zeros(70, np.int32)}
    found = loss_by_distance(task, params, {}, batch)
    images[64:] = 0.0
    assert loss_by_distance(task, params, {}, batch) != found


@pytest.mark.slow
def test_the_loss_of_features_is_to_those_of_the_teacher():
    task = tasks.from_config(tiny_config())
    params = jax.jit(task.init)(jax.random.key(0))
    draw = np.random.default_rng(0)
    images = draw.random((8, 8, 8, 1), np.float32)
    batch = {"image": images, "label": np.zeros(8, np.int32)}
    other = jax.tree.map(
        lambda x: x + 0.1 * draw.normal(size=x.shape).astype(x.dtype), params["encoder"]
    )
    own, others = (
        loss_by_distance(task, params, {"encoder": teacher}, batch)
        for teacher in (params["encoder"], other)
    )
    for term in own:
        assert (own[term] == others[term]) == term.startswith("pixels")


def test_a_run_of_other_images_beside_is_refused_before_any_work(monkeypatch, capsys):
    def opened(workdir, changes):
        side = 8 if workdir == "run" else 16
        task = SimpleNamespace(image_shape=(side, side, 1))
        return (
            SimpleNamespace(mesh=None, splits=SimpleNamespace(held_out=())),
            task,
            0,
            0,
        )

    monkeypatch.setattr("ddae.analyse.open_run", opened)
    monkeypatch.setattr("ddae.analyse.OnDevices", lambda mesh: None)
    assert main(["run", "--beside", "other"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: other takes images of (16, 16, 1), run of (8, 8, 1)")


@pytest.mark.slow
@pytest.mark.usefixtures("busy_machine")
def test_an_analysis_is_written(tmp_path, capsys):
    run = str(tmp_path / "run")
    loop.run(tiny_config(), run)
    assert main([run, "--num_images", "70", "--beside", run]) == 0
    out = tmp_path / "run/analysis"
    found = json.loads((out / "analysis.json").read_text())
    assert np.array(found["attention_distance"]).shape == (2, 2)
    job, task, params, _ = open_run(run, {})
    held_out = eval.from_config(
        {"evaluators": {"locality": {"num_held_out": 70}}},
        *(task, job.splits, OnDevices(job.mesh)),
    )["locality"](params, 0)
    for block, heads in enumerate(found["attention_distance"], start=1):
        expected = held_out[f"attention_distance/block0{block}"]
        assert np.mean(heads) == pytest.approx(expected, rel=1e-5)
    assert np.diag(found["cka"]["beside"]) == pytest.approx([1.0, 1.0])
    assert set(found["cka"]) == {"student", "teacher", "beside"}
    assert found["cka"]["student"] == found["cka"]["beside"] != found["cka"]["teacher"]
    terms = {"pixels/block01", "pixels/block02", "features/block01", "features/block02"}
    assert set(found["loss"]) == terms
    assert {p.stem for p in out.glob("*.png")} == {
        "attention_distance",
        "loss_by_distance",
        "cka",
        "effective_sample_size",
    }
    assert main([str(tmp_path)]) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_terms_of_any_name_are_drawn():
    page = {"attention_distance": [[1.0]], "uniform_distance": 2.0}
    page["cka"] = {"student": [[1.0]]}
    bins = {"d1": 1.0, "d2": 2.0}
    for names in (["colour"], ["colour", "pixels/block02"], ["pixels/again/block02"]):
        drawn = figures({**page, "loss": dict.fromkeys(names, bins)})
        assert drawn["loss_by_distance"].std() > 0


@pytest.mark.slow
def test_data_of_an_analysis_are_keys_and_values(tmp_path, capsys):
    config = tiny_config(total_steps=0, data__eval_crop=1.0, model__drop_path=0.1)
    loop.run(config, str(tmp_path))
    command = [str(tmp_path), "--num_images=4", "--data"]
    assert main([*command, "elsewhere"]) == 2
    said = "--data elsewhere is not KEY=VALUE, as dir=elsewhere is"
    assert said in capsys.readouterr().err
    changes = {"eval_crop": "0.9", "name": "digits"}
    job, _, _, _ = open_run(str(tmp_path), changes)
    assert job.config["data"]["eval_crop"] == 0.9
    assert job.config["model"]["drop_path"] == 0.0  # the loss is the whole network's
    with pytest.raises(UserError, match="data.eval_crop='wide' is not a finite number"):
        open_run(str(tmp_path), {"eval_crop": "wide"})


def test_the_evaluator_gives_a_value_a_block(tmp_path):
    from test_eval import ready

    task, evaluators, splits = ready(locality={"num_held_out": 20})
    params = jax.tree.map(lambda x: 4.0 * x, task.init(jax.random.key(0)))
    found = evaluators["locality"](params, 0)
    images = splits.held_out.images[sample(splits.held_out, 20)]
    images = jnp.asarray(images - 0.3) / 0.4
    layers = attention_probabilities(task.encoder, params["encoder"], images)
    blocks = [float(attention_distance(p, (4, 4)).mean()) for p in layers]
    for number, expected in enumerate(blocks, start=1):
        name = f"attention_distance/block0{number}"
        assert found[name] == pytest.approx(expected, rel=1e-4)
    assert found["attention_distance"] == pytest.approx(np.mean(blocks), rel=1e-4)


def drawn(monkeypatch, **changes):
    """The figures of a page, not yet drawn."""
    seen = []
    monkeypatch.setattr(analyse, "to_array", seen.append)
    page = {"attention_distance": [[1.0]], "uniform_distance": 2.0}
    page |= {"loss": {"a": {"d1": 1.0}}, "cka": {"student": [[1.0]]}} | changes
    figures(page)
    return seen


def points(axis):
    """What is drawn under each name on an axis."""
    return {line.get_label(): line.get_xydata().tolist() for line in axis.lines}


def test_heads_are_drawn_at_their_block_beside_their_mean(monkeypatch):
    heads = [[1.0, 3.0], [2.0, 6.0], [4.0, 5.0]]
    figure, *_ = drawn(monkeypatch, attention_distance=heads, uniform_distance=2.5)
    (axis,) = figure.axes
    found = points(axis)
    assert found["mean of heads"] == [[1, 2], [2, 4], [3, 4.5]]
    assert [y for _, y in found["all patches alike"]] == [2.5, 2.5]
    each = [line.get_ydata().tolist() for line in axis.lines[:2]]
    assert each == [[1, 2, 4], [3, 6, 5]] and axis.get_ylim()[1] > 6


def test_a_loss_is_drawn_at_its_own_distance(monkeypatch):
    losses = {
        "pixels/block01": {"d1": 1.0, "d3": 2.0},
        "pixels/block02": {"d2": 5.0, "d5+": 6.0},
        "features/block02": {"d4": 3.0},
    }
    _, figure, *_ = drawn(monkeypatch, loss=losses)
    features, pixels = figure.axes
    assert features.get_title() == "features" and pixels.get_title() == "pixels"
    assert points(features) == {"block02": [[3, 3]]}
    assert points(pixels) == {"block01": [[0, 1], [2, 2]], "block02": [[1, 5], [4, 6]]}
    for axis in figure.axes:
        labels = [text.get_text() for text in axis.get_xticklabels()]
        assert labels == ["1", "2", "3", "4", "5+"]
    colours = [{x.get_label(): x.get_color() for x in a.lines} for a in figure.axes]
    assert colours[0]["block02"] == colours[1]["block02"] != colours[1]["block01"]


def test_a_row_of_cka_is_a_block_of_the_student(monkeypatch):
    matrix = [[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]]
    *_, figure = drawn(monkeypatch, cka={"beside": matrix})
    axis = figure.axes[0]
    np.testing.assert_array_equal(axis.images[0].get_array(), matrix)
    assert axis.images[0].get_clim() == (0, 1) and axis.images[0].origin == "lower"
    said = {text.get_position(): text.get_text() for text in axis.texts}
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            assert said[j, i] == f"{value:.2f}"
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("block, student", "block, beside")


def test_sample_sizes_are_drawn_over_what_they_are_of(monkeypatch):
    taps = {"0.5": [(0.0, 0.25), (1.0, 0.75)], "1.0": [(0.0, 0.5), (1.0, 1.0)]}
    beta = [(-1.0, 0.5), (0.0, 1.0), (2.0, 0.25)]
    *_, figure = drawn(monkeypatch, ess={"beta": beta, "taps": taps})
    left, right = figure.axes
    assert list(points(left).values()) == [[list(point) for point in beta]]
    assert points(right) == {
        f"u = {float(u):g}": [list(point) for point in curve]
        for u, curve in taps.items()
    }


def test_the_loss_is_a_mean_over_all_parts_each_of_its_own_masks_at_the_end():
    """Of 70 images, taken 64 at a time."""

    def loss(params, teacher, batch, progress, rngs):
        images = batch["image"]
        of_ones = (images * (images == 1)).sum(), (images == 1).sum()
        drawn = jax.vmap(jax.random.uniform)(rngs)
        metrics = {
            "distance/a/b/d1": of_ones,
            "distance/a/b/d2": (images.sum(), len(images)),
            "distance/a/b/d3": (0.0, 0.0),
            "distance/progress/d1": (len(images) * progress, len(images)),
            "distance/first/d1": (drawn[0], 1.0),
            "distance/again/d1": (drawn[0] ** 2, 1.0),
            "loss": (9.0, 1.0),
        }
        return 0.0, metrics, {}

    images = np.arange(70.0) % 7
    batch = {"image": images, "label": np.zeros(70, np.int32)}
    found = loss_by_distance(SimpleNamespace(loss=loss), {}, {}, batch)
    assert found["a/b"] == {"d1": 1.0, "d2": pytest.approx(3.0)}
    assert found["progress"] == {"d1": 1.0} and "loss" not in found
    spread = found["again"]["d1"] - found["first"]["d1"] ** 2
    assert spread > 1e-6, "the first image of both parts has the same mask"


def test_the_page_in_short_counts_blocks_from_1():
    found = {"attention_distance": [[1.0, 3.0], [2.0, 4.0]], "loss": {"a": {"d1": 0.5}}}
    found["cka"] = {"student": [[1.0]], "teacher": [[0.9, 0.1], [0.2, 0.8]]}
    assert analyse.lines(found) == [
        "block  1  attention distance 2.00 (1.00 3.00)",
        "block  2  attention distance 3.00 (2.00 4.00)",
        "a  loss by distance d1 0.500",
        "CKA of each block with its like, teacher: 0.90 0.80",
    ]
