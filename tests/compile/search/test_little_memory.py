"""Batches for which the eager step, the reference of all variants, runs out of memory."""

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.search import attempts, search
from loopwise.compile.verify import numerics

PLAN = Plan(graph="captured", passes=("loss_head",))


class Wide(nn.Module):
    """Model whose step holds mostly logits."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(512, 8), nn.Linear(8, 512)

    def forward(self, tokens):
        return self.head(self.embed(tokens))


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]).flatten(0, 1), batch["y"].flatten())


class Memory:
    """Reference that runs out of memory above a number of samples."""

    def __init__(self, monkeypatch):
        self.most, self.asked, self._real = 4, [], numerics.reference
        monkeypatch.setattr(numerics, "reference", self)
        monkeypatch.setattr(attempts, "_by_inductor", lambda *_: [])  # captured graphs show it as well

    def __call__(self, sandbox):
        size = len(sandbox.batch["x"])
        if size not in self.asked:  # a reference is made at several points
            self.asked.append(size)
        if size > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._real(sandbox)


@pytest.fixture
def memory(monkeypatch):
    return Memory(monkeypatch)


def made(plan=None, **options):
    torch.manual_seed(0)
    model = Wide()
    return TrainStep(model, loss_of, torch.optim.SGD(model.parameters(), lr=0.5), plan=plan, **options)


TOKENS = torch.arange(64).reshape(16, 4) * 7 % 512
BATCH = {"x": TOKENS, "y": TOKENS.roll(1)}


@pytest.mark.parametrize("plan", [PLAN, None], ids=str)
def test_variants_are_tried_on_a_part_of_the_batch_and_train_on_all_of_it(memory, plan):
    step = made(plan)
    losses = torch.stack([step(BATCH) for _ in range(3)])
    assert memory.asked == [16, 8, 4]
    assert step.plan.graph != "eager"  # the fastest of those that hold less
    assert "tried on 4 samples: there is no memory for the eager step" in str(step.explain())
    memory.most = 16
    torch.testing.assert_close(losses[0], made(PLAN)(BATCH))
    model = Wide()
    model.load_state_dict(step.spec.model.state_dict())
    assert step(BATCH) == pytest.approx(loss_of(model, BATCH).item(), rel=1e-5)


def test_a_memory_budget_is_that_of_the_part(memory):
    memory.most = 8
    step = made(memory=2**30)
    seen = []
    choose_ = search.choose

    def recorded(spec, batch, known, deadline):
        seen.append((len(batch["x"]), spec.memory))
        return choose_(spec, batch, known, deadline)

    search.choose = recorded
    try:
        step(BATCH)
    finally:
        search.choose = choose_
    assert seen == [(16, 2**30), (8, 2**29)]
    assert step.spec.memory == 2**30


def test_it_is_out_of_memory_if_no_variant_takes_less(memory):
    memory.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        made(PLAN)(BATCH)
    memory.most = 8
    with pytest.raises(torch.OutOfMemoryError, match="no other variant takes less"):
        made(Plan())(BATCH)


def test_a_later_comparison_may_run_out_of_memory_too(memory):
    memory.most = 16
    step = made(PLAN)
    step(BATCH)
    memory.most = 0
    step._forward_pass.supervisor.compare("after a recompilation", BATCH)
    assert "after a recompilation: not compared, there is no memory for the eager step" in str(step.explain())
    assert step.plan == PLAN
