"""The central test: beta = 0 at the last tap alone is the base method, to the bit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from tiny import constant_beta

from ddae import flops, losses, settings, tasks
from ddae.dds import (
    FeatureSettings,
    Method,
    Momentum,
    default_taps,
    with_dds,
    with_features,
)
from ddae.difficulty import (
    BetaSchedule,
    difficulty_weights,
    effective_sample_size,
    nearest_visible_distance,
)
from ddae.masking import Masking, gather_patches, part_of, random_mask
from ddae.methods import Decoder, data2vec, ddae, mae
from ddae.models.vit import VIT_SPECS, Encoder, Features
from ddae.objective import (
    Difficulty,
    Term,
    _mean_one,
    _scored,
    evaluate_terms,
    head_taps,
    in_turn,
    teacher_layers,
)
from ddae.patches import patchify, standardise_patches
from ddae.targets import (
    Frozen,
    Hog,
    Pixels,
    TargetContext,
    TeacherLayer,
    TeacherView,
    hog,
)
from ddae.tasks.pretrain import Pretrain, Standardisation, _shrunk, _teacher_metrics

ENCODER = Encoder(VIT_SPECS["Pico"], (4, 4), 2, channels=1)
DECODER = Decoder(depth=1, width=32, num_heads=2)
ZERO = constant_beta(0.0)
LAST = {"taps": (4,), "beta": ZERO}


def pretrain(method: Method) -> Pretrain:
    return Pretrain(method, Standardisation(mean=(0.3,), std=(0.4,)))


def loss_of(method, params, images, progress=0.3, jit=True):
    task = pretrain(method)
    keys = jax.random.split(jax.random.key(5), len(images))

    def function(p):
        batch = {"image": images}
        return task.loss(p, task.ema_of(p), batch, jnp.float32(progress), keys)[:2]

    gradient = jax.value_and_grad(function, has_aux=True)
    (loss, metrics), grads = (jax.jit(gradient) if jit else gradient)(params)
    return loss, metrics, grads


@pytest.mark.parametrize(
    "layout, kind, jit",
    [
        ("visible", "random", True),
        pytest.param("visible", "block", True, marks=pytest.mark.slow),
        ("mask_token", "cell", True),
        pytest.param("visible", "random", False, marks=pytest.mark.slow),
    ],
)
def test_beta_zero_at_the_last_tap_is_mae_to_the_bit(layout, kind, jit, digit_images):
    common = {"mask": Masking(kind=kind), "decoder": DECODER, "layout": layout}
    base = mae(ENCODER, **common)
    params = jax.jit(pretrain(base).init)(jax.random.key(0))
    expected, _, gradient = loss_of(base, params, digit_images, jit=jit)
    without = FeatureSettings(weight=0.0)
    for method in (
        with_dds(base, **LAST),
        ddae(ENCODER, **common, **LAST, features=without),
    ):
        found, _, same = loss_of(method, params, digit_images, jit=jit)
        assert np.asarray(found) == np.asarray(expected)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(same), strict=True):
            if jit:  # XLA may fuse a sum with the weights in it: the last bit moves.
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
            else:
                np.testing.assert_array_equal(a, b)


def test_another_beta_is_not_mae(digit_images):
    base = mae(ENCODER, decoder=DECODER)
    params = jax.jit(pretrain(base).init)(jax.random.key(0))
    expected, _, _ = loss_of(base, params, digit_images)
    other = with_dds(base, taps=(4,), beta=constant_beta(1.0))
    assert loss_of(other, params, digit_images)[0] != expected


def test_loss_is_the_formula(digit_images):
    """The total of a DDAE step, written out from METHOD's formula with NumPy."""
    features = FeatureSettings(weight=0.7)
    method = ddae(
        ENCODER, decoder=DECODER, features=features, taps=(2, 4), tap_weight=0.25
    )
    task = pretrain(method)
    params = jax.jit(task.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(2), len(digit_images))
    t = 0.1
    mask = method.masking.draw(keys, (4, 4))
    context = jax.jit(task._context)(
        params, task.ema_of(params), digit_images, mask, keys
    )
    predictions, _ = jax.jit(task.predict)(params, context.standardised, mask)
    total, _ = evaluate_terms(method.terms, predictions, context, jnp.float32(t))

    ids = np.asarray(mask.ids_masked)
    rows = np.arange(len(ids))[:, None]
    distance = np.asarray(nearest_visible_distance(mask, (4, 4)))[rows, ids]
    pixels = (np.asarray(digit_images) - 0.3) / 0.4
    patches = pixels.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 4)
    deviation = np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    patches = ((patches - patches.mean(-1, keepdims=True)) / deviation)[rows, ids]

    def layer_norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + 1e-6
        )

    expected = 0.0
    for tap, share in ((2, 0.25), (4, 1.0)):
        beta = np.clip(-1 + 2 * t - 0.5 * (2 * tap / 4 - 1), -2, 2)
        w = distance**beta
        w = w * w.shape[1] / w.sum(1, keepdims=True)
        made = {k: np.asarray(v) for k, v in predictions[f"block{tap:02d}"].items()}
        teacher = np.asarray(context.teacher[tap].patches)[rows, ids]
        pixel = ((made["pixels"] - patches) ** 2).mean(-1)
        feature = (layer_norm(made["features"]) - layer_norm(teacher)) ** 2
        ramp = 0.7 * min(t / 0.25, 1.0)
        expected += share * (w * (pixel + ramp * feature.mean(-1))).mean()
    np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_losses_in_turn_are_their_sum_with_its_gradient():
    """Two of four have one matrix, and all read the same features."""
    names = ("a", "b", "c", "d")
    keys = jax.random.split(jax.random.key(0), 5)
    *drawn, features = (jax.random.normal(k, (5, 5)) for k in keys)
    params = dict(zip(names, drawn, strict=True))

    def loss(own, taken, power):
        value = (jnp.abs(taken @ own) ** power).mean()
        return value, {f"loss/{power}": (value, jnp.ones(()))}

    losses = {n: functools.partial(loss, power=i) for i, n in enumerate(names, 2)}

    def given(params, features):
        matrices = params | {"d": params["a"]}
        return {name: (matrices[name], features) for name in names}

    def turned(params, features):
        total, metrics = in_turn(losses, given(params, features))
        return 3.0 * total, metrics

    def plain(params, features):
        found = {n: losses[n](*x)[0] for n, x in given(params, features).items()}
        return 3.0 * sum(found.values()), found

    both = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(params, features)
        for f in (turned, plain)
    ]
    ((total, metrics), grads), ((expected, each), others) = both
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert np.abs(grads[0]["a"]).max() > 0 and np.abs(grads[0]["d"]).max() == 0
    assert metrics.keys() == {"loss", "loss/2", "loss/3", "loss/4", "loss/5"}
    np.testing.assert_allclose(3 * metrics["loss"][0], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss/4"][0], each["c"], rtol=1e-6)


def test_metrics_name_every_term_and_bin(digit_images):
    method = ddae(ENCODER, decoder=DECODER)
    task = pretrain(method)
    params = jax.jit(task.init)(jax.random.key(0))
    _, metrics, _ = loss_of(method, params, digit_images)
    means = {k: float(s / c) for k, (s, c) in metrics.items() if c > 0}
    for term in ("pixels/block03", "features/block04"):
        assert {f"loss/{term}", f"beta/{term}", f"ess/{term}"} <= means.keys()
        assert 0 < means[f"ess/{term}"] <= 1
        counts = [metrics[f"distance/{term}/{b}"][1] for b in ("d1", "d2", "d3")]
        assert sum(map(float, counts)) == 16 * 12  # every masked patch in one bin
    assert means["teacher_std/block04"] > 0.05
    assert 0.9 < means["teacher_cosine/block04"] <= 1.0


def test_no_gradient_reaches_the_teacher(digit_images):
    task = pretrain(ddae(ENCODER, decoder=DECODER))
    params = jax.jit(task.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(5), len(digit_images))

    def loss(ema_params):
        batch = {"image": digit_images}
        return task.loss(params, ema_params, batch, jnp.float32(1.0), keys)[0]

    teacher = task.ema_of(params)
    # The teacher matters to the loss, and no gradient says how.
    assert jax.jit(loss)(teacher) != jax.jit(loss)(
        jax.tree.map(lambda x: x + 0.1 * jnp.sign(x), teacher)
    )
    gradient = jax.jit(jax.grad(loss))(teacher)
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(gradient))


