"""Messages between the training process and one worker, over a pair of sockets.

A message is its length as 8 bytes, then its bytes.  The training process never waits in here: a worker that was stopped in
the middle of a message, or that does not read, must not stop training.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import weakref
from collections import deque

_LENGTH = struct.Struct("<Q")
_CHUNK = 1 << 18
OPEN: weakref.WeakSet[Channel] = weakref.WeakSet()
"""Channels of this process.  A forked worker closes its copies of them: as long as it held one, the worker at the other end
would not notice the end of the training process."""


class Channel:
    """The training process's end, which never blocks."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._outgoing: deque[memoryview] = deque()
        self._incoming = bytearray()
        self.ended = False
        """The other end was closed; complete messages may be left."""
        OPEN.add(self)

    def fileno(self) -> int:
        """Return the descriptor, for ``poll``."""
        return self._socket.fileno()

    @property
    def has_outgoing(self) -> bool:
        """Return whether messages wait for the worker to read."""
        return bool(self._outgoing)

    def send(self, message: bytes) -> None:
        """Send a message, or keep what the socket does not take now for ``flush``."""
        self._outgoing.append(memoryview(_LENGTH.pack(len(message)) + message))
        self.flush()

    def flush(self) -> None:
        """Send what was kept, as far as the socket takes it."""
        while self._outgoing and not self.ended:
            try:
                sent = self._socket.send(self._outgoing[0])
            except BlockingIOError:
                return
            except OSError:
                return  # reading will show that the other end is closed
            if sent == len(self._outgoing[0]):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = self._outgoing[0][sent:]

    def receive(self) -> list[bytes]:
        """Return the messages that have arrived completely."""
        while not self.ended:
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.ended = not data
            self._incoming += data
            if len(data) < _CHUNK:
                break
        messages, at = [], 0
        while len(self._incoming) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._incoming, at)
            end = at + _LENGTH.size + length
            if len(self._incoming) < end:
                break
            messages.append(bytes(self._incoming[at + _LENGTH.size : end]))
            at = end
        del self._incoming[:at]
        return messages

    def close(self) -> None:
        """End the connection, also if a process that was forked meanwhile has a copy of this end."""
        with contextlib.suppress(OSError):  # the worker has ended
            self._socket.shutdown(socket.SHUT_RDWR)
        self.close_copy()

    def close_copy(self) -> None:
        """Close this end in a forked process, which leaves the connection to the training process."""
        self.ended = True
        self._socket.close()


class Link:
    """The worker's end, which waits; it can be handed to a process that is being started.

    Methods raise ``EOFError`` or ``OSError`` once the other end is closed.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, message: bytes) -> None:
        """Send a message, and wait until the socket has taken it."""
        self._socket.sendall(_LENGTH.pack(len(message)) + message)

    def receive(self) -> bytes:
        """Return the next message; wait for it."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return bytes(self._exactly(length))

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def _exactly(self, length: int) -> bytearray:
        data = bytearray(length)
        view, at = memoryview(data), 0
        while at < length:
            count = self._socket.recv_into(view[at:])
            if not count:
                raise EOFError
            at += count
        return data


def pair() -> tuple[Channel, Link]:
    """Return both ends of a new connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(ours), Link(theirs)


def close_inherited() -> None:
    """Close the channels that a forked worker has inherited."""
    for channel in list(OPEN):
        channel.close_copy()
    OPEN.clear()
