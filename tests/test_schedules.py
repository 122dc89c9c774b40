import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from ddae.dds import Momentum
from ddae.schedules import (
    ema_momentum,
    linear_ramp,
    mean_lag,
    warmup_cosine,
    warmup_poly,
    warmup_step,
)


@pytest.mark.parametrize("step", [0, 3, 9, 10, 55, 100, 130])
def test_warmup_then_cosine(step):
    rate = warmup_cosine(jnp.int32(step), peak=2.0, warmup_steps=10, total_steps=100)
    if step < 10:
        expected = 2.0 * step / 10
    else:
        expected = 1 + math.cos(math.pi * min(step - 10, 90) / 90)
    np.testing.assert_allclose(rate, expected, atol=1e-6)


def test_no_warmup_starts_at_the_peak():
    assert warmup_cosine(jnp.int32(0), peak=2.0, warmup_steps=0, total_steps=9) == 2.0


@pytest.mark.parametrize(
    "step, final, rate", [(5, 0.0, 1), (70, 0.3, 2), (90, 0.0, 0.2), (90, 0.3, 0.3)]
)
def test_a_step_falls_to_a_tenth_or_to_the_end(step, final, rate):
    shape = {"peak": 2.0, "warmup_steps": 10, "total_steps": 100, "final": final}
    found = warmup_step(jnp.int32(step), at=0.875, **shape)
    np.testing.assert_allclose(found, rate, rtol=1e-6)


@pytest.mark.parametrize("step", [0, 1, 5, 10, 11, 55, 100])
@pytest.mark.parametrize("warmup", [0, 10])
def test_a_line_falls_from_the_first_step_on_and_is_blended_into(step, warmup):
    shape = {"start": 0.25, "peak": 2.0, "total_steps": 100, "final": 0.5}
    found = warmup_poly(jnp.int32(step), warmup_steps=warmup, **shape)
    line = np.interp(step, [0, 100], [2.0, 0.5])
    share = np.interp(step, [0, 10], [0.0, 1.0]) if warmup else 1.0
    np.testing.assert_allclose(found, share * line + (1 - share) * 0.25, rtol=1e-6)


def test_linear_ramp():
    assert [float(linear_ramp(t, until=0.25)) for t in (0.0, 0.125, 0.25, 1.0)] == [
        0.0,
        0.5,
        1.0,
        1.0,
    ]
    assert linear_ramp(0.0, until=0.0) == 1.0


def test_ema_momentum_rises_through_its_three_values():
    curve = {"start": 0.9, "middle": 0.99, "end": 0.999, "rise": 0.125}
    for t, expected in ((0.0, 0.9), (0.0625, 0.945), (0.125, 0.99), (1.0, 0.999)):
        np.testing.assert_allclose(ema_momentum(t, **curve), expected, rtol=1e-6)
    rising = [float(ema_momentum(t, **curve)) for t in np.linspace(0, 1, 50).tolist()]
    assert (np.diff(rising) > 0).all()


@pytest.mark.parametrize(
    "step, warmup, rate",
    [(0, 0, 2), (0, 10, 0), (69, 10, 2), (69, 0, 2), (70, 10, 0.2), (70, 0, 0.2)],
)
def test_a_step_falls_at_its_share_of_the_whole_run(step, warmup, rate):
    shape = {"peak": 2.0, "warmup_steps": warmup, "total_steps": 80}
    found = warmup_step(jnp.int32(step), at=0.875, **shape)
    np.testing.assert_allclose(found, rate, rtol=1e-6)


def test_ema_momentum_ends_along_a_cosine():
    curve = {"start": 0.0, "middle": 0.5, "end": 0.9, "rise": 0.2}
    for quarter in (1, 2, 3):
        expected = 0.9 - 0.2 * (1 + np.cos(np.pi * quarter / 4))
        found = ema_momentum(0.2 + 0.2 * quarter, **curve)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    last = ema_momentum(1.0, **(curve | {"rise": 1.0}))
    np.testing.assert_allclose(last, 0.5, rtol=1e-6)


def test_momentum_is_that_of_the_table_and_may_be_1():
    preset = Momentum()
    for t, expected in ((0.0, 0.999), (0.125, 0.9999), (1.0, 0.99999)):
        np.testing.assert_allclose(1 - preset(t, 100), 1 - expected, rtol=1e-2)
    assert Momentum(start=0.0, middle=1.0, end=1.0)(1.0, 100) == 1.0


def test_momentum_of_another_length_is_that_of_the_same_share_of_the_run():
    """An eighth of the steps: eight times 1 - momentum, and never below 0."""
    meant = Momentum(start=0.8, middle=0.99, end=0.999, rise=0.2, steps=800)
    short = Momentum(start=0.0, middle=0.92, end=0.992, rise=0.2)
    for t in (0.0, 0.1, 0.2, 0.6, 1.0):
        assert float(meant(t, 100)) == pytest.approx(float(short(t, 100)), abs=1e-6)
        once = dataclasses.replace(meant, steps=0)
        assert float(meant(t, 800)) == float(once(t, 100)) == float(once(t, 800))


def test_how_far_a_moving_average_is_behind_is_that_of_what_it_follows():
    """Of weights that grow by one a step, what the average lacks of the newest."""
    for curve in ({"start": 0.9, "middle": 0.99, "end": 0.999}, {"start": 0.0}):
        curve = {"middle": 0.5, "end": 0.5, "rise": 0.2} | curve
        momentum = np.array([ema_momentum(t / 300, **curve) for t in range(300)])
        average = 0.0
        for step, m in enumerate(momentum.tolist()):
            average = m * average + (1 - m) * (step + 1)
        found = mean_lag(jnp.asarray(momentum))
        np.testing.assert_allclose(found, 300 - average, rtol=1e-9)
