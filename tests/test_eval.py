import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scenes
from conftest import tiny_config
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ddae import data, eval, tasks
from ddae.data.arrays import ArraySource
from ddae.eval.codes import make_codes
from ddae.eval.figures import distance_curves
from ddae.eval.knn import linear_top1, make_votes, place_bank, unit
from ddae.models.vit import Features
from ddae.settings import UserError
from ddae.tasks.tokenize import CodebookSettings, Tokenize
from ddae.train.sharding import MeshSettings, make_mesh
from ddae.train.step import OnDevices


def devices(number):
    return OnDevices(make_mesh(MeshSettings(), 16, 1, jax.devices()[:number]))


class Pixels(tasks.Pretrain):
    """A task whose features are the pixels."""

    def encode(self, params, images):
        flat = images.reshape(len(images), 1, -1)
        return Features(prefix=flat, patches=flat)


def ready(number=4, **evaluators):
    config = tiny_config(evaluators=evaluators)
    task = Pixels.from_config(config)
    splits = data.from_config(config, task.image_shape)
    return task, eval.from_config(config, task, splits, devices(number)), splits


@pytest.mark.parametrize("number", [1, 4])
def test_knn_equals_scikit_learns_on_the_pixels_of_digits(number):
    _, evaluators, splits = ready(number, knn={"k": (10, 20, 100, 200)})
    found = evaluators["knn"]({}, 0)

    def votes(distance):
        return np.exp((1 - distance) / 0.07)

    for k in (10, 20, 100, 200):
        model = KNeighborsClassifier(k, metric="cosine", weights=votes)
        model.fit(splits.train.images.reshape(-1, 64), splits.train.labels)
        expected = model.score(
            splits.held_out.images.reshape(-1, 64), splits.held_out.labels
        )
        np.testing.assert_allclose(found[f"knn{k}_top1"], 100 * expected, atol=1e-4)


def test_votes_are_weighted_by_similarity():
    mesh = devices(2).mesh
    bank = np.asarray(unit(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], np.float32)))
    query = np.array([[1.0, 0.0]], np.float32)
    votes = make_votes(mesh, (1, 2), 0.07, 3)
    placed = place_bank(mesh, bank, np.array([2, 0, 1]))
    one, two = votes(query, *placed)
    # Exact on a TPU and a GPU too.
    assert "precision=(Precision.HIGHEST" in str(jax.make_jaxpr(votes)(query, *placed))
    np.testing.assert_allclose(one[0], [0, 0, 1.0], rtol=1e-5)
    assert two[0].argmax() == 2 and two[0, 0] > 0 and two[0, 1] == 0
    less = float(bank[0] @ query[0] - bank[1] @ query[0])
    np.testing.assert_allclose(two[0, 0], np.exp(-less / 0.07), rtol=1e-4)
    cold = make_votes(mesh, (1, 2), 0.001, 3)(query, *placed)
    np.testing.assert_allclose(cold[1, 0, 2], 1.0, rtol=1e-5)
    assert np.isfinite(cold).all()
    assert not np.asarray(unit(jnp.zeros((1, 2)))).any(), "no feature, and no NaN"


def test_a_bank_that_came_out_smaller_is_searched_as_it_is():
    """Without records that could not be read a device may have fewer than k."""
    bank = np.asarray(unit(np.random.default_rng(0).normal(size=(80, 5))), np.float32)
    placed = place_bank(devices(4).mesh, bank, np.arange(80) % 3)
    (votes,) = make_votes(devices(4).mesh, (30,), 1e9, 3)(bank[:7], *placed)
    for query, found in zip(bank[:7], np.asarray(votes), strict=True):
        nearest = np.argsort(-(bank @ query))[:30] % 3
        np.testing.assert_allclose(found, np.bincount(nearest), rtol=1e-5)


def test_knn_takes_a_sample_of_the_set():
    _, evaluators, _ = ready(knn={"k": (5, 200), "num_train": 200, "num_held_out": 100})
    assert 50 < evaluators["knn"]({}, 0)["knn5_top1"] <= 100


