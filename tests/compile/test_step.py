"""The training step trains as the plain loop does, whatever the plan."""

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.explain import Explanation
from loopwise.compile.search.candidates import Candidate
from loopwise.compile.search.optimizers import implementations
from loopwise.compile.search.search import SearchResult

CRITERION = nn.CrossEntropyLoss()
CAPTURED = Plan(graph="captured", passes=("loss_head",))


def model(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 3)
    )


def batches(count=6, size=8):
    draws = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 6, generator=draws), torch.arange(size) % 3) for _ in range(count)]


def plain(net, optimizer, data, accumulate=1, clip=None):
    losses = []
    for number, (x, y) in enumerate(data, 1):
        loss = CRITERION(net(x), y)
        (loss / accumulate if accumulate > 1 else loss).backward()
        losses.append(loss.item())
        if number % accumulate == 0:
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return losses


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("plan", [Plan(), CAPTURED], ids=str)
@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (2, 0.1)])
def test_it_trains_as_the_plain_loop(plan, accumulate, clip):
    ours, theirs = model(), model()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (ours, theirs)]
    step = TrainStep(ours, CRITERION, optimizers[0], plan=plan, accumulate=accumulate, clip=clip)
    losses = [step(batch).item() for batch in batches()]
    expected = plain(theirs, optimizers[1], batches(), accumulate, clip)
    assert losses == (expected if plan.graph == "eager" else pytest.approx(expected, rel=1e-5))
    same(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("autotune", ["off", "default"])
def test_choosing_a_plan_leaves_no_trace(autotune):
    net = model(dropout=0.5)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    net[3].eval()
    before, random = state(net), torch.get_rng_state()
    optimizer = torch.optim.AdamW(net.parameters())
    step = TrainStep(net, CRITERION, optimizer, autotune=autotune)
    step.prepare(batches()[0])
    after = state(net)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(random, torch.get_rng_state())
    assert net[0].weight.grad.eq(1).all()
    assert net[4].weight.grad is None
    assert [module.training for module in net] == [True, True, True, False, True]
    assert not optimizer.state
    text = str(step.explain())
    assert text.startswith("plan: ")
    assert "inductor" in text
    if autotune == "default":
        assert (
            step._search.roofline.flops == 3 * 2 * 8 * (6 * 16 + 16 * 3) - 2 * 8 * 6 * 16
        )  # no gradient of the input
        assert "roofline: at the speed of a large matrix product" in text


def test_a_compiled_step_trains_as_the_eager_one():
    ours, theirs = model(dropout=0.5), model(dropout=0.5)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (ours, theirs)]
    step = TrainStep(ours, CRITERION, optimizers[0], plan=Plan(graph="inductor"))
    step.prepare(batches()[0])
    torch.manual_seed(5)
    losses = [step(batch).item() for batch in batches()]
    torch.manual_seed(5)
    assert losses == pytest.approx(plain(theirs, optimizers[1], batches()), rel=1e-5)  # the same dropout
    assert step.plan.graph == "inductor"


def test_a_short_batch_runs_eagerly():
    net = model()
    step = TrainStep(net, CRITERION, torch.optim.SGD(net.parameters(), lr=0.1), plan=CAPTURED)
    for batch in [*batches(3), *batches(2, size=5)]:
        step(batch)
    assert step._forward_pass.log.graphs == 1
    assert "2 batches of 1 other shapes" in str(step.explain())


def test_a_frequent_shape_is_compiled_too():
    net = model()
    step = TrainStep(net, CRITERION, torch.optim.SGD(net.parameters(), lr=0.1), plan=CAPTURED)
    step(batches()[0])
    for batch in batches(12, size=5):
        step(batch)
    assert step._forward_pass.log.graphs == 2
    assert step.plan.graph == "captured"
    assert "recompiled: " in str(step.explain())


def test_a_loss_of_model_and_batch():
    def loss(model, batch):
        return CRITERION(model(batch["x"]), batch["y"])

    net = model()
    step = TrainStep(net, loss, torch.optim.SGD(net.parameters(), lr=0.1), plan=CAPTURED)
    first = [step({"x": x, "y": y}).item() for x, y in batches()]
    other = model()
    assert first == pytest.approx(
        plain(other, torch.optim.SGD(other.parameters(), lr=0.1), batches()), rel=1e-5
    )


def sifted(loss: nn.Module, use: bool = True):
    """Return a sifting loader, a step of the same model, and the step or an ordinary loop's step, as a function."""
    from torch.utils.data import DataLoader, TensorDataset

    from loopwise.sift import SiftingDataLoader

    torch.manual_seed(0)
    net, each = (
        nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3)),
        nn.CrossEntropyLoss(reduction="none"),
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)  # so that the losses stay
    step = TrainStep(net, loss, optimizer, plan=CAPTURED)
    data = TensorDataset(torch.randn(64, 6), torch.arange(64) % 3)
    loader = SiftingDataLoader(DataLoader(data, 8, shuffle=True), net, loss=each, keep=0.5, seed=0)

    def usual(batch):
        optimizer.zero_grad()
        each(net(batch[0]), batch[1]).mean().backward()
        optimizer.step()

    return loader, step, step if use else usual


def trained(loader, train, after=lambda: None) -> list[int]:
    """Train three epochs, and return the number of samples in each."""
    counts = []
    for _ in range(3):
        counts.append(0)
        for batch in loader:
            train(batch)
            after()
            counts[-1] += len(batch[1])
    return counts


