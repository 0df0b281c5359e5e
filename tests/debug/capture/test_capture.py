"""Saved tensors are those that training used, in every situation."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from loopwise.debug import Collection, Watch, every, open_run
from loopwise.warnings import LoopwiseWarning

EVERYTHING = ("weights", "biases", "gradients", "inputs", "outputs")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def batch(seed=0, size=6):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(size, 4, generator=draws), torch.arange(size) % 3


def loss_of(model, seed=0):
    x, y = batch(seed)
    return nn.functional.cross_entropy(model(x), y)


def saved(run):
    """Return (step, name) -> tensor, of all raw tensors of a run."""
    saved = open_run(run)
    found = {}
    for step in saved.steps():
        for name in saved.names(step=step):
            found[step, name] = saved.value(name, step)
    return found


def test_a_step_holds_what_the_update_used(tmp_path):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    truth = {}
    with Watch(net, optimizer, run=tmp_path / "run", save=every(1), collections=EVERYTHING) as watch:
        for step in range(3):
            optimizer.zero_grad()
            x, y = batch(step)
            truth[step, "input.0"] = truth[step, "0.input.0"] = x.clone()
            hidden = nn.functional.linear(x, net[0].weight, net[0].bias).detach()
            truth[step, "0.output.0"] = truth[step, "1.input.0"] = hidden
            nn.functional.cross_entropy(net(x), y).backward()
            for name, parameter in net.named_parameters():
                truth[step, name] = parameter.detach().clone()
                truth[step, f"gradient/{name}"] = parameter.grad.clone()
            optimizer.step()
            watch.step()
    found = saved(tmp_path / "run")
    for key, value in truth.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)
    assert {name for _, name in found} == {name for _, name in truth} | {
        "1.output.0",
        "2.input.0",
        "2.output.0",
        "output.0",
    }


def test_training_is_the_same_to_the_bit(tmp_path):
    def trained(watched):
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(8, 3)
        )
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        options = {
            "save": every(2),
            "collections": [
                *EVERYTHING,
                "optimizer_state",
                Collection("s", include=".", statistics=("mean", "std")),
            ],
        }
        watch = Watch(net, optimizer, run=tmp_path / "run", **options) if watched else None
        for step in range(8):
            optimizer.zero_grad()
            loss = loss_of(net, step)
            loss.backward()
            optimizer.step()
            if watch is not None:
                watch.step(loss=loss)
        if watch is not None:
            watch.close()
        return net.state_dict(), torch.get_rng_state()

    (plain, state), (watched, other) = trained(False), trained(True)
    assert torch.equal(state, other)
    assert plain.keys() == watched.keys()
    assert all(torch.equal(plain[key], watched[key]) for key in plain)


def test_nothing_is_left_behind(tmp_path):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = copy.deepcopy([vars(m) for m in net.modules()]), set(vars(optimizer))
    flag = torch._dynamo.config.skip_nnmodule_hook_guards
    with Watch(net, optimizer, run=tmp_path / "run", save=every(1), collections=["all"]) as watch:
        loss_of(net).backward()
        optimizer.step()
        watch.step()
    assert [m._forward_hooks for m in net.modules()] == [{}] * 4
    assert [m._forward_pre_hooks for m in net.modules()] == [{}] * 4
    assert not optimizer._optimizer_step_pre_hooks
    assert [set(vars(m)) for m in net.modules()] == [set(b) for b in before[0]]
    assert set(vars(optimizer)) == before[1]
    assert torch._dynamo.config.skip_nnmodule_hook_guards == flag
    watch.step()  # of no effect
    watch.close()


def test_accumulated_gradients_are_those_of_the_update(tmp_path):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    truth = {}
    with Watch(net, optimizer, run=tmp_path / "run", save=every(3), collections=["gradients"]) as watch:
        for step in range(8):
            loss_of(net, step).backward()
            if step % 2:
                truth[step] = net[0].weight.grad.clone()
                optimizer.step()
                optimizer.zero_grad()
            watch.step()
    saved = open_run(tmp_path / "run")
    assert saved.steps() == [1, 3, 7]  # 0 and 6 have no update: the next one's
    for step in saved.steps():
        assert torch.equal(saved.value("gradient/0.weight", step), truth[step])


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_unscaled_and_skipped_steps_marked(tmp_path, fused):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with Watch(
        net,
        optimizer,
        run=tmp_path / "run",
        save=every(1),
        collections=["gradients", "losses"],
        scaler=scaler,
    ) as watch:
        truth = {}
        for step in range(3):
            optimizer.zero_grad()
            loss = loss_of(net, step) * (float("inf") if step == 1 else 1.0)
            truth[step] = torch.autograd.grad(loss, net[0].weight, retain_graph=True)[0]
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            watch.step(loss=loss)
    saved = open_run(tmp_path / "run")
    for step in (0, 2):
        torch.testing.assert_close(saved.value("gradient/0.weight", step), truth[step])
    lines = (tmp_path / "run/debug/index.rank0.0.jsonl").read_text().splitlines()
    marked = [line for line in lines if '"marks":{"skipped":["optimizer"]}' in line]
    assert len(marked) == 1
    assert '"step":1,' in marked[0]
    assert saved.has("gradient/0.weight", 1) == fused


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations_come_once(tmp_path, reentrant):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.block = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.GELU())

        def forward(self, x):
            return checkpoint(self.block, self.first(x), use_reentrant=reentrant)

    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, run=tmp_path / "run", save=every(1), collections=["outputs"]) as watch:
        net(batch()[0]).sum().backward()
        optimizer.step()
        watch.step()
    assert open_run(tmp_path / "run").names() == [
        "first.output.0",
        "block.0.output.0",
        "block.1.output.0",
        "block.output.0",
        "output.0",
    ]


def test_calls_of_a_shared_module_are_counted_and_tied_weights_saved_once(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
            self.head.weight = self.fc.weight

        def forward(self, x):
            return self.head(self.fc(self.fc(x)))

    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = batch()[0]
    with Watch(
        net, optimizer, run=tmp_path / "run", save=every(1), collections=["outputs", "weights"]
    ) as watch:
        net(x).sum().backward()
        once, twice = (nn.functional.linear(y, net.fc.weight, net.fc.bias) for y in (x, net.fc.forward(x)))
        optimizer.step()
        watch.step()
    saved = open_run(tmp_path / "run")
    assert saved.names() == ["fc.output.0", "fc#1.output.0", "head.output.0", "output.0", "fc.weight"]
    assert torch.equal(saved.value("fc.output.0", 0), once)
    assert torch.equal(saved.value("fc#1.output.0", 0), twice)


def test_tensors_that_are_changed_in_place_later_are_saved_as_they_were(tmp_path):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    x = batch()[0]
    hidden = net[0](x).detach().clone()
    with Watch(net, run=tmp_path / "run", save=every(1), collections=["inputs", "outputs"]) as watch:
        net(x)
        watch.step()
    saved = open_run(tmp_path / "run")
    assert torch.equal(saved.value("0.output.0", 0), hidden)
    assert torch.equal(saved.value("1.input.0", 0), hidden)
    assert torch.equal(saved.value("1.output.0", 0), hidden.relu())


def test_several_models_and_optimizers(tmp_path):
    torch.manual_seed(0)
    generator, critic = nn.Linear(2, 4), nn.Linear(4, 1)
    optimizers = {
        "generator": torch.optim.SGD(generator.parameters(), lr=0.1),
        "critic": torch.optim.SGD(critic.parameters(), lr=0.1),
    }
    models = {"generator": generator, "critic": critic}
    truth = {}
    with Watch(
        models, optimizers, run=tmp_path / "run", save=every(1), collections=["weights", "gradients"]
    ) as watch:
        for step in range(2):
            noise = batch(step)[0][:, :2]
            optimizers["critic"].zero_grad()
            critic(generator(noise).detach()).mean().backward()
            truth[step, "gradient/critic.weight"] = critic.weight.grad.clone()
            optimizers["critic"].step()
            optimizers["generator"].zero_grad()
            (-critic(generator(noise)).mean()).backward()
            truth[step, "gradient/generator.weight"] = generator.weight.grad.clone()
            optimizers["generator"].step()
            watch.step()
    saved = open_run(tmp_path / "run")
    for (step, name), value in truth.items():
        assert torch.equal(saved.value(name, step), value)
    assert "critic.weight" in saved.names()


def test_modules_may_come_and_go(tmp_path):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = batch()[0]
    with Watch(
        net, optimizer, run=tmp_path / "run", save=every(1), collections=["outputs", "weights"]
    ) as watch:
        for change in ("none", "more", "less"):
            net(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if change == "none":
                net.append(nn.Linear(3, 2))
                optimizer.add_param_group({"params": list(net[3].parameters())})
            elif change == "more":
                removed = net.pop(3)
            watch.step()
    saved = open_run(tmp_path / "run")
    assert [saved.has("3.output.0", step) for step in range(3)] == [False, True, False]
    assert saved.has("3.weight", 1)
    assert not removed._forward_hooks


def test_an_optimizer_with_a_closure(tmp_path):
    net = network()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=3)
    first = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        first.append(net[0].weight.grad.clone())
        return loss

    with Watch(net, optimizer, run=tmp_path / "run", save=every(1), collections=["gradients"]) as watch:
        optimizer.step(closure)
        watch.step()
        optimizer.step(closure=closure)
        watch.step()
    saved = open_run(tmp_path / "run")
    assert torch.equal(saved.value("gradient/0.weight", 0), first[0])
    assert saved.has("gradient/0.weight", 1)


def test_passes_that_measure_are_not_the_training_loops(tmp_path):
    from loopwise.preserve import preserve

    net = network()
    with Watch(net, run=tmp_path / "run", save=every(1), collections=["outputs"]) as watch:
        with preserve(net):
            net(torch.zeros(1, 4))
        net(batch()[0])
        watch.step()
    assert open_run(tmp_path / "run").shape("output.0", 0) == (6, 3)
    assert "#1.output.0" not in open_run(tmp_path / "run").names()


def test_an_optimizer_that_is_replaced_is_followed(tmp_path):
    net = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    collections = ["losses", "weights", "gradients", "health"]
    with (
        Watch(net, optimizer, run=tmp_path / "run", save=every(1), collections=collections) as watch,
        pytest.warns(LoopwiseWarning, match="another optimizer updates the model and is followed.*Adam"),
    ):
        before = []
        for step in range(8):
            if step == 3:
                optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
            optimizer.zero_grad()
            loss = net(torch.randn(8, 4)).square().mean()
            loss.backward()
            before.append(net.weight.detach().clone())
            optimizer.step()
            watch.step(loss=loss)
    saved = open_run(tmp_path / "run")
    assert all(torch.equal(saved.value("weight", step), before[step]) for step in range(8))
    assert all(saved.has("update/weight", step) and saved.has("gradient/bias", step) for step in range(8))
    assert not {finding.rule for finding in watch.findings} & {"missing_update", "unheld_parameter"}
    assert not optimizer._optimizer_step_pre_hooks
