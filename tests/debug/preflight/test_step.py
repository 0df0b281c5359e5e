"""Check of the user's own training step by ``preflight(step=)``."""

import copy
import functools

import pytest
import torch
from torch import nn

from loopwise.debug import preflight
from loopwise.errors import InputError

F = nn.functional
BATCH = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
CALLS = 0


def model(norm=False):
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(32) if norm else nn.Dropout(0.1)
    return nn.Sequential(nn.Linear(8, 32), middle, nn.ReLU(), nn.Linear(32, 3))


def adam(of):
    return torch.optim.AdamW(of.parameters(), lr=1e-2)


def report(step, of=None, optimizer=None, **more):
    of = of or model()
    return preflight(of, BATCH, nn.CrossEntropyLoss(), optimizer or adam(of), step=step, **more)


def of_loop(found):
    return next(result for result in found.results if result.name == "loop")


def usual(model, batch, optimizer):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    return loss


# -- faults -----------------------------------------------------------------------------------------


def no_zero_grad(model, batch, optimizer):
    loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    return loss


def no_update(model, batch, optimizer):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    return loss


def no_backward(model, batch, optimizer):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(batch[0]), batch[1])
    optimizer.step()
    return loss


def zero_grad_after_backward(model, batch, optimizer):
    loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()


def ends_in_evaluation(model, batch, optimizer):
    usual(model, batch, optimizer)
    model.eval()
    with torch.no_grad():
        return float(F.cross_entropy(model(batch[0]), batch[1]))


def norm_in_evaluation(model, batch, optimizer):
    model[1].eval()
    return usual(model, batch, optimizer)


def accumulated_whole(model, batch, optimizer):
    optimizer.zero_grad()
    for part in range(4):
        loss = F.cross_entropy(model(batch[0][part::4]), batch[1][part::4])
        loss.backward()
    optimizer.step()
    return loss


