import dataclasses
from typing import Literal

import pytest

from ddae.settings import NOT_SET, UserError, build, changed, filled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = Inner()
    sizes: tuple[int, ...] | None = None
    rate: float = 0.5
    kind: Literal["round", "square"] | None = None


def test_builds_nested_dataclasses_and_tuples():
    built = build(Outer, {"name": "a", "inner": {"width": 2}, "sizes": [1, 2]}, "x.")
    assert built == Outer(name="a", inner=Inner(width=2), sizes=(1, 2))


@pytest.mark.parametrize(
    "section, says",
    [
        ({"name": "a", "inner": {"widht": 2}}, "config.x.inner.widht .*'width'"),
        ({"name": "a", "other": 2}, "config.x.other .* known"),
        ({}, "config.x.name is missing"),
        ({"name": "a", "inner": None}, "config.x.inner=None is not a section of keys"),
        ({"name": "a", "inner": 1}, "config.x.inner=1 is not a section of keys"),
        ({"name": "a", "rate": {}}, "config.x.rate={} is not a finite number"),
        (
            {"name": "a", "kind": "oval"},
            "kind='oval' is not one of .*'square'. or None",
        ),
        (True, "config.x=True is not a section of keys"),
    ],
)
def test_a_key_that_nobody_reads_is_an_error(section, says):
    with pytest.raises(UserError, match=says):
        build(Outer, section, "x.")


def test_a_whole_number_given_for_a_float_is_one():
    """jax takes no whole number for a probability: config.mixing.erasing=1."""
    built = build(Outer, {"name": "a", "rate": 1}, "x.")
    assert (built.rate, type(built.rate)) == (1.0, float)


def test_a_section_filled_is_what_build_takes():
    def target(encoder, *, needed: int, inner: Inner = Inner(width=3), rate=0.5):
        return needed, inner, rate

    section = {"needed": 1, "elsewhere": 2}
    whole = {"needed": 1, "inner": {"width": 3}, "rate": 0.5}
    assert filled(target, section) == whole | {"elsewhere": 2}
    assert filled(target, {}) == {"inner": {"width": 3}, "rate": 0.5}
    # Of a dataclass that is given the defaults are its own, as where it is built.
    assert filled(target, {"inner": {}})["inner"] == {"width": 1}
    assert build(target, whole, "x.", None) == build(target, {"needed": 1}, "x.", None)


def test_keys_of_one_config_are_changes_too():
    old = {"a": 1, "b": {"c": (1, 2), "d": 3}, "gone": {"x": 1}}
    new = {"a": 1, "b": {"c": [1, 2], "e": 4}}
    assert changed(old, new) == {
        "b.d": (3, NOT_SET),
        "b.e": (NOT_SET, 4),
        "gone": ({"x": 1}, NOT_SET),
    }
    assert f"{NOT_SET}" == "not set"
