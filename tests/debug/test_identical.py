"""Training is the same to the bit with a ``Watch`` and without it, in every situation."""

import contextlib
import os

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from loopwise.debug import Collection, Watch, every
from loopwise.ranks import rank

WATCHED = [
    "losses",
    "weights",
    "biases",
    "gradients",
    "inputs",
    "outputs",
    "optimizer_state",
    "health",
    Collection("statistics", include=".", statistics=("mean", "std", "min", "l2", "quantiles")),
]


class Net(nn.Module):
    """Model whose layers draw random numbers, count, share weights and change their input in place."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 8), nn.BatchNorm1d(8)
        self.drop, self.act = nn.Dropout(0.5), nn.ReLU(inplace=True)
        self.shared = nn.Linear(8, 8)
        self.head = nn.Linear(8, 8)
        self.head.weight = self.shared.weight

    def body(self, x):
        return self.shared(self.shared(self.drop(x)))

    def forward(self, x):
        return self.head(self.act(self.body(self.norm(self.first(x)))))


class Checkpointed(Net):
    def forward(self, x):
        hidden = checkpoint(self.body, self.norm(self.first(x)), use_reentrant=False)
        return self.head(self.act(hidden))


def train(net, optimizer, watch, scaler=None, accumulate=1, dtype=None, clip=False):
    for step in range(8):
        draws = torch.Generator().manual_seed(step + 100 * rank())
        x, y = torch.randn(6, 4, generator=draws), torch.arange(6) % 3
        with torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext():
            loss = nn.functional.cross_entropy(net(x), y) / accumulate
        if step == 4 and scaler is not None:
            loss = loss * float("inf")  # a step that is skipped
        (scaler.scale(loss) if scaler is not None else loss).backward()
        if (step + 1) % accumulate == 0:
            if scaler is not None:
                if clip:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
            else:
                if clip:
                    nn.utils.clip_grad_norm_(net.parameters(), 0.1)
                optimizer.step()
            optimizer.zero_grad()
        if watch is not None:
            watch.step(loss=loss)
        if step % 3 == 2:
            net.eval()
            with watch.mode("eval") if watch is not None else contextlib.nullcontext(), torch.no_grad():
                net(x)
                if watch is not None:
                    watch.step()
            net.train()


SITUATIONS = {
    "plain": {},
    "accumulation": {"accumulate": 2},
    "clipping": {"clip": True},
    "bfloat16": {"dtype": torch.bfloat16},
    "scaler": {"scaled": True, "dtype": torch.float16},
    "scaler, clipping": {"scaled": True, "clip": True},
    "scaler, fused": {"scaled": True, "fused": True},
    "scaler, accumulation": {"scaled": True, "accumulate": 2},
    "checkpointing": {"kind": Checkpointed},
    "fused": {"fused": True},
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("compiled", [False, True])
def test_in_one_process(tmp_path, situation, compiled):
    options = dict(SITUATIONS[situation])
    kind, scaled, fused = options.pop("kind", Net), options.pop("scaled", False), options.pop("fused", False)

    def trained(watched):
        torch._dynamo.reset()
        torch.manual_seed(3)
        net = kind()
        if compiled:
            net.compile(backend="aot_eager")
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=fused or None)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
        watch = None
        if watched:
            watch = Watch(
                net, optimizer, run=tmp_path / "run", save=every(1), collections=WATCHED, scaler=scaler
            )
        train(net, optimizer, watch, scaler, **options)
        if watch is not None:
            watch.close()
            assert watch.counts["saved"] == 10
            assert not watch.counts["failed"]
        state = [value for each in optimizer.state.values() for value in each.values()]
        return [*net.state_dict().values(), *state, torch.get_rng_state()]

    plain, watched = trained(False), trained(True)
    assert len(plain) == len(watched)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


RANKS = """
    import sys
    sys.path[:0] = [{folder!r}]
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh
    from test_identical import Net, WATCHED, train
    from loopwise.debug import Watch, every

    def trained(watched):
        torch.manual_seed(3)
        net = Net()
        if {how!r} == "ddp":
            net = nn.parallel.DistributedDataParallel(net)
        else:
            mesh = init_device_mesh("cpu", (2,))
            net.head.weight = nn.Parameter(net.head.weight.detach().clone())  # FSDP2 shards no tied weights apart
            for layer in (net.first, net.shared, net.head):
                fully_shard(layer, mesh=mesh)
            fully_shard(net, mesh=mesh)
        torch.manual_seed(10 + dist.get_rank())
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        options = dict(run={run!r}, save=every(1), collections=WATCHED, gather={how!r} == "fsdp, gathered")
        watch = Watch(net, optimizer, **options) if watched else None
        train(net, optimizer, watch, accumulate={accumulate})
        if watch is not None:
            watch.close()
            assert not watch.counts["failed"], watch.counts
        values = [*net.state_dict().values(), torch.get_rng_state()]
        values += [value for each in optimizer.state.values() for value in each.values()]
        return [getattr(value, "_local_tensor", value) for value in values]

    plain, watched = trained(False), trained(True)
    print(json.dumps([len(plain), len(watched), all(map(torch.equal, plain, watched))]))
"""


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("how", ["ddp", "fsdp", "fsdp, gathered"])
def test_two_ranks(tmp_path, ranks, how, accumulate):
    found = ranks(
        RANKS.format(
            folder=os.path.dirname(__file__), run=str(tmp_path / "run"), how=how, accumulate=accumulate
        )
    )
    assert all(plain == watched and same for plain, watched, same in found), found
