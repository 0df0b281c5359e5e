"""The sifting loader: its batches, its counts, its record in a run, and its lack of side effects."""

import gc
import itertools
import subprocess

import forks
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from loopwise import batch as batches
from loopwise.run import Run, read
from loopwise.sift import SiftingDataLoader, TopLoss
from loopwise.warnings import LoopwiseWarning

CRITERION = nn.CrossEntropyLoss(reduction="none")


def dataset(n=100):
    return TensorDataset(torch.randn(n, 6), torch.arange(n) % 3)


def sift(loader, model=None, loss=CRITERION, **options):
    options = {"score_every": 1} | options
    return SiftingDataLoader(loader, model or nn.Linear(6, 3), loss=loss, **options)


class Stream(IterableDataset):
    def __iter__(self):
        yield from ((torch.full((6,), float(i)), i % 3) for i in range(100))


class Randomised(Dataset):
    """Dataset that draws from the global random state at every access, as augmentation does."""

    def __len__(self):
        return 96

    def __getitem__(self, i):
        return torch.randn(6) + i, i % 3


def test_keep_one_yields_the_wrapped_batches():
    data = dataset()
    sizes = [[0, 1, 2], [3], list(range(4, 50))]
    for loader in (
        DataLoader(data, 16),
        DataLoader(data, 16, drop_last=True),
        DataLoader(data, batch_sampler=sizes),
    ):
        for a, b in zip(sift(loader, keep=1.0), loader, strict=True):
            assert all(map(torch.equal, a, b))
        assert len(sift(loader, keep=1.0)) == len(loader)
    own = [[torch.zeros(3), torch.zeros(3)]]
    assert next(iter(sift(own, keep=1.0))) is own[0]


@pytest.mark.parametrize("pool", ["auto", 1, 2, 5])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("make", [dataset, Stream])
def test_batches_are_full(pool, drop_last, make):
    loader = sift(DataLoader(make(), 16, drop_last=drop_last), policy=TopLoss(0.5), pool=pool)
    lengths = [len(y) for _, y in loader]
    assert lengths == [16] * 3  # two samples of 50 wait
    report = loader.report()
    assert (report.seen, report.scored) == ((96, 96) if drop_last else (100, 100))
    assert report.kept == report.trained + (0 if drop_last else 2)
    assert report.kept + report.dropped == report.seen


def test_kept_samples_have_the_highest_losses_and_stay_in_order():
    data = dataset()
    model = nn.Linear(6, 3)
    losses = CRITERION(model(data.tensors[0]), data.tensors[1])
    order = [i for i in range(100) if losses[i] >= losses.topk(40).values[-1]]
    loader = sift(DataLoader(data, 10), model, policy=TopLoss(0.4), pool=10)
    assert torch.equal(torch.cat([x for x, _ in loader]), data.tensors[0][order])


def test_relative_loss_keeps_its_share():
    for keep in (0.25, 0.5, 0.8):
        loader = sift(DataLoader(dataset(4000), 50), keep=keep, seed=0)
        assert sum(len(y) for _, y in loader) == pytest.approx(4000 * keep, rel=0.08)


def test_delay_lets_the_first_batches_through():
    loader = sift(DataLoader(dataset(), 10), policy=TopLoss(0.5), delay=4)
    assert sum(len(y) for _, y in loader) == 40 + 30
    assert loader.report().scored == 60
    assert sum(len(y) for _, y in loader) == 50  # the delay is over


def test_the_same_seed_keeps_the_same_samples():
    data, model = dataset(), nn.Linear(6, 3)
    once, again = ([x for x, _ in sift(DataLoader(data, 10), model, seed=3)] for _ in range(2))
    assert all(map(torch.equal, once, again))


def test_any_structure_with_a_loss_of_model_and_batch():
    def collate(samples):
        images, labels = zip(*samples, strict=True)
        return {
            "x": torch.stack(images),
            "meta": {"y": torch.tensor(labels), "name": [f"n{y}" for y in labels]},
        }

    def loss(model, batch):
        return CRITERION(model(batch["x"]), batch["meta"]["y"])

    for batch in sift(DataLoader(Stream(), 16, collate_fn=collate), loss=loss):
        assert [f"n{y}" for y in batch["meta"]["y"].tolist()] == batch["meta"]["name"]
        assert (batch["x"][:, 0] % 3).tolist() == batch["meta"]["y"].tolist()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
        )

    def forward(self, x):
        return self.layers(x)


