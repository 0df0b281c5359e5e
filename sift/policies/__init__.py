"""Selection policies: functions from the losses of samples to the probabilities of keeping them, a file each."""

from .diverse import Diverse as Diverse
from .gradnorm import GradNorm as GradNorm
from .guards import ClassFloor as ClassFloor
from .guards import NoiseCap as NoiseCap
from .guards import Presence as Presence
from .mixture import Mixture as Mixture
from .nested import as_policy as as_policy
from .policy import Function as Function
from .policy import Policy as Policy
from .policy import Pool as Pool
from .proportional import ProportionalLoss as ProportionalLoss
from .pruned import PrunedHistory as PrunedHistory
from .reducible import ReducibleLoss as ReducibleLoss
from .relative import RelativeLoss as RelativeLoss
from .threshold import Threshold as Threshold
from .top import TopLoss as TopLoss
from .uniform import Uniform as Uniform
