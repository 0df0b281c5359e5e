"""A first step that takes long to come.

Statistic: minutes from the beginning of the Watch to the end of the first training step, or to now.  Default: more than
20 (that of SageMaker Debugger).
False alarms: large models that are compiled, or read from remote storage.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..finding import Observation, Rule
from .series import Series


def detect(series: Series, minutes: float = 20.0) -> Iterator[Observation]:
    now = series.system["time"][-1] if len(series.system) else series.start
    taken = ((series.first if series.first is not None else now) - series.start) / 60
    if taken > minutes:
        end = "the first step ended" if series.first is not None else "there is no first step yet,"
        yield Observation(f"{end} {taken:.3g} minutes after the beginning")


RULE = Rule(
    detect,
    "warning",
    "keep compiled graphs in a cache (loopwise.compile.save_cache, or TORCHINDUCTOR_CACHE_DIR on a disk that "
    "stays), and data where it is read fast",
    source="profile",
)