def test_with_dds_repeats_terms_at_taps_with_heads_of_their_own():
    features = FeatureSettings(weight=1.0)
    base = with_features(mae(ENCODER, decoder=DECODER), features)
    method = with_dds(base, taps=(2, 4), beta=BetaSchedule())
    assert [t.name for t in method.terms] == [
        "pixels/block02",
        "features/block02",
        "pixels/block04",
        "features/block04",
    ]
    assert head_taps(method.terms) == {"block02": (2,), "block04": (4,)}
    assert method.heads["block02"].input_norm and not method.heads["block04"].input_norm
    assert method.terms[1].target.teacher_layers == (2,)
    assert [t.difficulty.depth for t in method.terms] == [0.5, 0.5, 1.0, 1.0]
    assert base.terms[0].difficulty is None, "with_dds must not change its argument"
    # Weights of a tap before the last are a quarter of the base's, ramp and all.
    assert method.terms[0].weight == 0.25
    assert float(method.terms[1].weight(1.0)) == 0.25
    assert float(method.terms[3].weight(0.125)) == 0.5


@pytest.mark.parametrize(
    "given, layers",
    [
        ({"target": "last"}, (4,)),
        ({"target": "mean", "mean_of": 3}, (2, 3, 4)),
        ({"target": "mean"}, (1, 2, 3, 4)),
    ],
)
def test_feature_targets_that_do_not_follow_the_tap(given, layers):
    features = FeatureSettings(**given)
    base = with_features(mae(ENCODER, decoder=DECODER), features)
    method = with_dds(base, taps=(2, 4))
    for term in method.terms:
        if term.output == "features":
            assert term.target.teacher_layers == layers


