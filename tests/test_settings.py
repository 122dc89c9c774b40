import dataclasses

import pytest

from ddae.settings import UserError, build


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = Inner()
    sizes: tuple[int, ...] | None = None


def test_builds_nested_dataclasses_and_tuples():
    built = build(Outer, {"name": "a", "inner": {"width": 2}, "sizes": [1, 2]}, "x.")
    assert built == Outer(name="a", inner=Inner(width=2), sizes=(1, 2))


@pytest.mark.parametrize(
    "section, says",
    [
        ({"name": "a", "inner": {"widht": 2}}, "config.x.inner.widht .*'width'"),
        ({"name": "a", "other": 2}, "config.x.other .* known"),
        ({}, "config.x.name is missing"),
    ],
)
def test_a_key_that_nobody_reads_is_an_error(section, says):
    with pytest.raises(UserError, match=says):
        build(Outer, section, "x.")
