"""Changes of the model after its step was captured are followed."""

import copy

import pytest
import torch
import torch._dynamo
from torch import nn
from torch.nn.utils import parametrizations

from loopwise.compile import Plan, TrainStep
from loopwise.warnings import LoopwiseWarning

CE = nn.CrossEntropyLoss()
CAPTURED = Plan(graph="captured")


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3)
    )


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 8, generator=generator), torch.arange(16) % 3) for _ in range(count)]


def tap(net, calls):
    net[1].register_forward_hook(lambda module, inputs, output: calls.append("tap"))


def damp(net, calls):
    def scaled(module, gradients, outputs):
        calls.append("damp")
        return tuple(None if g is None else 0.1 * g for g in gradients)

    net[3].register_full_backward_hook(scaled)


def mask(net, calls):
    net[0].weight.register_hook(lambda g: calls.append("mask") or g * (torch.arange(len(g)) < 8)[:, None])


def freeze(net, calls):
    net[0].requires_grad_(False)


def new_head(net, calls):
    torch.manual_seed(5)
    new = nn.Linear(16, 3)
    net[5].weight.data.copy_(new.weight.data)
    net[4] = nn.Tanh()


def parametrize(net, calls):
    parametrizations.weight_norm(net[3])


def evaluation(net, calls):
    net[2].eval()


def change_rate(net, calls):
    net[2].p = 0.6


CHANGES = [tap, damp, mask, freeze, new_head, parametrize, evaluation, change_rate]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo asks for it
@pytest.mark.parametrize("when", [0, 3])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_followed(change, when):
    results = []
    for compiled in (False, True):
        net, calls = network(), []
        optimizer = torch.optim.SGD(net.parameters(), 0.5)
        step = TrainStep(net, CE, optimizer, plan=CAPTURED) if compiled else None
        torch.manual_seed(3)
        for number, (x, y) in enumerate(batches(7)):
            if number == when:
                change(net, calls)
            if step is not None:
                step((x, y))
            else:
                optimizer.zero_grad()
                CE(net(x), y).backward()
                optimizer.step()
        results.append((calls, [p.detach() for p in net.parameters()]))
    assert results[0][0] == results[1][0]
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(other, one)


def test_a_hook_that_is_removed_is_called_no_more():
    net, calls = network(), []
    handle = net[1].register_forward_hook(lambda module, inputs, output: calls.append(1))
    step = TrainStep(net, CE, torch.optim.SGD(net.parameters(), 0.5), plan=CAPTURED)
    data = batches(4)
    step(data[0])
    step(data[1])
    handle.remove()
    step(data[2])
    assert calls == [1, 1]
    assert "hooks of the model came or went" in str(step.explain())


def test_a_hook_of_all_modules_is_called_while_it_is_there():
    net, calls = network(), []
    step, data = TrainStep(net, CE, torch.optim.SGD(net.parameters(), 0.5), plan=CAPTURED), batches(4)
    step(data[0])
    add = nn.modules.module.register_module_forward_hook
    handle = add(lambda module, *_: calls.append("all") if module is net[1] else None)
    try:
        step(data[1])
        step(data[2])
    finally:
        handle.remove()
    step(data[3])
    assert calls == ["all", "all"]
    assert step.plan == CAPTURED, step.explain()


class Counting(nn.Module):
    """Model whose arithmetic depends on a text that grows, which Dynamo takes for a constant."""

    def __init__(self):
        super().__init__()
        self.net, self.count = nn.Linear(8, 3), "1"

    def forward(self, x):
        self.count += "1"
        return self.net(x) * len(self.count)


@torch._dynamo.config.patch(recompile_limit=3)
def test_the_limit_of_recompilations_is_said_and_training_is_right():
    torch.manual_seed(0)
    plain, ours = Counting(), Counting()
    ours.load_state_dict(copy.deepcopy(plain.state_dict()))
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    step = TrainStep(ours, CE, torch.optim.SGD(ours.parameters(), 0.1), plan=CAPTURED)
    with pytest.warns(LoopwiseWarning, match="limit of recompilations is reached: .*count"):
        for x, y in batches(8):
            step((x, y))
            optimizer.zero_grad()
            CE(plain(x), y).backward()
            optimizer.step()
    assert ours.count == plain.count
    assert all(map(torch.equal, plain.parameters(), ours.parameters()))
    assert step.plan.graph == "eager"


def test_a_failure_of_the_compiled_pass_costs_nothing():
    net = network()[:2]
    step = TrainStep(net, CE, torch.optim.SGD(net.parameters(), 0.1), plan=CAPTURED)
    step(batches(1)[0])

    def failing(batch):
        net(batch[0])
        raise RuntimeError("a bug of the compiler")

    step._forward_pass.compute = failing
    with pytest.warns(LoopwiseWarning, match="the compiled pass failed: RuntimeError: a bug of the compiler"):
        step(batches(1)[0])
    assert step.plan.graph == "eager"


def test_an_error_of_the_users_is_raised_and_the_plan_stays():
    net = network()[:2]
    step = TrainStep(net, CE, torch.optim.SGD(net.parameters(), 0.1), plan=CAPTURED)
    step(batches(1)[0])
    with pytest.raises(RuntimeError, match="shape"):
        step((torch.randn(16, 7), torch.arange(16) % 3))
    step(batches(1)[0])
    assert step.plan == CAPTURED


def test_a_counter_in_the_model_is_captured_as_a_variable():
    """Dynamo compiled anew for each number, eight times, and gave up without a word."""

    class Warm(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.count = nn.Linear(8, 3), 0

        def forward(self, x):
            self.count += 1
            return self.net(x) * min(1.0, self.count / 100)

    net = Warm()
    step = TrainStep(net, CE, torch.optim.SGD(net.parameters(), 0.1), plan=CAPTURED)
    for batch in batches(12):
        step(batch)
    assert step.plan == CAPTURED
    assert net.count == 12
    assert step._forward_pass.log.graphs <= 3