def test_features_put_onto_taps_are_the_teachers_of_each():
    deep = with_dds(mae(ENCODER, decoder=DECODER), taps=(2, 4))
    terms = with_features(deep, FeatureSettings()).terms
    layers = {t.head: t.target.teacher_layers for t in terms if t.output == "features"}
    assert layers == {"block02": (2,), "block04": (4,)}


def test_a_term_that_stands_at_a_tap_already_has_that_depth():
    again = with_dds(ddae(ENCODER, decoder=DECODER), taps=(ENCODER.spec.depth,))
    depths = {term.taps: term.difficulty.depth for term in again.terms}
    assert len(depths) > 1
    assert depths == {(tap,): tap / ENCODER.spec.depth for (tap,) in depths}


def test_a_tap_that_the_method_supervises_itself_stays_as_it_is():
    beta = constant_beta(0.5)
    method = ddae(ENCODER, decoder=DECODER, taps=(2, 4), beta=beta)
    again = with_dds(method, taps=(2, 4), beta=beta)
    assert [t.name for t in again.terms] == [t.name for t in method.terms]
    assert again.heads == method.heads


def test_every_head_of_the_last_layer_has_one_of_its_own_at_each_tap():
    method = mae(ENCODER, decoder=DECODER)
    (term,) = method.terms
    second = dataclasses.replace(term, name="pixels/second", head="second")
    method = dataclasses.replace(
        method,
        heads={**method.heads, "second": method.heads["block04"]},
        terms=(term, second),
    )
    deep = with_dds(method, taps=(2, 4))
    assert [t.name for t in deep.terms] == [
        "pixels/block02",
        "pixels/second_block02",
        "pixels/block04",
        "pixels/second",
    ]
    assert set(deep.heads) == {"block02", "second_block02", "block04", "second"}
    with pytest.raises(ValueError, match="two Terms are called 'pixels/block04'"):
        head_taps((term, term))


def test_default_taps_are_the_last_half():
    assert default_taps(12) == (6, 8, 10, 12)
    assert default_taps(24) == (12, 16, 20, 24)
    assert default_taps(32)[-1] == 32
    assert default_taps(6) == (4, 5, 6)


@pytest.mark.parametrize(
    "taps, says",
    [((5,), "tap 5 lies outside"), ((0, 4), "tap 0"), ((4, 2), "ascend"), ((), "end")],
)
def test_taps_that_make_no_sense_are_errors(taps, says):
    with pytest.raises(ValueError, match=says):
        with_dds(mae(ENCODER), taps=taps)


def test_terms_that_disagree_on_a_heads_taps_are_an_error():
    method = mae(ENCODER)
    other = dataclasses.replace(method.terms[0], taps=(2,), loss=losses.l1)
    with pytest.raises(ValueError, match="head 'block04'"):
        head_taps((*method.terms, other))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["S"])
