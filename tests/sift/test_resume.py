"""Exact resume: the rest of a run that was restored at any batch boundary is bit-identical."""

import io

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from loopwise.errors import InputError, StateError
from loopwise.sift import Indexed, ProportionalLoss, RelativeLoss, SiftingDataLoader, Threshold, TopLoss

EPOCHS = 2


class Noisy(Dataset):
    """Dataset that draws from the global random state at every access, as augmentation does."""

    def __len__(self):
        return 60

    def __getitem__(self, i):
        return torch.full((4,), float(i)) + torch.randn(4), i % 3


class Fixed(Noisy):
    """Dataset that draws nothing, because torchdata restores no random state of its workers."""

    def __getitem__(self, i):
        return torch.full((4,), float(i)), i % 3


class Stream(IterableDataset):
    def __iter__(self):
        yield from (Noisy()[i] for i in range(60))


class Hiding:
    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


def as_dict(samples):
    x, y = zip(*samples, strict=True)
    return {"x": torch.stack(x), "y": torch.tensor(y), "name": [f"n{label}" for label in y]}


def pair_loss(output, target):
    return nn.functional.cross_entropy(output, target, reduction="none")


def dict_loss(model, batch):
    return pair_loss(model(batch["x"]), batch["y"])


LOADERS = {
    "map": lambda workers=0: DataLoader(Noisy(), 8, shuffle=True, num_workers=workers),
    "map-drop-last": lambda: DataLoader(Noisy(), 8, shuffle=True, drop_last=True),
    "map-own-generator": lambda: DataLoader(
        Noisy(), 8, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "dict": lambda: DataLoader(Noisy(), 8, shuffle=True, collate_fn=as_dict),
    "stream": lambda: DataLoader(Stream(), 8),
    "hidden-indexed": lambda: Hiding(DataLoader(Indexed(Noisy()), 8, shuffle=True)),
    "stateful": lambda: StatefulDataLoader(Noisy(), 8, shuffle=True),
    "stateful-workers": lambda: StatefulDataLoader(Fixed(), 8, shuffle=True, num_workers=2),
    "workers": lambda: LOADERS["map"](2),
}
POLICIES = {
    "relative": lambda: {"keep": 0.5},
    "relative-fresh": lambda: {"policy": RelativeLoss(0.6), "score_every": 1},
    "top-fresh-pool": lambda: {"policy": TopLoss(0.7), "score_every": 1, "pool": 3},
    "weights": lambda: {"keep": 0.4, "weights": True},
    "every-2": lambda: {"policy": TopLoss(0.5), "score_every": 2},
    "delay": lambda: {"policy": TopLoss(0.6), "delay": 3, "score_every": 1, "batch_size": 5},
    "all": lambda: {"keep": 1.0},
}


class Training:
    """Training run that can be stopped and saved after any step."""

    def __init__(self, kind, policy):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.2), nn.Linear(8, 3))
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.loader = SiftingDataLoader(
            LOADERS[kind](),
            self.model,
            loss=dict_loss if kind == "dict" else pair_loss,
            seed=5,
            **POLICIES[policy](),
        )

    def state(self):
        file = io.BytesIO()
        torch.save([part.state_dict() for part in (self.model, self.optimizer, self.loader)], file)
        file.seek(0)
        return file

    def load(self, file):
        saved = torch.load(file, weights_only=True)
        for part, state in zip((self.model, self.optimizer, self.loader), saved, strict=True):
            part.load_state_dict(state)

    def steps(self, epochs=EPOCHS):
        while self.loader.epoch < epochs:
            for batch in self.loader:
                x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch[:2]
                losses = pair_loss(self.model(x), y)
                self.optimizer.zero_grad()
                (
                    losses * (batch[2] if len(batch) > 2 and not isinstance(batch, dict) else 1)
                ).mean().backward()
                self.optimizer.step()
                yield x.clone(), y.clone(), [p.detach().clone() for p in self.model.parameters()]


def same(a, b):
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and all(map(torch.equal, a[2], b[2]))


