"""NaN trap, which names the operation that made the first NaN or infinity of a training."""

from .blackbox import load as load
from .monitor import Trap as Trap
from .origin import Origin as Origin
from .replay import replay as replay