def test_the_deep_dynamic_loss_costs_under_one_per_cent(size):
    """FLOPs of ViT-S/16's step: map, weights and all metrics against neither.

    The plain step returns no metrics, so the compiler drops the map there; the weighted
    one keeps the map, the weights and the means by distance.
    """
    encoder = Encoder(VIT_SPECS[size], (14, 14), 16)
    weighted = ddae(encoder, features=FeatureSettings(weight=0.0))
    plain = dataclasses.replace(
        weighted,
        terms=tuple(dataclasses.replace(t, difficulty=None) for t in weighted.terms),
    )
    flops = {}
    for name, method in (("weighted", weighted), ("plain", plain)):
        task = Pretrain(method, Standardisation(mean=(0.5,) * 3, std=(0.5,) * 3))
        key = jax.random.key(0)
        params = jax.eval_shape(task.init, key)
        batch = {"image": jax.ShapeDtypeStruct((4, 224, 224, 3), jnp.float32)}
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))

        def loss(*arguments, task=task):
            value, metrics, _ = task.loss(*arguments)
            return value, metrics

        full = jax.value_and_grad(loss, has_aux=True)

        def bare(*arguments, full=full):
            (value, _), grads = full(*arguments)
            return value, grads

        step = full if name == "weighted" else bare
        compiled = (
            jax.jit(step)
            .lower(params, {}, batch, jax.ShapeDtypeStruct((), jnp.float32), keys)
            .compile()
        )
        flops[name] = compiled.cost_analysis()["flops"]
    extra = flops["weighted"] / flops["plain"] - 1
    print(f"{flops}: map, weights and reductions add {100 * extra:.4f} %")
    assert 0 < extra < 0.01


def test_weights_of_terms_follow_beta_through_progress(digit_images):
    method = with_dds(mae(ENCODER, decoder=DECODER), taps=(4,))
    params = jax.jit(pretrain(method).init)(jax.random.key(0))
    _, early, _ = loss_of(method, params, digit_images, progress=0.0)
    _, late, _ = loss_of(method, params, digit_images, progress=1.0)
    np.testing.assert_allclose(early["beta/pixels/block04"][0], -1.5)
    np.testing.assert_allclose(late["beta/pixels/block04"][0], 0.5)
    distance = jnp.array([[1.0, 2.0]])
    assert difficulty_weights(distance, -1.5)[0, 0] > 1.0


CHEAPER = ({"share": 0.25}, {"shrink": 2}, {"target": "middle"})


@pytest.mark.parametrize(
    "features",
    [pytest.param(f, marks=() if "share" in f else pytest.mark.slow) for f in CHEAPER],
)
def test_a_cheaper_teacher_learns(features, digit_images):
    """The features' loss falls on one batch; half of it at the least."""
    whole = tasks.from_config(tiny_config(method__features={"ramp": 0.0}))
    task = tasks.from_config(tiny_config(method__features={"ramp": 0.0, **features}))
    assert flops.step_flops(task) < flops.step_flops(whole)
    params = jax.jit(task.init)(jax.random.key(1))
    teacher = jax.tree.map(jnp.copy, task.ema_of(params))
    keys = jax.random.split(jax.random.key(5), len(digit_images))

    @jax.jit
    def step(params):
        def loss(params):
            batch = {"image": digit_images}
            found = task.loss(params, teacher, batch, jnp.float32(0.5), keys)
            return found[0], found[1]["loss/features/block02"][0]

        (_, found), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), found

    losses = []
    for _ in range(60):
        params, found = step(params)
        losses.append(float(found))
    assert losses[-1] < 0.7 * losses[0], losses[:: len(losses) - 1]


def test_only_patches_that_the_teacher_saw_are_learnt_from(keys):
    mask = random_mask(keys, (4, 4), 12)
    seen = part_of(mask, keys, 4)
    assert seen.ids_visible.shape == (8, 4)
    assert not bool((~seen.is_masked & ~mask.is_masked).any()), "a visible patch"
    scored, share = _scored(mask, seen)
    weights = np.asarray(scored)
    assert set(np.unique(weights)) == {0.0, 3.0} and share == 4 / 12
    np.testing.assert_allclose(weights.mean(axis=1), 1.0)
    # Nor do weights by distance change how much an image weighs.
    distance = hidden_distance(mask)
    both = difficulty_weights(distance, 2.0) * weights
    assert both.mean(axis=1).std() > 0.01
    found = np.asarray(_mean_one(both))
    np.testing.assert_allclose(found.mean(axis=1), 1.0, rtol=1e-6)
    assert ((found > 0) == (weights > 0)).all()


@pytest.mark.parametrize(
    "features, says",
    [
        ({"share": 0.9}, "features.share=0.9 is not above 0 and at most 0.75"),
        ({"shrink": 3}, "features.shrink=3 does not divide the grid 4 x 4"),
        ({"share": 0.5, "shrink": 2}, "do not go together"),
    ],
)
def test_a_teacher_that_sees_what_it_cannot_is_an_error(features, says):
    with pytest.raises(ValueError, match=says):
        tasks.from_config(tiny_config(method__features=features))


def test_a_teacher_may_see_all_that_is_hidden():
    features = FeatureSettings(share=0.75)
    method = with_features(mae(ENCODER, decoder=DECODER), features)
    assert method.teacher_view.num_patches((4, 4)) == 12 == 16 - 4


