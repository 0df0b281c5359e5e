"""The trap in a training loop: one finding, the batch in a file, and training results that stay the same."""

import copy
import pickle

import pytest
import torch
from torch import nn

from loopwise.debug import Finding, Watch, every, open_run
from loopwise.debug.nan import Trap, load, replay
from loopwise.errors import InputError
from loopwise.run import Run
from loopwise.warnings import LoopwiseWarning


class Fragile(nn.Module):
    """Take a logarithm of one column of the input, which fails for negative values."""

    def forward(self, x):
        return torch.cat([torch.log(x[:, :1]), x[:, 1:]], 1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(Fragile(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))


def batches(count=6, bad=3, row=5):
    generator = torch.Generator().manual_seed(1)
    found = [(torch.rand(8, 4, generator=generator) + 0.1, torch.arange(8) % 3) for _ in range(count)]
    if bad is not None:
        found[bad][0][row, 0] = -1.0
    return found


def train(model, data, folder=None, forward=None, watch=None, optimizer=None, **options):
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    if folder is not None:
        watch = Watch(model, optimizer, run=f"{folder}/run", save=every(1), rules=False, **options)
    losses = []
    for x, y in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy((forward or model)(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if watch is not None:
            watch.step(loss=loss)
    if watch is not None:
        watch.close()
    return losses, watch


def only(watch):
    (found,) = watch.findings
    return found


def test_one_finding_names_the_operation(tmp_path):
    _, watch = train(network(), batches(), tmp_path)
    found = only(watch)
    assert (found.rule, found.severity, found.step, found.tensors) == ("non_finite", "critical", 3, ("0",))
    assert "log in 0 (Fragile) made 1 NaN of 8 values" in found.what
    assert "in samples 5" in found.what
    assert found.line.rpartition(":")[0].endswith("test_trap.py")
    assert "logarithm" in found.advice
    assert [step for step, _ in found.evidence["loss"]] == [0, 1, 2, 3]
    assert str(open_run(tmp_path / "run").findings()) == str(watch.findings)


@pytest.mark.parametrize("deferred", [False, True])
def test_training_is_the_same(tmp_path, deferred, monkeypatch):
    monkeypatch.setattr("loopwise.debug.nan.weights.WeightCopy.fits", lambda copy, device: deferred)
    bare, watched = network(), network()
    torch.manual_seed(2)
    losses, _ = train(bare, batches())
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again, watch = train(watched, batches(), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(torch.stack(again), torch.stack(losses), rtol=0, atol=0, equal_nan=True)
    for a, b in zip(bare.state_dict().values(), watched.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    found = only(watch)
    assert (found.step, found.tensors, "samples 5" in found.what) == (3, ("0",), True)
    assert not watched._forward_hooks
    assert not watched._forward_pre_hooks


def test_a_finding_of_the_last_step_is_told_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("loopwise.debug.nan.weights.WeightCopy.fits", lambda copy, device: True)
    _, watch = train(network(), batches(4), tmp_path)
    assert only(watch).step == 3


def test_trap_false_switches_it_off(tmp_path):
    model = network()
    _, watch = train(model, batches(), tmp_path, trap=False)
    assert watch.findings == []


def test_a_black_box_is_replayed(tmp_path):
    _, watch = train(network(), batches(), tmp_path)
    path = tmp_path / "run/debug/blackbox/step3.rank0.pt"
    assert f"the batch is in {path.relative_to(tmp_path / 'run')}" in only(watch).what
    model = network()
    step, calls = load(path, model)
    assert (step, [call.step for call in calls]) == (3, [1, 2, 3])
    assert torch.equal(calls[-1].args[0], batches()[3][0])
    assert [replay(model, call) is None for call in calls] == [True, True, False]
    assert str(replay(model, calls[-1])) == only(watch).what.rpartition(";")[0]


def test_a_black_box_of_another_model(tmp_path):
    train(network(), batches(), tmp_path)
    with pytest.raises(InputError, match="the model of that run"):
        load(tmp_path / "run/debug/blackbox/step3.rank0.pt", nn.Linear(3, 3))
    with pytest.raises(InputError, match="path"):
        load(tmp_path / "run/debug/blackbox/step4.rank0.pt", network())


def test_a_critical_finding_writes_the_last_steps(tmp_path):
    model = network()
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    watch = Watch(model, optimizer, run=f"{tmp_path}/run", save=every(1))
    train(model, batches(12, None), watch=watch, optimizer=optimizer)
    assert [f.rule for f in watch.findings if f.severity == "critical"]
    (box,) = (tmp_path / "run/debug/blackbox").iterdir()
    _, calls = load(box, network())
    assert 1 <= len(calls) <= 3


def test_a_nan_in_the_loss_only(tmp_path):
    """The loss is not used for an update, so that no gradient shows it."""
    model = nn.Linear(4, 2)
    with Watch(model, run=f"{tmp_path}/run", rules=False) as watch:
        for factor in (1.0, 0.0):
            loss = torch.log(model(torch.ones(3, 4)).exp() * factor).mean().abs()
            watch.step(loss=loss)
    found = only(watch)
    assert found.step == 1
    assert "model(torch.ones(3, 4)).exp() * factor has zeros" in found.what


def test_several_models(tmp_path):
    generator, critic = nn.Sequential(nn.Linear(2, 4), Fragile()), nn.Linear(4, 1)
    a, b = torch.optim.SGD(generator.parameters()), torch.optim.SGD(critic.parameters())
    models, optimizers = {"generator": generator, "critic": critic}, {"generator": a, "critic": b}
    with torch.no_grad():
        generator[0].weight.zero_()
        generator[0].bias.fill_(-1.0)
    with Watch(models, optimizers, run=f"{tmp_path}/run", rules=False) as watch:
        fake = generator(torch.randn(5, 2))
        critic(fake.detach()).mean().backward()
        b.step()
        b.zero_grad()
        critic(fake).mean().backward()
        a.step()
        watch.step()
    found = only(watch)
    assert (found.tensors, "log in generator.1 (Fragile)" in found.what) == (("generator.1",), True)


def test_accumulated_batches(tmp_path):
    """The finding names the one of several calls that is at fault."""
    model, (good, bad) = network(), batches(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    with Watch(model, optimizer, run=f"{tmp_path}/run", rules=False) as watch:
        for x, y in (good, bad, good):
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        watch.step()
    assert "in samples 5" in only(watch).what


def test_steps_that_the_scaler_skips_raise_no_alarm(tmp_path):
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38, growth_interval=100)
    with Watch(model, optimizer, run=f"{tmp_path}/run", rules=False, scaler=scaler) as watch:
        for _ in range(3):
            loss = model(torch.full((3, 4), 100.0)).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            watch.step(loss=loss)
    assert watch.findings == []


class Root(nn.Module):
    """Its output is finite, and its derivative below zero is not."""

    def forward(self, x):
        return torch.where(x > 0, x.sqrt(), 0.0)


def test_steps_that_the_scaler_skips_forever_raise_an_alarm(tmp_path):
    """Loss and weights stay finite, and the model learns nothing."""
    model = nn.Sequential(nn.Linear(4, 2), Root())
    optimizer = torch.optim.SGD(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    with Watch(model, optimizer, run=f"{tmp_path}/run", rules=False, scaler=scaler) as watch:
        for _ in range(40):
            loss = model(torch.eye(4)).mean() + model(-torch.eye(4)).mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            watch.step(loss=loss)
    finding = only(watch)
    assert (finding.step, finding.tensors) == (32, ("1",))
    assert "the gradient of Sqrt" in finding.what


@pytest.mark.parametrize("how", ["wrapped", "in place", "in place, late"])
def test_compiled_models(tmp_path, how):
    torch._dynamo.reset()
    model = network()
    forward = torch.compile(model, backend="aot_eager", fullgraph=True) if how == "wrapped" else model
    if how == "in place":
        model.compile(backend="aot_eager", fullgraph=True)
    compiled = model._compiled_call_impl
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watched = forward if how == "wrapped" else model
    watch = Watch(watched, optimizer, run=f"{tmp_path}/run", rules=False, collections=["losses"])
    if how == "in place, late":
        model.compile(backend="aot_eager", fullgraph=True)
    compiled = model._compiled_call_impl if how == "in place, late" else compiled
    torch._dynamo.utils.counters.clear()
    train(model, batches(), forward=forward, watch=watch, optimizer=optimizer)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    found = only(watch)
    assert (found.tensors, "samples 5" in found.what) == (("0",), True)
    assert model._compiled_call_impl is compiled


def test_a_model_is_copied_and_pickled_without_its_watch(tmp_path):
    model = network()
    with Watch(model, torch.optim.SGD(model.parameters()), run=f"{tmp_path}/run", rules=False) as watch:
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for each in copies:
            each(torch.full((2, 4), -1.0)).sum().backward()
        watch.step(loss=0.0)
    assert watch.findings == []


def test_an_error_of_the_trap_is_reported_once(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no sum")

    monkeypatch.setattr("loopwise.debug.nan.monitor.finite_by_kernel", broken)
    with pytest.warns(LoopwiseWarning, match="Trap is switched off: RuntimeError\\('no sum'\\)") as said:
        losses, watch = train(network(), batches(), tmp_path)
    assert len(losses) == 6
    assert len([w for w in said if "Trap" in str(w.message)]) == 1
    assert watch.findings == []


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("replay", "calling the model again failed: OSError('broken')"),
        ("write", "the batch could not be written"),
    ],
)
def test_a_step_without_origin_or_box_is_reported_all_the_same(tmp_path, monkeypatch, broken, said):
    def fails(*_):
        raise OSError("broken")

    monkeypatch.setattr(f"loopwise.debug.nan.monitor.{broken}", fails)
    _, watch = train(network(), batches(), tmp_path)
    assert (only(watch).step, said in only(watch).what) == (3, True)


def test_an_input_that_was_changed_in_place_is_reported(tmp_path):
    model = network()
    with Watch(model, run=f"{tmp_path}/run", rules=False) as watch:
        x, y = batches(1, 0)[0]
        loss = nn.functional.cross_entropy(model(x), y)
        x.add_(0)
        watch.step(loss=loss)
    assert "an input was changed in place after the call" in only(watch).what


def test_a_further_alarm_after_a_finite_step(tmp_path):
    """In a training that skips bad steps, the first few are reported, without the steps that follow from them."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    data = batches(16, None)
    for step in (1, 2, 5, 8, 11):
        data[step][0][0, 0] = -1.0
    watch = Watch(model, optimizer, run=f"{tmp_path}/run", rules=False)
    kept = copy.deepcopy(model.state_dict())
    for x, y in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        model.load_state_dict(kept)
        watch.step(loss=loss)
    watch.close()
    assert [finding.step for finding in watch.findings] == [1, 5, 8]


def test_sums_that_overflow_raise_no_alarm(tmp_path):
    model = nn.Linear(2, 2)
    trap = Trap({"": model}, {"": torch.optim.SGD(model.parameters())}, Run(str(tmp_path / "run")))
    trap.begin(0, "train")
    model.weight.grad = torch.full((2, 2), 3e38)
    trap.before_update(torch.optim.SGD(model.parameters()))
    trap.end(0, "train", {})
    trap.close()
    assert trap.findings() == []


def test_a_model_that_returns_its_parameter_gets_no_hooks(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return {"out": x * self.scale, "scale": self.scale}

    model = Scaled()
    with Watch(model, torch.optim.SGD(model.parameters()), run=f"{tmp_path}/run") as watch:
        for _ in range(3):
            out = model(torch.ones(2, 3))
            (out["out"].sum() + out["scale"].sum()).backward()
            watch.step()
        assert not model.scale._backward_hooks


def test_an_optimizer_with_a_closure(tmp_path):
    """The gradients exist after the call of the closure."""
    model, (good, bad) = network(), batches(2, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1)
    with Watch(model, optimizer, run=f"{tmp_path}/run", rules=False) as watch:
        for x, y in (good, bad):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
            watch.step()
    assert (only(watch).step, only(watch).tensors) == (1, ("0",))


def test_a_best_loss_that_begins_with_infinity(tmp_path):
    with Watch(nn.Linear(2, 2), run=f"{tmp_path}/run", rules=False) as watch:
        for best in (float("inf"), float("inf"), 1.0, 0.5):
            watch.step(loss=1.0, best_val_loss=best)
        assert watch.findings == []
        watch.step(loss=1.0, best_val_loss=float("nan"))
    assert only(watch).step == 4


def test_without_an_optimizer_the_finding_comes_one_step_later(tmp_path, monkeypatch):
    monkeypatch.setattr("loopwise.debug.nan.weights.WeightCopy.fits", lambda copy, device: True)
    model = nn.Sequential(Fragile(), nn.Linear(4, 3))
    with Watch(model, run=f"{tmp_path}/run", rules=False) as watch:
        for x, _ in batches(5, 1):
            model.zero_grad()
            model(x).sum().backward()
            watch.step()
            if watch.findings:
                break
    assert (only(watch).step, only(watch).tensors) == (1, ("0",))


def test_findings_of_rules_do_not_switch_it_off(tmp_path):
    found = [Finding("detached_loss", "critical", n, "train", "", (), {}, "") for n in range(9)]
    model = network()
    optimizer = torch.optim.SGD(model.parameters())
    seen = []
    trap = Trap({"": model}, {"": optimizer}, Run(str(tmp_path / "run")), None, lambda: seen)
    for step, (x, y) in enumerate(batches(8, 7)):
        trap.begin(step, "train")
        seen.append(found[step])
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        trap.end(step, "train", {})
    trap.close()
    assert [each.step for each in trap.findings()] == [7]
    assert len(list((tmp_path / "run/debug/blackbox").iterdir())) == 4
