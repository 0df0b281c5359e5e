"""Batches loaded by other processes and machines, in DataLoader's order and with its random numbers."""

from typing import TYPE_CHECKING

from loopwise.lazy import lazy_names

if TYPE_CHECKING:
    from .diagnosis.diagnosis import Diagnosis as Diagnosis
    from .diagnosis.diagnosis import diagnose as diagnose
    from .launcher.environment import current_group as current_group
    from .launcher.group import Group as Group
    from .launcher.start import launch as launch
    from .loader import RemoteDataLoader as RemoteDataLoader
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "RemoteDataLoader": ".loader",
            "diagnose": ".diagnosis.diagnosis",
            "Diagnosis": ".diagnosis.diagnosis",
            "Group": ".launcher.group",
            "launch": ".launcher.start",
            "current_group": ".launcher.environment",
        },
    )