def trained(wrap, workers=0):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(Randomised(), 16, shuffle=True, num_workers=workers, generator=generator)
    for _ in range(3):
        for x, y in wrap(loader, model):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize(("pool", "workers"), [(1, 0), (1, 2), (3, 2)])
def test_scoring_leaves_training_bit_identical(pool, workers):
    def keep_all(losses):
        return torch.ones_like(losses)

    plain = trained(lambda loader, model: loader, workers)
    sifted = trained(lambda loader, model: sift(loader, model, policy=keep_all, pool=pool), workers)
    assert all(torch.equal(plain[name], sifted[name]) for name in plain)


def test_dropping_samples_does_change_training():
    plain = trained(lambda loader, model: loader)
    sifted = trained(lambda loader, model: sift(loader, model, keep=0.6))
    assert not all(torch.equal(plain[name], sifted[name]) for name in plain)


def test_scoring_inside_autocast_leaves_gradients():
    model = nn.Linear(6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        x, y = next(iter(sift(DataLoader(dataset(), 10), model, dtype=torch.bfloat16)))
        nn.functional.cross_entropy(model(x), y).backward()
    assert model.weight.grad is not None


def test_channels_last_scores_are_the_same_losses():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    x, y = torch.randn(20, 3, 8, 8), torch.arange(20) % 3
    seen = []
    kept = dict(policy=lambda losses: seen.append(losses) or torch.ones_like(losses), dtype=torch.float32)
    list(sift([(x, y)], model, **kept))
    torch.testing.assert_close(seen[0], CRITERION(model(x), y).detach())
    assert model[0].weight.is_contiguous()


def test_the_buffer_stays_small(monkeypatch):
    held = []
    loader = sift(DataLoader(dataset(640), 10), keep=0.9, pool=8, seed=0)
    original = batches.index

    def watched(batch, indices, *rest):
        held.append(len(indices))
        return original(batch, indices, *rest)

    monkeypatch.setattr(batches, "index", watched)
    for _ in loader:
        assert held[-1] <= 10
    assert len(held) > 50


def test_stopping_early_and_going_on(tmp_path):
    with Run(str(tmp_path)) as run:
        loader = sift(DataLoader(dataset(), 10), policy=TopLoss(0.5), run=run)
        assert len(list(itertools.islice(loader, 2))) == 2
        list(loader)
    records, torn = read(str(tmp_path), "sift", "epochs")
    assert torn == 0
    assert [(r["complete"], r["epoch"]) for r in records] == [(False, 0), (True, 1)]
    assert records[1]["seen"] == 100
    assert records[1]["trained"] == 50


def state_of(folder):
    return Run.existing(folder).info()["state"]


def test_a_run_given_by_its_path_is_written_and_ends_with_the_loader(tmp_path):
    loader = sift(DataLoader(dataset(), 10), run=tmp_path / "run")
    list(loader)
    assert len(read(str(tmp_path / "run"), "sift", "epochs")[0]) == 1  # each epoch's record is there at once
    assert state_of(tmp_path / "run") == "running"
    del loader
    gc.collect()
    assert state_of(tmp_path / "run") == "finished"
    sift(DataLoader(dataset(), 10), run=tmp_path / "run").close()
    assert state_of(tmp_path / "run-2") == "finished"
    loader = sift(DataLoader(dataset(), 10), run=str(tmp_path / "run"), resume=True)
    list(loader)
    loader.close()
    assert state_of(tmp_path / "run") == "finished"
    list(loader)  # a closed run gets no more records
    assert len(read(str(tmp_path / "run"), "sift", "epochs")[0]) == 2


def test_a_run_of_the_users_own_stays_open(tmp_path):
    with Run(str(tmp_path)) as run:
        loader = sift(DataLoader(dataset(), 10), run=run)
        list(loader)
        loader.close()
        assert state_of(tmp_path) == "running"
    assert state_of(tmp_path) == "finished"


@pytest.mark.parametrize(("end", "state"), [("", "finished"), ("raise ValueError", "failed")])
def test_the_end_of_the_process_ends_the_run(tmp_path, end, state):
    code = f"""
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from loopwise.sift import SiftingDataLoader
data = TensorDataset(torch.randn(20, 6), torch.arange(20) % 3)
loss = nn.CrossEntropyLoss(reduction="none")
loader = SiftingDataLoader(DataLoader(data, 10), nn.Linear(6, 3), loss, score_every=1, run={str(tmp_path / "run")!r})
for batch in loader:
    {end or "pass"}
"""
    subprocess.run([forks.python(), "-c", code], capture_output=True)
    assert state_of(tmp_path / "run") == state
    records, _ = read(str(tmp_path / "run"), "sift", "epochs")
    assert [record["complete"] for record in records] == [state == "finished"]


def test_a_run_that_cannot_be_written_is_one_warning(tmp_path):
    run = Run(str(tmp_path / "run"))
    (tmp_path / "run" / "sift").write_text("a file where the folder should be")
    loader = sift(DataLoader(dataset(), 10), run=run)
    with pytest.warns(LoopwiseWarning, match="could not be written") as warnings:
        list(loader)
        list(loader)
    assert len(warnings) == 1
    run.close()


def test_set_epoch_reaches_the_sampler():
    sampler = torch.utils.data.DistributedSampler(dataset(), num_replicas=2, rank=0)
    loader = sift(DataLoader(dataset(), 10, sampler=sampler))
    loader.set_epoch(7)
    assert (loader.epoch, sampler.epoch) == (7, 7)


def test_a_pool_too_large_for_memory_is_scored_batch_by_batch():
    sizes = []

    def loss(model, batch):
        sizes.append(len(batch[1]))
        if len(batch[1]) > 10:
            raise torch.OutOfMemoryError("no memory")
        return CRITERION(model(batch[0]), batch[1])

    with pytest.warns(LoopwiseWarning, match="too little memory to score 4 batches at once") as warnings:
        loader = sift(DataLoader(dataset(), 10), loss=loss, policy=TopLoss(0.5), pool=4)
        assert sum(len(y) for _, y in loader) == 50
    assert len(warnings) == 1
    assert sizes == [40] + [10] * 10
    with pytest.raises(torch.OutOfMemoryError):
        list(sift(DataLoader(dataset(), 20), loss=loss, pool=1))


def test_the_automatic_pool_is_bounded_in_bytes():
    def pools(width):
        sizes = []
        data = [(torch.zeros(10, width), torch.arange(10) % 3)] * 8
        loss = lambda model, batch: sizes.append(len(batch[1])) or torch.ones(len(batch[1]))  # noqa: E731
        list(sift(data, loss=lambda model, batch: loss(model, batch)))
        return sizes

    assert pools(10) == [40, 40]
    assert pools(1_000_000) == [10] * 8


def test_the_buffer_holds_less_than_two_batches_in_bytes():
    """Measure live storage besides the wrapped loader's batches and the batch of the training step."""
    batch = [torch.zeros(16, 1000), torch.arange(16) % 3]
    unit = batches.nbytes(batch)

    def live():
        gc.collect()
        storages = {
            o.untyped_storage().data_ptr(): o.untyped_storage().nbytes()
            for o in gc.get_objects()
            if type(o) is torch.Tensor and o.layout is torch.strided
        }
        return sum(storages.values())

    loader = sift(
        (list(map(torch.clone, batch)) for _ in range(12)),
        nn.Linear(1000, 3),
        policy=TopLoss(0.9),
        pool=4,
        batch_size=16,
    )
    before, most = live(), 0
    for number, (x, y) in enumerate(loader):
        if number % 3 == 2 and number > 2:  # the first four batches wait for a forward pass that uses them
            most = max(most, live() - before)
        del x, y
    assert most <= (4 + 2) * unit + 16384  # some kilobytes of random state and indices


def test_compiled_scoring_gives_the_same_losses():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).train()
    data, seen = dataset(40), []
    policy = lambda losses: seen.append(losses) or torch.ones_like(losses)  # noqa: E731
    for compiled in (False, True):
        list(sift(DataLoader(data, 10), model, policy=policy, compile=compiled, pool=2))
    torch.testing.assert_close(torch.cat(seen[:2]), torch.cat(seen[2:]))
    assert model.training
