"""Actors of a group, and the thread that exchanges messages with them, places them and notices their end.

A fleet outlives the pools that use it, since starting an actor takes seconds: the next epoch takes it over.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from typing import Any

from loopwise.errors import InputError, LoopwiseError, StateError
from loopwise.extras import required
from loopwise.ranks import rank

from ..protocol import Counters, Lost, Result, Task
from . import cluster
from .elastic import Elastic
from .keys import new_keys
from .link import Connection
from .member import Arena, Member
from .shipment import Shipment

with required("pyzmq", "feed", "a loader with a group", module="zmq"):
    import zmq

FRUITLESS = 3
"""Actors in a row that may fail to start, or end before they have loaded anything, while no other one runs."""
AVOIDED = 20.0
"""Seconds for which a node whose actors have all ended gets no new one if there are other nodes."""
IDLE = 30.0
"""Seconds after which a fleet that no pool uses ends."""


class Fleet:
    """Actors of one group.

    Args:
        group: name of the group.
        count: number of actors.
        elastic: decisions about the number, if it may change.
    """

    def __init__(self, group: str, count: int, elastic: Elastic | None = None) -> None:
        self.group, self.count, self.elastic = group, count, elastic
        self.counters = Counters()
        self.arrivals: queue.SimpleQueue[Result | Lost | LoopwiseError] = queue.SimpleQueue()
        self.closed = threading.Event()
        self._keys = new_keys()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._commands: deque[tuple[Any, ...]] = deque()
        self._lock = threading.Lock()
        self._wake, self._woken = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._wake.sndhwm = self._woken.rcvhwm = 0
        self._woken.bind("inproc://commands")
        self._wake.connect("inproc://commands")
        self._poller = zmq.Poller()
        self._poller.register(self._woken, zmq.POLLIN)
        self._members: list[Member] = []
        """Actors that run, and those that are being started."""
        self._lanes: dict[int, Member] = {}
        self._shipment: Shipment | None = None
        self._arena: Arena | None = None
        self._generation, self._ticket, self._fruitless = 0, 0, 0
        self._avoided: dict[str, float] = {}
        self._idle_since = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="loopwise-feed-fleet", daemon=True)
        self._thread.start()

    @property
    def held_bytes(self) -> int:
        """Return the bytes of received batches that are still alive."""
        arena = self._arena
        return sum(member.held_bytes for member in list(self._members)) + (
            arena.views.held_bytes if arena else 0
        )

    @property
    def running(self) -> int:
        """Return the number of actors that are connected."""
        return sum(member.connection is not None for member in list(self._members))

    def command(self, *command: Any) -> bool:
        """Hand a command to the thread: ``begin``, ``submit``, ``end`` or ``close``, and its arguments.

        Returns:
            False if the fleet has ended.
        """
        with self._lock:
            if self.closed.is_set():
                return False
            self._commands.append(command)
            self._wake.send(b"")
            return True

    def close(self, patience: float = 10.0) -> None:
        """End all actors."""
        self.command("close")
        self._thread.join(patience)

    def _run(self) -> None:
        try:
            while not self.closed.is_set():
                events = dict(self._poller.poll(1000))
                while self._woken in events and self._woken.poll(0):
                    self._woken.recv()
                    command, *arguments = self._commands.popleft()
                    getattr(self, f"_{command}")(*arguments)
                for member in list(self._members):
                    if member.connection and any(socket in events for socket in member.connection.sockets):
                        self._listen(member)
                self._rest()
        except Exception as error:
            self.arrivals.put(StateError(*_broken(error)))
            raise
        finally:
            self._release()

    def _rest(self) -> None:
        """End the fleet if it was idle for long."""
        with self._lock:
            if self._shipment is None and not self._commands and time.monotonic() - self._idle_since > IDLE:
                self.closed.set()

    def _begin(self, shipment: Shipment, arrivals: queue.SimpleQueue[Any], counters: Counters) -> None:
        """Begin the work of a pool: all actors get it, and those that are missing are started."""
        self._generation += 1
        self._fruitless = 0
        self._shipment, self.arrivals, self.counters = shipment, arrivals, counters
        self._arena = self._arena or Arena(shipment.batches * self.count)
        for member in self._members:
            self._ship(member)
        for _ in range(self.count - len(self._members)):
            self._start()

    def _end(self) -> None:
        """End the work of a pool; the actors wait for the next one."""
        self._shipment, self._idle_since = None, time.monotonic()
        self.arrivals = queue.SimpleQueue()
        for member in self._members:
            self._give_up(member, set(member.lanes))

    def _submit(self, task: Task) -> None:
        member = self._lanes.get(task.lane)
        if member is None:
            if not self._members:
                self._start()
            member = min(self._members, key=self._suitability)
            self._lanes[task.lane] = member
            member.lanes.add(task.lane)
        self._ticket += 1
        member.tasks[self._ticket] = task
        if member.connection is not None:
            member.send_task(self._ticket, task)

    def _suitability(self, member: Member) -> tuple[int, int]:
        """Return a value that is lower for an actor that had better take a lane.

        An actor that runs takes it at once, and gives it to one that is being started as soon as that one can load.  The lanes
        of an iterable dataset cannot be given away without loss, so that they wait for it.
        """
        assert self._shipment is not None
        lanes, starting = len(member.lanes), int(member.connection is None)
        return (lanes, starting) if self._shipment.work.iterable else (starting, lanes)

    def _start(self, delay: float = 0.0) -> None:
        """Start an actor after ``delay`` seconds, in a thread of its own since Ray may wait for long."""
        member = Member()
        self._members.append(member)
        threading.Thread(
            target=self._place, args=(member, delay), name="loopwise-feed-place", daemon=True
        ).start()

    def _place(self, member: Member, delay: float) -> None:
        time.sleep(delay)
        fatal = False
        try:
            nodes = cluster.members(self.group)
            fatal = True
            node = self._choose(member, nodes)
            actor, hello = cluster.place(self.group, node, self._keys)
        except SystemExit:  # Ray ends the calls of a thread in this way when it is shut down
            self.command("failed", member, RuntimeError("Ray was shut down"), True)
        except Exception as error:
            self.command("failed", member, error, fatal)
        else:
            if not self.command("started", member, actor, hello):
                cluster.end(actor)

    def _choose(self, member: Member, nodes: list[cluster.Node]) -> cluster.Node:
        """Give an actor the node with the fewest for its processors, among those that have not lost theirs just now."""
        now = time.monotonic()
        with self._lock:
            trusted = [node for node in nodes if now - self._avoided.get(node.name, -AVOIDED) >= AVOIDED]
            taken = [other.node.name for other in self._members if other.node is not None]
            member.node = node = cluster.choose(trusted or nodes, taken, rank() * self.count)
        return node

    def _started(self, member: Member, actor: Any, hello: Any) -> None:
        if member not in self._members:  # it was ended before it had started
            self._kill(actor)
            return
        assert member.node is not None
        connection = Connection(self._context, hello.endpoint, self._keys)
        member.connect(member.node, actor, hello, connection)
        for socket in connection.sockets:
            self._poller.register(socket, zmq.POLLIN)
        if self._shipment is not None:
            self._ship(member)
            for ticket, task in member.tasks.items():
                member.send_task(ticket, task)

    def _failed(self, member: Member, error: Exception, fatal: bool) -> None:
        """Handle an actor that could not be started: its lanes go to others, and another one is started."""
        if member not in self._members:
            return
        if isinstance(error, LoopwiseError) and (fatal or not self.running):
            self._members.remove(member)
            self.arrivals.put(error)
        else:
            self._lose(member, f"did not start ({type(error).__name__})", fruitless=True, cause=error)

    def _ship(self, member: Member) -> None:
        assert self._shipment is not None
        if member.connection is not None:
            known = member.digest == self._shipment.digest
            member.digest = self._shipment.digest
            user = None if known else self._shipment.user
            shared = member.file is not None
            member.send(
                "work",
                *(self._generation, self._shipment.digest, user, self._shipment.work),
                *(self._shipment.batches, shared),
            )

    def _listen(self, member: Member) -> None:
        """Take what an actor has sent, and notice its end."""
        assert member.connection is not None
        assert self._arena is not None
        for result in member.receive(self._arena, self.counters):
            if isinstance(result, Result):
                self._fruitless = 0
                self.arrivals.put(result)
            elif result[0] == self._generation and result[1]:
                self.arrivals.put(_unloadable(member, result[1]))
            elif result[0] == self._generation:
                self._balance(member)
        reason = member.connection.lost()
        if reason:
            self._lose(member, reason)

    def _lose(
        self, member: Member, reason: str, fruitless: bool = False, cause: Exception | None = None
    ) -> None:
        """Report the lanes of an actor that is gone, and start another one."""
        node = member.node
        number, position = member.in_hand()
        lanes = sorted(member.lanes)
        for lane in lanes:
            del self._lanes[lane]
        self._remove(member)
        if node is not None and not any(other.node == node for other in self._members):
            self._avoided[node.name] = time.monotonic()
        if self._shipment is None:
            return
        self.counters.workers_lost += not fruitless
        self._fruitless += fruitless or number is None
        if self._fruitless >= FRUITLESS and not self.running:
            self.arrivals.put(none_left(self.group, reason, cause))
            return
        address = node.address if node is not None else "?"
        if lanes:
            self.arrivals.put(
                Lost(lanes, f"on node {address} {reason}", number, position, guilty=not fruitless)
            )
        self._start(delay=0.5 * fruitless)

    def _balance(self, member: Member) -> None:
        """Move lanes to an actor that was started later, from those that have more than their share.

        The lanes of an iterable dataset stay: elsewhere they would have to pass over what they have delivered.
        """
        assert self._shipment is not None
        if self._shipment.work.iterable:
            return
        room = self._shipment.work.lanes // self.count - len(member.lanes)
        for _ in range(room):
            most = max(self._members, key=lambda other: len(other.lanes))
            if len(most.lanes) < len(member.lanes) + 2:
                return
            lane = max(most.lanes)
            self._give_up(most, {lane})
            self._lanes[lane] = member
            member.lanes.add(lane)
            self.arrivals.put(Lost([lane], "gave up the lane", guilty=False))

    def _resize(self, count: int) -> None:
        """Change the number of actors; the lanes of those that end go to the others."""
        self.count = count
        for _ in range(count - len(self._members)):
            self._start()
        for member in sorted(self._members, key=lambda member: member.connection is None)[count:]:
            lanes = sorted(member.lanes)
            self._give_up(member, set(lanes))
            self._remove(member)
            if lanes and self._shipment is not None:
                self.arrivals.put(Lost(lanes, "was not needed any more", guilty=False))

    def _remove(self, member: Member) -> None:
        """End an actor, and release what it used."""
        self._members.remove(member)
        if member.connection is not None:
            for socket in member.connection.sockets:
                self._poller.unregister(socket)
            self._kill(member.actor)
        if self._arena is not None:
            member.close(self._arena)

    def _kill(self, actor: Any) -> None:
        threading.Thread(target=cluster.end, args=(actor,), daemon=True).start()

    def _give_up(self, member: Member, lanes: set[int]) -> None:
        """Take lanes from an actor; it executes no tasks of theirs that it has not begun."""
        tickets = [ticket for ticket, task in member.tasks.items() if task.lane in lanes]
        for ticket in tickets:
            del member.tasks[ticket]
        for lane in lanes:
            del self._lanes[lane]
        member.lanes -= lanes
        if tickets and member.connection is not None:
            member.send("cancel", tickets)

    def _close(self) -> None:
        self.closed.set()

    def _release(self) -> None:
        self.closed.set()
        for member in self._members:
            if member.connection is not None:
                member.send("close")
                self._kill(member.actor)
            if self._arena is not None:
                member.close(self._arena)
        if self._arena is not None:
            self._arena.close()
        with self._lock:
            self._wake.close()
            self._woken.close()
        self._context.destroy(linger=0)


def _unloadable(member: Member, text: str) -> InputError:
    address = member.node.address if member.node is not None else "?"
    return InputError(
        f"a dataset that node {address} cannot load: {text}",
        "a dataset, collate_fn and worker_init_fn whose modules and files are on all nodes of the group",
        "a module of yours is installed or on the path on this machine only",
        "install it on the nodes, or start Ray there in the folder of the script",
    )


def none_left(group: str, reason: str, cause: Exception | None) -> StateError:
    """Return the error for a group whose workers all fail."""
    return StateError(
        f"{FRUITLESS} workers of group {group!r} in a row that loaded nothing; the last one {reason}"
        + (f": {cause}" if cause is not None else ""),
        "at least one worker that starts and loads batches",
        "the nodes of the group are gone, have no memory left, or cannot import loopwise",
        "look at what the workers printed and at `ray status`; resume by the loader's load_state_dict",
    )


def _broken(error: Exception) -> tuple[str, str, str, str]:
    return (
        f"{type(error).__name__} in the thread that talks to the workers: {error}",
        "a thread that runs until the loader is closed",
        "an error of Loopwise",
        "report it with the traceback that was printed",
    )
