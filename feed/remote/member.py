"""One actor as the trainer sees it: its connection, its lanes, its memory, and the answers that arrive."""

from __future__ import annotations

import os
import pickle
from typing import Any

from ..packing.memory import Block
from ..packing.unpack import unpack
from ..protocol import Counters, Result, Task
from ..ring.extents import Extents, Place
from ..ring.file import NUMBER, POSITION, SharedFile
from ..ring.views import MOST_HELD, Views
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
        block = self._extents.allocate(nbytes)
        self.views.forget(self._extents.retired)
        self._extents.retired.clear()
        return block

    def close(self) -> None:
        """Release the memory that no batch holds."""
        self.views.close()
        self.file.close()


class Batch:
    """A batch in memory of ``views``; calling it returns the batch.  Uncalled, it releases the memory when it is dropped.

    Args:
        views: of the file with the extents.
        counters: where copies are counted.
        header: packed form of the batch.
        inline: its small tensors.
        places: extents; one for all blocks if ``apart`` is false.
        sizes: bytes of the blocks.
        apart: each block has an extent of its own.
    """

    def __init__(
        self,
        views: Views,
        counters: Counters,
        header: bytes,
        inline: bytes,
        places: list[Place],
        sizes: list[int],
        apart: bool,
    ) -> None:
        self._views, self._counters, self._header, self._inline = views, counters, header, inline
        self._places, self._sizes, self._apart = places, sizes, apart

    def __call__(self) -> Any:
        """Return the batch, as views of the extents unless too many are held."""
        places, self._places = self._places, []
        starts, total = layout(self._sizes)
        spans = self._sizes if self._apart else [total] * len(places)
        if self._views.held + len(places) > MOST_HELD:
            self._counters.copies += 1
            arrays = self._views.copies(places, spans)
        else:
            arrays = self._views.arrays(places, spans)
        if not self._apart and places:
            whole = arrays[0]
            arrays = [whole[start : start + size] for start, size in zip(starts, self._sizes, strict=True)]
        return unpack(self._header, self._inline, arrays)

    def __del__(self) -> None:
        self._views.drop(self._places)


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
        """Return the results that are complete, and a pair of generation and text for work that cannot be loaded."""
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
        ticket, head, body, seconds, cpu_seconds, retired = answer
        batch, nbytes, pickled = None, 0, 0
        if body is not None:
            header, inline, places, sizes, pickled, nbytes = body
            if self._views is not None:
                self._views.forget(retired)
                batch = Batch(self._views, counters, header, inline, places, sizes, True)
            else:
                self._complete.discard(ticket)
                block = self._incoming.pop(ticket, None)
                places = [] if block is None else [block.place]
                batch = Batch(arena.views, counters, header, inline, places, sizes, False)
        if self.tasks.pop(ticket, None) is None:
            return None
        counters.batches += batch is not None
        counters.pickled += pickled
        epoch, number, attempt, lane, error, ended, state = head
        wrapped = None if error is None else pickle.loads(error)
        times = {"seconds": seconds, "cpu_seconds": cpu_seconds}
        return Result(epoch, number, attempt, lane, batch, wrapped, ended, state, nbytes, **times)

    def in_hand(self) -> tuple[int | None, int | None]:
        """Return the number of the batch in work and the position of the sample, as far as they are known."""
        if self._control is not None:
            number, position = int(self._control[NUMBER]), int(self._control[POSITION])
            return (number if number >= 0 else None), (position if position >= 0 else None)
        first = next(iter(self.tasks.values()), None)
        return (None if first is None or self.connection is None else first.number), None

    def close(self, arena: Arena) -> None:
        """Close the connection; batches that the user holds stay valid."""
        arena.views.drop([block.place for block in self._incoming.values()])
        self._incoming.clear()
        if self.connection is not None:
            self.connection.close()
        if self._views is not None:
            self._views.close()
        if self.file is not None:
            self.file.close()
