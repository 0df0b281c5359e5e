"""Sifting beside ``CompilingCallback`` in Lightning: the losses of the compiled step reach the sifting loader."""

import warnings

import pytest
import torch
from sift_lightning_kit import Module as Counting
from sift_lightning_kit import fit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.compile import Plan, TrainStep
from loopwise.compile.lightning import CompilingCallback
from loopwise.errors import InputError
from loopwise.sift import SiftingDataLoader
from loopwise.sift.lightning import SiftingCallback

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:(lightning|torch)", "ignore::FutureWarning")

PLAN = Plan(graph="captured")


class Module(Counting):
    def training_step(self, batch, _):
        x, y = batch
        return self.criterion(self(x), y)


class Direct(Module):
    """Module whose training step calls the network itself."""

    def training_step(self, batch, _):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)


class Wrong(Module):
    """Module that trains on another loss than that of the loader."""

    def training_step(self, batch, _):
        x, y = batch
        return nn.functional.cross_entropy(-self(x), y)


def recorded():
    sifting = SiftingCallback()
    module = Module()
    module.criterion = sifting.criterion(module.criterion)
    return sifting, module


def direct():
    return SiftingCallback(nn.CrossEntropyLoss(reduction="none"), model=lambda module: module.net), Direct()


@pytest.mark.parametrize("made", [lambda: (SiftingCallback(), Module()), direct, recorded])
def test_the_selection_is_that_of_the_eager_step(tmp_path, monkeypatch, made):
    monkeypatch.setenv("LOOPWISE_CACHE", str(tmp_path / "cache"))
    reports, weights = [], []
    for compiling in (None, CompilingCallback(plan=PLAN)):
        torch._dynamo.reset()
        torch.manual_seed(0)
        sifting, module = made()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="loopwise.sift")
            fit(tmp_path, sifting, *([compiling] if compiling else []), module=module, epochs=6)
        report = sifting.loader.report()
        reports.append((report.seen, report.kept, report.dropped, report.scored))
        weights.append([parameter.detach() for parameter in module.parameters()])
    assert compiling.step.plan.graph == "captured"
    assert "captured anew" not in str(compiling.explain())
    assert reports[0] == reports[1]
    assert reports[0][2] > 0  # samples were left out ahead of loading
    assert reports[0][3] == 0  # none was scored by a pass of its own
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other)
    assert not [part for part in module.modules() if "forward" in vars(part)]


def test_another_loss_than_the_loaders_is_refused(tmp_path):
    with pytest.raises(InputError, match="a cosine of -"):
        fit(
            tmp_path,
            SiftingCallback(nn.CrossEntropyLoss(reduction="none")),
            CompilingCallback(plan=PLAN),
            module=Wrong(),
        )


def test_a_second_fit_goes_on(tmp_path):
    torch._dynamo.reset()
    sifting, compiling, module = SiftingCallback(), CompilingCallback(plan=PLAN), Module()
    for _ in range(2):
        fit(tmp_path, sifting, compiling, module=module, epochs=2)
        assert sifting.loader.report().scored == 0
    assert "captured anew" not in str(compiling.explain())


def test_a_later_fit_without_the_compiled_step_records_its_losses(tmp_path):
    torch._dynamo.reset()
    sifting, module = recorded()
    compiling = CompilingCallback(plan=PLAN)
    fit(tmp_path, sifting, compiling, module=module, epochs=2)
    before = sifting._recorder.recorded
    fit(tmp_path, sifting, module=module, epochs=2)
    assert sifting._recorder.recorded == before + 20


def test_a_recording_criterion_inside_of_a_compiled_step_is_refused():
    """The trials of the step run it eagerly, and record nothing."""
    torch._dynamo.reset()
    data = TensorDataset(torch.randn(80, 6), torch.arange(80) % 3)
    model = nn.Linear(6, 3)
    loader = SiftingDataLoader(DataLoader(data, 8, shuffle=True), model, loss=None)
    step = TrainStep(
        model,
        loader.criterion(nn.CrossEntropyLoss()),
        torch.optim.SGD(model.parameters(), 0.1),
        plan=PLAN,
    )
    with pytest.raises(InputError, match="the call is inside a compiled function"):
        for batch in loader:
            step(batch)
