"""Several ranks: averaged gradients, shards, and the ranks that write."""

import torch

from loopwise.debug import open_run

DDP = """
    from torch import nn
    from loopwise.debug import Watch, every
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    local, averaged = [], []
    with Watch(model, optimizer, run={run!r}, save=every(2), collections=["gradients", "outputs"]) as watch:
        for step in range(4):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(10 * step + dist.get_rank()))
            optimizer.zero_grad()
            model(x).square().sum().backward()
            averaged.append(net[0].weight.grad.flatten().tolist())
            optimizer.step()
            watch.step()
    print(json.dumps([averaged, sum(len(m._forward_hooks) for m in net.modules())]))
"""


def test_gradients_are_averaged_and_rank_0_writes(tmp_path, ranks):
    (averaged, hooks), (other, _) = ranks(DDP.format(run=str(tmp_path / "run")))
    assert averaged == other
    assert hooks == 0
    saved = open_run(tmp_path / "run")
    assert saved.ranks == [0]
    assert saved.steps() == [0, 2]
    assert saved.names(collection="outputs") == ["0.output.0", "1.output.0", "output.0"]
    for step in (0, 2):
        assert saved.value("gradient/0.weight", step).flatten().tolist() == averaged[step]


FSDP = """
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh
    from loopwise.debug import Watch, every, Collection
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3))
    plain = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3))
    plain.load_state_dict(net.state_dict())
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(net[0], mesh=mesh)
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    collections = ["weights", "gradients", Collection("sums", include="^gradient", statistics=("sum",))]
    with Watch(net, optimizer, run={run!r}, save=every(1), collections=collections, gather={gather}) as watch:
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(dist.get_rank()))
        net(x).square().sum().backward()
        optimizer.step()
        watch.step()
    both = [torch.randn(6, 4, generator=torch.Generator().manual_seed(r)) for r in range(2)]
    (sum(plain(x).square().sum() for x in both) / 2).backward()
    print(json.dumps([{{n: p.tolist() for n, p in plain.named_parameters()}},
                      {{n: p.grad.tolist() for n, p in plain.named_parameters()}}]))
"""


def test_shards_are_put_together_when_they_are_read(tmp_path, ranks):
    weights, gradients = ranks(FSDP.format(run=str(tmp_path / "run"), gather=False))[0]
    saved = open_run(tmp_path / "run")
    assert saved.ranks == [0, 1]
    for name in ("0.weight", "2.weight"):
        assert torch.equal(saved.value(name, 0), torch.tensor(weights[name]))
        torch.testing.assert_close(saved.value(f"gradient/{name}", 0), torch.tensor(gradients[name]))
    assert saved.value("0.weight", 0, rank=1).shape == (3, 4)


def test_shards_are_gathered_when_they_are_saved(tmp_path, ranks):
    weights, gradients = ranks(FSDP.format(run=str(tmp_path / "run"), gather=True))[0]
    saved = open_run(tmp_path / "run")
    assert saved.ranks == [0]
    for name in ("0.weight", "2.weight"):
        assert torch.equal(saved.value(name, 0, rank=0), torch.tensor(weights[name]))
        torch.testing.assert_close(saved.value(f"gradient/{name}", 0), torch.tensor(gradients[name]))


STOP = """
    from torch import nn
    from loopwise.debug import callback
    from loopwise.debug import every
    callback.AGREE = 5
    watching = callback.WatchingCallback(run={run!r}, save=every(1), stop_on="critical", on_finding=lambda _: None)
    net = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    optimizer = torch.optim.SGD(net.module[0].parameters(), lr=0.1)
    watching._session.open(net, optimizer)
    for step in range(40):
        optimizer.zero_grad()
        net(torch.randn(6, 4)).square().sum().backward()
        optimizer.step()
        watching._session.step()
        if watching._should_stop():
            break
    watching._session.close()
    print(json.dumps(step))
"""


def test_ranks_stop_at_the_same_step(tmp_path, ranks):
    first, second = ranks(STOP.format(run=str(tmp_path / "run")))
    assert first == second < 39
    assert first % 5 == 4
