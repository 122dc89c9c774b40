import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax
from sklearn.metrics.pairwise import paired_cosine_distances

from ddae import losses

RANDOM = np.random.default_rng(0)
A, B = jnp.asarray(RANDOM.normal(size=(2, 2, 3, 5)), jnp.float32)


def test_regressions_against_numpy():
    np.testing.assert_allclose(losses.mse(A, B), np.square(A - B).mean(-1), rtol=1e-5)
    np.testing.assert_allclose(losses.l1(A, B), np.abs(A - B).mean(-1), rtol=1e-5)
    error = 3 * np.abs(A - B)
    huber = np.where(error < 2, error**2 / 4, error - 1).mean(-1)
    np.testing.assert_allclose(losses.smooth_l1(3 * A, 3 * B), huber, rtol=1e-5)


def test_cosine_against_scikit_learn():
    expected = paired_cosine_distances(A.reshape(-1, 5), B.reshape(-1, 5))
    np.testing.assert_allclose(losses.cosine(A, B).reshape(-1), expected, rtol=1e-5)


def test_cross_entropy_against_scipy():
    ids = jnp.asarray(RANDOM.integers(0, 5, size=(2, 3)))
    expected = -np.take_along_axis(log_softmax(A, axis=-1), ids[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses.cross_entropy(A, ids), expected, rtol=1e-5)


def test_normalised_mse_ignores_scale_and_shift_of_the_prediction():
    target = losses.normalise_features(B)
    np.testing.assert_allclose(losses.normalised_mse(4 * B + 2, target), 0, atol=1e-5)


def test_losses_are_float32_whatever_comes_in():
    low = jnp.asarray(A, jnp.bfloat16)
    for loss in (losses.mse, losses.l1, losses.smooth_l1, losses.cosine):
        assert loss(low, jnp.asarray(B)).dtype == jnp.float32


def test_weighted_mean():
    values, weights = jnp.asarray(RANDOM.random((2, 3, 4)), jnp.float32)
    np.testing.assert_allclose(losses.weighted_mean(values), values.mean(), rtol=1e-6)
    np.testing.assert_allclose(
        losses.weighted_mean(values, weights), (values * weights).mean(), rtol=1e-6
    )


def test_losses_of_half_precision_are_computed_in_float32():
    ids = jnp.zeros((2, 3), jnp.int32)
    low, other = A.astype(jnp.bfloat16), B.astype(jnp.bfloat16)
    wide, other_wide = low.astype(jnp.float32), other.astype(jnp.float32)
    for loss, one, two in (
        *((f, other, other_wide) for f in (losses.mse, losses.l1, losses.smooth_l1)),
        *((f, other, other_wide) for f in (losses.cosine, losses.normalised_mse)),
        (losses.cross_entropy, ids, ids),
        (lambda x, _: losses.normalise_features(x), None, None),
    ):
        found = loss(low, one)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, loss(wide, two), rtol=1e-6)


def test_features_are_normalised_with_layer_norms_epsilon():
    x = 2e-3 * np.asarray(A, np.float64)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + 1e-6
    )
    found = losses.normalise_features(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_features_without_variance_stay_finite():
    """A difference of means comes out below 0 for some of these."""
    flat = jnp.broadcast_to(jnp.linspace(1.0, 1000.0, 400)[:, None], (400, 7))
    assert np.isfinite(losses.normalise_features(flat)).all()


def test_normalised_mse_takes_the_target_as_it_is():
    x = np.asarray(A, np.float64)
    made = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    expected = ((made - np.asarray(B)) ** 2).mean(-1)
    np.testing.assert_allclose(losses.normalised_mse(A, B), expected, rtol=1e-4)


def test_cosine_of_nothing_is_1_and_has_a_gradient():
    nothing = jnp.zeros_like(A)
    np.testing.assert_array_equal(losses.cosine(nothing, B), 1.0)
    assert np.isfinite(jax.grad(lambda a: losses.cosine(a, B).sum())(nothing)).all()
