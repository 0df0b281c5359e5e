"""Policies: per-sample losses in, keep probabilities out.  One file each."""

from .policy import Function as Function
from .policy import Policy as Policy
from .policy import Pool as Pool
from .relative import RelativeLoss as RelativeLoss
from .top import TopLoss as TopLoss
