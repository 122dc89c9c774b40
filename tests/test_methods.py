"""Every method: the same under deep dynamic supervision at beta 0, and by golden."""

import dataclasses
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from tiny import constant_beta

from ddae import losses, tasks
from ddae.dds import FeatureSettings, with_dds, with_features
from ddae.masking import Masking, _rectangle
from ddae.methods import METHODS, beit, beit_v2, mae, simmim
from ddae.models.build import ModelSettings
from ddae.models.tokenizer import averaged, k_means, nearest, sums_of, unit
from ddae.models.vit import VIT_SPECS
from ddae.networks import EncoderSettings, TokenizerSettings
from ddae.objective import head_taps
from ddae.settings import UserError
from ddae.targets import hog
from ddae.tasks.pretrain import Pretrain, Standardisation
from ddae.tasks.tokenize import CodebookSettings
from ddae.train.sharding import MeshSettings, batch_sharding, make_mesh, replicated

GOLDENS = pathlib.Path(__file__).with_name("goldens")
sys.path.insert(0, str(GOLDENS))

from make_method_goldens import ENCODER, images_of, make, values  # noqa: E402

NAMES = sorted(METHODS)
QUICK = ("simmim", "beit_v2")
OWN = ModelSettings(size="Two", patch_size=2, channels=1)
AT_ZERO = {"taps": (2,), "beta": constant_beta(0.0)}


def test_images_of_bytes_are_standardised_as_those_in_0_to_1():
    standardise = Standardisation(mean=(0.3,), std=(0.4,))
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    expected = (images / np.float32(255) - np.float32(0.3)) / np.float32(0.4)
    for given in (images, (images / 255.0).astype(np.float32)):
        found = standardise(jnp.asarray(given))
        np.testing.assert_allclose(found, expected, atol=1e-6)


def loss_of(method, gradients=True, progress=0.5):
    task = Pretrain(method, Standardisation(mean=(0.3,), std=(0.4,)))
    images = images_of()
    keys = jax.random.split(jax.random.key(5), len(images))
    params = jax.jit(task.init)(jax.random.key(1))

    def function(trained):
        everything = {**params, **trained}
        loss, metrics, _ = task.loss(
            everything,
            task.ema_of(params),
            {"image": images},
            jnp.float32(progress),
            keys,
        )
        return loss, metrics

    trained = {name: params[name] for name in ("encoder", "heads")}
    if not gradients:
        return params, *jax.jit(function)(trained), None
    gradient = jax.jit(jax.value_and_grad(function, has_aux=True))
    (loss, metrics), grads = gradient(trained)
    return params, loss, metrics, grads


@pytest.mark.parametrize(
    "name",  # ddae is with_dds already, and mae is in test_objective.py
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in NAMES
        if name != "ddae"
    ],
)
def test_beta_zero_at_the_last_tap_is_the_method_itself_to_the_bit(name):
    method = make(name)
    params, loss, _, _ = loss_of(method, gradients=False)
    same_params, same, metrics, _ = loss_of(
        with_dds(method, **AT_ZERO), gradients=False
    )
    assert np.asarray(loss).tobytes() == np.asarray(same).tobytes()
    assert any(key.startswith("ess/") for key in metrics)
    assert jax.tree.structure(params) == jax.tree.structure(same_params)


def test_two_losses_of_one_output_go_under_deep_dynamic_supervision():
    method = make("simmim")
    (term,) = method.terms
    squared = dataclasses.replace(term, name="mse/block02", loss=losses.mse, weight=0.5)
    method = dataclasses.replace(method, terms=(squared, term))
    deep = with_dds(with_features(method, FeatureSettings()), taps=(1, 2))
    names = [
        f"{kind}/block0{i}" for i in (1, 2) for kind in ("mse", "pixels", "features")
    ]
    assert [other.name for other in deep.terms] == names
    assert head_taps(deep.terms) == {"block01": (1,), "block02": (2,)}
    _, loss, metrics, _ = loss_of(method, gradients=False)
    same = loss_of(with_dds(method, **AT_ZERO), gradients=False)[1]
    assert np.asarray(loss).tobytes() == np.asarray(same).tobytes()
    assert metrics["loss/mse/block02"][0] != metrics["loss/pixels/block02"][0]


