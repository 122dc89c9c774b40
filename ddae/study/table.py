"""What a study is: rows of a table, the runs they stand for, and their configs."""

import dataclasses
import importlib.util
import inspect
import itertools
import os
import re
from collections.abc import Mapping
from typing import Any

from ddae import commands, settings
from ddae.settings import UserError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A way to pretrain.

    config: a file of configs/ and its arguments, as train.py takes them; set: dotted
    keys that differ from it. seeds: where they are not the study's. repeats,
    at_cost_of: in place of a config, the row `repeats` for as many steps as cost what
    the row `at_cost_of` costs, both measured at the study's first seed. series, x,
    panel: where plots put it; where some rows have x the others are in no plot.
    """

    name: str
    config: str = ""
    set: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    repeats: str = ""
    at_cost_of: str = ""
    series: str = ""
    x: str | float | None = None
    panel: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FollowUp:
    """A run that begins with every row's encoder: its config, and the value of the last
    evaluation in its log that scores the row. rows: those alone; empty is all."""

    config: str
    score: str
    set: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A table of rows. scores: evaluators, as config.evaluators has them, of the last
    step's weights. control: the row that the others are compared with."""

    name: str
    about: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    scores: Mapping[str, Mapping[str, Any]]
    control: str
    follow_ups: Mapping[str, FollowUp]

    def row(self, name: str) -> Row:
        """The row of that name, or `UserError`."""
        for row in self.rows:
            if row.name == name:
                return row
        raise UserError(f"{self.name}: no row {name!r} in the study")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a row at a seed, or what follows it."""

    row: Row
    seed: int
    follow_up: str = ""

    @property
    def folder(self) -> str:
        """Below the study's workdir."""
        parts = ["runs", self.row.name, f"seed{self.seed}"]
        return os.path.join(*parts, *filter(None, [self.follow_up]))

    @property
    def parent(self) -> "Run":
        """The pretraining whose encoder a follow-up begins with."""
        return Run(self.row, self.seed)

    def __str__(self) -> str:
        after = f", {self.follow_up}" if self.follow_up else ""
        return f"{self.row.name}, seed {self.seed}{after}"


def read_study(text: str) -> Study:
    """The study of FILE.py or FILE.py:key=value,... ; its `get_study` gives a dict.

    Raises `UserError` where it cannot be read or its rows do not fit together.
    """
    module, arguments = _module(text)
    made = _call(module, "get_study", arguments, text)
    return study_from_dict(os.path.basename(text.partition(":")[0])[:-3], made)


def study_from_dict(name: str, made: Mapping[str, Any]) -> Study:
    """A `Study` from a plain dict of its fields, strictly."""
    if not isinstance(made, Mapping):
        raise UserError(f"{name}: what get_study gives is no dict")
    made = dict(made)
    given, after = made.pop("rows", ()), made.pop("follow_ups", {})
    if not isinstance(given, list | tuple):
        raise UserError(
            f"{name}: rows is no list; give a list of dicts, each with its name"
        )
    for row in given:
        if not isinstance(row, Mapping):
            raise UserError(f"{name}: the row {row!r} is no dict")
    if not isinstance(after, Mapping) or not all(
        isinstance(value, Mapping) for value in after.values()
    ):
        raise UserError(f"{name}: follow_ups is not a dict of dicts, by their names")
    rows = tuple(settings.build(Row, row, f"rows {row.get('name')}: ") for row in given)
    follow_ups = {
        key: settings.build(FollowUp, value, f"follow_ups {key}: ")
        for key, value in after.items()
    }
    made = {"control": "", "scores": {}} | made
    made |= {"name": name, "rows": rows, "follow_ups": follow_ups}
    study = settings.build(Study, made, f"{name}: ")
    _check(study)
    return study