@pytest.mark.slow
def test_knn_says_nothing_where_it_could_not_be_wrong(tmp_path, capsys):
    images = np.random.default_rng(0).random((20, 8, 8, 1), np.float32)
    given = {"name": "npz", "dir": str(tmp_path), "mean": (0.3,), "std": (0.4,)}
    for labels, split, says in (
        (np.zeros(20, int), "test", "all training images are of one class"),
        (np.arange(20) % 2, "train", "the held-out images are the training images"),
        (np.arange(20) % 2, "test", ""),
    ):
        for name, some in (("train", images), ("test", images[:10])):
            np.savez(tmp_path / name, images=some, labels=labels[: len(some)])
        config = tiny_config(data=given | {"eval_split": split})
        config["evaluators"] = {"knn": {"k": 3}}
        task = tasks.from_config(config)
        splits = data.from_config(config, task.image_shape)
        mesh = make_mesh(MeshSettings(), 16, 1)
        made = eval.from_config(config, task, splits, OnDevices(mesh))
        found = made["knn"](task.init(jax.random.key(0)), 0)
        assert set(found) == (set() if says else {"knn3_top1"})
        assert (f"kNN is left out: {says}" in capsys.readouterr().out) == bool(says)


def test_knn_says_nothing_of_scenes(tmp_path, capsys):
    for split in ("training", "validation"):
        scenes.write(tmp_path, [scenes.noise(n, 8, 8) for n in range(4)], split)
    given = {"name": "scenes", "train_split": "training", "eval_split": "validation"}
    given |= {"dir": str(tmp_path), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    config = tiny_config(evaluators={"knn": {"k": 3}})
    config["data"] = given | {"scenes": {"num_classes": scenes.CLASSES}}
    task = Pixels.from_config(tiny_config())
    splits = data.from_config(config, (8, 8, 3))
    made = eval.from_config(config, task, splits, devices(1))
    assert made["knn"]({}, 0) == {}
    assert "kNN is left out: a scene has a class for every" in capsys.readouterr().out


@pytest.mark.parametrize(
    "section, says",
    [
        ({"knn": {"k": 0}}, "knn.k=0"),
        (
            {"knn": {"k": 20, "num_train": 10}},
            "knn.k=20 is not between 1 and 10 images",
        ),
        ({"knn": {"pool": "max"}}, "pool='max'"),
        ({"knn": {"temperature": 0.0}}, "temperature=0.0 must be positive"),
        ({"knn": {"kk": 1}}, "evaluators.knn.kk .*'k'"),
        ({"probe": {}}, "evaluators.probe is not one of"),
    ],
)
def test_wrong_evaluators_are_named(section, says):
    with pytest.raises(UserError, match=says):
        ready(**section)


def test_reconstruction_pastes_visible_patches_and_uses_true_statistics():
    task, evaluators, splits = ready(reconstruct={"num_images": 3})
    params = jax.jit(task.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(0), 3)
    images = splits.held_out.images[:3]
    result = jax.jit(task.reconstruct)(params, images, keys)
    visible = ~np.asarray(result.is_masked).repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(
        np.asarray(result.reconstruction)[visible], images[visible], atol=1e-5
    )
    assert (np.asarray(result.distance)[~np.asarray(result.is_masked)] == 0).all()
    # A head that answers 0 everywhere gives every hidden patch its true mean.
    silent = jax.tree.map(lambda x: x, params)
    silent["heads"]["block02"]["pixels"] = jax.tree.map(
        np.zeros_like, params["heads"]["block02"]["pixels"]
    )
    flat = np.asarray(jax.jit(task.reconstruct)(silent, images, keys).reconstruction)
    cells = flat.reshape(3, 4, 2, 4, 2)
    means = images.reshape(3, 4, 2, 4, 2).mean(axis=(2, 4))
    hidden = np.asarray(result.is_masked)
    np.testing.assert_allclose(
        cells.mean(axis=(2, 4))[hidden], means[hidden], atol=1e-5
    )


def test_reconstruction_figure(tmp_path):
    task, evaluators, _ = ready(reconstruct={"num_images": 3})
    params = jax.jit(task.init)(jax.random.key(0))
    values = evaluators["reconstruct"](params, 7)
    picture = values["reconstruction"]
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert picture.std() > 10 and 0 < values["masked_rmse"] < 1


@pytest.mark.usefixtures("busy_machine")
def test_distance_curves_need_a_log():
    assert distance_curves([{"step": 0, "eval/x": 1.0}]) is None
    rows = [
        {"step": s, f"train/distance/pixels/block04/{b}": 1 / s}
        for s in (1, 2)
        for b in ("d1", "d2")
    ]
    assert distance_curves(rows).ndim == 3


def test_what_fills_up_the_bank_never_votes():
    """Three of it over four devices; every one is farther than nothing at all."""
    bank = np.array([[-1.0, 0.0], [-0.8, 0.6], [-0.8, -0.6]], np.float32)
    mesh = devices(4).mesh
    votes = make_votes(mesh, (1, 3), 1.0, 3)
    placed = place_bank(mesh, bank, np.array([1, 2, 2]))
    one, three = map(np.asarray, votes(np.array([[1.0, 0.0]], np.float32), *placed))
    assert (three[:, 1:] > 0).all() and (one > 0).sum() == 1
    assert not one[:, 0] and not three[:, 0]  # of no class that is there


def test_the_linear_probe_knows_no_shift_and_no_scale():
    draw = np.random.default_rng(0)
    bank, queries = draw.normal(size=(2, 300, 8))
    labels, truth = (2 * (x[:, 0] > 0) + (x[:, 1] > 0.5) for x in (bank, queries))
    found = linear_top1(bank, labels, queries, truth)
    assert 80 < found < 100
    for scale in (3.0, 10.0 ** np.arange(-3, 5)):
        moved = linear_top1(scale * bank + 50, labels, scale * queries + 50, truth)
        assert moved == pytest.approx(found, abs=0.4)


def test_the_linear_probe_standardises_queries_by_the_bank():
    """By themselves, queries of one class alone would lie in the middle of all."""
    draw = np.random.default_rng(0)
    bank = draw.normal(size=(300, 4))
    labels = (bank[:, 0] > 0) * 1
    queries = bank[labels == 1][:100]
    found = linear_top1(bank, labels, queries, np.ones(len(queries), int))
    assert found > 95


def test_features_of_half_precision_are_made_unit_in_full():
    class Half(Pixels):
        def encode(self, params, images):
            found = super().encode(params, images)
            return jax.tree.map(lambda x: x.astype(jnp.bfloat16), found)

    config = tiny_config(evaluators={"knn": {"k": 5}})
    task, seen = Half.from_config(config), []

    def on_devices(function):
        seen.append(function)
        return function

    on_devices.mesh = devices(1).mesh
    splits = data.from_config(config, task.image_shape)
    eval.from_config(config, task, splits, on_devices)
    lengths = np.linalg.norm(seen[0]({}, splits.held_out.images[:9]), axis=1)
    np.testing.assert_allclose(lengths, 1.0, rtol=1e-6)


def test_knn_and_the_linear_probe_read_what_they_are_told():
    """The cls token holds the pixels, patches nothing; another temperature."""

    class Cls(Pixels):
        def encode(self, params, images):
            found = super().encode(params, images)
            return Features(prefix=found.prefix, patches=0.0 * found.patches)

    section = {"k": 200, "pool": "cls", "temperature": 1.0, "linear": True}
    config = tiny_config(evaluators={"knn": section})
    task = Cls.from_config(config)
    splits = data.from_config(config, task.image_shape)
    found = eval.from_config(config, task, splits, devices(2))["knn"]({}, 0)
    bank, queries = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (s.images.reshape(-1, 64) for s in (splits.train, splits.held_out))
    )
    labels, truth = splits.train.labels, splits.held_out.labels
    votes = lambda distance: np.exp(1 - distance)  # noqa: E731
    model = KNeighborsClassifier(200, metric="cosine", weights=votes).fit(bank, labels)
    expected = 100 * model.score(queries, truth)
    assert found["knn200_top1"] == pytest.approx(expected, abs=1e-4)
    mean, deviation = bank.mean(axis=0), bank.std(axis=0) + 1e-6
    probe = LogisticRegression(max_iter=500, tol=1e-3)
    probe.fit((bank - mean) / deviation, labels)
    expected = 100 * probe.score((queries - mean) / deviation, truth)
    assert found["linear_top1"] == pytest.approx(expected, abs=0.6)


