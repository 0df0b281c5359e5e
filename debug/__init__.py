"""Recording of a training run: tensors and scalars without harm to the run, rules over them, a profile and a page."""

from typing import TYPE_CHECKING

from loopwise.lazy import lazy_names
from loopwise.schedule import at as at
from loopwise.schedule import between as between
from loopwise.schedule import every as every

from .preflight import preflight as preflight

if TYPE_CHECKING:
    from .capture.collection import Collection as Collection
    from .profiler import Profile as Profile
    from .read.saved_run import SavedRun as SavedRun
    from .read.saved_run import open_run as open_run
    from .rules import RULES as RULES
    from .rules import Finding as Finding
    from .rules import FindingError as FindingError
    from .watch import Watch as Watch
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Collection": ".capture.collection",
            "Profile": ".profiler",
            "SavedRun": ".read.saved_run",
            "open_run": ".read.saved_run",
            "RULES": ".rules",
            "Finding": ".rules",
            "FindingError": ".rules",
            "Watch": ".watch",
        },
    )
