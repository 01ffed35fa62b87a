"""Many interventions on one task -> Effects."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mechlab.patching.task import Task as Task

__all__ = ["Task"]


def __getattr__(name: str) -> object:
    if name == "Task":
        return import_module("mechlab.patching.task").Task
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
