import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import distance_transform_edt

from ddae.difficulty import (
    DISTANCE_BINS,
    BetaSchedule,
    difficulty_weights,
    effective_sample_size,
    nearest_visible_distance,
)
from ddae.masking import Mask, make_mask


@st.composite
def masks(draw):
    """A boolean grid with something visible and something masked."""
    h, w = draw(st.sampled_from([1, 4, 7])), draw(st.sampled_from([2, 5, 8]))
    grid = draw(arrays(bool, (h, w)))
    first = draw(st.integers(0, h * w - 1))
    second = draw(st.integers(0, h * w - 2).map(lambda i: i + (i >= first)))
    grid.flat[first], grid.flat[second] = True, False
    return grid


def as_mask(grid):
    return make_mask(jnp.asarray(grid.reshape(1, -1)), int(grid.sum()))


@settings(deadline=None, max_examples=40)
@given(masks())
def test_map_equals_scipys_distance_transform(grid):
    found = nearest_visible_distance(as_mask(grid), grid.shape)
    np.testing.assert_allclose(
        found.reshape(grid.shape), distance_transform_edt(grid), rtol=1e-6
    )
    assert found.dtype == jnp.float32


@settings(deadline=None, max_examples=30)
@given(masks(), st.sampled_from(["euclidean", "chebyshev", "manhattan"]))
def test_map_equals_brute_force_in_every_metric(grid, metric):
    norm = {"euclidean": 2, "chebyshev": np.inf, "manhattan": 1}[metric]
    visible = np.argwhere(~grid)
    expected = [
        min(np.linalg.norm(np.subtract(position, other), norm) for other in visible)
        for position in np.ndindex(grid.shape)
    ]
    found = nearest_visible_distance(as_mask(grid), grid.shape, metric)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_no_visible_patch_is_an_error_that_says_so():
    nothing = jnp.zeros((1, 0), jnp.int32)
    mask = Mask(nothing, jnp.arange(4)[None], jnp.ones((1, 4), bool))
    with pytest.raises(ValueError, match="no visible patch"):
        nearest_visible_distance(mask, (2, 2))


def test_no_masked_patch_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="no masked patch"):
        difficulty_weights(jnp.zeros((1, 0)), 1.0)


def test_unknown_metric_is_an_error():
    with pytest.raises(Exception, match="metric|taxi"):
        nearest_visible_distance(as_mask(np.array([[True, False]])), (1, 2), "taxi")


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.float32, (2, 7), elements=st.floats(1, 20, width=32)),
    st.floats(-2, 2, width=32),
    st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
)
def test_weights_average_one_follow_beta_and_are_finite(distance, beta, dtype):
    distance = jnp.asarray(distance, dtype)
    weights = np.asarray(difficulty_weights(distance, beta))
    assert weights.dtype == np.float32 and np.isfinite(weights).all()
    np.testing.assert_allclose(weights.mean(axis=1), 1.0, rtol=1e-5)
    order = np.argsort(np.asarray(distance, np.float32), axis=1)
    ranked = np.take_along_axis(weights, order, axis=1)
    rises = np.diff(ranked, axis=1) * np.sign(beta)
    assert (rises >= -1e-6).all()


def test_weights_are_the_power_law():
    distance = jnp.array([[1.0, 2.0, 3.0, 5.0]])
    expected = 4 * distance**1.5 / (distance**1.5).sum()
    np.testing.assert_allclose(difficulty_weights(distance, 1.5), expected, rtol=1e-6)


@pytest.mark.parametrize("m", [1, 3, 7, 147, 192])
def test_beta_zero_is_one_to_the_bit(m):
    distance = 1 + 10 * jax.random.uniform(jax.random.key(m), (5, m))
    for function in (difficulty_weights, jax.jit(difficulty_weights)):
        assert (np.asarray(function(distance, jnp.float32(0.0))) == 1.0).all()


def test_weights_of_an_image_are_its_own_however_far_anothers_patches_are():
    distance = jnp.array([[1.0, 1.0, 2.0], [1.0, 2.0, 30.0]])
    alone = [difficulty_weights(row[None], 40.0)[0] for row in distance]
    np.testing.assert_array_equal(difficulty_weights(distance, 40.0), alone)


