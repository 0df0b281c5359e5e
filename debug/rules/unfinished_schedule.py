"""A learning-rate schedule that does not end where training ends.

Statistic: when training has finished, the steps of each scheduler that has a length (``total_steps``, ``T_max``, ``total_iters``,
the last of its milestones, ``num_training_steps`` of Hugging Face's), as a share of that length.
Default: less than 0.9, and two or more steps are left.
Why: the last part of a schedule, with its small rates, is where most of the loss falls.  A schedule that is sized by the
batches of a plain loader and stepped for those of a sifting one ends half way; so does one that is sized in batches and
stepped once an epoch.
False alarms: a training that was stopped early on purpose, or that goes on in another run; therefore it is no warning.
"""

from collections.abc import Iterable
from typing import NamedTuple

from .finding import Observation, Observations, Rule


class ScheduleLength(NamedTuple):
    """Progress of a learning-rate schedule at the end of training."""

    kind: str
    """Name of the scheduler's class."""
    done: int
    total: int
    rate: float
    """The largest learning rate at the end."""


def detect(schedules: Iterable[ScheduleLength], share: float = 0.9) -> Observations:
    short = [one for one in schedules if one.done < share * one.total and one.total - one.done >= 2]
    if short:
        parts = [f"{one.done} of the {one.total} steps of {one.kind}" for one in short]
        rates = ", ".join(f"{one.rate:.3g}" for one in short)
        yield Observation(f"training ended after {' and '.join(parts)}, at a learning rate of {rates}")


RULE = Rule(
    detect,
    "info",
    "give the schedule the number of times that it is stepped: optimizer updates (batches of the loader that is trained from, "
    "divided by the accumulated ones), or epochs",
    source="schedules",
)
