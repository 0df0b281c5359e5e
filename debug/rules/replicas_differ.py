"""Weights that differ between the ranks of one model.

Statistic: the sum of each parameter (of a sample of 4,096 elements) on each rank, from up to 512 parameters and 64 ranks.
Default: the sums of two ranks differ by more than a millionth of the sum of absolute values.
Why: the last place of a float32 is 1e-7, and ranks that apply the same updates have equal weights.
False alarms: none known.  Parameters that DDP ignores by the user's choice are not compared; models without DDP are compared if they
begin with equal weights.
"""

from .finding import Observation, Observations, Rule
from .history import some
from .ranks import RankComparison


def detect(comparison: RankComparison, difference: float = 1e-6) -> Observations:
    if apart := comparison.differing(difference):
        names = tuple(comparison.names[place] for place in apart)
        evidence = {
            f"sum of {comparison.names[place]} by rank": [
                (rank, float(value))
                for rank, value in zip(comparison.ranks, comparison.sums[:, place], strict=True)
            ]
            for place in apart[:3]
        }
        yield Observation(f"ranks of one model hold different weights: {some(names)}", names, evidence)


RULE = Rule(
    detect,
    "critical",
    "wrap the model in DistributedDataParallel after it is built and loaded, change weights on all ranks alike, "
    "and leave no_sync() before the last backward pass of an update",
    source="ranks",
    most=1,
)
