"""What a trial holds, in a few lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .query import span

if TYPE_CHECKING:
    from .saved_run import Trial

LATEST = 10
"""Events shown."""


def summary(trial: Trial, files: int, size: int) -> str:
    """State, steps by mode, tensors by collection, bytes and events.

    Args:
        files: in the folder.
        size: their bytes.
    """
    steps = [f"{mode} {span(trial.steps(mode))}" for mode in trial.modes]
    tensors = [f"{name} {len(trial.names(collection=name)):,}" for name in trial.collections()]
    events = trial.events
    lines = [
        f"run {trial.path}: {trial.info['state']}; ranks: {', '.join(map(str, trial.ranks)) or 'none'}",
        f"steps: {'; '.join(steps) or 'none'}",
        f"tensors: {', '.join(tensors) or 'none'}",
        f"on disk: {size / 2**20:,.1f} MiB in {files} files",
        f"events: {len(events)}; lost records: {trial.torn}",
    ]
    lines += [
        f"  step {event.get('step')}, rank {event['rank']}: {event['event']}" for event in events[-LATEST:]
    ]
    return "\n".join(lines)
