"""What a saved holds, in a few lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .query import span

if TYPE_CHECKING:
    from .saved_run import SavedRun

LATEST = 10
"""Events shown."""


def summary(saved: SavedRun, files: int, size: int) -> str:
    """State, steps by mode, tensors by collection, bytes and events.

    Args:
        files: in the folder.
        size: their bytes.
    """
    steps = [f"{mode} {span(saved.steps(mode))}" for mode in saved.modes]
    tensors = [f"{name} {len(saved.names(collection=name)):,}" for name in saved.collections()]
    events = saved.events
    lines = [
        f"run {saved.path}: {saved.info['state']}; ranks: {', '.join(map(str, saved.ranks)) or 'none'}",
        f"steps: {'; '.join(steps) or 'none'}",
        f"tensors: {', '.join(tensors) or 'none'}",
        f"on disk: {size / 2**20:,.1f} MiB in {files} files",
        f"events: {len(events)}; lost records: {saved.torn}",
    ]
    lines += [
        f"  step {event.get('step')}, rank {event['rank']}: {event['event']}" for event in events[-LATEST:]
    ]
    return "\n".join(lines)
