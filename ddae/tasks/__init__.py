"""Tasks: what the train step optimises. A new task is a file and a row in TASKS."""

from collections.abc import Callable, Mapping
from typing import Any

from ddae.settings import UserError
from ddae.tasks.classify import Classify
from ddae.tasks.pretrain import Pretrain
from ddae.tasks.segment import Segment
from ddae.tasks.task import Task
from ddae.tasks.tokenize import Tokenize

TASKS: dict[str, Callable[[Mapping[str, Any]], Task]] = {
    "pretrain": Pretrain.from_config,
    "classify": Classify.from_config,
    "tokenize": Tokenize.from_config,
    "segment": Segment.from_config,
}

SECTIONS = {
    "pretrain": ("method",),
    "classify": ("classifier", "mixing"),
    "tokenize": ("tokenizer",),
    "segment": ("segmenter",),
}


def sections(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Sections that config.task reads beside model and data, or `UserError`."""
    if config.get("task") not in TASKS:
        raise UserError(
            f"config.task={config.get('task')!r} is not one of {sorted(TASKS)}"
        )
    return SECTIONS[config["task"]]


def from_config(config: Mapping[str, Any]) -> Task:
    """The task that `config.task` names, built from its sections of the config."""
    sections(config)
    return TASKS[config["task"]](config)
