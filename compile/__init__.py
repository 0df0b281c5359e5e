"""Compiled training steps: measured, compared with the eager step, and explained."""

from typing import TYPE_CHECKING

from loopwise.lazy import lazy_names

if TYPE_CHECKING:
    from .batch_size import Fit as Fit
    from .batch_size import fit as fit
    from .cache import load_cache as load_cache
    from .cache import save_cache as save_cache
    from .in_place import optimize as optimize
    from .loss_head.op import linear_cross_entropy as linear_cross_entropy
    from .plan import Plan as Plan
    from .step import TrainStep as TrainStep
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Fit": ".batch_size",
            "fit": ".batch_size",
            "load_cache": ".cache",
            "save_cache": ".cache",
            "optimize": ".in_place",
            "linear_cross_entropy": ".loss_head.op",
            "Plan": ".plan",
            "TrainStep": ".step",
        },
    )