@pytest.mark.parametrize("name", NAMES)
def test_golden(name):
    golden = json.loads((GOLDENS / "methods.json").read_text())
    found = values(name)
    assert found.keys() == golden[name].keys()
    for key, value in golden[name].items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simmim", "maskfeat", "beit", "beit_v2"])
def test_taps_add_terms_and_another_beta_is_another_loss(name):
    method = make(name)
    deep = with_dds(method, taps=(1, 2), beta=constant_beta(1.0))
    assert len(deep.terms) == len(method.terms) + 1
    _, loss, _, _ = loss_of(method, gradients=False)
    params, other, metrics, grads = loss_of(deep)
    assert abs(float(loss - other)) > 1e-4
    head = grads["heads"]["block01"]
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(head))


def test_beit_has_one_classifier_for_all_taps():
    deep = with_dds(make("beit_v2"), taps=(1, 2))
    params, _, _, _ = loss_of(deep, gradients=False)
    owners = [name for name, head in params["heads"].items() if "tokens" in head]
    assert owners == ["block02"]
    assert set(params["heads"]["block01"]) == {"input_norm"}
    assert set(params["heads"]["cls"]) == {"block_01", "block_02"}
    # The cls token is read by the aggregate alone; its branch reaches the last block.
    alone, _, _, _ = loss_of(make("beit"), gradients=False)
    assert "cls" not in alone["heads"]
    assert "norm" not in params["encoder"]


def test_the_aggregates_blocks_have_the_biases_that_the_encoders_have():
    encoder = ENCODER.clone(relative_bias="block", positions="none")
    method = beit_v2(encoder, early=1, tokenizer=make("beit", settings_only=True))
    task = Pretrain(method, Standardisation(mean=(0.3,), std=(0.4,)))
    params = jax.eval_shape(task.init, jax.random.key(0))
    wanted = params["encoder"]["block_00"]["relative_bias"]
    for name in ("block_01", "block_02"):
        found = params["heads"]["cls"][name]["relative_bias"]
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, wanted)


def test_small_init_is_beits():
    params = jax.jit(Pretrain(make("beit"), Standardisation(mean=(0,), std=(1,))).init)(
        jax.random.key(0)
    )
    blocks = params["encoder"]
    up = np.asarray(blocks["block_01"]["mlp"]["up"]["kernel"])
    # A normal cut at one deviation keeps .54 of it.
    assert abs(up.std() - 0.02 * 0.54) < 0.001 and np.abs(up).max() <= 0.0201
    for number in (0, 1):
        down = np.asarray(blocks[f"block_{number:02d}"]["mlp"]["down"]["kernel"])
        expected = 0.02 * 0.54 / np.sqrt(2 * (number + 1))
        np.testing.assert_allclose(down.std(), expected, rtol=0.03)


def test_no_gradient_reaches_a_frozen_network():
    task = Pretrain(make("mvp"), Standardisation(mean=(0.3,), std=(0.4,)))
    params = jax.jit(task.init)(jax.random.key(1))
    keys = jax.random.split(jax.random.key(5), 6)

    def loss(frozen):
        given = params | {"frozen": frozen}
        return task.loss(given, {}, {"image": images_of()}, jnp.float32(0.5), keys)[0]

    gradient = jax.jit(jax.grad(loss))(params["frozen"])
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(gradient))


def test_first_weights_of_mae_are_not_beits():
    task = Pretrain(make("mae"), Standardisation(mean=(0,), std=(1,)))
    params = jax.jit(task.init)(jax.random.key(0))
    for block in (
        params["encoder"]["block_01"],
        params["heads"]["block02"]["block_00"],
    ):
        up = np.asarray(block["mlp"]["up"]["kernel"])
        limit = np.sqrt(6 / sum(up.shape))  # Xavier's, uniform
        assert 0.98 * limit < np.abs(up).max() <= limit


