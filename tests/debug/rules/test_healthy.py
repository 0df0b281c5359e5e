"""Healthy trainings without findings, failures of the rules themselves, and names that resemble others."""

import warnings

import pytest
import torch
from torch import nn

from loopwise.debug import Watch, every, open_run
from loopwise.debug.signals.loss_graph import of_loss
from loopwise.debug.store import checksum
from loopwise.debug.store.columns import kind_of
from loopwise.errors import InputError
from loopwise.warnings import LoopwiseWarning

F = nn.functional


def drained(watch):
    import threading

    done = threading.Event()
    watch._writer._jobs.put(done.set)
    assert done.wait(600)


def run(path, models, optimizers, step, steps=12, **options):
    with Watch(models, optimizers, run=path, save=every(1), **options) as watch:
        for number in range(steps):
            watch.step(**(step(number) or {}))
    assert watch.counts["saved"] == steps
    assert not watch.counts["failed"]
    return watch.findings


def test_sparse_gradients(tmp_path):
    net = nn.Embedding(1000, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(net.parameters())

    def step(_):
        optimizer.zero_grad()
        net(torch.randint(1000, (8,))).square().sum().backward()
        optimizer.step()

    assert run(tmp_path / "run", net, optimizer, step) == []


def test_a_model_that_is_frozen_after_its_update(tmp_path):
    """A critic is frozen while the generator learns."""
    critic, generator = nn.Linear(4, 1), nn.Linear(2, 4)
    both = {"critic": critic, "generator": generator}
    optimizers = {name: torch.optim.SGD(net.parameters(), lr=1e-3) for name, net in both.items()}

    def step(_):
        critic.requires_grad_(True)
        optimizers["critic"].zero_grad()
        critic(generator(torch.randn(8, 2)).detach()).mean().backward()
        optimizers["critic"].step()
        critic.requires_grad_(False)
        optimizers["generator"].zero_grad()
        critic(generator(torch.randn(8, 2))).mean().backward()
        optimizers["generator"].step()

    assert run(tmp_path / "run", both, optimizers, step) == []


def test_a_teacher_in_evaluation_mode_and_an_average_of_weights(tmp_path):
    student, teacher = (
        nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)),
        nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)),
    )
    student.average = torch.optim.swa_utils.AveragedModel(nn.Linear(4, 4))
    del student.average.module.bias
    student.forward = lambda x: student[1](student[0](x))
    teacher.eval()
    optimizer = torch.optim.SGD(student[0].parameters(), lr=1e-2)

    def step(_):
        optimizer.zero_grad()
        x = torch.randn(8, 4)
        with torch.no_grad():
            wanted = teacher(x)
        F.mse_loss(student.forward(x), wanted).backward()
        optimizer.step()

    assert run(tmp_path / "run", {"student": student, "teacher": teacher}, optimizer, step) == []


def test_a_failure_switches_health_off_and_loses_no_step(tmp_path, monkeypatch):
    net = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    monkeypatch.setattr("loopwise.debug.signals.modules.frozen_norms", lambda *_: 1 / 0)
    with (
        pytest.warns(LoopwiseWarning, match="'health'") as said,
        Watch(net, optimizer, run=tmp_path / "run", save=every(1)) as watch,
    ):
        for number in range(4):
            net(torch.randn(6, 4)).sum().backward()
            optimizer.step()
            watch.step(loss=number)
    assert ["ZeroDivisionError" in str(warning.message) for warning in said] == [True, False]
    assert [open_run(tmp_path / "run").value("loss", step) for step in range(4)] == [0, 1, 2, 3]


