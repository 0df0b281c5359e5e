"""An update that is copied, recorded, or left incomplete at the end."""

import copy
import json
import pickle

import pytest
import torch
from accumulation_kit import DATA, Net, batches, count, mean, same, with_count
from torch import nn

from loopwise.compile import Plan, TrainStep

CRITERION = nn.CrossEntropyLoss()


def made(net=None, loss=CRITERION, **options):
    net = Net() if net is None else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
    return TrainStep(net, loss, optimizer, **{"accumulate": 4, "plan": Plan()} | options)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda step: pickle.loads(pickle.dumps(step))])
def test_a_copy_completes_the_update(copied):
    whole = made()
    for batch in DATA:
        whole(batch)
    half = made()
    for batch in DATA[:6]:
        half(batch)
    other = copied(half)
    # a pickle has no gradients, as torch's own pickles of parameters
    for parameter, twin in zip(half.spec.model.parameters(), other.spec.model.parameters(), strict=True):
        twin.grad = parameter.grad.clone()
    for batch in DATA[6:]:
        other(batch)
    for one, two in zip(whole.spec.model.parameters(), other.spec.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["found", "given", "returned", "class weights"])
def test_a_recorded_step_makes_updates_of_unequal_batches_as_an_ordinary_one(recorder, name):
    losses = {"found": CRITERION, "given": mean, "returned": with_count}
    data = batches(*[5] * 12, 8, 1, *[5] * 6, 3, 0, 0, 0, *[5] * 6)
    steps = []
    for on in (True, False):
        loss = losses.get(name) or nn.CrossEntropyLoss(weight=torch.arange(1.0, 8))
        step = made(loss=loss, accumulate=2, plan=Plan(cuda_graph=on, optimizer="fused"))
        seen = [step(batch, count=count(batch)) if name == "given" else step(batch) for batch in data]
        steps.append((step, torch.stack(seen)))
    same(steps[0][0].spec.model, steps[1][0].spec.model)
    torch.testing.assert_close(steps[0][1], steps[1][1], equal_nan=True)
    graph = steps[0][0]._cuda_graph
    if name == "returned":
        assert "CUDA graph: left off, RuntimeError: the loss returns a count" in str(steps[0][0].explain())
    else:
        assert graph is not None
        assert (graph._recording is not None) == (name != "class weights")


def test_a_run_tells_of_an_incomplete_update(tmp_path):
    step = made(run=tmp_path / "run")
    for batch in DATA[:6]:
        step(batch)
    step.close()
    lines = [
        json.loads(line)
        for path in tmp_path.rglob("events.rank*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert [line["text"] for line in lines if "batches" in line["text"]] == [
        "the present update has 2 of 4 batches: later batches complete it, or flush() makes it now"
    ]
    step(DATA[6])
    assert step.flush()


@pytest.mark.parametrize("loss", [with_count, CRITERION], ids=["returned", "found"])
def test_a_captured_graph_counts_as_well(loss):
    steps = [made(loss=loss, plan=Plan(graph=graph)) for graph in ("captured", "eager")]
    for step in steps:
        for batch in DATA:
            step(batch)
    same(steps[0].spec.model, steps[1].spec.model)
    assert steps[0].plan.graph == "captured"
    assert steps[0]._forward_pass.log.graphs == 1
    assert steps[0].verify(DATA[1], steps=2) is None
