"""The anonymous file behind the shared memory of one worker.

``memfd_create`` makes a file that no folder lists, so nothing is left behind whatever kills the processes: the kernel frees
it when the last descriptor and mapping are gone.  The limit of ``/dev/shm`` does not apply to it.

The first page is the control page: 64-bit numbers that one side writes and the other one reads.  Extents follow.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from multiprocessing import reduction
from pathlib import Path
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = mmap.ALLOCATIONGRANULARITY
NUMBER, POSITION, CLOSED = 0, 1, 2
"""Words of the control page: the batch in work (-1: none), the sample in work (-1: unknown), whether to stop."""


def _most_mapped() -> int:
    """Return half of the mappings that the system allows in a process; the rest is left to the program."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text()) // 2
    except (OSError, ValueError):
        return 65_530 // 2


MOST_MAPPED = _most_mapped()
"""Most mappings of shared files in this process, of all workers and loaders, while batches are handed over without a copy."""
_mapped: set[int] = set()
"""Addresses of the mappings, except control pages."""


def mapped() -> int:
    """Return the number of mappings of shared files in this process."""
    return len(_mapped)


def _unmap(address: int, length: int) -> None:
    _mapped.discard(address)
    _LIBC.munmap(address, length)


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

    def map(self, offset: int, length: int) -> Any:
        """Map a part of the file as an array of bytes; it is unmapped when no view of it lives.

        Python's own ``mmap`` would keep a descriptor for each mapping (``trackfd`` is new in 3.13), and a program that keeps
        a thousand batches would run out of them.

        Raises:
            OSError: the system refuses another mapping.
        """
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED
        address = _LIBC.mmap(None, length, protection, flags, self.descriptor, offset)
        if address in (None, ctypes.c_void_p(-1).value):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        memory = (ctypes.c_ubyte * length).from_address(address)
        _mapped.add(address)
        weakref.finalize(memory, _unmap, address, length).atexit = False
        return memory

    def read(self, offset: int, length: int) -> bytearray:
        """Return a copy of a part of the file, for which no mapping is needed."""
        memory = bytearray(length)
        view, done = memoryview(memory), 0
        while done < length and (count := os.preadv(self.descriptor, [view[done:]], offset + done)):
            done += count
        return memory

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


def give_back(memory: Any) -> None:
    """Free the pages of mapped memory, also for other processes that map them."""
    _LIBC.madvise(ctypes.addressof(memory), len(memory), mmap.MADV_REMOVE)
