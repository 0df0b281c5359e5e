"""The trap on several ranks: the rank with the bad batch names the operation, and no rank waits for another."""

from loopwise.debug import open_run

DDP = """
    from torch import nn
    from loopwise.debug import Watch
    torch.manual_seed(0)
    class Fragile(nn.Module):
        def forward(self, x):
            return torch.log(x)
    net = nn.Sequential(Fragile(), nn.Linear(4, 3))
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Watch(model, optimizer, run={run!r}, rules=False) as watch:
        for step in range(3):
            x = torch.rand(6, 4) + 0.1
            if (step, dist.get_rank()) == (1, 1):
                x[2] = -1.0
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
    print(json.dumps([[f.step, f.what, f.tensors] for f in watch.findings]))
"""


def test_the_rank_with_the_bad_batch_names_the_operation(tmp_path, ranks):
    (innocent,), (guilty,) = ranks(DDP.format(run=str(tmp_path / "run")))
    assert guilty[0] == innocent[0] == 1
    assert guilty[1].startswith("log in 0 (Fragile) made 4 NaN of 24 values")
    assert "in samples 2" in guilty[1]
    assert "another rank" in innocent[1]
    assert sorted(f.what for f in open_run(tmp_path / "run").findings()) == sorted([guilty[1], innocent[1]])
    boxes = sorted(path.name for path in (tmp_path / "run/debug/blackbox").iterdir())
    assert boxes == ["step1.rank0.pt", "step1.rank1.pt"]


FSDP = """
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh
    from loopwise.debug import Watch
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3))
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, run={run!r}, rules=False, collections=["losses"]) as watch:
        for step in range(2):
            x = torch.randn(6, 4)
            x[0, 0] = 0.0 if step == 0 else float("nan")
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
    print(json.dumps([[f.step, f.what] for f in watch.findings]))
"""


def test_a_sharded_model_is_not_called_again(tmp_path, ranks):
    for ((step, what),) in ranks(FSDP.format(run=str(tmp_path / "run"))):
        assert step == 1
        assert "communicates with other ranks" in what
        assert "the batch is in" in what
