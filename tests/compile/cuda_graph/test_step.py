"""Replays of a recorded step train as ordinary steps do; a step that a recording cannot follow stays ordinary.

A CPU has no CUDA graphs: here a tape of operations stands in, which has their limits (addresses and numbers of the
recording, no waiting).  The same tests run with real graphs where there is a GPU.
"""

import copy
import warnings

import pytest
import torch
from cuda_graph_kit import DEVICE, OPTIMIZERS, PLAN, batches, net, said, same, trained
from recording_kit import TapeRecorder
from torch import nn

from loopwise.compile import TrainStep, planning
from loopwise.compile.cuda_graph import recording
from loopwise.errors import InputError
from loopwise.warnings import LoopwiseWarning


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_trains_as_ordinary_steps_do(recorder, make, clip, accumulate):
    data = batches(8 * accumulate)
    ordinary = trained(False, data, make, clip=clip, accumulate=accumulate)
    whole = trained(True, data, make, clip=clip, accumulate=accumulate)
    same(whole, ordinary)
    assert whole[3].plan.cuda_graph
    assert whole[3]._cuda_graph._recording is not None
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
    assert whole[3]._cuda_graph._recordings == 1
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
        step.spec.loss, "weight", torch.tensor([1.0, 2.0, 4.0], device=DEVICE)
    ),
    "label smoothing": lambda step, optimizer: setattr(step.spec.loss, "label_smoothing", 0.25),
    "dropout": lambda step, optimizer: setattr(step.spec.model[3], "p", 0.5),
    "momentum of statistics": lambda step, optimizer: setattr(step.spec.model[1], "momentum", 0.5),
    "evaluation mode": lambda step, optimizer: step.spec.model[1].eval(),
    "weight decay": lambda step, optimizer: optimizer.param_groups[0].update(weight_decay=0.5),
    "frozen": lambda step, optimizer: step.spec.model[0].requires_grad_(False),
    "state loaded": lambda step, optimizer: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
    "weights elsewhere": lambda step, optimizer: [
        setattr(p, "data", p.data.clone()) for p in step.spec.model.parameters()
    ],
    "buffer elsewhere": lambda step, optimizer: setattr(
        step.spec.model[1], "running_mean", torch.ones(8, device=DEVICE)
    ),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(("accumulate", "when"), [(1, 9), (2, 9), (2, 8)])
def test_what_a_recording_cannot_follow_is_recorded_again(recorder, name, accumulate, when):
    def change(number, step, optimizer):
        if number == when:
            CHANGES[name](step, optimizer)

    data = batches(20)
    whole = trained(True, data, change=change, accumulate=accumulate)
    same(whole, trained(False, data, change=change, accumulate=accumulate))
    unequal = name == "class weights" and accumulate > 1  # batches of unequal weights make ordinary steps
    assert whole[3]._cuda_graph._recordings == (1 if unequal else 2)
    assert unequal or said(whole[3])[-1].startswith("CUDA graph: recorded again")


@pytest.mark.parametrize(("accumulate", "when"), [(1, 9), (2, 9), (2, 8)])
def test_gradients_of_the_users_own_count_as_in_ordinary_steps(recorder, accumulate, when):
    def change(number, step, optimizer):
        if number in (when, when + 2):
            step.spec.model[4].weight.square().sum().backward()

    data = batches(20)
    whole = trained(True, data, change=change, accumulate=accumulate)
    same(whole, trained(False, data, change=change, accumulate=accumulate))
    assert whole[3].plan.cuda_graph


@pytest.mark.parametrize(("accumulate", "when"), [(1, 9), (2, 9), (2, 8)])
def test_gradients_that_the_user_drops_are_dropped(recorder, accumulate, when):
    def change(number, step, optimizer):
        if number == when:
            step.spec.model.zero_grad()

    data = batches(20)
    whole = trained(True, data, change=change, accumulate=accumulate)
    same(whole, trained(False, data, change=change, accumulate=accumulate))
    assert whole[3].plan.cuda_graph