def context_of(mask, image, **changes):
    given = {"image": image, "standardised": image, "mask": mask, "teacher": {}}
    given |= {"grid": (4, 4), "patch_size": 2}
    return TargetContext(**(given | changes))


def hidden_distance(mask, metric="euclidean"):
    """Of the masked patches, [b, m]."""
    return gather_patches(
        nearest_visible_distance(mask, (4, 4), metric), mask.ids_masked
    )


@pytest.mark.parametrize("metric", ["chebyshev", "manhattan"])
def test_a_terms_own_metric_weighs_it(metric, digit_images, keys):
    mask = random_mask(keys, (4, 4), 12)
    base = mae(ENCODER, decoder=DECODER, standardise_pixels=False)
    beta = constant_beta(2.0)
    method = with_dds(base, taps=(4,), beta=beta, metric=metric)
    context = context_of(mask, digit_images[:8])
    nothing = {"block04": {"pixels": jnp.zeros((8, 12, 4))}}
    total, _ = evaluate_terms(method.terms, nothing, context, jnp.float32(0.0))
    weights = difficulty_weights(hidden_distance(mask, metric), 2.0)
    patches = gather_patches(base.terms[0].target(context), mask.ids_masked)
    expected = (weights * (patches**2).mean(axis=-1)).mean()
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def seen_in_part(keys, number):
    """A mask, the part with `number` patches that the teacher sees, predictions of
    features, and the context of their targets."""
    mask = random_mask(keys, (4, 4), 12)
    seen = part_of(mask, keys, number)
    features, made = jax.random.normal(jax.random.key(1), (2, 8, 12, 6))
    teacher = {4: Features(prefix=features[:, :1], patches=features[:, :number])}
    context = context_of(mask, jnp.zeros((8, 8, 8, 1)), teacher=teacher, seen=seen)
    return mask, seen, made, context


def test_what_the_teacher_did_not_see_has_no_part_in_the_loss(keys):
    mask, seen, made, context = seen_in_part(keys, 4)
    term = Term(
        name="features",
        taps=(4,),
        head="head",
        output="features",
        target=TeacherLayer(teacher_layers=(4,)),
        loss=losses.mse,
        difficulty=Difficulty(beta=constant_beta(1.0), depth=1.0),
    )
    hidden = gather_patches(seen.is_masked.astype(jnp.int32), mask.ids_masked)
    found = []
    for values in (made, jnp.where(hidden[..., None], 9.0, made)):
        predictions = {"head": {"features": values}}
        found.append(evaluate_terms((term,), predictions, context, jnp.float32(0.5)))
    (total, metrics), (other, _) = found
    np.testing.assert_allclose(total, other, rtol=1e-6)
    bins = [count for key, (_, count) in metrics.items() if "distance/" in key]
    assert sum(map(float, bins)) == 8 * 4
    # Nor in what is said of the weights.
    distance = hidden_distance(mask)
    ours = [d[h == 0] for d, h in zip(distance, hidden, strict=True)]
    weights = [difficulty_weights(d[None], 1.0)[0] for d in ours]
    for name, of in (
        ("ess", lambda w: effective_sample_size(w[None])[0]),
        ("max_weight", jnp.max),
    ):
        total, count = metrics[f"{name}/features"]
        wanted = np.mean([of(w) for w in weights])
        np.testing.assert_allclose(total / count, wanted, rtol=1e-5)


def test_pixels_are_maes_and_histograms_maskfeats_unless_told_otherwise(
    keys, digit_images
):
    context = context_of(random_mask(keys, (4, 4), 12), digit_images[:8])
    expected = standardise_patches(patchify(context.standardised, 2))
    np.testing.assert_array_equal(Pixels()(context), expected)
    assert Hog()(context).shape == (8, 16, 4 * 9)


def test_a_coarse_teachers_patch_stands_for_its_cell():
    grid = (2, 4)
    mask = Masking(ratio=0.5).draw(jax.random.key(0)[None], grid)
    context = context_of(mask, jnp.zeros((1, 4, 8, 1)), grid=grid)
    found = context.on_grid(jnp.array([[[1.0], [2.0]]]))
    assert found[0, :, 0].tolist() == [1, 1, 2, 2, 1, 1, 2, 2]


