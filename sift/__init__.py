"""Selection of the samples that reach the training step: wrap a loader, keep the informative samples."""

from .loader import SiftingDataLoader as SiftingDataLoader
from .pilot import Forecast as Forecast
from .pilot import pilot as pilot
from .policies import ClassFloor as ClassFloor
from .policies import Diverse as Diverse
from .policies import GradNorm as GradNorm
from .policies import Mixture as Mixture
from .policies import NoiseCap as NoiseCap
from .policies import Policy as Policy
from .policies import Pool as Pool
from .policies import Presence as Presence
from .policies import ProportionalLoss as ProportionalLoss
from .policies import PrunedHistory as PrunedHistory
from .policies import ReducibleLoss as ReducibleLoss
from .policies import RelativeLoss as RelativeLoss
from .policies import Threshold as Threshold
from .policies import TopLoss as TopLoss
from .policies import Uniform as Uniform
from .report import Report as Report
from .scorers import LowResolution as LowResolution
from .scorers import Padded as Padded
from .source import Indexed as Indexed
from .tokens import RhoTokens as RhoTokens