@pytest.mark.parametrize(("accumulate", "when"), [(1, 9), (2, 9), (2, 8)])
def test_gradients_of_the_users_own_are_in_the_update_before_it_is_recorded_again(recorder, accumulate, when):
    def change(number, step, optimizer):
        if number == when:
            step.spec.model.zero_grad()
            step.spec.model[4].weight.square().sum().backward()
            optimizer.param_groups[0]["weight_decay"] = 0.5

    data = batches(20)
    whole = trained(True, data, change=change, accumulate=accumulate)
    same(whole, trained(False, data, change=change, accumulate=accumulate))
    assert whole[3]._cuda_graph._recordings == 2


class Learning(nn.Module):
    """Loss with a weight and a moving average of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, device=DEVICE))
        self.register_buffer("mean", torch.zeros(3, device=DEVICE))
        self.register_buffer("mask", torch.ones(3, device=DEVICE, dtype=torch.bool))

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
    assert runs[0][3]._cuda_graph._recording is not None


def test_batches_of_another_structure_go_the_ordinary_way(recorder):
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]) + model(batch["z"]), batch["y"]) * len(batch)

    runs = []
    for on in (True, False):
        model = net()
        optimizer = OPTIMIZERS["adamw"](model)
        step = TrainStep(model, loss, optimizer, plan=PLAN.changed(cuda_graph=on))
        losses = []
        for number, ((x, y), (z, _)) in enumerate(zip(batches(12), batches(24)[12:], strict=True)):
            batch = {"x": x, "y": y, "z": z}
            if number == 8:
                batch = {"z": z, "y": y, "x": x}
            if number == 9:
                batch["name"] = "another"
            losses.append(step(batch))
        runs.append((torch.stack(losses), model, optimizer, step))
    same(*runs)
    assert runs[0][3]._cuda_graph._recordings == 1


def test_several_ranks_make_ordinary_steps(recorder, monkeypatch):
    monkeypatch.setattr(planning, "world_size", lambda: 2)
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
            step.spec.model.load_state_dict(net().state_dict())

    whole = trained(True, batches(9), change=change)
    same(whole, trained(False, batches(9), change=change))
    assert whole[3]._cuda_graph._recordings == 1


def test_a_step_that_changes_all_the_time_is_left_ordinary(recorder):
    def change(number, step, optimizer):
        optimizer.param_groups[0]["betas"] = (0.9 - 0.001 * number, 0.99)

    whole = trained(True, batches(60), change=change)
    same(whole, trained(False, batches(60), change=change))
    assert not whole[3].plan.cuda_graph
    assert said(whole[3])[-1] == "CUDA graph: left off, the step changed after each of 3 recordings"


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
def test_it_is_left_off_if_it_is_not_faster(monkeypatch, seconds):
    recorder = TapeRecorder()
    monkeypatch.setattr(planning, "recorder_for", lambda device: recorder)
    monkeypatch.setattr(
        recording, "seconds", lambda forms, device: {n: [s] for n, s in zip(forms, seconds, strict=True)}
    )
    whole = trained(True, batches(8))
    same(whole, trained(False, batches(8)))
    text = f"{1e3 * seconds[1]:.2f} ms instead of 1000.00 ms an update"
    kept = seconds[1] == 0.5
    assert said(whole[3])[-1] == f"CUDA graph: {'on' if kept else 'left off'}, {text}"
    assert whole[3].plan.cuda_graph == kept


def test_autotune_max_tries_it_and_a_later_run_knows(recorder):
    tried = []
    for _ in range(2):
        model = net()
        step = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["adamw"](model), autotune="max")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step.prepare(batches(1)[0])
        tried.append(step.plan.cuda_graph)
    assert tried == [True, True]


def test_other_values_of_autotune_do_not_try_it(recorder):
    model = net()
    step = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["adamw"](model), autotune="off")
    step(batches(1)[0])
    assert not step.plan.cuda_graph


@pytest.mark.skipif(DEVICE == "cuda", reason="there are graphs")
def test_on_a_cpu_there_is_no_such_plan():
    model = net()
    with pytest.raises(InputError, match="cuda_graph=True in the plan of a model on cpu"):
        TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["adamw"](model), plan=PLAN)


def test_stepping_back_ends_it(recorder):
    *_, step = trained(True, batches(6))
    with pytest.warns(LoopwiseWarning, match="back to the eager step"):
        step.step_back("asked to")
    assert step._cuda_graph is None
    assert not step.plan.cuda_graph
    step(batches(1)[0])
