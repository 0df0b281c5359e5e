"""The whole step recorded and replayed: the same training, and ordinary steps where a recording cannot follow.

A CPU has no CUDA graphs: here a tape of operations stands in, which has their limits (addresses and numbers of the
recording, no waiting).  The same tests run with real graphs where there is a GPU.
"""

import copy
import warnings

import numpy as np
import pytest
import torch
from recording_kit import TapeRecorder
from torch import nn

from loopwise.compile import Plan, TrainStep, whole_step
from loopwise.compile import step as steps
from loopwise.compile.recorder import recorder_for
from loopwise.errors import InputError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAN = Plan(cuda_graph=True, optimizer="fused")


@pytest.fixture
def recorder(monkeypatch):
    """Replays are taken for fast; a test that wants another recorder or clock says so."""
    made = TapeRecorder() if DEVICE == "cpu" else recorder_for(torch.device(DEVICE))
    monkeypatch.setattr(steps, "recorder_for", lambda device: made)
    monkeypatch.setattr(whole_step.WholeStep, "_slow", lambda self, recorded: "")
    return made


def net(dropout=0.0):
    torch.manual_seed(1)
    layers = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3)
    return nn.Sequential(*layers).to(DEVICE)


def batches(count, rows=5):
    draws = torch.Generator().manual_seed(2)
    found = [
        (torch.randn(rows, 6, generator=draws), torch.randint(0, 3, (rows,), generator=draws))
        for _ in range(count)
    ]
    return [(x.to(DEVICE), y.to(DEVICE)) for x, y in found]


# rates that float32 has: a recording reads them in that
OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=2**-7, fused=True),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.125, momentum=0.9, fused=True),
    "groups": lambda model: torch.optim.Adam(
        [
            {"params": model[0].parameters(), "lr": 2**-5},
            {"params": [*model[1].parameters(), *model[4].parameters()]},
        ],
        lr=2**-9,
        fused=True,
    ),
}


def trained(cuda_graph, data, make="adamw", *, change=None, criterion=None, dropout=0.0, **options):
    """Losses, model, optimizer and step after a batch each of ``data``."""
    model = net(dropout)
    optimizer = OPTIMIZERS[make](model)
    plan = PLAN.changed(cuda_graph=cuda_graph)
    step = TrainStep(
        model, criterion() if criterion else nn.CrossEntropyLoss(), optimizer, plan=plan, **options
    )
    torch.manual_seed(3)
    losses = []
    for number, batch in enumerate(data):
        if change is not None:
            change(number, step, optimizer)
        losses.append(step(batch))
    return torch.stack(losses), model, optimizer, step


def same(one, other):
    tensors = [[run[0], *run[1].state_dict().values()] for run in (one, other)]
    states = [[v for s in run[2].state.values() for v in s.values()] for run in (one, other)]
    for mine, theirs in zip(tensors[0] + states[0], tensors[1] + states[1], strict=True):
        if DEVICE == "cpu":
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        else:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def said(step):
    return [line for line in step.explain().remarks if "CUDA graph" in line]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_trains_as_ordinary_steps_do(recorder, make, clip, accumulate):
    data = batches(8 * accumulate)
    ordinary = trained(False, data, make, clip=clip, accumulate=accumulate)
    whole = trained(True, data, make, clip=clip, accumulate=accumulate)
    same(whole, ordinary)
    assert whole[3].plan.cuda_graph
    assert whole[3]._whole._recorded is not None
    if DEVICE == "cpu":
        assert len(recorder.tapes) == min(accumulate, 2)


def test_dropout_draws_what_it_would_have_drawn(recorder):
    same(trained(True, batches(8), dropout=0.5), trained(False, batches(8), dropout=0.5))


def test_a_learning_rate_that_is_scheduled_is_followed(recorder):
    def schedule(number, step, optimizer):
        if number == 0:
            step.schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        else:
            step.schedule.step()

    whole = trained(True, batches(9), "groups", change=schedule)
    same(whole, trained(False, batches(9), "groups", change=schedule))
    assert whole[3]._whole._tries == 1
    assert all(isinstance(group["lr"], float) for group in whole[2].param_groups)
    assert not any(group["capturable"] for group in whole[2].param_groups)


