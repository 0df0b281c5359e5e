"""Thread of an actor that exchanges messages with the trainer, while the main thread loads batches.

Once the trainer is gone, it asks the main thread to end the process, and does so itself if that takes too long.
"""

from __future__ import annotations

import os
import pickle
import queue
import threading
import time
from collections import deque
from typing import Any

from loopwise.extras import required

from ..packing.pack import Packed
from ..ring.extents import Place
from .keys import Keys
from .link import Listener

with required("pyzmq", "feed", "a loader with a group", module="zmq"):
    import zmq

FIRST = 60.0
"""Seconds within which the trainer has to connect."""
LAST = 1.0
"""Seconds within which the main thread has to end the process after the trainer is gone."""


class Service:
    """Messages to and from the trainer.

    Args:
        host: address on which to listen.
        keys: of the trainer.
    """

    def __init__(self, host: str, keys: Keys) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._listener = Listener(self._context, host, keys)
        self.endpoint = self._listener.endpoint
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        """Messages of the trainer for the main thread; ``None``: the trainer is gone."""
        self.cancelled: set[int] = set()
        """Tickets of tasks that the trainer has given up."""
        self.sent: deque[Place] = deque()
        """Extents whose frames have been sent."""
        self._outbox: deque[tuple[int, bytes, Packed | None]] = deque()
        self._sending: deque[tuple[zmq.MessageTracker, list[Place]]] = deque()
        self._wake, self._woken = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._wake.sndhwm = self._woken.rcvhwm = 0
        self._woken.bind("inproc://answers")
        self._wake.connect("inproc://answers")
        threading.Thread(target=self._run, name="loopwise-feed-service", daemon=True).start()

    def answer(self, ticket: int, message: bytes, frames: Packed | None = None) -> None:
        """Send an answer from the main thread, and the blocks of ``frames`` through the network."""
        self._outbox.append((ticket, message, frames))
        self._wake.send(b"")

    def _run(self) -> None:
        poller = zmq.Poller()
        for socket in (self._listener.control, self._woken, *self._listener.monitors):
            poller.register(socket, zmq.POLLIN)
        waited = 0.0
        try:
            while not self._listener.lost() and (self._listener.handshakes or waited < FIRST):
                events = dict(poller.poll(200))
                waited += 0.0 if events else 0.2
                if self._listener.control in events:
                    message = pickle.loads(self._listener.control.recv())
                    if message[0] == "close":
                        return
                    self._receive(message)
                if self._woken in events:
                    self._woken.recv()
                    self._send(*self._outbox.popleft())
                while self._sending and self._sending[0][0].done:
                    self.sent.extend(self._sending.popleft()[1])
        finally:
            self.inbox.put(None)
            time.sleep(LAST)
            os._exit(0)

    def _receive(self, message: tuple[Any, ...]) -> None:
        if message[0] == "cancel":
            self.cancelled.update(message[1])
        else:
            self.inbox.put(message)

    def _send(self, ticket: int, message: bytes, frames: Packed | None) -> None:
        if frames is not None and frames.blocks:
            buffers = [
                memoryview(block.buffer)[:size]
                for block, size in zip(frames.blocks, frames.sizes, strict=True)
            ]
            tracker = self._listener.send(ticket, buffers)
            if tracker is not None:
                self._sending.append((tracker, [block.place for block in frames.blocks]))
        self._listener.control.send(message)
