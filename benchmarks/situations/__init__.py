"""Training situations, each of which our step must train as the usual loop does, or refuse."""

from . import families as families
from .judge import GOOD as GOOD
from .judge import VERDICTS as VERDICTS
from .judge import Verdict as Verdict
from .judge import judge as judge
from .processes import judge_on_ranks as judge_on_ranks
from .situation import SITUATIONS as SITUATIONS
