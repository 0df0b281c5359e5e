"""Reading of the files of several ranks: steps are merged, and shards joined."""

from itertools import pairwise

import pytest
import torch

from loopwise.debug import open_run
from loopwise.errors import InputError, StateError

WEIGHT = torch.arange(6, dtype=torch.float32).reshape(2, 3)


def test_steps_of_several_ranks_are_merged(saving, tmp_path):
    first, second = saving(tmp_path), saving(tmp_path, rank=1)
    for step in range(2):
        first.step(step, {"weights": {"w": WEIGHT + step}}, {"losses": {"loss": 0.0}})
    second.step(1, {"weights": {"w": -WEIGHT, "only here": WEIGHT}})
    second.step(2, {"weights": {"w": -WEIGHT}})
    second.event("slow", 2)
    saved = open_run(tmp_path)
    assert (saved.steps(), saved.ranks) == ([0, 1, 2], [0, 1])
    assert torch.equal(saved.value("w", 1), WEIGHT + 1)
    assert torch.equal(saved.value("w", 1, rank=1), -WEIGHT)
    assert torch.equal(saved.value("w", 2), -WEIGHT)
    assert torch.equal(saved.value("only here", 1), WEIGHT)
    assert saved.values("w", rank=1)[0].tolist() == [1, 2]
    assert saved.series("w", "max")[1].tolist() == [5.0, 6.0, 0.0]
    assert saved.series("w", "max", rank=1)[1].tolist() == [0.0, 0.0]
    assert saved.names() == ["w", "loss", "only here"]
    assert saved.events == [{"event": "slow", "step": 2, "rank": 1}]
    assert saved.has("w", 2, rank=1)
    assert not saved.has("w", 2, rank=0)
    with pytest.raises(InputError, match="rank=1 at step 0"):
        saved.value("w", 0, rank=1)


def rows(tensor, start, stop):
    return tensor[start:stop], {"shape": list(tensor.shape), "start": [start] + [0] * (tensor.dim() - 1)}


@pytest.mark.parametrize("cuts", [(0, 5), (0, 2, 5), (0, 2, 4, 5), (0, 3, 5, 5)])
def test_shards_are_joined(saving, tmp_path, cuts):
    whole = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    for rank, (start, stop) in enumerate(pairwise(cuts)):
        run = saving(tmp_path, rank=rank)
        run.step(0, {"weights": {"w": rows(whole, start, stop)}})
    saved = open_run(tmp_path)
    assert torch.equal(saved.value("w", 0), whole)
    assert saved.shape("w", 0) == (5, 3)
    assert saved.statistic("w", "max", 0) == whole.max().item()
    for rank, (start, stop) in enumerate(pairwise(cuts)):
        assert torch.equal(saved.value("w", 0, rank=rank), whole[start:stop])
        assert saved.shape("w", 0, rank=rank) == (stop - start, 3)


def test_shards_in_two_dimensions_with_replicas(saving, tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    places = [(0, 0), (0, 3), (2, 0), (2, 3)]
    for rank, (row, column) in enumerate(places * 2):
        shard = {"shape": [4, 6], "start": [row, column]}
        saving(tmp_path, rank=rank).step(0, {"c": {"w": (whole[row : row + 2, column : column + 3], shard)}})
    assert torch.equal(open_run(tmp_path).value("w", 0), whole)


def test_shards_that_do_not_cover_the_tensor_are_an_error(saving, tmp_path):
    whole = torch.arange(8.0)
    saving(tmp_path).step(0, {"c": {"w": rows(whole, 0, 4)}})
    saved = open_run(tmp_path)
    with pytest.raises(StateError, match=r"the shards of 'w' on rank 0 do not cover \(8,\)"):
        saved.value("w", 0)
    assert torch.equal(saved.value("w", 0, rank=0), whole[:4])
    assert saved.series("w", "max")[0].tolist() == []
    saving(tmp_path, rank=1).step(0, {"c": {"w": rows(whole, 4, 8)}})
    assert torch.equal(saved.value("w", 0), whole)


def test_a_run_resumed_with_fewer_ranks_shows_no_old_shards(saving, tmp_path):
    old, new = torch.zeros(8), torch.ones(8)
    for rank in range(4):
        saving(tmp_path, rank=rank).step(3, {"c": {"w": rows(old, 2 * rank, 2 * rank + 2)}}, time=100.0)
    saved = open_run(tmp_path)
    assert torch.equal(saved.value("w", 3), old)
    saving(tmp_path, resume=True).step(3, {"c": {"w": rows(new, 0, 4)}}, time=200.0)
    with pytest.raises(StateError, match="do not cover"):
        saved.value("w", 3)
    saving(tmp_path, rank=1, resume=True).step(3, {"c": {"w": rows(new, 4, 8)}}, time=200.0)
    assert torch.equal(saved.value("w", 3), new)
