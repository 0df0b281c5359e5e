"""Loopwise: drop-in parts for an ordinary PyTorch training loop.

Importing this package imports nothing else.  Its names are those of the parts that most loops use, imported when they are
first used: ``from loopwise import SiftingDataLoader, TrainStep, Watch``.
"""

from typing import TYPE_CHECKING

from loopwise.lazy import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from loopwise.compile import TrainStep as TrainStep
    from loopwise.debug import Watch as Watch
    from loopwise.feed import RemoteDataLoader as RemoteDataLoader
    from loopwise.run import Run as Run
    from loopwise.schedule import every as every
    from loopwise.sift import SiftingDataLoader as SiftingDataLoader
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "SiftingDataLoader": ".sift",
            "TrainStep": ".compile",
            "Watch": ".debug",
            "RemoteDataLoader": ".feed",
            "Run": ".run",
            "every": ".schedule",
        },
    )
