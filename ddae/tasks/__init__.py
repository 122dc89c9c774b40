"""Tasks: what the train step optimises. A new one is a file, and rows in two tables."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ddae.mixing import Mixing
from ddae.settings import UserError, filled
from ddae.tasks.classify import ClassifierSettings, Classify
from ddae.tasks.pretrain import Pretrain, filled_method
from ddae.tasks.segment import Segment, SegmenterSettings
from ddae.tasks.task import Task
from ddae.tasks.tokenize import CodebookSettings, Tokenize

TASKS: dict[str, Callable[[Mapping[str, Any]], Task]] = {
    "pretrain": Pretrain.from_config,
    "classify": Classify.from_config,
    "tokenize": Tokenize.from_config,
    "segment": Segment.from_config,
}

Filled = Callable[[Mapping[str, Any]], dict[str, Any]]

SECTIONS: dict[str, dict[str, Filled]] = {
    "pretrain": {"method": filled_method},
    "classify": {
        "classifier": functools.partial(filled, ClassifierSettings),
        "mixing": functools.partial(filled, Mixing),
    },
    "tokenize": {"tokenizer": functools.partial(filled, CodebookSettings)},
    "segment": {"segmenter": functools.partial(filled, SegmenterSettings)},
}
"""The sections of a config that each task reads, and what fills in their defaults."""


def sections(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Sections that config.task reads beside model and data, or `UserError`."""
    if config.get("task") not in TASKS:
        raise UserError(
            f"config.task={config.get('task')!r} is not one of {sorted(TASKS)}"
        )
    return tuple(SECTIONS[config["task"]])


def spelled_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of config.task with the code's default at every key left out."""
    known = SECTIONS.get(config.get("task", ""), {})
    return {name: fill(config[name]) for name, fill in known.items() if name in config}


def from_config(config: Mapping[str, Any]) -> Task:
    """The task that `config.task` names, built from its sections of the config."""
    sections(config)
    return TASKS[config["task"]](config)
