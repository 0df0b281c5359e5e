"""Link between a trainer and one actor: messages both ways, and buffers from the actor in frames of 1 MiB.

An actor listens on two ports, the trainer connects.  ``control`` carries messages, ``bulk`` the bytes of batches.  A frame is
a message of two parts: ``(ticket, offset, total, left)``, and at most ``FRAME`` bytes, which the trainer receives into the
place of ``total`` bytes that it chose for the ticket at the first frame; ``left`` bytes follow after this frame.  A batch as one message reaches half of that: ZeroMQ would take fresh
memory for it each time.  Frames of 1 MiB are taken from the C library's heap once it has seen a larger block freed.

ZeroMQ's own threads send a heartbeat, so that user code which holds Python's lock does not look like a dead process.  A
peer that is silent for ``SILENCE`` or closes its connection is lost; a link never reconnects.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.extras import required

from .keys import Keys, admit, present, serve

with required("pyzmq", "feed", "a loader with a group", module="zmq"):
    import zmq
    from zmq.utils.monitor import parse_monitor_message

FRAME = 1 << 20
HEADER = struct.Struct("<QQQQ")
ALIGNMENT = 64
"""Bytes to which the buffers of a batch are aligned in the place that receives it."""
HEARTBEAT = 250
"""Milliseconds between two heartbeats."""
SILENCE = 1200
"""Milliseconds without an answer after which a peer is lost."""
FRAMES_AHEAD = 8
"""Frames that ZeroMQ holds on each side of a link."""
CLOSED, REFUSED = "closed its connection or was silent for 1.2 s", "refused the key"
_REFUSALS = (
    zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
)
_EVENTS = _REFUSALS | zmq.Event.DISCONNECTED | zmq.Event.HANDSHAKE_SUCCEEDED
Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]


def keep_memory() -> None:
    """Let the C library keep the memory of frames.

    glibc returns the end of its heap to the system, 128 KiB at a time, until a large block was freed: a trainer's processor
    time a batch of 38.5 MB was 44 ms without this line and 26 ms with it.
    """
    bytes(31 << 20)


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return where each of several buffers begins in one place, and the bytes of the place."""
    starts, end = [], 0
    for size in sizes:
        starts.append(-(-end // ALIGNMENT) * ALIGNMENT)
        end = starts[-1] + size
    return starts, end


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Ports of an actor."""

    host: str
    control: int
    bulk: int


class Monitored:
    """A control and a bulk socket, and what happened to their connections."""

    def __init__(self, context: Context, bulk: int) -> None:
        self.control = context.socket(zmq.DEALER)
        self.bulk = context.socket(bulk)
        for socket in (self.control, self.bulk):
            socket.linger = 0
            socket.ipv6 = True
            socket.heartbeat_ivl, socket.heartbeat_timeout = HEARTBEAT, SILENCE
            socket.heartbeat_ttl = SILENCE
            socket.reconnect_ivl = -1
            socket.sndhwm = socket.rcvhwm = 0 if socket is self.control else FRAMES_AHEAD
        self.bulk.sndbuf = self.bulk.rcvbuf = 4 * FRAME
        self.monitors = [socket.get_monitor_socket(_EVENTS) for socket in (self.control, self.bulk)]
        self.handshakes = 0
        """Sockets whose peer was admitted."""

    def lost(self) -> str:
        """Return what happened to the peer, ``""`` if nothing."""
        for monitor in self.monitors:
            with contextlib.suppress(zmq.Again):
                while True:
                    event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))["event"]
                    if event == zmq.Event.HANDSHAKE_SUCCEEDED:
                        self.handshakes += 1
                    elif event & _REFUSALS:
                        return REFUSED
                    else:
                        return CLOSED
        return ""

    def close(self) -> None:
        """Close the sockets; messages that were not sent are dropped."""
        for socket in (self.control, self.bulk):
            socket.disable_monitor()
            socket.close()
        for monitor in self.monitors:
            monitor.close()


class Listener(Monitored):
    """Actor's end of a link.

    Args:
        context: of ZeroMQ; the listener checks the clients of all its sockets.
        host: address of a network interface of this machine.
        keys: of the trainer.
    """

    def __init__(self, context: Context, host: str, keys: Keys) -> None:
        self._authenticator = admit(context, keys)
        super().__init__(context, zmq.PUSH)
        serve(self.control, keys, curve=True)
        serve(self.bulk, keys, curve=keys.encrypted)
        address = f"tcp://{f'[{host}]' if ':' in host else host}"
        self.endpoint = Endpoint(
            host, self.control.bind_to_random_port(address), self.bulk.bind_to_random_port(address)
        )

    def lost(self) -> str:
        """Return what happened to the trainer; a stranger who was refused is not the trainer."""
        event = super().lost()
        return "" if event == REFUSED or (event and self.handshakes < 1) else event

    def send(self, ticket: int, buffers: Sequence[memoryview]) -> zmq.MessageTracker | None:
        """Send the buffers of a batch.

        Returns:
            A tracker whose ``done`` says that the buffers may be written again, ``None`` if they are empty.
        """
        sizes = [buffer.nbytes for buffer in buffers]
        starts, total = layout(sizes)
        tracker, left = None, sum(sizes)
        for start, buffer in zip(starts, buffers, strict=True):
            for offset in range(0, buffer.nbytes, FRAME):
                frame = buffer[offset : offset + FRAME]
                left -= frame.nbytes
                self.bulk.send(HEADER.pack(ticket, start + offset, total, left), zmq.SNDMORE)
                tracker = self.bulk.send(frame, copy=False, track=True)
        return tracker

    def close(self) -> None:
        """Close the sockets and stop the check of clients."""
        super().close()
        self._authenticator.stop()


class Connection(Monitored):
    """Trainer's end of a link."""

    def __init__(self, context: Context, endpoint: Endpoint, keys: Keys) -> None:
        keep_memory()
        super().__init__(context, zmq.PULL)
        present(self.control, keys, curve=True)
        present(self.bulk, keys, curve=keys.encrypted)
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        self.control.connect(f"tcp://{host}:{endpoint.control}")
        self.bulk.connect(f"tcp://{host}:{endpoint.bulk}")
        self._places: dict[int, memoryview] = {}

    @property
    def sockets(self) -> list[Socket]:
        """Return what to poll."""
        return [self.control, self.bulk, *self.monitors]

    def receive_frames(self, place: Callable[[int, int], Any], most: int = 16) -> list[int]:
        """Receive frames that have arrived.

        Args:
            place: called with ticket and bytes of a new buffer; returns the writable bytes that receive it.
            most: frames to receive at once.

        Returns:
            The tickets of buffers that are complete now.
        """
        complete = []
        for _ in range(most):
            try:
                ticket, offset, total, left = HEADER.unpack(self.bulk.recv(zmq.NOBLOCK))
            except zmq.Again:
                break
            if ticket not in self._places:
                self._places[ticket] = memoryview(place(ticket, total)).cast("B")
            end = min(offset + FRAME, total)
            self.bulk.recv_into(self._places[ticket][offset:end])
            if not left:
                del self._places[ticket]
                complete.append(ticket)
        return complete
