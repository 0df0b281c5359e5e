"""One actor as the trainer sees it: its connection, its lanes, its memory, and the answers that arrive."""

from __future__ import annotations

import os
import pickle
from typing import Any

from ..lanes import result
from ..packing.memory import Block, HeapMemory
from ..protocol import Counters, Task
from ..ring.batch import Batch
from ..ring.extents import Extents
from ..ring.file import NUMBER, POSITION, SharedFile
from ..ring.views import Views
from .actor import TOKEN, Hello
from .cluster import Node
from .link import Connection, layout

SAME_HOST = True
"""Whether actors on the trainer's host hand over batches in shared memory."""


def shared_file(hello: Hello) -> SharedFile | None:
    """Open the shared file of an actor, if it runs on this host and the system permits it."""
    if not SAME_HOST:
        return None
    path = f"/proc/{hello.pid}/fd/{hello.descriptor}"
    try:
        if "memfd:loopwise-feed" not in os.readlink(path):
            return None
        file = SharedFile(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return None
    if file.control()[TOKEN] == hello.token:
        return file
    file.close()
    return None


class Arena:
    """Memory of the trainer for batches that come through the network, used again once the user has dropped them."""

    def __init__(self, batches: int) -> None:
        self.file = SharedFile()
        self.views = Views(self.file)
        self._extents = Extents(self.file, batches)

    def allocate(self, nbytes: int) -> Block:
        """Return memory for a batch."""
        self._extents.begin(self.views.take_released())
        try:
            block = self._extents.allocate(nbytes)
        except OSError:  # the process has no mappings left
            return HeapMemory().allocate(nbytes)
        self.views.forget(self._extents.take_retired())
        return block

    def close(self) -> None:
        """Release the memory that no batch holds."""
        self.views.close()
        self.file.close()


class Member:
    """Actor of a fleet.

    Args:
        lanes_most: how many lanes the fleet wants it to have.
    """

    def __init__(self) -> None:
        self.node: Node | None = None
        self.actor: Any = None
        self.connection: Connection | None = None
        self.lanes: set[int] = set()
        self.tasks: dict[int, Task] = {}
        """Tasks without an answer, by ticket, in the order in which they were handed over."""
        self.digest = b""
        """Of what the actor has of the user's objects."""
        self.file: SharedFile | None = None
        self._control: memoryview | None = None
        self._views: Views | None = None
        self._incoming: dict[int, Block] = {}
        """Memory for the batches whose frames are arriving or have arrived."""
        self._complete: set[int] = set()
        self._answers: dict[int, tuple[Any, ...]] = {}
        """Answers whose frames have not arrived."""

    def connect(self, node: Node, actor: Any, hello: Hello, connection: Connection) -> None:
        """Begin to use an actor that has started."""
        self.node, self.actor, self.connection = node, actor, connection
        self.file = shared_file(hello)
        if self.file is not None:
            self._control, self._views = self.file.control(), Views(self.file)

    @property
    def held_bytes(self) -> int:
        """Return the bytes in the actor's memory that batches of the user hold."""
        return self._views.held_bytes if self._views is not None else 0

    def send(self, *message: Any) -> None:
        """Send a message to the actor."""
        assert self.connection is not None
        self.connection.control.send(pickle.dumps(message, protocol=5))

    def send_task(self, ticket: int, task: Task) -> None:
        """Send a task, and the extents that were released since the last one."""
        self.send("task", ticket, task, self._views.take_released() if self._views is not None else [])

    def receive(self, arena: Arena, counters: Counters) -> list[Any]:
        """Return the results that are complete, and a pair for work that has arrived: generation, and why it cannot be loaded."""
        assert self.connection is not None
        complete = []
        for ticket in self.connection.receive_frames(lambda ticket, total: self._place(arena, ticket, total)):
            self._complete.add(ticket)
            if ticket in self._answers:
                complete.append(self._answers.pop(ticket))
        while self.connection.control.poll(0):
            answer = pickle.loads(self.connection.control.recv())
            framed = self._views is None and len(answer) > 3 and answer[2] is not None and any(answer[2][3])
            if framed and answer[0] not in self._complete:
                self._answers[answer[0]] = answer
            else:
                complete.append(answer)
        results = [self._result(answer, arena, counters) for answer in complete]
        return [result for result in results if result is not None]

    def _place(self, arena: Arena, ticket: int, total: int) -> Any:
        self._incoming[ticket] = arena.allocate(total)
        return self._incoming[ticket].buffer

    def _result(self, answer: tuple[Any, ...], arena: Arena, counters: Counters) -> Any:
        """Return the result of an answer, ``None`` if its task was given up."""
        if len(answer) == 3:
            return answer[1:]
        ticket, fields, body, retired = answer
        batch, nbytes, pickled = None, 0, 0
        if body is not None:
            *packed, pickled, nbytes = body
            if self._views is not None:
                self._views.forget(retired)
                batch = Batch(self._views, counters, body)
            else:
                self._complete.discard(ticket)
                block, (header, inline, _, sizes) = self._incoming.pop(ticket, None), packed
                places = [] if block is None else [block.place]
                private = [block.buffer] if block is not None and block.place is None else None
                body = header, inline, places, sizes
                batch = Batch(arena.views, counters, body, layout(sizes)[0], private)
        if self.tasks.pop(ticket, None) is None:
            return None
        counters.batches += batch is not None
        counters.pickled += pickled
        return result(fields, batch, nbytes)

    def in_hand(self) -> tuple[int | None, int | None]:
        """Return the number of the batch in work and the position of the sample, as far as they are known."""
        if self._control is not None:
            number, position = int(self._control[NUMBER]), int(self._control[POSITION])
            return (number if number >= 0 else None), (position if position >= 0 else None)
        first = next(iter(self.tasks.values()), None)
        return (None if first is None or self.connection is None else first.number), None

    def close(self, arena: Arena) -> None:
        """Close the connection; batches that the user holds stay valid."""
        arena.views.drop([block.place for block in self._incoming.values() if block.place is not None])
        self._incoming.clear()
        if self.connection is not None:
            self.connection.close()
        if self._views is not None:
            self._views.close()
        if self.file is not None:
            self.file.close()
