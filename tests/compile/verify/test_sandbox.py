"""Trial passes leave no trace in anything that they can reach."""

import collections
import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.verify.reference import reference
from loopwise.compile.verify.sandbox import Sandbox

CE = nn.CrossEntropyLoss()
COUNTED = 0
CAPTURED = Plan(graph="captured")


def data(size=16):
    torch.manual_seed(1)
    return torch.rand(size, 8), torch.arange(size) % 5


class Head(nn.Module):
    """Loss with weights, a buffer and a counter, as ArcFace has."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 16) * 0.1)
        self.register_buffer("mean", torch.zeros(16))
        self.calls = 0

    def forward(self, z, y):
        self.calls += 1
        with torch.no_grad():
            self.mean.lerp_(z.mean(0), 0.1)
        return nn.functional.cross_entropy(z @ self.weight.T, y)


class Stateful(nn.Module):
    """Model that carries its hidden state from batch to batch and keeps much else."""

    total = 0

    def __init__(self):
        super().__init__()
        self.cell, self.out, self.hidden = nn.GRUCell(8, 16), nn.Linear(16, 16), None
        self.seen, self.history, self.named = 0, [], {"loss": None}
        self.recent, self.kinds = collections.deque(maxlen=3), set()
        self.array, self.own = np.zeros(3), torch.Generator().manual_seed(3)
        self.python, self.numpy = random.Random(0), np.random.default_rng(0)

    def forward(self, x):
        global COUNTED
        COUNTED += 1
        x.sub_(0.5)
        type(self).total += 1
        self.hidden = self.cell(x, None if self.hidden is None else self.hidden.detach())
        self.seen += len(x)
        self.history.append(self.seen)
        self.recent.append(self.seen)
        self.kinds.add(self.seen)
        self.named["loss"] = self.hidden.detach().mean()
        self.array += 1
        noise = torch.rand(1, generator=self.own).item() + self.python.random() + self.numpy.random()
        return self.out(self.hidden) + noise


def snapshot(net, head, batch):
    own = {
        "total": Stateful.total,
        "counted": COUNTED,
        "calls": head.calls,
        "seen": net.seen,
        "h": net.hidden,
    }
    own |= {"history": list(net.history), "recent": list(net.recent), "kinds": set(net.kinds)}
    own |= {"named": dict(net.named), "array": net.array.tolist(), "own": net.own.get_state().tolist()}
    own |= {"python": net.python.getstate(), "numpy": str(net.numpy.bit_generator.state)}
    tensors = [*net.parameters(), *head.parameters(), *head.buffers(), *batch]
    return own, [t.detach().clone() for t in tensors], [t.grad for t in tensors], torch.get_rng_state()


def equal(one, other):
    return one[0] == other[0] and all(map(torch.equal, one[1], other[1])) and one[2] == other[2]


def test_a_pass_leaves_nothing_and_the_step_trains_as_eager():
    torch.manual_seed(0)
    net, head, batch = Stateful(), Head(), data()
    optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.5)
    step = TrainStep(net, head, optimizer, plan=CAPTURED)
    before = snapshot(net, head, batch)
    step.prepare(batch)
    after = snapshot(net, head, batch)
    assert equal(before, after)
    assert torch.equal(before[3], after[3])
    assert any("hidden" in name or name == "model" for name in step.changing)
    step(batch)
    assert (net.seen, head.calls, net.history, Stateful.total - before[0]["total"]) == (16, 1, [16], 1)


def test_gradients_of_the_loss_are_compared():
    torch.manual_seed(0)
    net, head = nn.Linear(8, 16), Head()
    spec = TrainStep(net, head, plan=CAPTURED).spec
    observed = Sandbox(spec, data()).observe(spec.eager)
    assert {"gradient/weight", "gradient/loss.weight", "state/loss.mean", "state/loss.calls"} <= set(observed)
    assert head.weight.grad is None


def test_an_optimizer_in_the_backward_pass_moves_nothing_in_trials():
    torch.manual_seed(0)
    net, calls = nn.Linear(8, 5), [0]
    optimizers = {p: torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in net.parameters()}

    def update(parameter):
        calls[0] += 1
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    before = [p.detach().clone() for p in net.parameters()]
    step = TrainStep(net, CE, plan=CAPTURED)
    step.prepare(data())
    assert all(map(torch.equal, before, net.parameters()))
    assert calls == [0]
    assert not any(optimizer.state for optimizer in optimizers.values())
    step.forward(data()).backward()
    assert calls == [2]


def test_a_batch_whose_labels_the_loss_pops_is_whole_again():
    net = nn.Linear(8, 5)

    def loss(model, batch):
        labels = batch.pop("labels")
        return CE(model(batch["x"]), labels)

    x, y = data()
    batch = {"x": x, "labels": y}
    step = TrainStep(net, loss, torch.optim.SGD(net.parameters(), lr=0.1), plan=CAPTURED)
    step.prepare(batch)
    assert list(batch) == ["x", "labels"]
    step(batch)
    assert list(batch) == ["x"]


def test_an_iterator_that_a_trial_would_advance_keeps_the_step_eager():
    net, noise = nn.Linear(8, 5), (torch.full((8,), float(n)) for n in itertools.count())

    def loss(model, batch):
        return CE(model(batch[0] + next(noise)), batch[1])

    step = TrainStep(net, loss, torch.optim.SGD(net.parameters(), lr=0.1), plan=CAPTURED)
    step(data())
    assert step.plan.graph == "eager"
    assert "noise" in str(step.explain())
    assert next(noise)[0] == 1  # the training batch took the first


def test_a_change_that_no_counter_of_versions_sees_is_found():
    net = nn.Linear(8, 5)
    net.register_parameter("scale", nn.Parameter(torch.ones(())))

    def loss(model, batch):
        model.scale.data.mul_(1.5)
        return CE(model(batch[0]) * model.scale, batch[1])

    step = TrainStep(net, loss, torch.optim.SGD(net.parameters(), lr=0.0), plan=CAPTURED)
    step.prepare(data())
    assert net.scale.item() == 1.0
    step(data())
    assert net.scale.item() == 1.5


@pytest.mark.parametrize("sparse", [True, False])
def test_sparse_and_complex_tensors_are_compared(sparse):
    torch.manual_seed(0)
    net = nn.Sequential(nn.EmbeddingBag(50, 16, sparse=sparse), nn.Linear(16, 5))
    net.register_parameter("w", nn.Parameter(torch.randn(5, dtype=torch.cfloat)))

    def loss(model, batch):
        return CE((model(batch[0]) * model.w).abs(), batch[1])

    batch = (torch.randint(0, 50, (8, 4)), torch.arange(8) % 5)
    step = TrainStep(net, loss, torch.optim.SGD(net.parameters(), lr=0.1), plan=CAPTURED)
    step(batch)
    assert step.plan.graph == "captured"


def test_a_loss_that_writes_a_file_keeps_the_step_eager(tmp_path):
    net = nn.Linear(8, 5)
    with open(tmp_path / "losses.txt", "w") as file:

        def loss(model, batch):
            value = CE(model(batch[0]), batch[1])
            file.write(f"{value.item()}\n")
            return value

        step = TrainStep(net, loss, torch.optim.SGD(net.parameters(), lr=0.1), plan=CAPTURED)
        step(data())
        step(data())
    assert "losses.txt" in str(step.explain()) or "file in" in str(step.explain())
    assert len((tmp_path / "losses.txt").read_text().splitlines()) == 2


def test_state_that_is_younger_than_the_first_pass_is_restored_by_later_comparisons():
    """The momentum of an optimizer in the backward pass comes into being with the first update."""
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = nn.Linear(8, 5)
        own = {p: torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in net.parameters()}

        def update(parameter, own=own):
            own[parameter].step()
            own[parameter].zero_grad()

        for parameter in net.parameters():
            parameter.register_post_accumulate_grad_hook(update)
        step = TrainStep(net, CE, plan=CAPTURED)
        for _ in range(11):
            x, y = data()
            (step.forward((x, y)) if compiled else CE(net(x), y)).backward()
        results.append([p.detach() for p in net.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one)


def test_the_step_in_float64_keeps_the_nodes_that_accumulate_gradients():
    """DDP's hooks are on these nodes: after a comparison in float64, no gradient was averaged any more."""
    net, calls = nn.Linear(8, 5), []
    nodes = [p.expand_as(p).grad_fn.next_functions[0][0] for p in net.parameters()]
    for node in nodes:
        node.register_hook(lambda *gradients: calls.append(1))
    spec = TrainStep(net, CE, plan=CAPTURED).spec
    expected = reference(Sandbox(spec, data()))
    expected.run_float64()
    assert expected.float64 is not None
    calls.clear()
    CE(net(data()[0]), data()[1]).backward()
    assert calls == [1, 1]


class Calls:
    """Counter in a class that only the loss function names."""

    count = 0


def counted_by_class(model, batch):
    Calls.count += 1
    return CE(model(batch[0]), batch[1])


def test_a_counter_in_a_class_that_a_function_names_is_restored():
    Calls.count = 0
    net = nn.Linear(8, 5)
    step = TrainStep(net, counted_by_class, torch.optim.SGD(net.parameters(), lr=0.1), plan=CAPTURED)
    step.prepare(data())
    assert Calls.count == 0
    step(data())
    assert Calls.count == 1
