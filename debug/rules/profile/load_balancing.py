"""Devices of one training that do not share its work.

Statistic: the mean utilization of each device of the training, over the last 500 samples since the first step.
Default: the lowest is below half of the highest (the 0.5 of SageMaker Debugger), and the highest is at least 5 %.
Why: the slowest device sets the time of a step.  Only the page compares ranks, because it reads the records of all ranks.
False alarms: stages of a pipeline that are meant to differ; another program on one of the devices.
"""

from collections.abc import Mapping

from ..finding import Observation, Observations, Rule
from .series import Series, Table

OWN = ("data", "to_device", "forward", "optimizer", "other")
"""Phases of a rank's own work; in ``backward`` a rank waits for the others."""
IDLE = 5.0
"""Per cent of utilization below which the busiest device counts as idle."""


def detect(series: Series, ratio: float = 0.5, samples: float = 500.0) -> Observations:
    recent = series.recent(samples)
    means = {name: float(values.mean()) for name, values in series.utilization(recent).items()}
    if len(means) < 2:
        return
    least, most = min(means, key=lambda name: means[name]), max(means, key=lambda name: means[name])
    if means[most] >= IDLE and means[least] < ratio * means[most]:
        yield Observation(
            f"{least} is at {means[least]:.0f} % on average while {most} is at {means[most]:.0f} %",
            (least,),
            series.points({f"{name}, %": recent[name] for name in (least, most)}, recent),
        )


def between(ranks: Mapping[int, Table], ratio: float = 0.5) -> Observations:
    """Yield the rank that others wait for, if another rank does less than half as much work outside backward passes.

    Args:
        ranks: phases of training steps by rank.
        ratio: largest share of the work of the slowest rank.
    """
    work = {
        rank: sum(float(table[kind].sum()) for kind in OWN) / float(table["count"].sum())
        for rank, table in ranks.items()
        if len(table)
    }
    if len(work) < 2:
        return
    least, most = min(work, key=lambda rank: work[rank]), max(work, key=lambda rank: work[rank])
    if work[least] < ratio * work[most]:
        yield Observation(
            f"rank {most} spends {1e3 * work[most]:.3g} ms of a training step outside the backward pass and "
            f"rank {least} {1e3 * work[least]:.3g} ms: the others wait for rank {most}"
        )


RULE = Rule(
    detect,
    "warning",
    "train with DistributedDataParallel rather than DataParallel, and give each rank samples of the same size",
    source="profile",
)
