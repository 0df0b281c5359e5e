"""Policies: per-sample losses in, keep probabilities out.  One file each."""

from .policy import Policy as Policy
from .relative import RelativeLoss as RelativeLoss
from .top import TopLoss as TopLoss
