"""Readers of the files of a run folder, as users call them, and a record of what they touch."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loopwise.compile.page import sections as compile_sections
from loopwise.compile.plan import Plan, recall
from loopwise.debug import open_run
from loopwise.debug.nan import blackbox
from loopwise.debug.page import sections as debug_sections
from loopwise.debug.profiler import reading
from loopwise.debug.profiler.page import sections as profile_sections
from loopwise.errors import LoopwiseError
from loopwise.feed.page import sections as feed_sections
from loopwise.report.facts import facts, signature
from loopwise.report.page import state
from loopwise.report.sections import validated
from loopwise.run import Run
from loopwise.sift.frameworks.plain import load
from loopwise.sift.page import sections as sift_sections
from loopwise.tune.page import sections as tune_sections
from loopwise.tune.search.warm_start import inherited
from loopwise.tune.trials import recorded

from .fuzz_inputs import KEY

Reader = Callable[[Path], Any]
WHOLE = 40
"""Inputs of which one is also shown as a whole page, which takes as long as fifty others."""


def _page(sections: Callable[[str], list[Any]]) -> Reader:
    """Return a reader of the sections of one provider, in the form in which the page needs them."""

    def read(run: Path) -> None:
        json.dumps([section.blocks for section in map(validated, sections(str(run)))])

    return read


def whole_page(run: Path) -> None:
    """Make the whole page; a provider that failed for another reason than a clear error is an error here."""
    head = state(str(run))["head"]["html"]
    for note in head.split("The sections of ")[1:]:
        if "seen: " not in note:
            raise AssertionError(note[:2000])


def _info(run: Path) -> None:
    existing = Run.existing(run)
    facts(str(run)).rows()
    signature(existing)
    str(open_run(run))


def _tensors(run: Path) -> None:
    saved = open_run(run)
    for name in saved.names()[:6]:
        for step in saved.steps()[:2]:
            for ask in (saved.value, saved.shape, saved.dtype, saved.statistics):
                with contextlib.suppress(LoopwiseError):
                    str(ask(name, step))
            with contextlib.suppress(LoopwiseError):
                saved.statistic(name, "mean", step)
        for series in (lambda name=name: saved.series(name, "max"), lambda name=name: saved.values(name)):
            with contextlib.suppress(LoopwiseError):
                series()
    saved.verify()


def _rules(run: Path) -> None:
    open_run(run).judge()


def _plan(run: Path) -> None:
    recall(KEY)
    for file in (run / "plans").iterdir():
        Plan.from_json(file.read_text(errors="replace"))


def _state(run: Path) -> None:
    load(str(run / "sift_0.pt"))


def _black_box(run: Path) -> None:
    import torch

    for file in (run / "debug").rglob("*.pt"):
        blackbox.load(file, torch.nn.Linear(1, 1))


def _trials(run: Path) -> None:
    recorded(str(run))
    inherited(str(run))


READERS: dict[str, tuple[str, tuple[Reader, ...]]] = {
    "run": ("run.json", (_info,)),
    "index": ("debug/index.*.jsonl", (_tensors, _rules, _page(debug_sections))),
    "segment": ("debug/*.seg", (_tensors, _rules, _page(debug_sections))),
    "findings": ("debug/findings.*.jsonl", (_page(debug_sections),)),
    "system": ("debug/system.*.jsonl", (_page(profile_sections), reading.judge)),
    "phases": ("debug/phases.*.jsonl", (_page(profile_sections), reading.judge)),
    "operators": ("debug/operators.*.jsonl", (_page(profile_sections),)),
    "epochs": ("sift/epochs.*.jsonl", (_page(sift_sections),)),
    "compile": ("compile/*.jsonl", (_page(compile_sections),)),
    "tune": ("tune/*.jsonl", (_page(tune_sections), _trials)),
    "feed": ("feed/*.jsonl", (_page(feed_sections),)),
    "plan": ("plans/*.json", (_plan,)),
    "state": ("sift_0.pt", (_state,)),
}
"""Kind of a file -> its pattern in the folder, and its readers."""


class Touched:
    """Record of what this process writes, renames, removes or starts, while ``watching``.

    Args:
        allowed: folder below which everything may be written.
    """

    def __init__(self, allowed: Path) -> None:
        self._allowed, self._on = f"{os.path.realpath(allowed)}/", False
        self.events: list[str] = []
        sys.addaudithook(self._note)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Record events in the body."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event == "open":
            path, _, flags = arguments
            written = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        else:
            path, written = arguments[0] if arguments else "", event in EVENTS
        if not written:
            return
        inside = isinstance(path, (str, bytes, os.PathLike)) and self._is_inside(os.fsdecode(path))
        if not inside or event.startswith(("subprocess", "os.exec", "os.system", "os.posix_spawn")):
            self.events.append(f"{event} {arguments!r:.200}")

    def _is_inside(self, path: str) -> bool:
        with contextlib.suppress(ValueError):  # a null byte
            return os.path.realpath(path).startswith(self._allowed)
        return False


EVENTS = {
    "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate",
    "shutil.rmtree", "subprocess.Popen", "os.exec", "os.system", "os.posix_spawn", "socket.connect",
}  # fmt: skip
"""Audit events of Python that change something outside of the process."""