def test_the_error_of_a_reconstruction_is_that_of_hidden_pixels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
    for name in ("train", "test"):
        np.savez(
            tmp_path / f"{name}.npz", images=images / np.float32(255), labels=range(9)
        )
    config = tiny_config(
        evaluators={"reconstruct": {"num_images": 3, "seed": 1}},
        model__channels=3,
        batch_size=8,
        data={
            "name": "npz",
            "dir": str(tmp_path),
            "mean": (0.3,) * 3,
            "std": (0.4,) * 3,
        },
    )
    task = tasks.from_config(config)
    splits = data.from_config(config, task.image_shape)
    evaluators = eval.from_config(config, task, splits, devices(4))
    params = jax.jit(task.init)(jax.random.key(0))
    found = evaluators["reconstruct"](params, 7)["masked_rmse"]
    indices = np.random.default_rng(1).permutation(len(splits.held_out))[:3]
    keys = jax.random.split(jax.random.key(1), 3)
    result = jax.jit(task.reconstruct)(params, splits.held_out.images[indices], keys)
    hidden = np.asarray(result.is_masked).repeat(2, 1).repeat(2, 2)
    error = np.asarray(result.reconstruction - result.original)[hidden]
    assert found == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)


def test_codes_are_counted():
    """Two of eight codes, one taken by three patches of four."""
    images = np.zeros((5, 2, 2, 1), np.float32)
    source = ArraySource(images, np.zeros(5, int), "zeros", "test")
    ids = np.tile(np.array([6.0, 6.0, 6.0, 1.0]), (5, 1))
    tokens = {"ids": ids, "cosine": np.full((5, 4), 0.25)}
    task = Tokenize(None, CodebookSettings(codes=8), None, None)
    splits = types.SimpleNamespace(held_out=source)
    found = make_codes(task, splits, lambda _: lambda params, images: tokens)({}, 0)
    perplexity = 1 / (0.75**0.75 * 0.25**0.25)
    expected = {"codes_used": 25.0, "code_perplexity": perplexity, "code_cosine": 0.25}
    assert found == pytest.approx(expected)


