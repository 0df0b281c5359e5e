"""Facts from the outputs of a batch and their gradient."""

import contextlib
import copy
import pickle

import pytest
import torch
from torch import nn

from benchmarks.zoo import Job
from benchmarks.zoo.job import accumulated
from loopwise.debug import Collection, Watch, every, open_run
from loopwise.debug.capture.health import Health
from loopwise.debug.signals.batch_outputs import Outputs

F = nn.functional


class Out(nn.Module):
    """Module that returns its input, in some form."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x, *more):
        return self.form(x)


def taken(x, loss, form=torch.clone):
    """Return ``spread``, ``varied`` and ``scale`` for the loss of a model that returns its input."""
    outputs = Outputs(contextlib.nullcontext)
    model = Out(form)
    outputs.attach({"": model})
    outputs.begin()
    loss(model(x)).backward()
    found = outputs.take()
    outputs.close()
    assert not model._forward_hooks
    names, values = found
    assert names == ("samples/model",)
    return values[0].tolist()


def logits(*shape, dtype=torch.float32):
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return made.requires_grad_()


CLASSES = torch.arange(40) % 7
IGNORED = CLASSES.clone().index_fill_(0, torch.arange(30), -100)
GRID = (torch.arange(40 * 6) % 7).view(40, 6)


@pytest.mark.parametrize(
    ("shape", "loss", "scale"),
    [
        ((40, 7), lambda y: F.cross_entropy(y, CLASSES), 1.0),
        ((40, 7), lambda y: F.cross_entropy(y, CLASSES) / 4, 0.25),
        ((40, 7), lambda y: F.cross_entropy(y, CLASSES, reduction="sum"), 40.0),
        ((40, 7), lambda y: F.cross_entropy(y, IGNORED), 1.0),
        ((40, 7, 6), lambda y: F.cross_entropy(y, GRID), 1.0),
        ((40, 6, 7), lambda y: F.cross_entropy(y.flatten(0, 1), GRID.flatten()), 1.0),
        ((40, 6, 7), lambda y: F.cross_entropy(y.transpose(1, 2), GRID) / 8, 0.125),
        ((40, 7), lambda y: F.nll_loss(y.log_softmax(1), CLASSES) * 1024, 1024.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factor_of_a_cross_entropy(shape, loss, scale, dtype):
    found = taken(logits(*shape, dtype=dtype), loss)[2]
    assert found == pytest.approx(scale, rel=1e-4 if dtype is torch.float32 else 0.02)


@pytest.mark.parametrize(
    "loss",
    [
        lambda y: F.cross_entropy(y, CLASSES, label_smoothing=0.1),
        lambda y: F.mse_loss(y, torch.zeros_like(y)),
        lambda y: F.binary_cross_entropy_with_logits(y, F.one_hot(CLASSES, 7).float()),
        lambda y: F.cross_entropy(y, CLASSES) + 0.1 * y.square().mean(),
        lambda y: y.sum(),
    ],
)
def test_other_losses_tell_nothing(loss):
    assert torch.tensor(taken(logits(40, 7), loss)[2]).isnan()


@pytest.mark.parametrize(
    ("form", "alike"),
    [
        (lambda x: x.mean(0).expand_as(x), True),
        (lambda x: 0 * x, True),
        (lambda x: x.mean(0) + 1e-3 * x, False),
        (lambda x: 1e-6 * x, False),
        (lambda x: {"logits": x, "loss": x.mean()}["logits"], False),
    ],
)
def test_spread_of_outputs(form, alike):
    spread, varied, *_ = taken(logits(40, 7), lambda y: y.sum(), form)
    assert (spread <= 4) == alike
    assert varied == 1


def test_inputs_that_are_the_same():
    _, varied, *_ = taken(torch.ones(8, 3, requires_grad=True), lambda y: y.sum())
    assert varied == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_the_model_are_left_alone(copied):
    """Copies are made for averages of weights, for instance."""
    outputs, model = Outputs(contextlib.nullcontext), nn.Linear(3, 2)
    outputs.attach({"": model})
    again = copied(model)
    outputs.begin()
    again(torch.randn(8, 3))
    assert outputs.take() is None
    outputs.begin()
    model(torch.randn(8, 3))
    assert outputs.take() is not None
    del outputs
    model(torch.randn(8, 3))  # whose watch is gone


def test_a_batch_of_one_tells_nothing(tmp_path):
    net = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, run=tmp_path / "run", save=every(1)) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(1, 4)).square().sum().backward()
            optimizer.step()
            watch.step()
    assert not [name for name in open_run(tmp_path / "run").names() if name.startswith("samples/")]
    assert not net._forward_hooks


def test_accumulation_with_losses_that_are_divided_or_only_two(tmp_path):
    for count, divided in ((4, True), (2, False)):
        job = Job("mlp", 1)
        accumulated(job, count, divided)
        assert job.run(str(tmp_path / f"run{count}")).findings == []


def test_gradients_that_are_set_to_zero_after_the_update(tmp_path):
    job = Job("mlp", 0)
    accumulated(job, 4, divided=False)
    update = job.update

    def both(optimizer, step):
        update(optimizer, step)
        if step % 4 == 3:
            optimizer.zero_grad()

    job.before_backward, job.update = lambda optimizer, step: None, both
    assert "accumulation_not_divided" in {f.rule for f in job.run(str(tmp_path / "run")).findings}


def test_fine_tuning_with_batch_norm_frozen_on_purpose(tmp_path):
    """The running statistics were learnt before."""
    job = Job("cnn", 0)
    for module in job.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()

    def set_mode(model, training):
        model.train(training)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    job.set_mode = set_mode
    assert "frozen_batchnorm" not in {f.rule for f in job.run(str(tmp_path / "run")).findings}


def test_unscaled_before_clipping(tmp_path):
    job = Job("mlp", 0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    job.backward = lambda loss, step: scaler.scale(loss).backward()

    def update(optimizer, step):
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(job.model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()

    job.update = update
    assert job.run(str(tmp_path / "run")).findings == []


class Counted:
    """Return the number of inspections of a model."""

    def __init__(self, monkeypatch):
        self.count, original = 0, Outputs.called

        def called(outputs, *args):
            self.count += 1
            original(outputs, *args)

        monkeypatch.setattr(Outputs, "called", called)


def test_only_steps_that_are_saved_are_looked_at(tmp_path, monkeypatch):
    looks, net = Counted(monkeypatch), nn.Linear(4, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    kept = [Collection("losses", save=every(1)), Collection("health", save=every(4))]
    with Watch(net, optimizer, run=tmp_path / "run", collections=kept) as watch:
        for _ in range(9):
            optimizer.zero_grad()
            loss = net(torch.randn(8, 4)).square().mean()
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
        assert looks.count == 3
        with watch.mode("eval"):
            net(torch.randn(8, 4))
            watch.step()
    net(torch.randn(8, 4))
    assert looks.count == 3


def test_steps_that_are_not_saved_are_not_inspected(monkeypatch):
    looks, net = Counted(monkeypatch), nn.Linear(4, 3)
    health = Health({"": net}, {}, Collection("health"), lambda _: None)
    net(torch.randn(8, 4))
    assert looks.count == 0
    health.close()


def test_places_are_those_of_float32():
    """A last place of bfloat16 is 0.8 %."""
    different = 0.02 * (torch.arange(40) // 20)[:, None]
    assert taken(logits(40, 7), lambda y: y.sum(), lambda x: (0 * x + 1 + different).bfloat16())[0] > 1000


def test_a_large_vocabulary(monkeypatch):
    monkeypatch.setattr("loopwise.debug.signals.batch_outputs.MOST", 7 * 4 * 3)
    found = taken(logits(40, 6, 7), lambda y: F.cross_entropy(y.flatten(0, 1), GRID.flatten()) / 2)[2]
    assert found == pytest.approx(0.5, rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_model_of_torchscript_is_not_seen():
    net, outputs = torch.jit.trace(nn.Linear(4, 3), torch.randn(8, 4)), Outputs(contextlib.nullcontext)
    outputs.attach({"": net})
    outputs.begin()
    net(torch.randn(8, 4))
    outputs.close()


def test_a_model_that_is_compiled_in_place():
    net = nn.Linear(4, 7)
    outputs = Outputs(contextlib.nullcontext)
    outputs.attach({"": net})
    net.compile(backend="aot_eager")
    outputs.begin()
    F.cross_entropy(net(torch.randn(40, 4)), CLASSES).backward()
    (_, values) = outputs.take()
    outputs.close()
    assert values[0, 2].item() == pytest.approx(1.0, rel=1e-4)