CASES = [(kind, policy) for kind in LOADERS if "workers" not in kind for policy in POLICIES]
CASES = [(k, p) for k, p in CASES if not (p == "every-2" and k in ("stream", "dict", "stateful"))]
RARE = {
    "default": dict,
    "default-fresh": lambda: {"score_every": 1},
    "weights-fresh": lambda: {"policy": Threshold(1.0, floor=0.3), "score_every": 1, "weights": True},
}
CASES += [(kind, policy) for kind in ("map", "stream") for policy in RARE]
AUTO = {"auto": lambda: {"auto": True, "policy": ProportionalLoss(0.2)}}
CASES += [(kind, "auto") for kind in ("map", "map-drop-last", "map-own-generator", "workers")]
POLICIES |= RARE | AUTO
CASES += [
    (kind, policy) for kind in ("workers", "stateful-workers") for policy in ("relative", "relative-fresh")
]


@pytest.mark.parametrize(("kind", "policy"), CASES)
@pytest.mark.filterwarnings(
    "ignore:loopwise.sift:loopwise.warnings.LoopwiseWarning", "ignore:'set_vital':UserWarning"
)
def test_every_boundary_resumes_to_the_bit(kind, policy):
    run = Training(kind, policy)
    steps, states = [], []
    for step in run.steps():
        steps.append(step)
        states.append(run.state())
    assert len(steps) >= 4
    for done, state in enumerate(states[:: 3 if "workers" in kind else 1]):
        done *= 3 if "workers" in kind else 1
        torch.manual_seed(99)
        again = Training(kind, policy)
        again.load(state)
        rest = list(again.steps())
        assert len(rest) == len(steps) - done - 1
        assert all(map(same, rest, steps[done + 1 :])), f"after step {done}"


def test_a_sampler_whose_epoch_nobody_sets_stays_where_it_is(monkeypatch):
    sampler = lambda: DistributedSampler(Noisy(), 1, 0)  # noqa: E731
    monkeypatch.setitem(LOADERS, "distributed", lambda: DataLoader(Noisy(), 8, sampler=sampler()))
    run = Training("distributed", "relative-fresh")
    steps, states = [], []
    for step in run.steps():
        steps.append(step)
        states.append((run.loader.epoch, run.state()))
    done, state = next((n, state) for n, (epoch, state) in enumerate(states) if epoch == 1)
    again = Training("distributed", "relative-fresh")
    again.load(state)
    assert all(map(same, again.steps(), steps[done + 1 :]))


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        *(("map", policy) for policy in ("relative", "weights", "every-2", "relative-fresh", "all")),
        *((kind, "relative") for kind in ("map-own-generator", "stream", "workers")),
        ("dict", "delay"),
    ],
)
@pytest.mark.filterwarnings("ignore:loopwise.sift:loopwise.warnings.LoopwiseWarning")
@pytest.mark.parametrize("asks_length", [False, True])
def test_a_state_between_epochs_begins_the_next_one(kind, policy, asks_length):
    """The samples that wait for the next epoch, its plan and the random states of its order belong to the state."""
    run = Training(kind, policy)
    list(run.steps(1))
    if asks_length and kind != "stream":
        len(run.loader)  # plans the epoch
    state = run.state()
    expected = list(run.steps())
    torch.manual_seed(99)
    again = Training(kind, policy)
    again.load(state)
    assert again.loader.epoch == 1
    torch.rand(3)  # the program may draw before the epoch begins
    rest = list(again.steps())
    assert len(rest) == len(expected) > 0
    assert all(map(same, rest, expected))


def test_states_of_another_policy_or_world_are_refused():
    run = Training("map", "relative")
    state = run.loader.state_dict()
    other = Training("map", "every-2").loader
    with pytest.raises(InputError) as error:
        other.load_state_dict(state)
    assert str(error.value) == (
        "seen: the state of policy RelativeLoss(beta=1.33333, floor=0.125, history=2048)\n"
        "expected: the state of TopLoss(keep=0.5)\n"
        "likely cause: the run was saved with another policy or other settings of it\n"
        "fix: make the loader with the policy of the saved run, or start without its state"
    )
    with pytest.raises(StateError) as error:
        run.loader.load_state_dict(state | {"world": 4, "rank": 2})
    assert str(error.value) == (
        "seen: the state of rank 2 of 4\n"
        "expected: the state of rank 0 of 1\n"
        "likely cause: each rank has its own state, and another number of ranks divides samples differently\n"
        "fix: save and load one state per rank, with the same number of ranks"
    )
