"""State in unusual places is found and restored, and odd objects on the way do not end the training."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.verify.reachable import is_of_batch
from loopwise.compile.verify.sandbox import Sandbox
from loopwise.errors import StateError

CAPTURED = Plan(graph="captured")
LISTS = [[[row, column] for column in range(15)] for row in range(9)]
CE = nn.functional.cross_entropy


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def data(size=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 8, generator=generator), torch.arange(size) % 4


def train(loss, steps=10, batch=None, model=None):
    model = model or network()
    step = TrainStep(model, loss, torch.optim.AdamW(model.parameters(), 0.01), plan=CAPTURED)
    for _ in range(steps):
        step(batch or data())
    return step


@dataclass(slots=True)
class Slots:
    count: int
    total: torch.Tensor


@dataclass(slots=True, frozen=True)
class Frozen:
    inner: Slots


class Counted:
    def __init__(self):
        self.state = Frozen(Slots(0, torch.zeros(1)))

    def __call__(self, output, target):
        self.state.inner.count += 1
        self.state.inner.total.add_(1)
        return CE(output, target)


def test_attributes_in_slots_are_restored():
    loss = Counted()
    train(loss)
    assert loss.state.inner.count == 10
    assert loss.state.inner.total.item() == 10


def test_a_new_attribute_in_slots_is_taken_back():
    class Late:
        __slots__ = ("__weakref__", "seen")

    class Lately:
        def __init__(self):
            self.late = Late()

        def __call__(self, output, target):
            self.late.seen = len(output)
            return CE(output, target)

    loss, model = Lately(), network()
    spec = TrainStep(model, loss, torch.optim.SGD(model.parameters(), 0.1)).spec
    Sandbox(spec, data()).observe(spec.eager)
    assert not hasattr(loss.late, "seen")


class Making(nn.Module):
    """Loss that makes something at its first call and uses it at each."""

    def __init__(self, make, use):
        super().__init__()
        self.make, self.use, self.made, self.used = make, use, None, []

    def forward(self, output, target):
        if self.made is None:
            self.made = self.make()
        self.used.append(self.use(self.made))
        return CE(output, target)


def test_an_iterator_that_the_first_pass_makes_is_not_advanced_by_trials():
    loss = Making(lambda: iter(list(range(100))), next)
    step = train(loss)
    assert loss.used == list(range(10))
    assert "would advance" in str(step.explain())


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the trial pass opens the file as well
def test_a_file_that_the_first_pass_opens_gets_a_line_for_each_step(tmp_path):
    loss = Making(lambda: open(tmp_path / "log", "w"), lambda file: file.write("a line\n"))  # noqa: SIM115
    step = train(loss)
    loss.made.close()
    assert len((tmp_path / "log").read_text().splitlines()) == 10
    assert "would write" in str(step.explain())


def test_an_iterator_that_came_later_is_not_advanced_by_a_comparison():
    class Later(nn.Module):
        items = None

        def forward(self, output, target):
            if self.items is not None:
                next(self.items)
            return CE(output, target)

    loss = Later()
    step = train(loss, steps=2)
    loss.items = items = iter(list(range(100)))
    with pytest.raises(StateError, match="would advance"):
        step.verify(data())
    assert next(items) == 0


def test_a_step_that_stays_eager_has_no_difference_and_leaves_no_trace():
    loss = Making(lambda: None, lambda _: next(loss.items))
    loss.items = iter(list(range(100)))
    step = train(loss, steps=3)
    assert step.verify(data()) is None
    assert next(loss.items) == 3


def test_the_optimizer_is_found_behind_many_objects(monkeypatch):
    """Its state was left out once the model, the loss and the batch led to more objects than the walk takes."""
    monkeypatch.setattr("loopwise.compile.verify.traversal.MOST_OBJECTS", 200)

    def loss(model, batch):
        return CE(model(batch[0]), batch[1]) * len(LISTS) / 9

    step = train(loss, steps=2)
    state = step.spec.optimizer.state[step.spec.model[0].weight]
    before = {name: value.clone() for name, value in state.items()}
    assert step.verify(data(), steps=2) is None
    assert all(torch.equal(before[name], state[name]) for name in before)


def test_a_variable_named_like_the_batch_is_none_of_its_places():
    batch_count = [0]

    def loss(model, batch):
        batch_count[0] += 1
        return CE(model(batch[0]), batch[1])

    model = network()
    sandbox = Sandbox(TrainStep(model, loss, torch.optim.SGD(model.parameters(), 0.1)).spec, data())
    sandbox.observe(sandbox.spec.eager)
    changed = [place for place in sandbox.reachable.places if place.name in sandbox.changing]
    assert changed
    assert not any(map(is_of_batch, changed))


def test_tensors_of_inference_mode_are_no_obstacle():
    """Models that keep their latest output have such tensors after a validation before the training."""
    model = network()
    with torch.inference_mode():
        model.latest = model(data()[0])
    assert train(CE, model=model, steps=2).plan.graph == "captured"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_in_a_batch_are_no_obstacle(layout):
    def loss(model, batch):
        values = batch[0].values() if layout is torch.jagged else batch[0].to_padded_tensor(0.0).flatten(0, 1)
        return model(values).square().mean()

    parts = [torch.ones(2, 8), torch.ones(3, 8)]
    step = train(loss, steps=3, batch=[torch.nested.nested_tensor(parts, layout=layout)])
    assert step.plan.graph in ("captured", "eager")


def test_proxies_of_objects_that_are_not_there_are_passed_over():
    class Proxy:
        @property
        def __dict__(self):
            raise RuntimeError("unbound")

    model = network()
    model.proxy = Proxy()
    assert train(CE, model=model, steps=2).plan.graph == "captured"


def test_state_that_is_saved_again_is_that_of_the_latest_batch():
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    step = TrainStep(model, CE, torch.optim.SGD(model.parameters(), 0.1), plan=CAPTURED)
    for _ in range(3):
        step(data())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    undo = step._forward_pass._undo
    undo.take(data())
    model(data()[0])
    undo.restore()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model[1].running_mean = torch.ones(16)  # another tensor
    model[1].running_var.data = torch.full((16,), 2.0)  # other data of the same tensor
    undo.take(data())
    model(data()[0])
    undo.restore()
    assert model[1].running_var.tolist() == [2.0] * 16
    assert model[1].running_mean.tolist() == [1.0] * 16
