"""Render ``docs/formats.md`` from the docstrings of the modules that specify file formats."""

from __future__ import annotations

from .docstrings import docstring, markdown
from .rooms import ROOT

SPECIFICATIONS = {
    "Run folder and JSON lines": "base/run/__init__.py",
    "Tensors: segments and index": "debug/store/segments.py",
    "Profile: samples, phases, operators": "debug/profiler/sampler.py",
    "Phases of a step": "debug/profiler/phases.py",
    "Operators": "debug/profiler/windows.py",
    "Last steps before an alarm": "debug/nan/blackbox.py",
    "Epochs of a sifting loader": "sift/report.py",
    "Plans and events of compiled steps": "compile/events.py",
    "Plans": "compile/plan.py",
    "Compiled code": "compile/cache.py",
    "Tuning job": "tune/tuner.py",
    "Attempt at a trial": "tune/process/supervise.py",
    "Sections of the page": "report/sections.py",
    "The page itself": "report/page.py",
}
"""Title -> the file whose docstring specifies the format."""
HEAD = """# File formats

<!-- This page is generated from module docstrings by python -m docs.generators. -->

Each format is specified in the docstring of the module that writes it; this page collects them. Tests pin the lines of a
run and the segments with golden bytes, and feed the readers damaged files.

Parts of one process that are given the same path write into one run; [the run folder](index.md#the-run-folder) says when it
ends.

| file in a run | written by | section |
|---|---|---|
| `run.json` | `loopwise.run` | [run folder](#run-folder-and-json-lines) |
| `sift/epochs.rank<r>.<n>.jsonl` | `SiftingDataLoader(run=...)`: counts and seconds of one epoch a line | [epochs](#epochs-of-a-sifting-loader) |
| `compile/plans.rank<r>.<n>.jsonl`, `compile/events.rank<r>.<n>.jsonl` | `TrainStep(run=...)`: a plan with its candidates, an event | [plans and events](#plans-and-events-of-compiled-steps), [plans](#plans) |
| `debug/tensors.rank<r>.<k>.seg`, `debug/index.rank<r>.<n>.jsonl` | `Watch` | [segments](#tensors-segments-and-index) |
| `debug/findings.rank<r>.<n>.jsonl` | `Watch`: a finding a line, with the fields of `loopwise.debug.Finding` | [JSON lines](#run-folder-and-json-lines) |
| `debug/system...`, `debug/phases...`, `debug/operators...` | the profile of a `Watch` | [profile](#profile-samples-phases-operators), [phases](#phases-of-a-step), [operators](#operators) |
| `debug/trace.rank<r>.step<n>.json.gz` | `Profile(windows=...)`: a trace for Perfetto | |
| `debug/blackbox/step<n>.rank<r>.pt` | `Watch`, when something goes wrong | [last steps](#last-steps-before-an-alarm) |
| `tune/` | `loopwise tune run` | [tuning job](#tuning-job), [attempts](#attempt-at-a-trial) |
| `report.html` | `loopwise report` | [sections](#sections-of-the-page) |

| file outside of a run | written by | section |
|---|---|---|
| `plans/<key>.json` in `~/.cache/loopwise` or `LOOPWISE_CACHE` | `TrainStep`: a plan that was measured | [plans](#plans) |
| the file that `save_cache(path)` names | `loopwise.compile.save_cache` | [compiled code](#compiled-code) |
"""


def render() -> str:
    """Return the page."""
    sections = [
        f"## {title}\n\nSpecified in [{path}](../{path}).\n\n{markdown(docstring(ROOT / path))}"
        for title, path in SPECIFICATIONS.items()
    ]
    return "\n".join([HEAD, *sections]).rstrip("\n") + "\n"
