"""The anonymous file behind the shared memory of one worker.

``memfd_create`` makes a file that no folder lists, so nothing is left behind whatever kills the processes: the kernel frees
it when the last descriptor and mapping are gone.  The limit of ``/dev/shm`` does not apply to it.

The first page is the control page: 64-bit numbers that one side writes and the other one reads.  Extents follow.
"""

from __future__ import annotations

import mmap
import os
import weakref
from multiprocessing import reduction
from typing import Any

PAGE = mmap.ALLOCATIONGRANULARITY
NUMBER, POSITION, CLOSED = 0, 1, 2
"""Words of the control page: the batch in work (-1: none), the sample in work (-1: unknown), whether to stop."""


OPEN: weakref.WeakSet[SharedFile] = weakref.WeakSet()
"""Files of this process.  A forked worker closes its copies of the others, which would keep their memory."""


class SharedFile:
    """A descriptor of the anonymous file, which can be handed to a process that is being started."""

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.memfd_create("loopwise-feed", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, PAGE)
        self.descriptor = descriptor
        OPEN.add(self)

    def __reduce__(self) -> Any:
        return _received, (reduction.DupFd(self.descriptor),)

    def control(self) -> memoryview:
        """Map the control page and return its words."""
        words = memoryview(mmap.mmap(self.descriptor, PAGE)).cast("q")
        return words

    def close(self) -> None:
        """Close the descriptor; mappings stay valid."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _received(descriptor: Any) -> SharedFile:
    return SharedFile(descriptor.detach())


def close_others(file: SharedFile) -> None:
    """Close the files that a forked worker has inherited, except its own."""
    for other in list(OPEN):
        if other is not file:
            other.close()