def test_a_fault_is_found_while_gradients_accumulate(tmp_path):
    """Some saved steps have outputs and others have gradients."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Linear(3, 3))
    nn.init.constant_(net[0].bias, -100.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with Watch(net, optimizer, run=tmp_path / "run", save=every(6)) as watch:
        for number in range(48):
            F.cross_entropy(net(torch.randn(6, 4)), torch.arange(6) % 3).backward()
            if number % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
            watch.step()
    assert {"unchanged_tensor", "dead_relu"} <= {finding.rule for finding in watch.findings}


def test_findings_are_told_at_the_next_step_even_if_it_is_not_saved(tmp_path):
    net = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    told = []
    with Watch(
        net, optimizer, run=tmp_path / "run", save=every(100), on_finding=told.append, trap=False
    ) as watch:
        net(torch.full((6, 4), float("nan"))).sum().backward()
        optimizer.step()
        watch.step()
        drained(watch)
        watch.step()
        assert {finding.rule for finding in told} == {"exploding_tensor"}


def test_a_typo_creates_no_run(tmp_path):
    with pytest.raises(InputError, match="overfitt"):
        Watch(nn.Linear(1, 1), run=tmp_path / "run", rules=["overfitt"])
    assert not (tmp_path / "run").exists()


def test_repeated_findings_of_a_resumed_run_are_listed_once(tmp_path):
    from loopwise.run import Run

    for resume in (False, True):
        with Run(str(tmp_path / "run"), resume=resume) as folder:
            with Watch(
                nn.Linear(2, 2), run=folder, save=every(1), rules=["exploding_tensor"], trap=False
            ) as watch:
                watch.step(loss=float("nan"))
            assert len(watch.findings) == 1
    assert len(open_run(tmp_path / "run").findings()) == 1


LOG = torch.randn(6, 3, requires_grad=True)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: F.nll_loss(LOG.log_softmax(1)[torch.tensor([0, 2])], torch.tensor([0, 1])), {"classes"}),
        (lambda: F.nll_loss(LOG.log_softmax(1).t().contiguous().t(), torch.arange(6) % 3), {"classes"}),
        (lambda: F.nll_loss(F.logsigmoid(LOG), torch.arange(6) % 3), set()),
        (lambda: F.nll_loss(LOG.softmax(1).log(), torch.arange(6) % 3), set()),
        (lambda: F.nll_loss(nn.Linear(3, 3)(LOG), torch.arange(6) % 3), {"loss_input"}),
        (lambda: F.nll_loss(LOG.softmax(1), torch.arange(6) % 3), {"loss_input"}),
        (lambda: F.cross_entropy(LOG.log_softmax(1), torch.arange(6) % 3), {"classes"}),
        (lambda: F.cross_entropy(LOG.sigmoid(), torch.arange(6) % 3), {"classes", "loss_input"}),
        (lambda: F.cross_entropy(LOG, torch.arange(6) % 3, label_smoothing=0.1) / 4, {"classes"}),
        (lambda: 10 * F.cross_entropy(LOG, torch.arange(6) % 3), set()),
        (lambda: F.mse_loss(LOG, torch.zeros(6, 3)), set()),
        (lambda: LOG.sum(), set()),
    ],
)
def test_operations_of_a_loss(make, found):
    assert set(of_loss(make())) == found


def test_names():
    assert kind_of("0.output.0") == ("output", "0")
    assert kind_of("input.0") == ("input", "")
    assert kind_of("fc#1.output.0") == ("output", "fc#1")
    assert kind_of("decoder.output.logits") == ("output", "decoder")
    assert kind_of("gradient/a.weight") == ("gradient", "a.weight")
    assert kind_of("attention.output.dense.output.0") == ("output", "attention.output.dense")
    assert kind_of("a.weight") == ("weight", "a.weight")


def test_submodules_called_output_and_losses_with_a_slash(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.output = nn.Linear(4, 3)

        def forward(self, x):
            return self.output(x)

    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)

    def step(_):
        optimizer.zero_grad()
        net(torch.randn(6, 4)).square().sum().backward()
        optimizer.step()
        return {"train/loss": float("nan")}

    (finding,) = run(tmp_path / "run", net, optimizer, step, on_finding=lambda _: None, trap=False)
    assert (finding.rule, finding.tensors) == ("exploding_tensor", ("train/loss",))
    saved = open_run(tmp_path / "run")
    layout = saved._index.blocks[0][0].layout
    assert layout.cells("weight", ("mean",)).names == ("output.weight", "output.bias")


def test_a_failing_checksum_raises(monkeypatch):
    monkeypatch.setattr(checksum, "crc32", lambda chunk, before: 1 / 0)
    made = checksum.Checksum()
    answer = made.begin([bytes(checksum.LARGE)])
    with pytest.raises(ZeroDivisionError):
        answer()
    made.close()


@pytest.mark.parametrize(
    ("change", "classes"),
    [
        (lambda loss: loss, 3),
        (lambda loss: -loss, 3),
        (lambda loss: 10 * loss, None),
        (lambda loss: loss + 1, None),
    ],
)
def test_classes_are_known_of_a_whole_cross_entropy(change, classes):
    outputs = torch.randn(6, 3, requires_grad=True)
    loss = change(nn.functional.cross_entropy(outputs, torch.arange(6) % 3))
    assert of_loss(loss).get("classes") == classes


def test_a_scripted_model_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(torch.jit.script(nn.Linear(4, 3)))
    with pytest.raises(InputError, match="a model of TorchScript"):
        Watch(net, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
