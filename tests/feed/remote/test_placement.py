"""Places of the actors of several ranks on the nodes of a group."""

from collections import Counter

import pytest

from loopwise.feed.remote.cluster import Node, choose


def placed(nodes, ranks, count):
    """Return the nodes of each rank's actors; no rank knows of another one's."""
    places = []
    for rank in range(ranks):
        taken = []
        for _ in range(count):
            taken.append(choose(nodes[rank % 2 :] + nodes[: rank % 2], taken, before=rank * count).name)
        places.append(taken)
    return places


@pytest.mark.parametrize("cpus", [(1, 1), (0, 0), (4, 4), (8, 4), (3, 2, 7)], ids=str)
@pytest.mark.parametrize(("ranks", "count"), [(2, 1), (2, 3), (4, 2), (7, 5)], ids=str)
def test_ranks_fill_the_nodes_by_their_processors(cpus, ranks, count):
    nodes = [Node(f"node{number}", "", of) for number, of in enumerate(cpus)]
    together = Counter(name for names in placed(nodes, ranks, count) for name in names)
    weights = [max(of, 1) for of in cpus]
    for node, weight in zip(nodes, weights, strict=True):
        share = ranks * count * weight / sum(weights)
        assert abs(together[node.name] - share) < len(nodes)


def test_two_ranks_with_a_worker_each_have_different_nodes():
    assert placed([Node("a", "", 4), Node("b", "", 4)], 2, 1) == [["a"], ["b"]]