def test_a_patch_has_the_histograms_of_its_own_four_cells(keys):
    image = jax.random.normal(keys[0], (1, 8, 12, 1))
    mask = Masking(ratio=0.5).draw(keys[:1], (2, 3))
    context = context_of(mask, image, grid=(2, 3), patch_size=4)
    found = Hog()(context).reshape(2, 3, 2, 2, 9)
    cells = hog(image, 4, 9)[0]
    for i, j in np.ndindex(2, 3):
        own = cells[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        np.testing.assert_array_equal(found[i, j], own)


def test_a_frozen_networks_ids_stay_and_its_features_are_normalised(keys):
    ids, features = jnp.arange(16)[None], jax.random.normal(keys[0], (1, 16, 8))
    mask = Masking(ratio=0.5).draw(keys[:1], (4, 4))
    frozen = {"ids": ids, "features": features}
    context = context_of(mask, jnp.zeros((1, 8, 8, 1)), frozen=frozen)
    np.testing.assert_array_equal(Frozen(network="ids")(context), ids)
    found = Frozen(network="features")(context)
    np.testing.assert_array_equal(found, losses.normalise_features(features))


def test_a_smaller_image_keeps_the_positions_that_were_learned_with():
    images = jnp.arange(64.0).reshape(1, 8, 8, 1)
    network, smaller = _shrunk(ENCODER, images, 2)
    assert (network.grid, network.position_grid) == ((2, 2), (4, 4))
    np.testing.assert_allclose(smaller[0, 0, :2, 0], [4.5, 6.5])


@pytest.mark.parametrize(
    "name, loss",
    [
        ("mse", losses.normalised_mse),
        ("smooth_l1", losses.smooth_l1),
        ("cosine", losses.cosine),
    ],
)
def test_the_loss_of_features_is_the_one_that_is_named(name, loss):
    method = with_features(mae(ENCODER, decoder=DECODER), FeatureSettings(loss=name))
    assert method.terms[-1].loss is loss


@pytest.mark.parametrize("build", [ddae, functools.partial(data2vec, mean_of=2)])
def test_the_teacher_moves_as_it_was_told(build):
    momentum = Momentum(start=0.5, middle=0.6, end=0.7, rise=0.1)
    assert build(ENCODER, momentum=momentum).momentum is momentum


def test_layers_of_the_teacher_ascend():
    terms = [
        pixel_term(name=str(layer), target=TeacherLayer(teacher_layers=(layer,)))
        for layer in (8, 1, 8)
    ]
    assert teacher_layers(tuple(terms)) == (1, 8)


def test_data2vecs_target_is_its_public_codes():
    """The mean of blocks' own outputs, each normalised, normalised again; the final
    norm has no part in it."""
    task = tasks.from_config(
        tiny_config(
            method={"name": "data2vec", "mean_of": 2},
            model__positions="none",
            model__relative_bias="shared",
        )
    )
    params = jax.jit(task.init)(jax.random.key(0))
    norm = params["encoder"]["norm"]
    norm["scale"] = jnp.exp(jax.random.normal(jax.random.key(1), norm["scale"].shape))
    encoder = task.method.encoder
    images = jax.random.uniform(jax.random.key(2), (2, *task.image_shape))
    mask = task.method.masking.draw(
        jax.random.split(jax.random.key(3), 2), encoder.grid
    )
    rngs = jax.random.split(jax.random.key(4), 2)
    ema_params = {"encoder": params["encoder"]}

    @jax.jit
    def both(images):
        context = task._context(params, ema_params, images, mask, rngs)
        raw = encoder.clone(final_norm=False).apply(
            {"params": params["encoder"]}, task.standardise(images), taps=(1, 2)
        )
        return task.method.terms[0].target(context), raw

    found, raw = both(images)

    def normal(x):
        x = np.asarray(x, np.float64)
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)

    expected = normal((normal(raw[1].patches) + normal(raw[2].patches)) / 2)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_collapsed_teacher_shows():
    mask = Masking().draw(jax.random.split(jax.random.key(0), 2), (4, 4))
    spread = jax.random.normal(jax.random.key(1), (2, 16, 32))
    for patches, low, high in (
        (spread, 0.8, 1.2),
        (jnp.broadcast_to(spread[:1, :1], spread.shape), -1.0, 1e-3),
    ):
        teacher = {4: Features(prefix=patches[:, :1], patches=patches)}
        context = context_of(mask, jnp.zeros((2, 8, 8, 1)), teacher=teacher)
        assert low < _teacher_metrics({}, context)["teacher_std/block04"][0] < high


