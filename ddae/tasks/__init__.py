"""Tasks: what the train step optimises. A new task is a file and a row in TASKS."""

from collections.abc import Callable, Mapping
from typing import Any

from ddae.settings import UserError
from ddae.tasks.pretrain import Pretrain
from ddae.tasks.task import Task

TASKS: dict[str, Callable[[Mapping[str, Any]], Task]] = {
    "pretrain": Pretrain.from_config
}


def from_config(config: Mapping[str, Any]) -> Task:
    """The task that `config.task` names, built from its sections of the config."""
    if config["task"] not in TASKS:
        raise UserError(f"config.task={config['task']!r} is not one of {sorted(TASKS)}")
    return TASKS[config["task"]](config)
