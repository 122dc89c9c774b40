"""Settings become frozen dataclasses here, strictly: nothing unread, nothing misspelt.

A config file is a nested mapping. Below the door (`train.loop.run`) nobody sees it:
each room declares a frozen dataclass and `build` fills it from one section. A key that
the dataclass does not have is an error, so a setting that nobody reads cannot exist.
"""

import dataclasses
import difflib
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class UserError(ValueError):
    """Wrong configuration or data: one line that names the thing and the mend.

    `train.py` prints it without a traceback and exits with code 2.
    """


def check_keys(given: Mapping[str, Any], known: list[str], where: str) -> None:
    """Raises `UserError` naming the first key of `given` that is not `known`."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            mend = f"did you mean {near[0]!r}?" if near else f"known: {sorted(known)}"
            raise UserError(
                f"config.{where}{key} is not a setting that is read; {mend}"
            )


def build(
    target: Callable[..., Any], section: Mapping[str, Any], where: str, *arguments: Any
) -> Any:
    """Calls `target(*arguments, **section)`, strictly.

    Settings are its keyword-only parameters. Values that are mappings are built first,
    into the dataclass that the parameter is annotated with; lists become tuples.
    `where` is the dotted path of the section with a trailing dot, for messages. Raises
    `UserError` for an unknown or missing key.
    """
    if not isinstance(section, Mapping):
        raise UserError(f"config.{where[:-1]}={section!r} is not a section of keys")
    parameters = _settings_of(target)
    check_keys(section, list(parameters), where)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in section:
            raise UserError(f"config.{where}{name} is missing and has no default")
    annotations = typing.get_type_hints(target)
    settings = {
        key: _convert(value, annotations.get(key, Any), f"{where}{key}")
        for key, value in section.items()
    }
    try:
        return target(*arguments, **settings)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{f'config.{where}'.rstrip('.')}: {error}") from error


def _settings_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def filled(target: Callable[..., Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """`section` with a value for every key that it leaves to `target`, the one that
    `build` would take; keys that `target` does not know stay as they are."""
    annotations = typing.get_type_hints(target)
    found = dict(section)
    for name, parameter in _settings_of(target).items():
        value = section.get(name, parameter.default)
        inner = [x for x in _options(annotations.get(name)) if _is_settings(x)]
        if isinstance(value, Mapping) and inner:
            value = filled(inner[0], value)
        elif _is_settings(type(value)):
            own = {key: getattr(value, key) for key in _settings_of(type(value))}
            value = filled(type(value), own)
        if value is not inspect.Parameter.empty:
            found[name] = value
    return found


def _convert(value: Any, annotation: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        for option in _options(annotation):
            if _is_settings(option):
                return build(option, value, f"{where}.")
        value = dict(value)
    if isinstance(value, list | tuple):
        value = tuple(value)
    if not fits(value, annotation):
        raise UserError(f"config.{where}={value!r} is not {_named(annotation)}")
    # jax tells 1 from 1.0: it takes no whole number for a probability.
    return float(value) if annotation is float else value


class NotSet:
    """In place of the value of a key that a config does not have."""

    def __repr__(self) -> str:
        return "not set"


NOT_SET = NotSet()


def changed(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """{path: (old, new value)} of the keys that are not the same in both configs, as
    JSON has them; `NOT_SET` where one has no such key."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in sorted(old.keys() | new.keys()):
            both = (old.get(key, NOT_SET), new.get(key, NOT_SET))
            found |= changed(*both, f"{path}.{key}".lstrip("."))
        return found
    old, new = (x if x is NOT_SET else json.loads(json.dumps(x)) for x in (old, new))
    return {} if old == new else {path: (old, new)}


SCALARS: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool, np.bool_), "True or False"),
    int: ((int, np.integer), "a whole number"),
    float: ((int, float, np.integer, np.floating), "a finite number"),
    str: ((str,), "text"),
}


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value is of its annotation, so far as that is of numbers, text,
    a choice (`Literal`), tuples of them, None, or settings; true for any other."""
    if _is_union(annotation):
        return any(fits(value, option) for option in typing.get_args(annotation))
    if annotation in (None, types.NoneType):
        return value is None
    if typing.get_origin(annotation) is typing.Literal:
        return value in typing.get_args(annotation)
    if annotation in SCALARS:
        wanted = SCALARS[annotation][0]
        if isinstance(value, bool) and annotation is not bool:
            return False
        if annotation is float and isinstance(value, wanted):
            return bool(np.isfinite(value))
        return isinstance(value, wanted)
    if typing.get_origin(annotation) is tuple:
        kinds = typing.get_args(annotation)
        if not isinstance(value, list | tuple):
            return False
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            return all(fits(x, kinds[0]) for x in value)
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    return isinstance(value, annotation) if _is_settings(annotation) else True


def _named(annotation: Any) -> str:
    if _is_union(annotation):
        return " or ".join(map(_named, typing.get_args(annotation)))
    if annotation in SCALARS:
        return SCALARS[annotation][1]
    if typing.get_origin(annotation) is typing.Literal:
        return f"one of {list(typing.get_args(annotation))}"
    if _is_settings(annotation):
        return "a section of keys"
    kinds = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and kinds:
        number = "" if kinds[-1] is Ellipsis else f"{len(kinds)} "
        return f"a tuple of {number}like {_named(kinds[0])}"
    return "None" if annotation in (None, types.NoneType) else str(annotation)


def _options(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if _is_union(annotation) else (annotation,)


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)