def _check(study: Study) -> None:
    names = [row.name for row in study.rows]
    if len(set(names)) != len(names) or not names:
        raise UserError(f"{study.name}: row names must be there, and differ")
    for row in study.rows:
        if not re.fullmatch(r"[\w.+=,-]+", row.name):
            raise UserError(
                f"{study.name}: row name {row.name!r} is no folder's name;"
                " take letters, digits and any of _ . + = , -"
            )
        if bool(row.repeats) != bool(row.at_cost_of) or bool(row.repeats) == bool(
            row.config
        ):
            raise UserError(
                f"{study.name}: row {row.name!r} wants a config, or both repeats and"
                " at_cost_of"
            )
        for other in filter(None, (row.repeats, row.at_cost_of)):
            if study.row(other).repeats:
                raise UserError(f"{study.name}: row {other!r} repeats another itself")
            if study.seeds[0] not in (study.row(other).seeds or study.seeds):
                raise UserError(
                    f"{study.name}: row {row.name!r} wants {other!r} at seed"
                    f" {study.seeds[0]}, the study's first"
                )
    if study.control:
        study.row(study.control)
    for follow_up in study.follow_ups.values():
        for name in follow_up.rows:
            study.row(name)


def runs_of(study: Study) -> list[Run]:
    """All runs, most telling first: every row at the first seed, with what follows it,
    then every row at the second."""
    found = []
    every = sorted(set(study.seeds).union(*(row.seeds or () for row in study.rows)))
    for seed in every:
        rows = [r for r in study.rows if seed in (r.seeds or study.seeds)]
        found += [Run(row, seed) for row in rows]
        for row, (key, follow_up) in itertools.product(rows, study.follow_ups.items()):
            if not follow_up.rows or row.name in follow_up.rows:
                found.append(Run(row, seed, key))
    return found


def config_of(
    study: Study,
    run: Run,
    workdir: str,
    changes: Mapping[str, str],
    total_steps: int | None = None,
) -> dict[str, Any]:
    """The config of one run; `changes`: dotted keys for all runs, as text.

    Raises `UserError` for a key that the config does not have, or a value of another
    type.
    """
    source: Row | FollowUp = run.row
    if run.row.repeats:
        source = study.row(run.row.repeats)
    if run.follow_up:
        source = study.follow_ups[run.follow_up]
    module, arguments = _module(source.config)
    config = _call(module, "get_config", arguments, source.config)
    values: dict[str, Any] = {**source.set, "seed": run.seed, **changes}
    if run.follow_up:
        values["init.workdir"] = os.path.join(workdir, run.parent.folder)
    else:
        for name in tuple(config.evaluators):  # the study scores the last step itself
            del config.evaluators[name]
    if total_steps is not None:
        values["total_steps"] = total_steps
    for key, value in values.items():
        _set(config, key, value, f"{study.name}: {run}")
    return config.to_dict()


def _set(config: Any, key: str, value: Any, where: str) -> None:
    *parents, last = key.split(".")
    section = config
    for name in parents:
        section = section.get(name) if hasattr(section, "get") else None
        if section is None:
            break
    if section is None or not hasattr(section, "keys") or last not in section:
        raise UserError(f"{where}: the config has no key {key}")
    try:
        if isinstance(value, str) and not isinstance(section[last], str):
            section[last] = commands.literal(value)
        else:
            section[last] = value
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {key}={value!r}: {error}") from error


def _module(text: str) -> tuple[Any, str | None]:
    """(the module of FILE.py:arguments, its arguments)."""
    path, _, arguments = text.partition(":")
    if not path.endswith(".py") or not os.path.isfile(path):
        here = "" if os.path.isabs(path) else f" in {os.getcwd()}"
        raise UserError(
            f"no file {path!r}{here}; expected a Python file, whose path, as a study's"
            " rows have it too, begins at the working directory"
        )
    spec = importlib.util.spec_from_file_location(
        "ddae_study_" + re.sub(r"\W", "_", path[:-3]), path
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    return module, arguments or None


def _call(module: Any, name: str, arguments: str | None, text: str) -> Any:
    function = getattr(module, name, None)
    if not inspect.isfunction(function):
        raise UserError(f"{text.partition(':')[0]} has no function {name}")
    try:
        return function(arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{text}: {error}") from error