def test_losses_of_samples_are_there_for_a_sifting_loader(recorder):
    def criterion():
        return nn.CrossEntropyLoss(reduction="none")

    whole, ordinary = (trained(on, batches(7), criterion=criterion) for on in (True, False))
    same(whole, ordinary)
    torch.testing.assert_close(whole[3].losses, ordinary[3].losses)
    before = whole[3].losses.clone()
    kept = whole[3].losses
    whole[3](batches(9)[-1])
    assert torch.equal(kept, before)  # not where the next replay writes


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_of_another_shape_go_the_ordinary_way(recorder, accumulate):
    data = batches(14)
    data[9], data[12] = batches(1, rows=3)[0], batches(1, rows=2)[0]
    same(trained(True, data, accumulate=accumulate), trained(False, data, accumulate=accumulate))


CHANGES = {
    "class weights": lambda step, optimizer: setattr(
        step.loss, "weight", torch.tensor([1.0, 2.0, 4.0], device=DEVICE)
    ),
    "label smoothing": lambda step, optimizer: setattr(step.loss, "label_smoothing", 0.25),
    "dropout": lambda step, optimizer: setattr(step.model[3], "p", 0.5),
    "momentum of statistics": lambda step, optimizer: setattr(step.model[1], "momentum", 0.5),
    "evaluation mode": lambda step, optimizer: step.model[1].eval(),
    "weight decay": lambda step, optimizer: optimizer.param_groups[0].update(weight_decay=0.5),
    "frozen": lambda step, optimizer: step.model[0].requires_grad_(False),
    "state loaded": lambda step, optimizer: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
    "weights elsewhere": lambda step, optimizer: [
        setattr(p, "data", p.data.clone()) for p in step.model.parameters()
    ],
    "buffer elsewhere": lambda step, optimizer: setattr(
        step.model[1], "running_mean", torch.ones(8, device=DEVICE)
    ),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(("accumulate", "when"), [(1, 9), (2, 9), (2, 8)])
def test_what_a_recording_cannot_follow_is_recorded_anew(recorder, name, accumulate, when):
    def change(number, step, optimizer):
        if number == when:
            CHANGES[name](step, optimizer)

    data = batches(20)
    whole = trained(True, data, change=change, accumulate=accumulate)
    same(whole, trained(False, data, change=change, accumulate=accumulate))
    assert whole[3]._whole._tries == 2
    assert said(whole[3])[-1].startswith("CUDA graph: recorded anew")


@pytest.mark.parametrize(("accumulate", "when"), [(1, 9), (2, 9), (2, 8)])
def test_gradients_of_the_users_own_are_in_the_next_update(recorder, accumulate, when):
    def change(number, step, optimizer):
        if number in (when, when + 2):
            step.model[4].weight.square().sum().backward()

    data = batches(20)
    whole = trained(True, data, change=change, accumulate=accumulate)
    same(whole, trained(False, data, change=change, accumulate=accumulate))
    assert whole[3].plan.cuda_graph


@pytest.mark.parametrize(("accumulate", "when"), [(1, 9), (2, 9), (2, 8)])
def test_gradients_that_the_user_drops_are_dropped(recorder, accumulate, when):
    def change(number, step, optimizer):
        if number == when:
            step.model.zero_grad()

    data = batches(20)
    whole = trained(True, data, change=change, accumulate=accumulate)
    same(whole, trained(False, data, change=change, accumulate=accumulate))
    assert whole[3].plan.cuda_graph


class Learning(nn.Module):
    """A loss with a weight and a moving average of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, device=DEVICE))
        self.register_buffer("mean", torch.zeros(3, device=DEVICE))

    def forward(self, x, y):
        self.mean.mul_(0.5).add_(x.detach().mean(0), alpha=0.5)
        return nn.functional.cross_entropy(x * self.weight - self.mean, y)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_with_state_of_its_own_is_as_it_would_have_been(recorder, accumulate):
    runs = []
    for on in (True, False):
        model, loss = net(), Learning()
        optimizer = torch.optim.AdamW([*model.parameters(), *loss.parameters()], lr=2**-7, fused=True)
        step = TrainStep(model, loss, optimizer, plan=PLAN.changed(cuda_graph=on), accumulate=accumulate)
        losses = torch.stack([step(batch) for batch in batches(16)])
        runs.append((losses, nn.ModuleList([model, loss]), optimizer, step))
    same(*runs)
    assert runs[0][3]._whole._recorded is not None


def test_batches_of_another_structure_go_the_ordinary_way(recorder):
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]) + model(batch["z"]), batch["y"]) * len(batch)

    runs = []
    for on in (True, False):
        model = net()
        optimizer = OPTIMIZERS["adamw"](model)
        step = TrainStep(model, loss, optimizer, plan=PLAN.changed(cuda_graph=on))
        found = []
        for number, ((x, y), (z, _)) in enumerate(zip(batches(12), batches(24)[12:], strict=True)):
            batch = {"x": x, "y": y, "z": z}
            if number == 8:
                batch = {"z": z, "y": y, "x": x}
            if number == 9:
                batch["name"] = "another"
            found.append(step(batch))
        runs.append((torch.stack(found), model, optimizer, step))
    same(*runs)
    assert runs[0][3]._whole._tries == 1


def test_several_ranks_make_ordinary_steps(recorder, monkeypatch):
    monkeypatch.setattr(steps, "world_size", lambda: 2)
    *_, step = trained(True, batches(1))
    assert not step.plan.cuda_graph
    assert said(step) == ["CUDA graph: left off, there are several ranks"]


def test_autocast_around_the_step_is_not_recorded(recorder):
    runs = []
    for on in (True, False):
        with torch.autocast(DEVICE, torch.bfloat16):
            runs.append(trained(on, batches(7)))
    same(*runs)
    assert said(runs[0][3])[-1].startswith("CUDA graph: left off, autocast around the step")


def test_weights_loaded_in_place_are_trained_on(recorder):
    def change(number, step, optimizer):
        if number == 6:
            step.model.load_state_dict(net().state_dict())

    whole = trained(True, batches(9), change=change)
    same(whole, trained(False, batches(9), change=change))
    assert whole[3]._whole._tries == 1


def test_a_step_that_changes_all_the_time_is_left_ordinary(recorder):
    def change(number, step, optimizer):
        optimizer.param_groups[0]["betas"] = (0.9 - 0.001 * number, 0.99)

    whole = trained(True, batches(60), change=change)
    same(whole, trained(False, batches(60), change=change))
    assert not whole[3].plan.cuda_graph
    assert said(whole[3])[-1] == "CUDA graph: left off, the step changed after each of 3 recordings"


class Waiting(nn.Module):
    def forward(self, x, y):
        return nn.functional.cross_entropy(x, y) * (2 if x.sum().item() > -1e9 else 1)


class Drawing(nn.Module):
    def forward(self, x, y):
        import random

        return nn.functional.cross_entropy(x, y) * random.random()


class DrawingItsOwn(nn.Module):
    def __init__(self):
        super().__init__()
        self.draws = [np.random.default_rng(0)]

    def forward(self, x, y):
        return nn.functional.cross_entropy(x, y) * self.draws[0].random()


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x, y):
        self.seen += 1
        return nn.functional.cross_entropy(x, y) / self.seen


class Replacing(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, device=DEVICE))

    def forward(self, x, y):
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        return nn.functional.cross_entropy(x - self.mean, y)


def hooked(number, step, optimizer):
    if number == 0:
        step.model[0].register_forward_hook(lambda *_: None)


def stepped(number, step, optimizer):
    if number == 0:
        optimizer.register_step_post_hook(lambda *_: None)


def graded(number, step, optimizer):
    if number == 0:
        step.model[0].weight.register_hook(lambda grad: grad * 1.5)


def unfused(number, step, optimizer):
    if number == 0:
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = False, True


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"criterion": Waiting}, "RuntimeError: "),
        ({"criterion": Drawing}, "RuntimeError: the step draws random numbers that are not the GPU's"),
        (
            {"criterion": Counting},
            "RuntimeError: numbers that are attributes of the model change at each step",
        ),
        ({"criterion": Replacing}, "wrong: its losses are off by"),
        ({"change": hooked}, "hooks of the model or the optimizer would not be called"),
        ({"change": stepped}, "hooks of the model or the optimizer would not be called"),
        ({"change": graded}, "hooks of the model or the optimizer would not be called"),
        ({"change": unfused, "make": "sgd"}, "the optimizer is neither fused nor capturable"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_recorded_stays_ordinary_and_says_why(recorder, options, why):
    import random

    runs = []
    for on in (True, False):
        random.seed(0)
        runs.append(trained(on, batches(8), **options))
    same(*runs)
    assert not runs[0][3].plan.cuda_graph
    assert said(runs[0][3])[-1].startswith(f"CUDA graph: left off, {why}")
    if DEVICE == "cpu" and options.get("criterion") is Waiting:
        assert recorder.settled == 1


def test_steps_that_do_not_repeat_themselves_tell_nothing(recorder):
    *_, step = trained(True, batches(8), criterion=DrawingItsOwn)
    assert not step.plan.cuda_graph
    assert said(step)[-1].startswith("CUDA graph: left off, ordinary steps do not repeat themselves")


def test_a_hook_that_comes_later_ends_it(recorder):
    called = []

    def watch(number, step, optimizer):
        if number == 7:
            optimizer.register_step_pre_hook(lambda *_: called.append(number))

    whole = trained(True, batches(12), change=watch)
    same(whole, trained(False, batches(12), change=watch))
    assert len(called) == 10  # five steps each
    assert not whole[3].plan.cuda_graph


def test_a_batch_with_other_things_than_tensors_stays_ordinary(recorder):
    model = net()

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"]) * batch["factor"]

    step = TrainStep(model, loss, OPTIMIZERS["adamw"](model), plan=PLAN)
    for number, (x, y) in enumerate(batches(8)):
        step({"x": x, "y": y, "factor": 1.0 + number})
    assert said(step)[-1].startswith("CUDA graph: left off, the batch holds other things than tensors")


def test_a_parameter_that_no_optimizer_has_stays_as_in_the_usual_loop(recorder):
    model = net()
    step = TrainStep(
        model, nn.CrossEntropyLoss(), torch.optim.AdamW(model[4].parameters(), lr=0.1, fused=True), plan=PLAN
    )
    for batch in batches(6):
        step(batch)
    assert "does not have all parameters" in said(step)[-1]


@pytest.mark.skipif(DEVICE == "cuda", reason="a CUDA graph cannot be spoilt")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_recording_that_computes_something_else_is_found_out(monkeypatch, recorder, accumulate):
    def shorten(tape):
        tape.made = [made for made in tape.made if "addmm" not in str(made[0])]

    recorder.spoil = shorten
    data = batches(12)
    whole = trained(True, data, accumulate=accumulate)
    same(whole, trained(False, data, accumulate=accumulate))
    assert said(whole[3])[-1].startswith("CUDA graph: left off, wrong: its losses are off by")


@pytest.mark.skipif(DEVICE == "cuda", reason="the clock is stood in for")
@pytest.mark.parametrize("seconds", [(1.0, 0.5), (1.0, 0.99), (1.0, 2.0)], ids=str)
def test_it_is_left_off_where_it_is_not_faster(monkeypatch, seconds):
    recorder = TapeRecorder()
    monkeypatch.setattr(steps, "recorder_for", lambda device: recorder)
    monkeypatch.setattr(
        whole_step, "seconds", lambda forms, device: {n: [s] for n, s in zip(forms, seconds, strict=True)}
    )
    whole = trained(True, batches(8))
    same(whole, trained(False, batches(8)))
    text = f"{1e3 * seconds[1]:.2f} ms instead of 1000.00 ms an update"
    kept = seconds[1] == 0.5
    assert said(whole[3])[-1] == f"CUDA graph: {'the whole step is one' if kept else 'left off'}, {text}"
    assert whole[3].plan.cuda_graph == kept


def test_tune_max_tries_it_and_a_later_run_knows(recorder):
    found = []
    for _ in range(2):
        model = net()
        step = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["adamw"](model), tune="max")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step.prepare(batches(1)[0])
        found.append(step.plan.cuda_graph)
    assert found == [True, True]


def test_other_tunings_do_not_try_it(recorder):
    model = net()
    step = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["adamw"](model), tune="off")
    step(batches(1)[0])
    assert not step.plan.cuda_graph


@pytest.mark.skipif(DEVICE == "cuda", reason="there are graphs")
def test_on_a_cpu_there_is_no_such_plan():
    model = net()
    with pytest.raises(InputError, match="cuda_graph=True in the plan of a model on cpu"):
        TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["adamw"](model), plan=PLAN)


def test_stepping_back_ends_it(recorder):
    *_, step = trained(True, batches(6))
    with pytest.warns(RuntimeWarning, match="back to the eager step"):
        step.step_back("asked to")
    assert step._whole is None
    assert not step.plan.cuda_graph
    step(batches(1)[0])
