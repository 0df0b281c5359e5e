"""Tensors of a training run: saved without hurting it, read while it runs."""

from loopwise.schedule import at as at
from loopwise.schedule import between as between
from loopwise.schedule import every as every

from .checking import check as check
from .collection import Collection as Collection
from .profiler import PROFILE_RULES as PROFILE_RULES
from .profiler import Profile as Profile
from .rules import RULES as RULES
from .rules import Finding as Finding
from .trial import Trial as Trial
from .watch import Watch as Watch
