"""Models, optimizers and tensors beneath their wrappers."""

import torch
from torch import nn

from loopwise import wrappers


class Wrapper(torch.optim.Optimizer):
    """Optimizer around another one, in the way of Accelerate's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_plain_objects_are_returned_as_they_are():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    assert wrappers.unwrap(model) is model
    assert wrappers.innermost(optimizer) is optimizer
    assert wrappers.innermost(None) is None
    assert not wrappers.is_sharded(model)
    assert not wrappers.is_shard(model.weight)


def test_the_innermost_optimizer_is_returned():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters())
    assert wrappers.innermost(Wrapper(Wrapper(optimizer))) is optimizer


def test_wrappers_of_real_ranks(ranks):
    code = """
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel
    from loopwise import wrappers
    model = nn.Sequential(nn.Linear(4, 4))
    replica = DistributedDataParallel(nn.Sequential(nn.Linear(4, 4)))
    sharded = nn.Sequential(fully_shard(nn.Linear(4, 4)))
    print(json.dumps([
        wrappers.unwrap(replica) is replica.module,
        wrappers.is_sharded(replica),
        wrappers.is_sharded(sharded),
        wrappers.is_shard(sharded[0].weight),
    ]))
    """
    assert ranks(code) == [[True, False, True, True]] * 2
