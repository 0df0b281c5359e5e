"""An attempt on a node of a cluster, as the tuner sees it: its actor, and copies of its logs in the tuner's folder."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from loopwise.extras import required
from loopwise.programs.processes import write_json

from ..log.curves import Definition
from ..process.attempt import BLOCK, STREAMS, Attempt
from . import node

for _name in ("RAY_USAGE_STATS_ENABLED", "RAY_DEDUP_LOGS", "RAY_COLOR_PREFIX"):
    os.environ.setdefault(_name, "0")  # Ray reads them when it is imported
with required("ray", "cluster", "engine: ray"):
    import ray
    from ray.exceptions import ActorUnavailableError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NAMESPACE = "loopwise"
POLL = 0.25
"""Seconds between two questions to an actor."""
UNREACHABLE = 120.0
"""Seconds after which an actor that does not answer is given up; Ray tells of a dead node in about 15."""
UNPLACED = 2.0
"""Seconds after which an attempt that is to be stopped and that has not begun is taken out of Ray's queue."""
CLEANING = 60.0
"""Most seconds to wait for a node that ends what a killed supervisor left behind."""


class RemoteAttempt(Attempt):
    """Attempt on a node.

    Its actor has a name and outlives the tuner.  What the program prints is appended to ``stdout`` and ``stderr`` in the
    tuner's folder, whose sizes tell what is still to be copied; ``exit`` is written there when all is.  ``place.json`` names
    the node.

    Args:
        folder: the attempt's folder on the tuner's side.
        definitions: the metrics to read from its logs.
        name: of its actor.
    """

    STARTED = "place.json"

    def __init__(self, folder: Path, definitions: list[Definition], name: str) -> None:
        super().__init__(folder, definitions)
        self.name = name
        self.actor: Any = None
        self._answer: Any = None
        self._over = self._stopping = self._answered = False
        self._asked = self._began = self._heard = time.monotonic()

    def alive(self) -> bool:
        """Return whether the attempt runs, or has printed what is not copied yet."""
        if not self._over and self.ending() is not None:
            self._over = True
        if not self._over and self.actor is None:
            try:
                self.actor = ray.get_actor(self.name, NAMESPACE)
            except ValueError:
                self._over, self.loss = True, "its node or its actor has died"
        if not self._over:
            self._collect()
        return not self._over

    def _collect(self) -> None:
        """Copy what the actor has answered, and ask it again."""
        now = time.monotonic()
        if self._answer is None and now - self._asked >= POLL:
            read = {stream: self._size(stream) for stream in STREAMS}
            self._answer, self._asked = self.actor.follow.remote(read, BLOCK, self._stopping), now
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return
        answer, self._answer = self._answer, None
        try:
            self._copy(ray.get(answer))
        except ActorUnavailableError as error:  # a dead node, or one that cannot be reached for a while
            if now - self._heard > UNREACHABLE:
                self.lose(error)
        except RayError as error:
            self.lose(error)

    def _copy(self, answer: dict[str, Any]) -> None:
        self._heard, self._answered = time.monotonic(), True
        place = self.folder / self.STARTED
        if not place.exists():
            write_json(str(place), answer["place"])
        for stream, data in answer["data"].items():
            with open(self.folder / stream, "ab") as file:
                file.write(data)
        if any(len(data) == BLOCK for data in answer["data"].values()):
            self._asked = 0.0
        if answer["over"]:
            self._over = True
            if answer["ending"] is not None:
                write_json(f"{self.folder}/exit", answer["ending"])

    def _size(self, stream: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / stream).stat().st_size
        return 0

    def lose(self, error: Exception | str) -> None:
        """Give the attempt up; what is left of it on its node ends with its actor."""
        told = str(error).strip().splitlines()
        self._over, self.loss = True, f"its node or its actor has died: {told[0] if told else error!r}"
        if self.actor is not None:
            ray.kill(self.actor)

    def stop(self) -> None:
        """Ask the supervisor to end the program and all of its processes."""
        self._stopping = True
        if not self._answered and not self._over and time.monotonic() - self._began > UNPLACED:
            self.lose("it was stopped before a node had room for it")

    def end_left(self) -> None:
        """Kill what a killed supervisor left behind on a node that lives."""
        place = self.folder / self.STARTED
        if self.ending() is not None or not place.exists():
            return
        where = json.loads(place.read_text())
        if where["node"] not in {other["NodeID"] for other in ray.nodes() if other["Alive"]}:
            return
        task = ray.remote(node.end_left).options(num_cpus=0, scheduling_strategy=on_node(where["node"]))
        with contextlib.suppress(RayError):
            ray.get(task.remote(where["folder"]), timeout=CLEANING)


def on_node(identity: str) -> NodeAffinitySchedulingStrategy:
    """Return the strategy that places a task on one node, or not at all."""
    return NodeAffinitySchedulingStrategy(identity, soft=False)
