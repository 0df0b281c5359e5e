"""Ranks that train on the same batches, so that the additional ranks add nothing.

Statistic: the sum and the sum of absolute values of the model's input (of a sample of 4,096 elements) on each rank.
Default: both are equal to those of rank 0 at four successive compared steps, and differ from step to step.
Why: different batches of real data do not have the same sums.
False alarms: tensor-parallel ranks inside DistributedDataParallel, which get the same batch on purpose.
"""

from .finding import Observation, Observations, Rule
from .ranks import RankComparison


def detect(comparison: RankComparison, steps: float = 4) -> Observations:
    if comparison.inputs and comparison.repeats >= steps:
        inputs = list(comparison.inputs.items())
        yield Observation(
            f"ranks {', '.join(str(rank) for rank, _ in inputs)} got the same batches, "
            f"{comparison.repeats} times in a row",
            ("input",),
            {f"sum of the input on rank {rank}": [(comparison.step, value)] for rank, value in inputs[:3]},
        )


RULE = Rule(
    detect,
    "warning",
    "use a DistributedSampler and call its set_epoch, or seed the random draws of each rank with its rank",
    source="ranks",
    most=1,
)
