"""Comparison of ranks: equal weights and different batches."""

import torch
from torch import nn

from loopwise.debug.monitors.ranks import RankMonitor, Sums
from loopwise.schedule import every

RUN = """
    import contextlib
    from torch import nn
    from loopwise.debug.monitors.ranks import RankMonitor
    from loopwise.schedule import every
    wrap, rank = nn.parallel.DistributedDataParallel, dist.get_rank()

    def train(
        prepare=lambda net: None, wrapped=True, own_data=True, sync=True, seeds=(0, 0), steps=8, save=1, group=None,
        ignored=(),
    ):
        torch.manual_seed(seeds[rank])
        net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        wrap._set_params_and_buffers_to_ignore_for_model(net, ignored)
        model = wrap(net, process_group=group) if wrapped else net
        prepare(net)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        draws = torch.Generator().manual_seed(rank if own_data else 0)
        replicas, found = RankMonitor({{"": model}}, every(save)), []
        for step in range(steps):
            replicas.begin(step, "train")
            x = torch.randn(6, 8, generator=draws)
            optimizer.zero_grad()
            with contextlib.nullcontext() if sync else model.no_sync():
                model(x).square().sum().backward()
            optimizer.step()
            replicas.end(step, "train", {{}})
            dist.barrier()  # so that what others said has come
            found += replicas.findings()
        replicas.close()
        found += replicas.findings()
        assert not model._forward_pre_hooks
        if not replicas._called and not hasattr(replicas, "_store"):
            return [[f.rule for f in found], "left alone"]
        store = replicas._store
        left = [n for n in range(2 * steps) if store.check([f"{{n}}/1"])]
        dist.barrier()
        return [[f.rule, f.step, list(f.tensors), f.evidence] for f in found], left

    def drift(net):
        torch.manual_seed(rank)
        with torch.no_grad():
            net[2].weight.normal_()

    groups = [dist.new_group([each]) for each in range(2)]
    print(json.dumps({body}))
"""


def test_weights_and_batches_of_two_ranks(ranks):
    body = """{
        "healthy": train(),
        "changed after": train(drift),
        "not synchronised": train(sync=False, save=3),
        "by themselves": train(wrapped=False),
        "never replicas": train(wrapped=False, seeds=(0, 1)),
        "same data": train(own_data=False),
        "same data by themselves": train(own_data=False, wrapped=False),
        "a parameter of its own": train(drift, ignored=["2.weight"]),
        "a group for each rank": train(drift, group=groups[rank]),
    }"""
    found, other = ranks(RUN.format(body=body))
    assert all(said == [] for said, _ in other.values())
    assert found["a group for each rank"] == [[], "left alone"]
    for name in ("healthy", "never replicas", "same data by themselves", "a parameter of its own"):
        assert found[name][0] == [], name
    ((rule, step, tensors, evidence),) = found["changed after"][0]
    assert (rule, step, tensors) == ("replicas_differ", 0, ["2.weight"])
    ((name, points),) = evidence.items()
    assert name == "sum of 2.weight by rank"
    assert [rank for rank, _ in points] == [0, 1]
    assert points[0][1] != points[1][1]
    for name in ("not synchronised", "by themselves"):
        ((rule, step, tensors, _),) = found[name][0]
        assert (rule, step) == ("replicas_differ", 0)
        assert len(tensors) == 4
    ((rule, step, tensors, _),) = found["same data"][0]
    assert (rule, tensors) == ("same_batch_on_ranks", ["input"])
    assert step == 3
    assert found["healthy"][1] == []  # what was read is gone


def test_a_rank_that_writes_nothing(ranks):
    """If only rank 0 is watched, it waits for nobody and ends comparing."""
    code = """
        from torch import nn
        from loopwise.debug.monitors import ranks
        from loopwise.schedule import every
        ranks.PATIENCE = 3
        found = None
        if dist.get_rank() == 0:
            alone = ranks.RankMonitor({"": nn.Linear(2, 2)}, every(1))
            for step in range(12):
                alone.begin(step, "train")
                alone.end(step, "train", {})
            found = [alone.findings(), alone._live, len(alone._pending)]
            alone.close()
        print(json.dumps(found))
    """
    assert ranks(code)[0] == [[], False, 0]


def test_sharded_models_are_not_compared(ranks):
    code = """
        from torch import nn
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from loopwise.debug.monitors.ranks import RankMonitor
        from loopwise.schedule import every
        net = nn.Linear(4, 4)
        fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
        print(json.dumps(RankMonitor({"": net}, every(1))._live))
    """
    assert ranks(code) == [False, False]


def test_a_watch_of_rank_0_alone(ranks):
    """A monitor on rank 0 alone, as a preflight may make one, does not change which monitors are compared later."""
    code = """
        from torch import nn
        from loopwise.debug.monitors.ranks import RankMonitor
        from loopwise.schedule import every
        net = nn.Linear(4, 4)
        if dist.get_rank() == 0:
            RankMonitor({"": net}, every(1)).close()
        replicas = RankMonitor({"": nn.parallel.DistributedDataParallel(net)}, every(1))
        with torch.no_grad():
            net.weight.fill_(dist.get_rank())
        replicas.begin(0, "train")
        dist.barrier()
        replicas.end(0, "train", {})
        dist.barrier()
        replicas.close()
        print(json.dumps([finding.rule for finding in replicas.findings()]))
    """
    assert ranks(code) == [["replicas_differ"], []]


def test_an_error_in_the_forward_pass_is_reported_at_the_end_of_the_step(ranks):
    code = """
        from torch import nn
        from loopwise.debug.monitors import ranks
        from loopwise.debug.monitors.monitor import Monitors
        from loopwise.schedule import every
        def fail(tensor):
            raise ValueError("no sums")
        model, said = nn.parallel.DistributedDataParallel(nn.Linear(4, 4)), []
        monitors = Monitors(said.append, [ranks.RankMonitor({"": model}, every(1))])
        monitors.begin(0, "train")
        ranks._sums = fail
        model(torch.randn(2, 4))
        monitors.end(0, "train", {})
        print(json.dumps([len(said), "no sums" in said[0], len(model._forward_pre_hooks)]))
    """
    assert ranks(code) == [[1, True, 0]] * 2


def test_one_process():
    replicas = RankMonitor({"": nn.Linear(2, 2)}, every(1))
    for step in range(3):
        replicas.begin(step, "train")
        replicas.end(step, "train", {})
    replicas.close()
    assert replicas.findings() == []


def test_sums_survive_bytes():
    sums = Sums(7, torch.randn(3, 2, dtype=torch.float64).numpy())
    again = Sums.from_bytes(sums.to_bytes())
    assert again.step == 7
    assert (again.rows == sums.rows).all()
