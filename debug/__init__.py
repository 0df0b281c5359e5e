"""Recording of a training run: tensors and scalars without harm to the run, rules over them, a profile and a page."""

from loopwise.schedule import at as at
from loopwise.schedule import between as between
from loopwise.schedule import every as every

from .capture.collection import Collection as Collection
from .preflight import preflight as preflight
from .profiler import Profile as Profile
from .read.saved_run import SavedRun as SavedRun
from .read.saved_run import open_run as open_run
from .rules import RULES as RULES
from .rules import Finding as Finding
from .rules import FindingError as FindingError
from .watch import Watch as Watch