@pytest.mark.parametrize("recorded", [False, True], ids=["given", "recorded"])
def test_a_sifting_loader_gets_the_losses_of_the_step(recorded):
    loader, step, train = sifted(nn.CrossEntropyLoss(reduction="none"))

    def after():
        if recorded:
            loader.record_losses(step.losses)

    counts = trained(loader, train, after)
    assert counts[0] == 64
    assert max(counts[1:]) < 50
    assert loader.report().scored == 0
    assert step._forward_pass.log.graphs == 1  # no hook on the model had it captured anew
    known = loader._history.losses[:64]
    x, y = loader.dataset.tensors
    now = nn.functional.cross_entropy(step.spec.model(x), y, reduction="none").detach()
    torch.testing.assert_close(known, now)  # each sample's own


def test_a_step_with_one_loss_for_a_batch_tells_a_sifting_loader_what_to_do():
    loader, _, train = sifted(nn.CrossEntropyLoss())
    with pytest.warns(UserWarning, match="give TrainStep the loss with reduction='none'"):
        counts = trained(loader, train)
    assert max(counts[1:]) < 50
    assert loader.report().scored > 0


def test_a_step_that_is_not_used_leaves_the_losses_to_the_loop():
    loader, step, train = sifted(nn.CrossEntropyLoss(reduction="none"), use=False)
    counts = trained(loader, train)
    assert max(counts[1:]) < 50
    assert loader.report().scored == 0
    assert step.losses is None


def test_a_gradient_scaler_and_a_scheduler():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    step = TrainStep(net, CRITERION, optimizer, scaler=scaler, clip=10.0, plan=CAPTURED)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for batch in batches():
        step(batch)
        schedule.step()
    other = model()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for batch in batches():
        plain(other, optimizer, [batch])
        schedule.step()
    same(net.state_dict(), other.state_dict())
    assert step._forward_pass.log.graphs == 1


def test_the_optimizer_is_measured_and_agrees():
    ours, theirs = model(), model()
    optimizers = [torch.optim.AdamW(net.parameters(), lr=1e-2) for net in (ours, theirs)]
    step = TrainStep(ours, CRITERION, optimizers[0])
    step.prepare(batches()[0])
    losses = [step(batch).item() for batch in batches()]
    assert losses == pytest.approx(plain(theirs, optimizers[1], batches()), rel=1e-4)
    assert set(step._choice.seconds) == {"as_is", "foreach", "fused"}
    assert step.plan.optimizer == step._choice.name
    again = TrainStep(ours, CRITERION, optimizers[0])
    again.prepare(batches()[0])
    assert again.plan == step.plan  # recalled from the cache
    assert again._search.known


def test_a_scheduler_goes_on_with_the_chosen_optimizer():
    """A scheduler wraps the optimizer's step; the copies that are timed must not call the original's step."""
    ours, theirs = model(), model()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (ours, theirs)]
    schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5) for optimizer in optimizers]
    step = TrainStep(ours, CRITERION, optimizers[0])
    step.prepare(batches()[0])
    for batch in batches():
        step(batch)
        plain(theirs, optimizers[1], [batch])
        for schedule in schedules:
            schedule.step()
    assert set(step._choice.seconds) == {"as_is", "foreach", "fused"}
    same(ours.state_dict(), theirs.state_dict())


def test_an_implementation_that_the_user_chose_stays():
    net = model()
    chosen = torch.optim.AdamW(net.parameters(), foreach=True)
    TrainStep(net, CRITERION, chosen, plan=Plan(optimizer="fused")).prepare(batches()[0])
    assert chosen.param_groups[0]["foreach"] is True
    assert not chosen.param_groups[0]["fused"]
    assert implementations(torch.optim.AdamW(net.parameters(), foreach=True)) == ["as_is"]
    assert implementations(torch.optim.AdamW(net.parameters(), fused=True)) == ["as_is"]
    assert implementations(torch.optim.LBFGS(net.parameters())) == ["as_is"]


def test_every_rank_has_the_same_plan_and_weights(ranks):
    code = """
    from torch import nn
    from loopwise.compile import Plan, TrainStep
    import tempfile; os.environ["LOOPWISE_CACHE"] = tempfile.mkdtemp()
    rank = dist.get_rank()
    def train(ours):
        torch.manual_seed(0)
        net = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        criterion = nn.CrossEntropyLoss()
        draws = torch.Generator().manual_seed(rank)
        step = TrainStep(net, criterion, optimizer, accumulate=2, plan=Plan(graph="captured"))
        for n in range(1, 7):
            batch = torch.randn(8, 6, generator=draws), torch.arange(8) % 3
            if ours:
                step(batch)
                continue
            (criterion(net(batch[0]), batch[1]) / 2).backward()
            if n % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()
        return [round(p.sum().item(), 4) for p in net.parameters()], str(step.plan)
    print(json.dumps([train(True), train(False)[0]]))
    """
    (ours, expected), (others, _) = ranks(code)
    assert ours == others
    assert ours[0] == pytest.approx(expected, abs=2e-4)


def test_the_explanation_tells_the_gain_of_each_choice():
    eager, passed = (
        Candidate(Plan(), times=[0.010], peak=3 * 2**20),
        Candidate(CAPTURED, times=[0.008], peak=2**20),
    )
    whole = Candidate(Plan(graph="inductor"), times=[0.011], peak=3 * 2**20)
    both = Candidate(Plan(graph="inductor", passes=("loss_head",)), times=[0.007], peak=2**20)
    result = SearchResult([eager, passed, whole, both], both)
    remarks = Explanation.of(both.plan, result, None, []).remarks
    assert remarks[:4] == [
        "captured + loss head instead of eager: -2.0 ms, -2.0 MiB",
        "inductor instead of eager: +1.0 ms, +0.0 MiB",
        "inductor + loss head instead of captured + loss head: -1.0 ms, +0.0 MiB",
        "inductor + loss head instead of inductor: -4.0 ms, -2.0 MiB",
    ]