def plain_hog(image, window, bins):
    """From the formula, a pixel at a time."""
    height, width, channels = image.shape
    padded = np.pad(image.astype(np.float64), ((1, 1), (1, 1), (0, 0)), mode="reflect")
    sobel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    cell = window // 2
    cells = np.zeros((height // cell, width // cell, channels, bins))
    for y in range(height):
        for x in range(width):
            dy = (y % window) - (window - 1) / 2
            dx = (x % window) - (window - 1) / 2
            bell = np.exp(-0.5 * (dy**2 + dx**2) / (window / 2) ** 2)
            for c in range(channels):
                near = padded[y : y + 3, x : x + 3, c]
                gx, gy = (near * sobel).sum(), (near * sobel.T).sum()
                direction = int(np.floor(np.arctan2(gx, gy) / np.pi * bins)) % bins
                cells[y // cell, x // cell, c, direction] += bell * np.hypot(gx, gy)
    length = np.linalg.norm(cells, axis=-1, keepdims=True)
    cells = cells / np.maximum(length, 1e-12)
    return cells.reshape(height // cell, width // cell, channels * bins)


@pytest.mark.parametrize(
    "height, width, channels, window", [(32, 32, 3, 16), (16, 24, 3, 8), (8, 8, 1, 4)]
)
def test_hog_equals_the_formula(height, width, channels, window):
    random = np.random.default_rng(0)
    images = random.normal(size=(2, height, width, channels)).astype(np.float32)
    found = np.asarray(jax.jit(hog, static_argnums=(1, 2))(images, window, 9))
    for image, cells in zip(images, found, strict=True):
        np.testing.assert_allclose(cells, plain_hog(image, window, 9), atol=1e-5)
    assert found.shape == (2, 2 * height // window, 2 * width // window, 9 * channels)


def test_a_flat_patch_has_no_histogram():
    assert not np.asarray(hog(jnp.ones((1, 8, 8, 1)), 4, 9)).any()


def test_block_masks_of_beits_recipe():
    """Over 10,000 draws: 75 of 196, in rectangles of the right areas and aspects."""
    keys = jax.random.split(jax.random.key(0), 10_000)
    masking = Masking(kind="block", ratio=75 / 196)
    draw = jax.jit(lambda keys: masking.draw(keys, (14, 14)).is_masked)
    hidden = np.concatenate([np.asarray(draw(part)) for part in np.split(keys, 10)])
    assert (hidden.sum(axis=1) == 75).all()
    grids = hidden.reshape(-1, 14, 14)
    # Nothing prefers a side; the middle is hidden more often than a corner.
    share = grids.mean(axis=0)
    np.testing.assert_allclose(share, share[::-1], atol=0.03)
    np.testing.assert_allclose(share, share.T, atol=0.03)
    assert share[7, 7] > share[0, 0] + 0.1
    # Rectangles: far fewer edges between hidden and visible than random masks have.
    edges = (grids[:, 1:] != grids[:, :-1]).mean()
    chance = 2 * (75 / 196) * (121 / 195)
    assert edges < 0.5 * chance
    # The first rectangle has 16 to 75 patches, so a mask holds a block of 3 x 4.
    windows = np.lib.stride_tricks.sliding_window_view(grids, (3, 4), axis=(1, 2))
    tall = np.lib.stride_tricks.sliding_window_view(grids, (4, 3), axis=(1, 2))
    solid = windows.all(axis=(3, 4)).any(axis=(1, 2)) | tall.all(axis=(3, 4)).any(
        (1, 2)
    )
    assert solid.mean() > 0.95


def test_rectangles_have_beits_areas_and_aspects():
    keys, limit = jax.random.split(jax.random.key(1), 10_000), jnp.int32(75)
    draw = jax.vmap(lambda key: _rectangle(key, (14, 14), 16, limit))
    blocks = np.asarray(jax.jit(draw)(keys))
    fits = blocks.any(axis=(1, 2))
    heights = blocks.any(axis=2).sum(axis=1)[fits]
    widths = blocks.any(axis=1).sum(axis=1)[fits]
    area, aspect = heights * widths, heights / widths
    assert fits.mean() > 0.75
    assert area.min() >= 11 and area.max() <= 90  # sides are rounded
    # Uniform in area, log-uniform in aspect, apart from those that do not fit.
    assert abs(np.log(aspect).mean()) < 0.03
    assert 0.2 < aspect.min() < 0.36 and 2.8 < aspect.max() < 5
    middle = np.quantile(area, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(middle, [29, 43, 58], atol=5)


def test_nearest_code_is_the_brute_one_in_parts_too(monkeypatch):
    from ddae.models import tokenizer

    random = np.random.default_rng(0)
    z = np.asarray(unit(random.normal(size=(100, 4)).astype(np.float32)))
    codes = np.asarray(unit(random.normal(size=(7, 4)).astype(np.float32)))
    distance = ((z[:, None] - codes[None]) ** 2).sum(axis=-1)
    for scored in (4096, 32, 10, 1):
        monkeypatch.setattr(tokenizer, "SCORED", scored)
        found = nearest(z.reshape(4, -1, z.shape[-1]), codes)
        np.testing.assert_array_equal(found.ravel(), distance.argmin(axis=1))
    # On a TPU and a GPU too.
    assert "precision=(Precision.HIGHEST" in str(
        jax.make_jaxpr(nearest)(z[None], codes)
    )


def test_nearest_codes_of_an_image_are_found_where_it_lies(monkeypatch):
    monkeypatch.setattr("ddae.models.tokenizer.SCORED", 16)
    mesh = make_mesh(MeshSettings(), 8, 1)
    rows = batch_sharding(mesh)
    z = jax.ShapeDtypeStruct((8, 7, 4), jnp.float32, sharding=rows)
    codes = jax.ShapeDtypeStruct((7, 4), jnp.float32, sharding=replicated(mesh))
    made = jax.jit(nearest, out_shardings=rows).lower(z, codes).compile().as_text()
    assert " while(" in made and "f32[4,2,2,4]" in made, "a quarter each, in parts"
    assert not re.search(r"all-gather|all-to-all|collective-permute|all-reduce", made)


def test_the_codebook_follows_its_latents_and_dead_codes_stay():
    random = np.random.default_rng(0)
    codes = unit(jnp.asarray(random.normal(size=(3, 4)), jnp.float32))
    z = unit(jnp.asarray(random.normal(size=(10, 4)), jnp.float32))
    ids = jnp.asarray([0] * 6 + [2] * 4)
    book = {"codes": codes, "counts": jnp.asarray([1.0, 2.0, 3.0])}
    after = averaged(book, sums_of(z, ids, 3))
    np.testing.assert_array_equal(after["codes"][1], codes[1])
    np.testing.assert_allclose(after["counts"], [1.05, 1.98, 3.01], rtol=1e-5)
    mean = np.asarray(z[:6]).sum(axis=0)
    expected = 0.99 * np.asarray(codes[0]) + 0.01 * mean / np.linalg.norm(mean)
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(after["codes"][0], expected, rtol=1e-5)


def test_k_means_finds_clusters():
    random = np.random.default_rng(0)
    centres = unit(random.normal(size=(5, 8)))
    z = unit(np.repeat(centres, 40, axis=0) + 0.05 * random.normal(size=(200, 8)))
    z = jnp.asarray(random.permutation(z), jnp.float32)
    near = lambda n: float((z @ k_means(z, 10, n).T).max(axis=1).mean())  # noqa: E731
    assert near(0) < near(1) < near(10) and near(10) > 0.98
    assert k_means(jnp.asarray(z[:3], jnp.float32), 8).shape == (8, 8)
    many = jnp.arange(50_000.0)[:, None]  # their number times the codes' is not int32
    np.testing.assert_array_equal(k_means(many, 50_000, iterations=0), many)


@pytest.mark.parametrize(
    "build, says",
    [
        (
            lambda: beit_v2(
                ENCODER, early=2, tokenizer=make("beit", settings_only=True)
            ),
            "early=2 is not between 1 and 1",
        ),
        (lambda: make("mvp", bad_patch=True), "does not go with patches of 2"),
        (lambda: METHODS["data2vec"](ENCODER, mean_of=3), "mean_of=3"),
        (lambda: METHODS["maskfeat"](ENCODER.clone(patch_size=1)), "even patch size"),
        (lambda: METHODS["maskfeat"](ENCODER, bins=0), "bins=0 is not 1 or more"),
        (lambda: TokenizerSettings(codes=0), "codes=0 is not 1 or more"),
        (
            lambda: TokenizerSettings(model=OWN, mean=(0.5,) * 3).network(ENCODER),
            "mean has 3 entries for 1 channels",
        ),
        (
            lambda: TokenizerSettings(model=OWN, std=(0.0,)).network(ENCODER),
            "frozen network's std=.* must be positive",
        ),
        (lambda: CodebookSettings(commitment=-1.0), "commitment=-1.0 must not be neg"),
        (lambda: with_dds(simmim(ENCODER), taps=(1,)), "end at the last block"),
    ],
)
def test_wrong_settings_are_named(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_simmim_is_mae_with_one_linear_and_l1():
    (term,) = simmim(ENCODER).terms
    assert term.loss is losses.l1 and not term.target.standardise
    (ids,) = beit(ENCODER, tokenizer=make("beit", settings_only=True)).terms
    assert ids.loss is losses.cross_entropy


@pytest.mark.parametrize("build", [mae, simmim])
def test_a_head_of_pixels_has_a_value_for_each_of_a_patch(build):
    encoder = ENCODER.clone(grid=(2, 2), patch_size=4, channels=3)
    (head,) = build(encoder).heads.values()
    assert head.outputs == {"pixels": 4 * 4 * 3}


def test_maes_decoder_is_computed_as_the_encoder_is():
    told = {"dtype": jnp.bfloat16, "remat": "full", "scan": True}
    told |= {"gelu": "tanh", "kernel": "xla"}
    encoder = ENCODER.clone(**told)
    (head,) = mae(encoder).heads.values()
    assert head.blocks == dataclasses.replace(encoder.blocks, spec=head.blocks.spec)
    assert (head.blocks.spec.width, head.dtype) == (512, jnp.bfloat16)


def test_beit_v2_reads_three_quarters_of_the_depth():
    deep = ENCODER.clone(spec=VIT_SPECS["Ti"])
    method = beit_v2(deep, tokenizer=make("beit", settings_only=True))
    assert [term.taps for term in method.terms] == [(12,), (9, 12)]


@pytest.mark.slow
def test_a_frozen_network_standardises_images_its_own_way():
    model = ModelSettings(size="Two", patch_size=2, channels=1)
    network = EncoderSettings(model=model, mean=(0.2,), std=(0.4,)).network(ENCODER)
    params = network.init(jax.random.key(0))
    found = network.apply(params, images_of())
    given = {"params": params["encoder"]}
    expected = network.encoder.apply(given, (images_of() - 0.2) / 0.4)[2].patches
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def tokenizer_task(drop_path=0.0, gelu="erf", **settings):
    model = {"size": "Two", "patch_size": 2, "channels": 1, "gelu": gelu}
    given = {"codes": 8, "code_dim": 4, "decoder_depth": 1, "teacher": {"model": model}}
    config = tiny_config(
        task="tokenize",
        tokenizer=given | settings,
        model=model | {"drop_path": drop_path},
    )
    del config["method"]
    return tasks.from_config(config)


@pytest.mark.parametrize("name", ["ddae", "beit_v2", "tokenize"])
def test_all_blocks_of_a_task_have_the_gelu_that_was_asked_for(name):
    """Those of decoders and of BEiT-v2's aggregation too."""

    def exact(gelu):
        model = {"size": "Two", "patch_size": 2, "channels": 1, "gelu": gelu}
        if name == "tokenize":
            task = tokenizer_task(gelu=gelu)
        else:
            method = {"name": name}
            if name == "beit_v2":
                method |= {"early": 1, "tokenizer": {"model": model, "codes": 8}}
                model = model | {"relative_bias": "shared", "positions": "none"}
            task = tasks.from_config(tiny_config(model=model, method=method))
        made = str(jax.make_jaxpr(task.init)(jax.random.key(0)))
        return len(re.findall(r":f32\[\d+,\d+,\d+\] = erf\b", made))  # of tokens

    assert exact("tanh") == 0 < exact("erf")


def test_a_tokenizer_drops_no_path():
    with pytest.raises(UserError, match="drop_path=0.5: a tokenizer drops none"):
        tokenizer_task(drop_path=0.5)


@pytest.mark.slow
def test_cosine_and_commitment_both_teach_the_encoder():
    """The one through the codes, straight on to the latents; codes learn by none."""
    batch, keys = {"image": images_of()}, jax.random.split(jax.random.key(0), 6)
    found = []
    for weight in (0.0, 1.0):
        task = tokenizer_task(commitment=weight)
        params = jax.jit(task.init)(jax.random.key(1))
        gradient = jax.grad(lambda p, t=task: t.loss(p, {}, batch, 0.0, keys)[0])
        found.append(jax.jit(gradient)(params))
    without, both = found
    kernel = lambda g: g["encoder"]["block_01"]["mlp"]["down"]["kernel"]  # noqa: E731
    assert np.abs(kernel(without)).max() > 0
    assert np.abs(kernel(both) - kernel(without)).max() > 1e-6
    assert not np.asarray(both["heads"]["quantiser"]["codebook"]["codes"]).any()


def test_the_first_codebook_is_of_the_first_batch():
    task = tokenizer_task()
    params = jax.jit(task.init)(jax.random.key(1))
    begun = task.begin(params, {"image": images_of()})

    def fit(params):
        z, ids = task._latents(params, images_of())
        codes = params["heads"]["quantiser"]["codebook"]["codes"]
        return float((z * codes[ids]).sum(axis=-1).mean())

    assert fit(begun) > fit(params) + 0.05
    assert begun["encoder"] is params["encoder"]


def test_the_head_of_two_layers_is_as_deep_as_its_last():
    method = with_features(make("beit_v2"), FeatureSettings())
    found = {t.name: t.target.teacher_layers for t in method.terms}
    assert found["features/cls"] == found["features/block02"] == (2,)
    deep = with_dds(make("beit_v2"), taps=(1, 2))
    depths = {t.name: t.difficulty.depth for t in deep.terms}
    assert depths == {"tokens/block01": 0.5, "tokens/block02": 1.0, "tokens/cls": 1.0}


def test_data2vecs_taps_learn_from_the_same_layers():
    deep = with_dds(make("data2vec"), taps=(1, 2))
    assert [t.target.teacher_layers for t in deep.terms] == [(1, 2), (1, 2)]


@pytest.mark.slow
def test_a_tokenizers_loss_is_that_of_its_formula():
    task = tokenizer_task(commitment=0.5)
    batch, keys = {"image": images_of()}, jax.random.split(jax.random.key(0), 6)
    params = jax.jit(task.init)(jax.random.key(1))
    book = params["heads"]["quantiser"]["codebook"]
    book["counts"] = jnp.array([0.0, 0.009, 0.011, 5.0, 0.0, 0.0, 0.0, 1.0])

    def loss(params):
        value, metrics, seen = task.loss(params, {}, batch, 0.0, keys)
        return value, (metrics, seen)

    (found, (metrics, seen)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        params
    )
    z, ids = task._latents(params, batch["image"])
    commitment = ((np.asarray(z) - np.asarray(book["codes"])[ids]) ** 2).mean()
    cosine = np.asarray(task.tokens(params, batch["image"])["cosine"]).mean()
    np.testing.assert_allclose(metrics["commitment"][0], commitment, rtol=1e-4)
    np.testing.assert_allclose(metrics["cosine"][0], cosine, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found, 1 - cosine + 0.5 * commitment, rtol=1e-5)
    assert metrics["codes_used"][0] == 37.5 and metrics["codes_dead"][0] == 5
    assert float(seen["counts"].sum()) == z.size / z.shape[-1]
    # Past the codes to the encoder, and none to the codes.
    assert np.abs(grads["encoder"]["patch_embedding"]["kernel"]).max() > 0
    assert not np.asarray(grads["heads"]["quantiser"]["codebook"]["codes"]).any()