@pytest.mark.slow
def test_the_student_drops_paths_and_its_teacher_does_not(digit_images):
    found = []
    for drop_path in (0.0, 0.5):
        task = tasks.from_config(tiny_config(model__drop_path=drop_path))
        params = jax.jit(task.init)(jax.random.key(0))
        keys = jax.random.split(jax.random.key(5), len(digit_images))
        batch = {"image": digit_images}
        ema = task.ema_of(params)
        _, metrics, _ = jax.jit(task.loss)(params, ema, batch, jnp.float32(0.5), keys)
        found.append({name: float(total) for name, (total, _) in metrics.items()})
    plain, dropped = found
    assert dropped["loss/pixels/block02"] != plain["loss/pixels/block02"]
    assert dropped["teacher_std/block02"] == plain["teacher_std/block02"]


def pixel_term(**changes):
    given = {"name": "pixels", "taps": (4,), "head": "head", "output": "pixels"}
    given |= {"target": Pixels(standardise=False), "loss": losses.mse}
    return Term(**(given | changes))


def test_the_loss_that_is_said_is_the_total_and_of_each_bin_the_plain_one(
    keys, digit_images
):
    mask = random_mask(keys, (4, 4), 12)
    context = context_of(mask, digit_images[:8])
    made = jax.random.normal(jax.random.key(1), (8, 12, 4))
    weighted = Difficulty(beta=constant_beta(1.0), depth=1.0)
    terms = (
        pixel_term(difficulty=weighted, weight=lambda t: 4.0 * t),
        pixel_term(name="plain", weight=3.0),
    )
    predictions = {"head": {"pixels": made}}
    total, metrics = evaluate_terms(terms, predictions, context, jnp.float32(0.5))
    target = gather_patches(terms[0].target(context), mask.ids_masked)
    errors = np.asarray(((made - target) ** 2).mean(axis=-1))
    distance = np.asarray(hidden_distance(mask))
    for label, low, high in (("d1", 0.5, 1.5), ("d2", 1.5, 2.5), ("d3", 2.5, 3.5)):
        inside = (distance >= low) & (distance < high)
        found = metrics[f"distance/pixels/{label}"]
        np.testing.assert_allclose(
            found, (errors[inside].sum(), inside.sum()), rtol=1e-5
        )
    loss = float(metrics["loss/pixels"][0])
    expected = (distance / distance.mean(axis=1, keepdims=True) * errors).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(total, 2.0 * loss + 3.0 * errors.mean(), rtol=1e-5)
    np.testing.assert_array_equal(metrics["loss"], (total, 1.0))


def test_a_law_reads_distances_the_exponent_and_losses_and_no_gradient_goes_through_it(
    keys, digit_images
):
    mask = random_mask(keys, (4, 4), 12)
    context = context_of(mask, digit_images[:8])
    made = jax.random.normal(jax.random.key(1), (8, 12, 4))

    def law(distance, beta, errors):
        weights = distance * errors**beta
        return weights / weights.mean(axis=-1, keepdims=True)

    own = Difficulty(beta=constant_beta(1.5), depth=1.0, metric="manhattan", law=law)
    terms = (pixel_term(difficulty=own),)

    def total(made):
        predictions = {"head": {"pixels": made}}
        return evaluate_terms(terms, predictions, context, jnp.float32(0.5))

    (found, metrics), gradient = jax.value_and_grad(total, has_aux=True)(made)
    distance = hidden_distance(mask, "manhattan")
    target = gather_patches(terms[0].target(context), mask.ids_masked)
    weights = law(distance, 1.5, losses.mse(made, target))
    expected, alone = jax.value_and_grad(
        lambda made: (weights * losses.mse(made, target)).mean()
    )(made)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, alone, rtol=1e-4, atol=1e-8)
    ess, count = metrics["ess/pixels"]
    np.testing.assert_allclose(ess / count, effective_sample_size(weights).mean())


def test_an_image_of_whose_patches_the_law_takes_none_has_no_loss(keys):
    mask, seen, made, context = seen_in_part(keys, 1)

    def near(distance, beta, errors):
        weights = (distance <= beta).astype(jnp.float32)
        return weights / weights.mean(axis=-1, keepdims=True)

    term = pixel_term(
        target=TeacherLayer(teacher_layers=(4,)),
        difficulty=Difficulty(beta=constant_beta(1.0), depth=1.0, law=near),
    )

    def total(made):
        predictions = {"head": {"pixels": made}}
        return evaluate_terms((term,), predictions, context, jnp.float32(0.5))

    gradient, metrics = jax.grad(total, has_aux=True)(made)
    distance = hidden_distance(mask)
    hidden = gather_patches(seen.is_masked.astype(jnp.int32), mask.ids_masked)
    taken = ((distance <= 1.0) & (hidden == 0)).any(axis=1)
    assert 0 < taken.sum() < 8
    np.testing.assert_array_equal((gradient != 0).any(axis=(1, 2)), taken)
    assert np.isfinite(jax.tree.leaves(metrics)).all()


