"""Devices of one training that do not share its work.

Statistic: the mean utilisation of each device that the training uses, over the last 500 samples since the first step.
Default: the least is below half of the greatest (the 0.5 of SageMaker Debugger), which is 5 % or more.
False alarms: stages of a pipeline that are meant to differ; another program on one of the devices.
Ranks are compared where the records of all of them are there: on the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..finding import Observation, Rule
from .series import Series, Table

OWN = ("data", "to_device", "forward", "optimizer", "other")
"""Phases of a rank's own work; in ``backward`` it waits for the others."""
IDLE = 5.0


def detect(series: Series, ratio: float = 0.5, samples: float = 500.0) -> Iterator[Observation]:
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


def between(ranks: Mapping[int, Table], ratio: float = 0.5) -> Iterator[Observation]:
    """The rank that makes the others wait: one does less than half of its work outside of backward passes.

    Args:
        ranks: phases of training steps by rank.
    """
    each = {
        rank: sum(float(table[kind].sum()) for kind in OWN) / float(table["count"].sum())
        for rank, table in ranks.items()
        if len(table)
    }
    if len(each) < 2:
        return
    least, most = min(each, key=lambda rank: each[rank]), max(each, key=lambda rank: each[rank])
    if each[least] < ratio * each[most]:
        yield Observation(
            f"rank {most} spends {1e3 * each[most]:.3g} ms of a training step outside of the backward pass and "
            f"rank {least} {1e3 * each[least]:.3g} ms: the others wait for rank {most}",
        )


RULE = Rule(
    detect,
    "warning",
    "train with DistributedDataParallel rather than DataParallel, and give each rank samples of the same size",
    source="profile",
)
