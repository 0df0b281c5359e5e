"""Training is bit-identical with and without a profiler."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.debug.profiler import Profile, Profiler, reading
from loopwise.run import Run
from loopwise.schedule import at


class Net(nn.Module):
    """Model with layers that draw random numbers and count their calls."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 8), nn.BatchNorm1d(8)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x))))


def train(model, optimizer, loader, profiler):
    step = 0

    def begin(mode):
        if profiler is not None:
            profiler.begin(step, mode)

    def end(mode):
        nonlocal step
        if profiler is not None:
            profiler.end(step, mode, {})
        step += 1

    for _ in range(2):
        model.train()
        for x, y in loader:
            begin("train")
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            end("train")
        model.eval()
        begin("eval")
        with torch.no_grad():
            model(torch.ones(2, 4))
        end("eval")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["eager", "wrapped", "in place"])
def test_in_one_process(tmp_path, how, workers):
    def trained(path):
        torch._dynamo.reset()
        torch.manual_seed(3)
        net = Net()
        model = torch.compile(net, backend="aot_eager", fullgraph=True) if how == "wrapped" else net
        if how == "in place":
            net.compile(backend="aot_eager", fullgraph=True)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        data = TensorDataset(torch.randn(24, 4), torch.arange(24) % 3)
        loader = DataLoader(data, batch_size=6, shuffle=True, num_workers=workers)
        if path is None:
            train(model, optimizer, loader, None)
        else:
            with Run(str(path)) as run:
                profiler = Profiler({"": model}, {"": optimizer}, run, Profile(windows=at([1, 2])))
                train(model, optimizer, loader, profiler)
                profiler.close()
            (session,) = reading.sessions(path)
            assert session.phases["count"].sum() == 10
            assert session.phases["forward"].sum() > 0
            assert len(session.operators) == 1
        state = [value for each in optimizer.state.values() for value in each.values()]
        return [*net.state_dict().values(), *state, torch.get_rng_state()]

    plain, profiled = trained(None), trained(tmp_path / "run")
    torch._dynamo.reset()
    assert len(plain) == len(profiled)
    assert all(torch.equal(a, b) for a, b in zip(plain, profiled, strict=True))