def test_a_law_goes_onto_all_terms_and_is_no_setting():
    def law(distance, beta, errors):
        return jnp.ones_like(distance)

    base = mae(ENCODER, decoder=DECODER)
    deep, own = with_dds(base, law, taps=(2, 4)), ddae(ENCODER, law, decoder=DECODER)
    for method in (deep, own):
        assert {term.difficulty.law for term in method.terms} == {law}
    for target in (with_dds, ddae):
        assert "law" not in settings.filled(target, {})


def test_accuracy_is_the_share_of_tokens_that_are_named_in_per_cent(keys):
    mask = random_mask(keys, (4, 4), 12)
    ids = jax.random.randint(jax.random.key(1), (8, 16), 0, 5)
    context = context_of(mask, jnp.zeros((8, 8, 8, 1)), frozen={"tokenizer": ids})
    right = gather_patches(ids, mask.ids_masked)
    logits = jax.nn.one_hot((right + (jnp.arange(12) < 3)) % 5, 5)
    term = pixel_term(target=Frozen(network="tokenizer"), loss=losses.cross_entropy)
    predictions = {"head": {"pixels": logits}}
    _, metrics = evaluate_terms((term,), predictions, context, jnp.float32(0.0))
    total, count = metrics["accuracy/pixels"]
    assert total / count == pytest.approx(75.0)


def test_pixels_are_learnt_from_where_the_teacher_saw_nothing_too(keys, digit_images):
    mask = random_mask(keys, (4, 4), 12)
    seen = part_of(mask, keys, 4)
    made = {"head": {"pixels": jax.random.normal(jax.random.key(1), (8, 12, 4))}}
    totals = [
        evaluate_terms(
            (pixel_term(),),
            made,
            context_of(mask, digit_images[:8], seen=of),
            jnp.float32(0.0),
        )[0]
        for of in (None, seen)
    ]
    assert totals[0] == totals[1]


def test_a_teachers_part_of_the_image_is_rounded_and_shrunk_on_both_sides():
    assert TeacherView(share=0.3).num_patches((4, 4)) == 5
    assert TeacherView(shrink=2).num_patches((4, 6)) == 6
    assert TeacherView(share=0.01).num_patches((4, 4)) == 1


def test_a_teacher_that_tells_images_apart_has_not_collapsed():
    """Though the patches of each are alike."""
    mask = random_mask(jax.random.split(jax.random.key(0), 2), (4, 4), 12)
    each = jax.random.normal(jax.random.key(1), (2, 1, 32))
    patches = jnp.broadcast_to(each, (2, 16, 32))
    teacher = {4: Features(prefix=each, patches=patches)}
    context = context_of(mask, jnp.zeros((2, 8, 8, 1)), teacher=teacher)
    found = _teacher_metrics({}, context)["teacher_std/block04"][0]
    x = np.asarray(losses.normalise_features(patches)).reshape(32, 32)
    np.testing.assert_allclose(found, x.std(axis=0).mean(), rtol=1e-3)


def test_a_teacher_of_half_the_depth_gives_its_middle_layer():
    features = FeatureSettings(target="middle")
    deep = with_dds(with_features(mae(ENCODER, decoder=DECODER), features), taps=(2, 4))
    layers = [t.target.teacher_layers for t in deep.terms if t.output == "features"]
    assert layers == [(2,), (2,)]


def test_only_fixed_positions_go_with_a_cheaper_teacher():
    for changes in ({"positions": "learned"}, {"positions": "none"}):
        method = mae(ENCODER.clone(**changes), decoder=DECODER)
        with pytest.raises(ValueError, match="want sincos positions"):
            with_features(method, FeatureSettings(share=0.25))


def test_what_ddae_and_mae_are_told_reaches_their_terms():
    told = {"metric": "manhattan", "tap_weight": 0.5, "standardise_pixels": False}
    method = ddae(ENCODER, decoder=DECODER, taps=(2, 4), **told)
    assert {t.difficulty.metric for t in method.terms} == {"manhattan"}
    pixels = [t for t in method.terms if t.output == "pixels"]
    assert [t.weight for t in pixels] == [0.5, 1.0]
    assert not any(t.target.standardise for t in pixels)
    assert mae(ENCODER).terms[0].target.standardise
    # The encoder's own last norm has been applied.
    head = mae(ENCODER, layout="mask_token").heads["block04"]
    assert not head.input_norm