def test_a_reconstruction_has_the_true_deviation_of_each_patch():
    task, _, splits = ready(reconstruct={"num_images": 3})
    params = jax.jit(task.init)(jax.random.key(0))
    head = params["heads"]["block02"]["pixels"]
    bias = jnp.array([0.5, -0.5, 0.25, -0.25])
    silent = {"kernel": jnp.zeros_like(head["kernel"]), "bias": bias}
    params["heads"]["block02"]["pixels"] = silent
    keys = jax.random.split(jax.random.key(0), 3)
    images = splits.held_out.images[:3]
    result = jax.jit(task.reconstruct)(params, images, keys)
    cells = images.reshape(3, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(3, 4, 4, 4)
    deviation = np.sqrt(cells.var(-1, ddof=1, keepdims=True) + 1e-6 * 0.4**2)
    expected = (cells.mean(-1, keepdims=True) + deviation * np.asarray(bias)).clip(0, 1)
    found = np.asarray(result.reconstruction).reshape(3, 4, 2, 4, 2)
    found = found.transpose(0, 1, 3, 2, 4).reshape(3, 4, 4, 4)
    hidden = np.asarray(result.is_masked)
    np.testing.assert_allclose(found[hidden], expected[hidden], atol=1e-5)


def test_neighbours_are_searched_in_the_sample_of_each_set():
    section = {"k": 5, "num_train": 300, "num_held_out": 120}
    _, evaluators, splits = ready(knn=section)
    rows = data.sample(splits.train, 300), data.sample(splits.held_out, 120)
    (bank, labels), (queries, truth) = (
        (s.images[i].reshape(len(i), 64), s.labels[i])
        for s, i in zip((splits.train, splits.held_out), rows, strict=True)
    )
    votes = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
    model = KNeighborsClassifier(5, metric="cosine", weights=votes).fit(bank, labels)
    expected = 100 * model.score(queries, truth)
    found = evaluators["knn"]({}, 0)["knn5_top1"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
