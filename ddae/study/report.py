"""Numbers of a study as CSV, Markdown and plots."""

from typing import Any


def write_report(runner: Any) -> None:
    """Later."""
