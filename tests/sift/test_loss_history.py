"""Sifting before loading, by the losses of earlier training steps."""

import copy
import io
import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from loopwise.errors import InputError, StateError
from loopwise.sift import (
    ClassFloor,
    Diverse,
    GradNorm,
    Indexed,
    Mixture,
    NoiseCap,
    Presence,
    PrunedHistory,
    ReducibleLoss,
    SiftingDataLoader,
    Threshold,
    TopLoss,
    Uniform,
)
from loopwise.warnings import LoopwiseWarning

CRITERION = nn.CrossEntropyLoss(reduction="none")


class Counted(Dataset):
    """Dataset with random noise at every access; lists the indices that were loaded."""

    def __init__(self, n=60):
        self.x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
        self.loaded = []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.loaded.append(i)
        return self.x[i] + 0.01 * torch.randn(6), i % 3


class Hiding:
    """Iterable of batches without any other attribute of a loader."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


def keep_all(losses):
    return torch.ones_like(losses)


def train(loader, model, epochs=1, record=None, instead=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batches = []
    for _ in range(epochs):
        for x, y in loader:
            batches.append((x, y))
            optimizer.zero_grad()
            losses = CRITERION((instead or model)(x), y)
            if record:
                loader.record_losses(losses)
            losses.mean().backward()
            optimizer.step()
    return batches


def sift(data, model, batch_size=10, loss=CRITERION, **options):
    loader = DataLoader(data, batch_size, shuffle=True)
    return SiftingDataLoader(loader, model, loss=loss, **options)


def test_samples_left_out_are_not_loaded():
    torch.manual_seed(0)
    data, model = Counted(), nn.Linear(6, 3)
    loader = sift(data, model, policy=TopLoss(0.5))
    assert len(train(loader, model)) == 6
    assert sorted(data.loaded) == list(range(60))
    losses = loader._history.losses[:60]
    worst = set(losses.topk(30).indices.tolist())
    data.loaded.clear()
    assert [len(y) for _, y in train(loader, model)] == [10, 10, 10]
    assert set(data.loaded) == worst
    report = loader.report()
    assert (report.seen, report.skipped, report.kept, report.trained, report.scored) == (120, 30, 90, 90, 0)
    assert report.dropped == 30


def test_remembered_losses_are_those_of_the_training_steps():
    torch.manual_seed(0)
    data, model = Counted(), nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3))
    loader = sift(data, model, keep=0.5)
    expected = {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for x, y in loader:
        losses = CRITERION(model(x), y)
        expected |= dict(zip(loader._last_indices.tolist(), losses.tolist(), strict=True))
        model(x).sum()  # a second forward of the same batch does not count
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    assert loader._history.losses[:60].tolist() == pytest.approx([expected[i] for i in range(60)])


@pytest.mark.parametrize("copied", [False, True])
def test_losses_go_to_their_batch_when_batches_are_fetched_ahead(copied):
    data, model = Counted(), nn.Linear(6, 3)
    loader = sift(data, model, keep=0.5)
    expected, ahead = {}, []

    def step(x, y, indices):
        losses = CRITERION(model(x.clone() if copied else x), y)
        expected.update(zip(indices, losses.tolist(), strict=True))

    for x, y in loader:
        ahead.append((x, y, loader._last_indices.tolist()))
        if len(ahead) == 2:
            step(*ahead.pop(0))
    assert len(expected) == 50
    loader._history.flush()
    for index, loss in expected.items():
        assert loader._history.losses[index].item() == pytest.approx(loss)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_is_bit_identical_when_all_is_kept(workers):
    def weights(wrap):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
        loader = DataLoader(Counted(), 16, shuffle=True, num_workers=workers)
        train(wrap(loader, model), model, epochs=3)
        return model.state_dict()

    plain = weights(lambda loader, model: loader)
    sifted = weights(lambda loader, model: SiftingDataLoader(loader, model, loss=CRITERION, policy=keep_all))
    assert all(torch.equal(plain[name], sifted[name]) for name in plain)


def test_recorded_losses_serve_where_the_loss_is_a_function():
    data, model = Counted(), nn.Linear(6, 3)
    loader = sift(
        data, model, loss=lambda model, batch: pytest.fail("no scoring"), policy=TopLoss(0.5), score_every=0
    )
    train(loader, model, epochs=2, record=True)
    assert loader.report().trained == 90


def test_a_function_whose_losses_nobody_records_is_noticed():
    """Neither scored nor recorded, all samples would be trained on in every epoch."""

    def loss(model, batch):
        return CRITERION(model(batch[0]), batch[1])

    with pytest.raises(InputError) as caught:
        list(sift(Counted(), nn.Linear(6, 3), loss=loss, keep=0.5, score_every=0))
    assert str(caught.value).splitlines() == [
        "seen: loss=function, and no loss was recorded in 4 training steps",
        "expected: losses of every training step",
        "likely cause: the loop neither calls loader.criterion(...) nor loader.record_losses(...)",
        "fix: drop score_every=0, so that samples are scored; or call loader.record_losses(losses) after each batch",
    ]
    assert list(sift(Counted(), nn.Linear(6, 3), loss=loss, keep=0.5, score_every=2))


def test_losses_that_do_not_fit_are_refused():
    loader = sift(Counted(), nn.Linear(6, 3))
    next(iter(loader))
    with pytest.raises(InputError, match=r"record_losses\(\) of a Tensor of shape \(3,\)"):
        loader.record_losses(torch.ones(3))


@pytest.mark.parametrize("ahead", [1, 2])
def test_losses_that_come_after_the_next_batch_was_fetched_are_refused(ahead):
    loader = sift(Counted(), nn.Linear(6, 3), loss=None, policy=TopLoss(0.5))
    fetched = []
    with pytest.raises(StateError, match=r"record_losses\(\) after the epoch"):
        for batch in itertools.chain(loader, [None] * ahead):
            fetched.append(batch)
            if len(fetched) > ahead:
                loader.record_losses(torch.ones(len(fetched[-ahead - 1][1])))
    assert loader.epoch == 1


def test_models_are_copied_and_pickled_without_our_hook():
    model = nn.Linear(6, 3)
    loader = sift(Counted(), model)
    batches = iter(loader)
    x, _ = next(batches)
    assert len(model._forward_hooks) == 1
    model(x)
    assert not model._forward_hooks
    copy.deepcopy(model)
    torch.save(model, io.BytesIO())
    next(batches)
    batches.close()
    assert not model._forward_hooks


def test_losses_that_are_not_finite_keep_their_sample():
    data, model = Counted(), nn.Linear(6, 3)
    data.x[7] = torch.nan
    loader = sift(data, model, policy=TopLoss(0.5))
    with pytest.warns(LoopwiseWarning, match=r"1 of 60 samples have a loss that is NaN"):
        for x, y in loader:
            CRITERION(model(x), y)
    assert loader.report().not_finite == 1
    data.loaded.clear()
    list(loader)
    assert 7 in data.loaded
    assert len(data.loaded) in (30, 31)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_scripted_model_which_takes_no_hook_is_scored():
    data, model = Counted(), torch.jit.script(nn.Linear(6, 3))
    loader = sift(data, model, policy=TopLoss(0.5))
    with pytest.warns(LoopwiseWarning, match="no losses from the training step: register_forward_hook"):
        train(loader, model)
    assert loader.score_every == 1
    train(loader, model)
    assert loader.report().scored > 0


def test_a_compiled_model_gives_its_losses_and_one_inside_falls_back():
    data, inner = Counted(), nn.Linear(6, 3)
    model = torch.compile(inner, backend="eager")
    loader = sift(data, model, policy=TopLoss(0.5))
    train(loader, model, epochs=2)
    assert loader.report().trained == 90
    loader = sift(data, inner, policy=TopLoss(0.5))
    copied_model = copy.deepcopy(inner)
    with pytest.warns(LoopwiseWarning, match="no losses from the training step"):
        train(loader, inner, instead=copied_model)
    train(loader, inner)
    assert loader.report().scored == 60


def test_every_kth_epoch_is_scored():
    data, model = Counted(), nn.Linear(6, 3)
    loader = sift(data, model, policy=TopLoss(0.5), score_every=3)
    scored = []
    for _ in range(7):
        train(loader, model)
        scored.append(loader.report().scored)
    assert scored == [60, 60, 60, 120, 120, 120, 180]
    assert loader.report().trained == 7 * 30


def test_a_loader_that_hides_its_indices_works_when_indexed():
    data, model = Counted(), nn.Linear(6, 3)
    hidden = Hiding(DataLoader(Indexed(data), 10))
    loader = SiftingDataLoader(hidden, model, loss=CRITERION, policy=TopLoss(0.5), score_every=0)
    batches = train(loader, model, epochs=2)
    assert [len(y) for _, y in batches] == [10] * 9
    collated = DataLoader(Indexed(data), 10, collate_fn=Indexed.collate(torch.utils.data.default_collate))
    x, _ = next(iter(SiftingDataLoader(Hiding(collated), model, loss=CRITERION, policy=TopLoss(0.5))))
    assert x.shape == (10, 6)
    plain = SiftingDataLoader(Hiding(DataLoader(data, 10)), model, loss=CRITERION, keep=0.5, score_every=0)
    with pytest.raises(InputError, match="wrap the dataset: DataLoader"):
        list(plain)


def test_annealing_and_a_schedule_of_keep():
    data, model = Counted(), nn.Linear(6, 3)
    loader = sift(data, model, policy=TopLoss(0.5), epochs=8, anneal=0.25)
    trained = []
    for _ in range(8):
        trained.append(sum(len(y) for _, y in train(loader, model)))
    assert trained == [60, 30, 30, 30, 30, 30, 60, 60]
    loader = SiftingDataLoader(
        DataLoader(data, 10),
        model,
        loss=CRITERION,
        policy=TopLoss(0.5),
        keep=lambda epoch: (1.0, 0.5, 0.2)[epoch],
    )
    assert [sum(len(y) for _, y in train(loader, model)) for _ in range(3)] == [60, 30, 10]  # two of 12 wait


def test_a_delay_in_every_epoch():
    data, model = Counted(), nn.Linear(6, 3)
    loader = sift(data, model, policy=TopLoss(0.5), delay=2, delay_every_epoch=True, score_every=1)
    assert [sum(len(y) for _, y in train(loader, model)) for _ in range(2)] == [40, 40]
    assert loader.report().scored == 80


@pytest.mark.parametrize("indexed", [False, True])
def test_a_delay_holds_for_remembered_losses_too(indexed):
    data, model = Counted(), nn.Linear(6, 3)

    def counts(**options):
        loader = DataLoader(Indexed(data), 10) if indexed else DataLoader(data, 10)
        source = Hiding(loader) if indexed else loader
        sifting = SiftingDataLoader(
            source, model, loss=CRITERION, policy=TopLoss(0.5), score_every=0, batch_size=10, **options
        )
        return [sum(len(y) for _, y in train(sifting, model)) for _ in range(3)]

    assert counts(delay=12) == [60, 60, 30]
    first, *others = counts(delay=3, delay_every_epoch=True)
    assert first == 60
    assert all(40 <= count <= 50 for count in others)  # 30 free and, of the others, those of the worst 30


def test_the_report_counts_classes_and_estimates_the_saving():
    data, model = Counted(), nn.Linear(6, 3)
    loader = sift(data, model, keep=0.5, score_every=1)
    train(loader, model, epochs=2)
    report = loader.report()
    assert {label: seen for label, (seen, _) in report.classes.items()} == {0: 40, 1: 40, 2: 40}
    assert sum(kept for _, kept in report.classes.values()) == report.kept
    low, high = report.saved_interval
    assert low <= report.saved_seconds <= high


@pytest.mark.parametrize("score_every", ["auto", 1])
@pytest.mark.parametrize(
    "policy",
    [
        Diverse(0.5),
        GradNorm(0.5),
        PrunedHistory(0.5),
        ReducibleLoss(torch.zeros(60), keep=0.5),
        ReducibleLoss(nn.Linear(6, 3), keep=0.5),
        Threshold(1.0),
        Uniform(0.5),
        Mixture((1, TopLoss(0.5)), (1, Uniform(0.5))),
        ClassFloor(TopLoss(0.3), share=0.3),
        NoiseCap(TopLoss(0.5), top=0.1),
        Presence(TopLoss(0.5), epochs=2),
    ],
    ids=repr,
)
def test_every_policy_works_in_the_loader(policy, score_every):
    torch.manual_seed(0)
    data, model = Counted(), nn.Linear(6, 3)
    weights = policy.reaches_all
    loader = sift(data, model, policy=copy.deepcopy(policy), score_every=score_every, weights=weights, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(4):
        for x, y, *weight in loader:
            optimizer.zero_grad()
            (CRITERION(model(x), y) * (weight[0] if weights else 1)).mean().backward()
            optimizer.step()
    report = loader.report()
    assert report.seen + len(loader._pipeline.left_over.indices) == 240
    assert 0 < report.trained <= 240
    if not isinstance(policy, Threshold):
        assert report.trained < 240
    late = set(policy.needs) & {"gradients", "features", "losses_of"}
    assert (report.scored == 0) == (score_every == "auto" and not late)
