"""Batches loaded by other processes and machines, in DataLoader's order and with its random numbers."""

from typing import TYPE_CHECKING

from loopwise.lazy import lazy_names

if TYPE_CHECKING:
    from .loader import RemoteDataLoader as RemoteDataLoader
else:
    __getattr__, __dir__ = lazy_names(__name__, {"RemoteDataLoader": ".loader"})
