"""Sentences of debug for the first paragraph of a page: how the loss went, and what to look at first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from loopwise.sections import Block, summary

from ..read.saved_run import SavedRun
from ..rules import Finding
from .scalars import Read

PART = 10
"""A value at the beginning or the end of a training is the median of this part of its steps."""
METRICS = 2
"""Metrics beside the loss that are named."""

EXACT = "non_finite"
"""Rule that names the operation of the first NaN, of which other findings of the same step are consequences."""


def sentences(saved: SavedRun, findings: Sequence[Finding], read: Read) -> Iterator[Block]:
    """Yield the sentences.

    Args:
        saved: the run.
        findings: its findings, the most severe first.
        read: reads a scalar of the run.
    """
    if courses := list(_courses(saved, read)):
        yield summary(f"{_span(saved)} {', '.join(courses)}.", 10)
    if saved.steps() or findings:
        yield summary(_to_look_at(findings), 95)


def counted(findings: Iterable[Finding], words: Mapping[str, tuple[str, str]]) -> list[str]:
    """Return the number of findings of each severity that occurs, in words.

    Args:
        findings: the findings.
        words: severity -> words for one finding and for several.
    """
    counts = Counter(finding.severity for finding in findings)
    return [f"{counts[key]} {of[counts[key] > 1]}" for key, of in words.items() if counts[key]]


def _span(saved: SavedRun) -> str:
    """Return the steps that were saved, in words; a resumed training does not begin at step 0."""
    steps = saved.steps("train") if "train" in saved.modes else saved.steps()
    first, last = steps[0], steps[-1]
    if first == 0 and last > 0:
        return f"In {last + 1:,} steps"
    return f"From step {first:,} to step {last:,}" if last > first else f"At step {first:,}"


def _courses(saved: SavedRun, read: Read) -> Iterator[str]:
    """Yield how the loss of training and of evaluation, and some metrics, went."""
    names = [*saved.names(collection="losses")[:1]]
    names += [
        name for name in saved.names(collection="metrics") if name not in ("learning_rate", "gradient_norm")
    ][:METRICS]
    for name in names:
        for mode, (_, values) in read(name).items():
            finite = values[np.isfinite(values)]
            if not finite.size:
                continue
            count = max(1, len(finite) // PART)
            first, last = float(np.median(finite[:count])), float(np.median(finite[-count:]))
            of = "" if mode == "train" else f" of {mode}"
            went = f"went from {first:.4g} to {last:.4g}" if len(finite) > 1 else f"was {last:.4g}"
            bad = len(values) - len(finite)
            yield f"{name}{of} {went}" + (f" (and was not finite at {bad:,} steps)" if bad else "")


def _to_look_at(findings: Sequence[Finding]) -> str:
    """Return what to look at first."""
    serious = [finding for finding in findings if finding.severity != "info"]
    if not serious:
        rest = f" beside {len(findings)} remark{'s' * (len(findings) > 1)}" if findings else ""
        return f"No fault was found{rest}."
    words = {"critical": ("critical finding", "critical findings"), "warning": ("warning", "warnings")}
    several = " and ".join(counted(serious, words))
    named = [one for one in serious if one.rule == EXACT and one.step <= serious[0].step]
    first = [*named, *serious][0]
    return f"There {'is' if len(serious) == 1 else 'are'} {several}; look first at {first.rule} at step {first.step:,}: {first.what}."
