"""Print the nodes of a Ray cluster as JSON: its address, each group's nodes, and a free port of the group that trains.

Called with the address of the cluster and the name of that group.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from loopwise.extras import required

from .cluster import free_port

with required("ray", "feed", "a launcher on a cluster"):
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SECONDS = 120.0
"""Time limit for the answer of the node that is asked for a port."""


def run(address: str, training: str) -> None:
    """Connect, and print what was found."""
    ray.init(address=address, configure_logging=False, log_to_driver=False)
    groups: dict[str, list[tuple[str, str]]] = {}
    for node in sorted(
        ray.nodes(), key=lambda node: (not _is_head(node), node["NodeManagerAddress"], node["NodeID"])
    ):
        for name in node["Resources"] if node["Alive"] else ():
            groups.setdefault(name, []).append((node["NodeID"], node["NodeManagerAddress"]))
    port = 0
    if training in groups:
        node, host = groups[training][0]
        ask: Any = ray.remote(num_cpus=0)(free_port)
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        port = ray.get(ask.options(scheduling_strategy=there).remote(host), timeout=SECONDS)
    own = ray.get_runtime_context().gcs_address
    print(json.dumps({"address": own, "groups": groups, "port": port}), flush=True)


def _is_head(node: dict[str, Any]) -> bool:
    return "node:__internal_head__" in node["Resources"]


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
