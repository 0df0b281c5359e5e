"""Run a host's script on a node of a Ray cluster, as the program of the host on this machine.

Called with Ray's id of the node and an ``Order``.  Prints what the script prints, and ends with its exit status.  When it is
asked to end or ends in any other way, so does the script.
"""

from __future__ import annotations

import base64
import os
import pickle
import signal
import sys
from typing import Any

from loopwise.extras import required

from .environment import JOB
from .remote_owner import Order, RemoteOwner

with required("ray", "feed", "a launcher on a cluster"):
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SHARE = 0.001
"""Part of a group's resource that a host takes."""
SECONDS = 120.0
"""Time limit for the start of an actor."""
LOST = 1
"""Status of a host whose node is gone."""


def run(node: str, order: Order) -> int:
    """Run the script to its end and return its exit status."""
    asked: list[int] = []
    ray.init(address=order.cluster, configure_logging=False, log_to_driver=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # Ray's own handlers print a crash report
        signal.signal(number, lambda number, frame: asked.append(number))
    remote: Any = ray.remote(RemoteOwner)
    try:
        actor = remote.options(
            resources={order.host.group.name: SHARE},
            num_cpus=0,
            max_restarts=0,
            max_concurrency=2,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote()
        failure = ray.get(actor.start.remote(order, os.environ[JOB]), timeout=SECONDS)
        if failure:
            print(failure, file=sys.stderr)
            return LOST
        while True:
            out, err, status = ray.get(actor.read.remote())
            for descriptor, data in ((1, out), (2, err)):
                while data:
                    data = data[os.write(descriptor, data) :]
            if status is not None:
                return int(status)
            if asked:
                actor.stop.remote()
    except Exception as error:  # Ray's own errors differ by what it was doing
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"the node at {order.host.address} is lost ({text})", file=sys.stderr)
        return LOST


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], pickle.loads(base64.b64decode(sys.argv[2]))))
