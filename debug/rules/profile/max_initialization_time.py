"""A first step that takes long.

Statistic: the minutes from the start of the Watch to the end of the first training step, or to the last sample if there is no
step yet.
Default: more than 20 (the default of SageMaker Debugger).
Why: every start of the training costs this time again.
False alarms: large models that are compiled, or are read from remote storage.
"""

from ..finding import Observation, Observations, Rule
from .series import Series


def detect(series: Series, minutes: float = 20.0) -> Observations:
    now = series.system["time"][-1] if len(series.system) else series.start
    taken = ((series.first if series.first is not None else now) - series.start) / 60
    if taken > minutes:
        end = "the first step ended" if series.first is not None else "no step has ended,"
        yield Observation(f"{end} {taken:.3g} minutes after the start")


RULE = Rule(
    detect,
    "warning",
    "keep compiled graphs in a cache (loopwise.compile.save_cache, or TORCHINDUCTOR_CACHE_DIR on a permanent "
    "disk), and keep data on fast storage",
    source="profile",
)
