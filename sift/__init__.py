"""Choose which samples reach the training step: wrap a loader, keep the informative ones."""

from .loader import SiftingDataLoader as SiftingDataLoader
from .policies import Policy as Policy
from .policies import Pool as Pool
from .policies import RelativeLoss as RelativeLoss
from .policies import TopLoss as TopLoss
from .report import Report as Report
from .source import Indexed as Indexed
