"""Training that waits for a disk.

Statistic: the number of cores that are idle while a process waits for a disk, in the last 120 samples since the first step;
and the share of the training time that is spent waiting for the loader.
Default: more than half a core in more than half of the samples, and more than a quarter of the time.
Why: SageMaker Debugger requires an idle device instead of a waiting loop; this rule needs no device.
False alarms: another program that keeps the disk busy while the loader waits for something else.
"""

from ..finding import Observation, Observations, Rule
from .series import Series


def detect(
    series: Series, cores: float = 0.5, share: float = 0.5, data: float = 0.25, samples: float = 120.0
) -> Observations:
    recent, train = series.recent(samples), series.train
    if not len(recent) or "iowait" not in recent or not len(train):
        return
    waits = recent["iowait"] / 100 * series.cores
    part, waiting = (waits > cores).mean(), float(train["data"].sum() / train["seconds"].sum())
    if part > share and waiting > data:
        yield Observation(
            f"in {part:.0%} of the samples more than {cores:g} cores waited for a disk, and {waiting:.0%} of a "
            "step is spent waiting for the loader",
            (),
            series.points({"cores that wait for a disk": waits}, recent),
        )


RULE = Rule(
    detect,
    "warning",
    "copy the data to a local disk or into memory, put many small files into few large ones, or read further ahead",
    source="profile",
)