def clipped_before_unscaling():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)

    def step(model, batch, optimizer):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        scaler.scale(loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


@pytest.mark.parametrize(
    ("step", "rule"),
    [
        (no_zero_grad, "gradient_not_zeroed"),
        (no_update, "missing_update"),
        (no_backward, "detached_loss"),
        (zero_grad_after_backward, "detached_loss"),
        (ends_in_evaluation, "wrong_mode"),
        (norm_in_evaluation, "frozen_batchnorm"),
        (accumulated_whole, "accumulation_not_divided"),
        (clipped_before_unscaling(), "clipping_order"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_fault_of_the_loop_is_named(step, rule):
    found = report(step, model(norm=step is norm_in_evaluation))
    assert rule in {finding.rule for finding in of_loop(found).findings}
    assert [f.rule for f in report(usual).findings] == []


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_schedule_that_is_stepped_first_is_named():
    of = model()
    optimizer = adam(of)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def step(model, batch, optimizer):
        schedule.step()
        return usual(model, batch, optimizer)

    assert [f.rule for f in of_loop(report(step, of, optimizer)).findings] == ["scheduler_order"]


def test_a_step_that_raises_is_reported():
    def step(model, batch, optimizer):
        raise KeyError("labels")

    (finding,) = of_loop(report(step)).findings
    assert finding.rule == "step_fails"
    assert "call 0 of the step on the same batch raises KeyError('labels')" in finding.what


def test_a_fault_of_the_model_is_not_reported_twice():
    frozen = model().requires_grad_(False)
    frozen[-1].requires_grad_(True)
    found = report(no_backward, frozen, torch.optim.SGD(frozen[0].parameters(), lr=0.1))
    rules = [finding.rule for finding in found.findings]
    assert len(rules) == len(set(rules))


# -- loops without a fault --------------------------------------------------------------------------


def accumulating():
    count = 0

    def step(model, batch, optimizer):
        nonlocal count
        (F.cross_entropy(model(batch[0]), batch[1]) / 4).backward()
        count += 1
        if count % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()

    return step


def logged(step):
    @functools.wraps(step)
    def run(*args):
        return step(*args)

    return run


def mixed(model, batch, optimizer, *, limit=1.0):
    optimizer.zero_grad(set_to_none=False)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), limit)
    optimizer.step()
    return {"loss": loss.item()}


def evaluating(model, batch, optimizer):
    usual(model, batch, optimizer)
    model.eval()
    with torch.no_grad():
        model(batch[0])
    model.train()


@pytest.mark.parametrize(
    "step",
    [usual, accumulating(), mixed, functools.partial(mixed, limit=0.5), evaluating],
    ids=["usual", "accumulating", "mixed", "partial", "evaluating"],
)
def test_a_loop_without_a_fault_passes(step):
    found = report(step)
    assert found.findings == []
    assert of_loop(found).outcome == "passed", found


def test_an_optimizer_that_calls_a_closure_is_left_out():
    of = model()
    optimizer = torch.optim.LBFGS(of.parameters())
    assert of_loop(report(usual, of, optimizer)).outcome == "left out"


# -- nothing is changed -----------------------------------------------------------------------------


class Loop:
    """Training step of a class, with a schedule, a scaler and counters."""

    def __init__(self, optimizer, schedule):
        self.calls, self.schedules = 0, {"rate": [schedule]}
        self.scaler = torch.amp.GradScaler("cpu", growth_interval=2)
        self.average = torch.optim.swa_utils.AveragedModel(model())

    def __call__(self, model, batch, optimizer):
        global CALLS
        CALLS += 1
        self.calls += 1
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update()
        self.schedules["rate"][0].step()
        self.average.update_parameters(model)
        return loss


def plateau(optimizer):
    chained = [torch.optim.lr_scheduler.StepLR(optimizer, 1), torch.optim.lr_scheduler.ConstantLR(optimizer)]
    return torch.optim.lr_scheduler.SequentialLR(optimizer, chained, milestones=[2])


@pytest.mark.parametrize("make", [lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.01, 50), plateau])
@pytest.mark.parametrize("decorated", [False, True])
def test_what_the_step_holds_is_as_before(make, decorated):
    of = model()
    optimizer = adam(of)
    schedule = make(optimizer)
    loop = Loop(optimizer, schedule)
    usual(of, BATCH, optimizer)
    schedule.step()

    def state():
        parts = schedule, loop.scaler, loop.average, optimizer, of
        return copy.deepcopy([part.state_dict() for part in parts]), loop.calls, CALLS, torch.get_rng_state()

    before, grads = state(), [p.grad for p in of.parameters()]
    attributes = [set(vars(each)) for each in (of, optimizer)]
    found = report(logged(loop.__call__) if decorated else loop, of, optimizer)
    assert of_loop(found).outcome == "passed", found
    assert str(state()) == str(before)
    assert all(a is b for a, b in zip(grads, (p.grad for p in of.parameters()), strict=True))
    assert [set(vars(each)) for each in (of, optimizer)] == attributes
    assert schedule.optimizer is optimizer


# -- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["model", "optimizer", "gradients"])
def test_the_original_model_and_optimizer_are_refused(what):
    of = model()
    original = adam(of)

    def step(model, batch, optimizer):
        if what == "gradients":
            original.zero_grad()
        loss = F.cross_entropy((of if what == "model" else model)(batch[0]), batch[1])
        loss.backward()
        (original if what == "optimizer" else optimizer).step()

    before = copy.deepcopy(of.state_dict())
    with pytest.raises(InputError, match=f"of the original {'model' if what == 'model' else 'optimizer'}"):
        report(step, of, original)
    assert str(of.state_dict()) == str(before)
    usual(of, BATCH, original)


@pytest.mark.parametrize(
    ("step", "said"),
    [(8, "step of type int"), (lambda batch: None, "wrap it"), (nn.Linear, "the class was passed")],
)
def test_a_wrong_step_is_refused(step, said):
    with pytest.raises(InputError, match=said):
        report(step)


def test_a_step_needs_an_optimizer():
    with pytest.raises(InputError, match="step= without an optimizer"):
        preflight(model(), BATCH, nn.CrossEntropyLoss(), step=usual)


def test_state_that_cannot_be_copied_is_refused():
    class Held:
        def state_dict(self):
            return {"lock": __import__("threading").Lock()}

        def load_state_dict(self, state):
            pass

    held, of = Held(), model()
    optimizer = adam(of)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def step(model, batch, optimizer):
        schedule.step()
        held.state_dict()

    with pytest.raises(InputError, match="Held whose state cannot be copied"):
        report(step, of, optimizer)
    assert schedule.optimizer is optimizer


def test_other_models_and_wrappers_that_the_step_holds_are_as_before():
    of, critic = model(), nn.Linear(3, 1)
    original, other = adam(of), adam(critic)
    wrapper = nn.Sequential(of)

    def step(model, batch, optimizer):
        assert len(wrapper) == 1
        loss = usual(model, batch, optimizer)
        other.zero_grad()
        critic(model(batch[0]).detach()).mean().backward()
        other.step()
        return loss

    before = str([critic.state_dict(), other.state_dict(), of.state_dict()])
    assert of_loop(report(step, of, original)).outcome == "passed"
    assert str([critic.state_dict(), other.state_dict(), of.state_dict()]) == before
