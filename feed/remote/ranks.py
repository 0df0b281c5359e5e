"""Shares of the ranks of a training in one group: each rank has actors of its own, and knows where the others put theirs.

Ranks place their actors at the same time and do not talk to each other.  Each therefore works out the places of the ranks
before it, which choose by the same rule, and goes on from there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch.distributed as dist

from .cluster import Node


def rank_of(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return this process's rank and the number of ranks, by the process group or the variables of ``torchrun``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    try:
        rank, ranks = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (rank, ranks) if 0 <= rank < ranks else (0, 1)


def choose(nodes: Sequence[Node], taken: Iterable[str], before: int = 0) -> Node:
    """Return the node for the next actor: the one with the fewest for its processors.

    Args:
        nodes: nodes to choose from.
        taken: names of the nodes of this rank's other actors, once for each.
        before: number of actors of the ranks before this one.
    """
    ordered, counts = sorted(nodes, key=lambda node: node.name), Counter[str]()
    for _ in range(
        before % sum(_weight(node) for node in nodes)
    ):  # after so many, all nodes are equally full
        counts[_emptiest(ordered, counts).name] += 1
    counts.update(taken)
    return _emptiest(ordered, counts)


def _emptiest(nodes: Sequence[Node], counts: Counter[str]) -> Node:
    return min(nodes, key=lambda node: (counts[node.name] + 1) / _weight(node))


def _weight(node: Node) -> int:
    return max(node.cpus, 1)
