"""Tasks on which methods of selecting training samples are compared; one file for each source of data."""

from . import digits, glyphs, language, packages, sounds
from .task import Task

TASKS: dict[str, Task] = {
    task.name: task for source in (digits, glyphs, language, packages, sounds) for task in source.tasks()
}
"""Name -> task.  Data, networks and budgets were settled with the plain loader on validation data."""
