"""Loopwise: drop-in parts for an ordinary PyTorch training loop.

Importing this package imports nothing else.  Import each part by its name, for instance
``from loopwise.sift import SiftingDataLoader``.
"""

__version__ = "0.1.0"