def test_effective_sample_size():
    assert effective_sample_size(jnp.ones((1, 8)))[0] == 1.0
    alone = jnp.array([[8.0] + [0.0] * 7])
    np.testing.assert_allclose(effective_sample_size(alone), 1 / 8)


def test_preset_goes_from_near_to_far_and_deeper_taps_look_nearer():
    beta = BetaSchedule()
    np.testing.assert_allclose(beta(0.0, 0.5), -1.0)
    np.testing.assert_allclose(beta(1.0, 0.5), 1.0)
    np.testing.assert_allclose(beta(0.5, 1.0), -0.5)
    np.testing.assert_allclose(beta(0.0, 1.0), -1.5)
    np.testing.assert_allclose(BetaSchedule(start=-1.8)(0.0, 1.0), -2.0)  # the limit


@pytest.mark.parametrize(
    "phase, at_quarter, at_half", [("linear", 0.25, 0.5), ("cosine", 0.1464466, 0.5)]
)
def test_phases(phase, at_quarter, at_half):
    beta = BetaSchedule(start=0.0, end=1.0, phase=phase, depth_tilt=0.0)
    np.testing.assert_allclose(beta(0.25, 1.0), at_quarter, rtol=1e-5)
    np.testing.assert_allclose(beta(0.5, 1.0), at_half, rtol=1e-5)
    np.testing.assert_allclose(beta(2.0, 1.0), 1.0)


def test_steps_are_stairs_from_start_to_end():
    beta = BetaSchedule(start=-1.0, end=1.0, phase="steps", num_steps=3, depth_tilt=0.0)
    found = [float(beta(t, 1.0)) for t in (0.0, 0.32, 0.34, 0.65, 0.67, 1.0)]
    np.testing.assert_allclose(found, [-1, -1, 0, 0, 1, 1], atol=1e-6)
    still = BetaSchedule(start=0.5, end=1.0, phase="constant", depth_tilt=0.0)
    assert float(still(0.7, 0.3)) == 0.5


def test_unknown_phase_is_an_error():
    with pytest.raises(Exception, match="sawtooth"):
        BetaSchedule(phase="sawtooth")
    schedule = BetaSchedule()  # past the tests' own check of types
    object.__setattr__(schedule, "phase", "sawtooth")
    with pytest.raises(ValueError, match="'sawtooth' is not one of .*'steps'"):
        schedule.__post_init__()


def test_bins_are_a_patch_wide_and_leave_no_distance_out():
    lows, highs = zip(*(edges for _, *edges in DISTANCE_BINS), strict=True)
    assert lows == (0.5, 1.5, 2.5, 3.5, 4.5)
    assert highs == (*lows[1:], float("inf"))


def test_weights_of_half_precision_distances_are_the_power_law_too():
    distance = jnp.array([[1.0, 2.0, 3.0, 5.0]], jnp.bfloat16)
    exact = np.asarray(distance, np.float64) ** 1.5
    expected = 4 * exact / exact.sum()
    np.testing.assert_allclose(difficulty_weights(distance, 1.5), expected, rtol=1e-6)


def test_a_constant_phase_stays_at_its_start():
    beta = BetaSchedule(start=-0.5, end=1.0, phase="constant", depth_tilt=0.0)
    assert [float(beta(t, 0.3)) for t in (0.0, 0.5, 1.0)] == [-0.5] * 3


def test_a_limit_of_its_own_holds_on_both_sides():
    beta = BetaSchedule(limit=1.25)
    np.testing.assert_allclose([beta(0.0, 1.0), beta(1.0, 0.01)], [-1.25, 1.25])


def test_four_stairs_are_the_preset():
    beta = BetaSchedule(start=0.0, end=1.0, phase="steps", depth_tilt=0.0)
    found = [float(beta(t, 1.0)) for t in (0.24, 0.26, 0.51, 0.76)]
    np.testing.assert_allclose(found, [0, 1 / 3, 2 / 3, 1], rtol=1e-6)


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"start": -3.0}, "beta start=-3.0 lies beyond limit=2.0"),
        ({"end": 2.5}, "beta end=2.5 lies beyond limit=2.0"),
        ({"phase": "steps", "num_steps": 1}, "num_steps must be at least 2"),
    ],
)
def test_schedules_that_make_no_sense_are_errors(settings, says):
    with pytest.raises(ValueError, match=says):
        BetaSchedule(**settings)
