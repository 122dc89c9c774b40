import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddae.mixing import Mixing, erase, mix

B, H, W, C, K = 4, 12, 20, 3, 5
LABELS = jnp.array([0, 1, 2, 3])
# Every image is its own number, so that a pixel says where it came from.
FLAT = jnp.broadcast_to(jnp.arange(1.0, B + 1)[:, None, None, None], (B, H, W, C))
KEYS = jax.random.split(jax.random.key(0), 400)


def many(**settings):
    """Images and targets of FLAT for each of KEYS."""
    mixing = Mixing(**({"smoothing": 0.0} | settings))
    run = jax.jit(jax.vmap(lambda key: mix(FLAT, LABELS, K, mixing, key)))
    return (np.asarray(x) for x in run(KEYS))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_are_smoothed_and_sum_to_one(smoothing):
    mixing = Mixing(mixup=0.0, cutmix=0.0, smoothing=smoothing)
    images, targets = mix(FLAT, LABELS, K, mixing, KEYS[0])
    assert images is FLAT
    np.testing.assert_allclose(targets[1, 0], smoothing / K)
    np.testing.assert_allclose(targets[1, 1], 1 - smoothing + smoothing / K)
    _, targets = many(smoothing=smoothing)
    np.testing.assert_allclose(targets.sum(-1), 1.0, atol=1e-6)


def test_mixup_is_the_convex_combination_that_its_targets_say():
    images, targets = many(cutmix=0.0)
    lam = targets[:, 0, 0]
    np.testing.assert_allclose(targets[:, 0, 3], 1 - lam, atol=1e-6)
    expected = lam * 1.0 + (1 - lam) * 4.0
    expected = np.broadcast_to(expected[:, None, None, None], (400, H, W, C))
    np.testing.assert_allclose(images[:, 0], expected, rtol=1e-5)
    # Beta(.8, .8): mean 1/2, variance 1 / (4 (2 a + 1)).
    assert abs(lam.mean() - 0.5) < 0.05 and abs(lam.var() - 0.096) < 0.015


def test_cutmix_takes_a_box_and_counts_what_is_kept():
    images, targets = many(mixup=0.0)
    kept = (images[:, 0, :, :, 0] == 1.0).mean(axis=(1, 2))
    assert set(np.unique(images[:, 0])) == {1.0, 4.0}
    np.testing.assert_allclose(targets[:, 0, 0], kept, atol=1e-6)
    foreign = images[:, 0, :, :, 0] == 4.0
    for mask in foreign[foreign.any(axis=(1, 2))]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert mask.sum() == height * width
        clipped = {0, H - 1} & {*rows} or {0, W - 1} & {*columns}
        assert clipped or abs(height / H - width / W) < 0.07  # each is rounded
    often = foreign.mean(axis=0)
    assert often.min() > 0.05  # corners are reached
    assert 0.6 < kept.mean() < 0.75 and kept.std() > 0.1


def test_each_kind_of_mixing_draws_from_its_own_beta():
    _, targets = many(mixup=0.2, cutmix=20.0, switch=0.0)
    assert targets[:, 0, 0].var() > 0.15  # 1 / (4 (2 a + 1)): .18, or .006
    _, targets = many(mixup=20.0, cutmix=0.2, switch=1.0)
    assert (targets[:, 0, 0] > 0.95).mean() > 0.2


def test_the_switch_and_the_probability_are_kept():
    images, targets = many(switch=0.3, probability=0.6)
    values = images[:, 0].reshape(400, -1)
    untouched = (values == 1.0).all(axis=1)
    assert ((targets[:, 0, 0] == 1.0) >= untouched).all()
    boxes = ~untouched & (values.min(1) == 1.0) & (values.max(1) == 4.0)
    boxes |= (values == 4.0).all(axis=1)
    assert abs(untouched.mean() - 0.4) < 0.1
    assert abs(boxes.sum() / (~untouched).sum() - 0.3) < 0.1


def test_mixing_is_a_function_of_the_key_and_keeps_the_dtype():
    images = jax.random.normal(KEYS[1], (B, H, W, C)).astype(jnp.bfloat16)
    once, again = (mix(images, LABELS, K, Mixing(), KEYS[2]) for _ in range(2))
    np.testing.assert_array_equal(once[0], again[0])
    assert once[0].dtype == jnp.bfloat16 and once[1].dtype == jnp.float32
    assert erase(images, KEYS[:B], 1.0).dtype == jnp.bfloat16


def test_erasing_fills_a_rectangle_of_each_image_with_noise():
    zeros = jnp.zeros((400, H, W, C))
    erased = np.asarray(jax.jit(erase, static_argnums=2)(zeros, KEYS, 0.25))
    hit = (erased != 0).any(axis=(1, 2, 3))
    assert abs(hit.mean() - 0.25) < 0.07
    always = np.asarray(jax.jit(erase, static_argnums=2)(zeros, KEYS, 1.0))
    masks = (always != 0).any(axis=-1)
    heights, widths = masks.any(2).sum(1), masks.any(1).sum(1)
    np.testing.assert_array_equal(masks.sum((1, 2)), heights * widths)
    share = masks.mean((1, 2))
    assert 0.01 < share.min() < 0.05 and 0.28 < share.max() < 0.36
    assert abs(share[hit].mean() - share.mean()) < 0.04  # large ones are hit as often
    aspect = np.log(heights / widths)
    assert aspect.min() < -0.7 and aspect.max() > 0.7
    small = share < 0.15  # no side of theirs is cut
    assert abs(np.corrcoef(share[small], aspect[small])[0, 1]) < 0.3
    noise = always[masks]
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    assert masks.mean(axis=0).min() > 0.01  # corners are reached


def test_erasing_does_not_depend_on_how_a_batch_is_cut():
    images = jax.random.normal(KEYS[0], (8, H, W, C))
    whole = erase(images, KEYS[:8], 1.0)
    np.testing.assert_array_equal(erase(images[2:5], KEYS[2:5], 1.0), whole[2:5])


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"mixup": -1.0}, "mixup=-1.0 must not be negative"),
        ({"cutmix": -1.0}, "cutmix=-1.0 must not be negative"),
        ({"probability": 1.1}, "probability=1.1 is not in"),
        ({"switch": -0.5}, "switch=-0.5 is not in"),
        ({"smoothing": 1.1}, "smoothing=1.1 is not in"),
        ({"erasing": 1.5}, r"erasing=1.5 is not in \[0, 1\]"),
    ],
)
def test_wrong_settings_are_named(settings, says):
    with pytest.raises(ValueError, match=says):
        Mixing(**settings)


def test_each_value_that_is_erased_is_a_noise_of_its_own():
    keys = jax.random.split(jax.random.key(0), 400)
    always = np.asarray(erase(jnp.zeros((400, 12, 20, 3)), keys, 1.0))
    noise = always[(always != 0).any(axis=-1)]
    assert abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.05
    # Of rectangles that have room on all sides: down says nothing of across.
    masks = (always != 0).any(axis=-1)
    rows, columns = masks.any(axis=2), masks.any(axis=1)
    top = rows.argmax(1) / (13 - rows.sum(1))
    left = columns.argmax(1) / (21 - columns.sum(1))
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.2
    assert abs((rows[:, 0] * 1.0 - rows[:, -1]).mean()) < 0.1
    assert abs((columns[:, 0] * 1.0 - columns[:, -1]).mean()) < 0.1
