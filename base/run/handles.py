"""The parts of one process that share a run."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import weakref
from typing import ClassVar

import fsspec

from loopwise.errors import InputError
from loopwise.ranks import agreed, is_main
from loopwise.torch_internals import call_before_executors_end

from .folder import Run, location, resolve


class RunHandle:
    """A part's use of a run, from ``as_run`` to ``release``.

    A handle whose ``release`` is not called is released when it is garbage-collected or the interpreter exits.

    Attributes:
        run: the run.
    """

    def __init__(self, run: Run, part: str, shared: _Shared | None) -> None:
        self.run, self._part, self._shared = run, part, shared
        if shared is not None:
            shared.use(part)
            self._finalizer = weakref.finalize(self, shared.abandon, part, os.getpid())
            if not run.local:
                call_before_executors_end(self._finalizer)

    def release(self, state: str = "finished") -> None:
        """End the part's use of the run; a run that was opened by its path is closed by the last part.

        Args:
            state: ``finished``, or ``failed`` if the part ended by an error; the run failed if any part did.
        """
        if self._shared is not None and self._finalizer.alive:
            self._shared.release(self._part, state)
            self._finalizer.detach()  # last, so that an interrupted release can be repeated

    def cancel(self) -> None:
        """End the use of a run by a part that could not start; the run is deleted if the part began it."""
        if self._shared is not None and self._finalizer.detach():
            self._shared.cancel(self._part)


class _Shared:
    """A run that was opened by its path, and the parts of this process that use it.

    Args:
        run: the run.
        asked: path that the first part asked for; the run's own one has a number if there was a run already.
    """

    opened: ClassVar[list[_Shared]] = []

    def __init__(self, run: Run, asked: str) -> None:
        self.run, self.asked, self.parts, self._state = run, asked, list[str](), "finished"
        self._users = 0
        self.opened.append(self)

    @property
    def beside(self) -> bool:
        """True if the folder that was asked for held a run already."""
        return self.run.path.rstrip("/") != self.asked.rstrip("/")

    def use(self, part: str) -> None:
        """Add a use by ``part``."""
        self.parts.append(part)
        self._users += 1

    def cancel(self, part: str) -> None:
        """Remove a use by ``part`` that could not start, and discard the run if there was no other use."""
        if self._users > 1:
            self.release(part, "finished")
            return
        self.parts.remove(part)
        self.opened.remove(self)
        self.run.discard()

    def release(self, part: str, state: str) -> None:
        """Remove one use by ``part``, and close the run after the last one."""
        if part in self.parts:
            self.parts.remove(part)
        self._state = state if state != "finished" else self._state
        if self.parts:
            return
        if self in self.opened:
            self.opened.remove(self)
        self.run.close(self._state)

    def abandon(self, part: str, process: int) -> None:
        """Release a handle that was never released, unless this is a forked copy of the process."""
        if os.getpid() == process:
            # Python sets last_value before it runs the exit handlers, and an interactive session goes on after it
            crashed = getattr(sys, "last_value", None) is not None and not hasattr(sys, "ps1")
            self.release(part, "failed" if crashed else "finished")


def can_resume(run: str | os.PathLike[str] | Run | None) -> bool:
    """Return whether ``as_run`` takes ``resume=True`` beside a public ``run=`` argument, which a ``Run`` excludes."""
    return run is not None and not isinstance(run, Run)


def as_run(run: str | os.PathLike[str] | Run | None, part: str, resume: bool = False) -> RunHandle | None:
    """Open the run that a public ``run=`` argument names, for writing.

    Parts of one process that name the same folder share one ``Run``: the first part opens it, with its
    ``resume``, and the others join.  A ``Run`` that the caller made stays open: only the caller closes it.
    If the folder holds a run already, or the part uses it already, the run gets a folder of its own, ``runs/x-2``
    beside ``runs/x``, and a message says so.

    Args:
        run: a folder or fsspec URL, a ``Run``, or ``None``.
        part: name of the part that uses the run.
        resume: continue in a folder that already holds a run; only valid for a path.

    Returns:
        The part's handle, to be released when the part ends; ``None`` if ``run`` is ``None``.

    Raises:
        InputError: ``run`` is of another type, or ``resume`` was passed together with a ``Run``.
        StateError: the folder cannot be written to, or several ranks without a process group name one with a run.
    """
    if run is None:
        return None
    if isinstance(run, Run):
        if resume:
            raise InputError(
                "resume=True together with a Run",
                "resume=True only if run= is a path",
                "the Run is open already",
                "pass resume=True to Run(...) instead",
            )
        return RunHandle(run, part, None)
    fs, path = resolve(run)
    same = [s for s in _Shared.opened if path in (s.asked, s.run.path) and s.run.fs == fs]
    shared = next((s for s in reversed(same) if resume or part not in s.parts), None)
    if shared is None:
        shared = _Shared(Run(location(run), resume) if resume else _new_run(fs, path, location(run)), path)
    elif resume and shared.beside:
        _tell_not_resumed(shared, part, location(run))
    return RunHandle(shared.run, part, shared)


def _tell_not_resumed(shared: _Shared, part: str, asked: str) -> None:
    """Say that a part which would resume joins the new run of an earlier part, which did not."""
    text = (
        "resume=True of the part %s does not go on in %r: %s opened a new run, %r, before without resume=True, and "
        "parts of one path share a run; pass resume=True to %s as well"
    )
    first = shared.parts[0] if shared.parts else "another part"
    logging.getLogger("loopwise").warning(text, part, asked, first, shared.run.url, first)


def _new_run(fs: fsspec.AbstractFileSystem, path: str, asked: str) -> Run:
    """Return a new run at a path, or beside the run that is there already: ``runs/x-2`` beside ``runs/x``.

    Ranks without a process group cannot agree on another folder, so they are refused a folder with a run.
    """

    def propose() -> str:
        numbers = itertools.count(1)
        return str(next(n for n in numbers if not fs.exists(f"{path}{_suffix(n)}/run.json")))

    number = int(agreed(path, propose) or 1)
    run = Run(f"{asked.rstrip('/')}{_suffix(number)}" if number > 1 else asked)
    if number > 1 and is_main():
        text = "%r holds a run already: this one is written into %r (resume=True goes on in the old one)"
        logging.getLogger("loopwise").warning(text, asked, run.url)
    return run


def _suffix(number: int) -> str:
    return f"-{number}" if number > 1 else ""
