"""Policies: per-sample losses in, keep probabilities out.  One file each, the guards in one."""

from .diverse import Diverse as Diverse
from .gradnorm import GradNorm as GradNorm
from .guards import ClassFloor as ClassFloor
from .guards import NoiseCap as NoiseCap
from .guards import Presence as Presence
from .mixture import Mixture as Mixture
from .policy import Function as Function
from .policy import Policy as Policy
from .policy import Pool as Pool
from .pruned import PrunedHistory as PrunedHistory
from .reducible import ReducibleLoss as ReducibleLoss
from .relative import RelativeLoss as RelativeLoss
from .threshold import Threshold as Threshold
from .top import TopLoss as TopLoss
from .uniform import Uniform as Uniform
