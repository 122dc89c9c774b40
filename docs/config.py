"""Writes docs/config.md, every key that a config may have: python docs/config.py

Read from the dataclasses and functions that `ddae.settings.build` fills: their
keyword-only parameters, annotations, defaults and docstrings.
"""

import argparse
import dataclasses
import inspect
import pathlib
import re
import types
import typing

from ddae.data import DataSettings
from ddae.dds import with_dds
from ddae.eval import EVALUATORS
from ddae.methods import METHODS
from ddae.mixing import Mixing
from ddae.models.build import ModelSettings
from ddae.tasks.classify import ClassifierSettings
from ddae.tasks.segment import SegmenterSettings
from ddae.tasks.tokenize import CodebookSettings
from ddae.train.optimizer import OptimizerSettings
from ddae.train.plan import RunSettings
from ddae.train.sharding import MeshSettings

PAGE = pathlib.Path(__file__).parent / "config.md"

HEAD = """# Every key of a config

Written by `python docs/config.py` from the code. Each key is a flag of `train.py`,
`--config.optimizer.base_lr=1e-3`, where the config file has it (those of `configs/`
have most); the others are set in a file of your own. A key that nobody reads, a value
of another kind or out of range ends the run in one line, before anything compiles.
Defaults here are the code's; `configs/` set many of them otherwise, and what a run took
is in its `config.json`. Sections repeat where they are read: `method.beta` is of
`ddae`, `method.dds.beta` of any other method with `:dds`.
"""

SECTIONS = {
    "": RunSettings,
    "data": DataSettings,
    "model": ModelSettings,
    "optimizer": OptimizerSettings,
    "mesh": MeshSettings,
    **{f"method, name={name!r}": method for name, method in METHODS.items()},
    "method.dds": with_dds,
    "classifier": ClassifierSettings,
    "mixing": Mixing,
    "tokenizer": CodebookSettings,
    "segmenter": SegmenterSettings,
    **{f"evaluators.{name}": maker for name, maker in EVALUATORS.items()},
}


def page():
    """The page's text."""
    parts, told = [HEAD], set()
    for name, target in SECTIONS.items():
        parts.append(f"## {f'config.{name}'.rstrip('.')}\n")
        parts += section(target, told)
    return "\n".join(parts)


def section(target, told):
    """What a section is, its keys, and each dataclass among them the first time."""
    yield text_of(target)
    inner, rows = [], []
    hints = typing.get_type_hints(target)
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        options = typing.get_args(hints.get(name)) or (hints.get(name),)
        found = [o for o in options if dataclasses.is_dataclass(o)]
        inner += found
        kind = " or ".join(f"[{o.__name__}](#{o.__name__.lower()})" for o in found)
        rows.append((name, kind or kind_of(hints.get(name)), shown(parameter.default)))
    if rows:
        yield "| key | kind | default |\n|---|---|---|"
        yield "".join(f"| `{a}` | {b} | {c} |\n" for a, b, c in rows)
    for other in inner:
        if other not in told:
            told.add(other)
            yield f"### {other.__name__}\n"
            yield from section(other, told)


def text_of(target):
    """The docstring, as a paragraph or more."""
    return inspect.cleandoc(target.__doc__).replace("|", "\\|") + "\n"


def kind_of(annotation):
    """An annotation as a reader would write it."""
    if annotation is None:
        return ""
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(map(kind_of, typing.get_args(annotation)))
    if annotation is types.NoneType:
        return "None"
    return (
        re.sub(r"\w+\.", "", getattr(annotation, "__name__", ""))
        if isinstance(annotation, type) and not typing.get_args(annotation)
        else str(annotation)
    )


def shown(default):
    """A default; of a dataclass, only what it has otherwise than that one has."""
    if default is inspect.Parameter.empty:
        return "**needed**"
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        usual = {f.name: f.default for f in dataclasses.fields(default)}
        own = {k: v for k, v in vars(default).items() if v != usual[k]}
        return ", ".join(f"`{k}={v!r}`" for k, v in own.items()) or "its own"
    return f"`{default!r}`"


def main(argv=None):
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=PAGE)
    args = parser.parse_args(argv)
    args.output.write_text(page())
    print(f"{args.output}: {len(SECTIONS)} sections")


if __name__ == "__main__":
    main()
