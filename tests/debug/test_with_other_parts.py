"""A Watch beside a compiled step and a sifting loader, in one process."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.compile import Plan, TrainStep
from loopwise.debug import Collection, Watch, every, open_run
from loopwise.sift import SiftingDataLoader


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))


def hidden(net):
    """The logits are left out: they are never made if nobody looks at them."""
    return Collection("hidden", modules=[net[0], net[1]])


def test_a_compiled_step_is_watched_and_trains_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("LOOPWISE_CACHE", str(tmp_path / "cache"))
    torch._dynamo.reset()
    batches = [(torch.randn(6, 4), torch.arange(6) % 3) for _ in range(3)]

    def trained(run):
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        step = TrainStep(
            net, nn.CrossEntropyLoss(), optimizer, plan=Plan(graph="captured", passes=("loss_head",))
        )
        watch = (
            Watch(net, optimizer, run=run, save=every(2), collections=[hidden(net), "gradients", "losses"])
            if run
            else None
        )
        outputs = []
        for batch in batches:
            outputs.append(net[0](batch[0]).detach() if run is None else None)
            loss = step(batch)
            if watch is not None:
                watch.step(loss=loss)
        if watch is not None:
            watch.close()
        assert step.plan.graph == "captured"
        return [p.detach() for p in net.parameters()], outputs

    plain, outputs = trained(None)
    watched, _ = trained(tmp_path / "run")
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
    saved = open_run(tmp_path / "run")
    assert saved.steps() == [0, 2]
    assert not [name for name in saved.names() if "#" in name]  # nothing of what the gate ran
    for step in (0, 2):
        torch.testing.assert_close(saved.value("0.output.0", step), outputs[step])
        assert saved.has("gradient/0.weight", step)


def test_scoring_passes_are_not_saved(tmp_path):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    data = TensorDataset(torch.randn(32, 4), torch.arange(32) % 3)
    criterion = nn.CrossEntropyLoss(reduction="none")
    loader = SiftingDataLoader(DataLoader(data, batch_size=4), net, loss=criterion, keep=0.5, score_every=1)
    with Watch(net, optimizer, run=tmp_path / "run", save=every(1), collections=["inputs"]) as watch:
        batches = []
        for x, y in loader:
            batches.append(x)
            optimizer.zero_grad()
            criterion(net(x), y).mean().backward()
            optimizer.step()
            watch.step()
    saved = open_run(tmp_path / "run")
    assert saved.names() == ["input.0", "0.input.0", "1.input.0", "2.input.0"]
    for step, x in enumerate(batches):
        assert torch.equal(saved.value("input.0", step), x)
