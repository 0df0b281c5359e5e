"""Render ``docs/formats.md`` from the docstrings of the modules that specify file formats."""

from __future__ import annotations

from .docstrings import docstring, markdown
from .rooms import ROOT

SPECIFICATIONS = {
    "Run folder and JSON lines": "base/run.py",
    "Tensors: segments and index": "debug/store/segments.py",
    "Profile: samples, phases, operators": "debug/profiler/sampler.py",
    "Phases of a step": "debug/profiler/phases.py",
    "Last steps before an alarm": "debug/nan/blackbox.py",
    "Sections of the page": "report/sections.py",
    "The page itself": "report/page.py",
}
"""Title -> the file whose docstring specifies the format."""
HEAD = """# File formats

<!-- This page is generated from module docstrings by python -m docs.generators. -->

Each format is specified in the docstring of the module that writes it; this page collects them. Tests pin the formats
with golden bytes and feed the readers damaged files.

| file in a run | written by | section |
|---|---|---|
| `run.json` | `loopwise.run` | [run folder](#run-folder-and-json-lines) |
| `sift/epochs.rank<r>.<n>.jsonl` | `SiftingDataLoader(run=...)`: counts and seconds of one epoch a line | [JSON lines](#run-folder-and-json-lines) |
| `compile/plans.rank<r>.<n>.jsonl`, `compile/events.rank<r>.<n>.jsonl` | `TrainStep(run=...)`: a plan with its candidates, an event | [JSON lines](#run-folder-and-json-lines), [plans](#plans) |
| `debug/tensors.rank<r>.<k>.seg`, `debug/index.rank<r>.<n>.jsonl` | `Watch` | [segments](#tensors-segments-and-index) |
| `debug/findings.rank<r>.<n>.jsonl` | `Watch`: a finding a line, with the fields of `loopwise.debug.Finding` | [JSON lines](#run-folder-and-json-lines) |
| `debug/system...`, `debug/phases...`, `debug/operators...` | the profile of a `Watch` | [profile](#profile-samples-phases-operators) |
| `debug/trace.rank<r>.step<n>.json.gz` | `Profile(windows=...)`: a trace for Perfetto | |
| `debug/blackbox/step<n>.rank<r>.pt` | `Watch`, when something goes wrong | [last steps](#last-steps-before-an-alarm) |
| `report.html` | `loopwise report` | [sections](#sections-of-the-page) |
"""
PLANS = """## Plans

Specified in [compile/plan.py](../compile/plan.py). `Plan.to_json()` is a JSON object with a field for each argument of
`loopwise.compile.Plan`. Plans that were measured are kept in `~/.cache/loopwise`, or in the folder that the environment
variable `LOOPWISE_CACHE` names, one file for each combination of device, versions, model and shapes.

`save_cache(path)` writes one file: a line of magic, a JSON object of versions, then the artifacts of
`torch.compiler.save_cache_artifacts()`; see [compile/cache.py](../compile/cache.py).
"""


def render() -> str:
    """Return the page."""
    sections = [
        f"## {title}\n\nSpecified in [{path}](../{path}).\n\n{markdown(docstring(ROOT / path))}"
        for title, path in SPECIFICATIONS.items()
    ]
    return "\n".join([HEAD, *sections, PLANS])
