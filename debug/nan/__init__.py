"""The first NaN or infinity of a training run: trapped, replayed and named."""

from .blackbox import load as load
from .origin import Origin as Origin
from .replay import replay as replay
from .trap import Trap as Trap
