"""Sifting in real gloo processes: equal counts, no hang, errors on all ranks, global decisions."""

import os
import random
import subprocess
import sys
from pathlib import Path

import forks
import pytest
import sift_ranks_kit as kit
import torch
import torch.distributed as dist
from sift_ranks_kit import Ranks
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.sift import SiftingDataLoader, TopLoss


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    ranks = Ranks(tmp_path_factory.mktemp("ranks"), 3)
    yield ranks.run
    ranks.close()


def test_equal_counts_over_random_data_and_draws(three):
    first, *others = three("equal_counts")
    assert all(other == first for other in others)
    assert len(first) == 20
    assert sum(map(sum, first)) > 50


def lengths():
    """Return for trainings with random options: the lengths said before and during each epoch, and the batches that came."""
    results = []
    for seed in range(6):
        draw = random.Random(seed)
        data = kit.samples(draw.choice([90, 130]), seed)
        loader = kit.distributed(data, drop_last=draw.random() < 0.5)
        policy = draw.choice([kit.relative(0.5), kit.top(0.3), kit.relative(0.9)])
        model = kit.replica()
        loader = kit.sift(loader, model, kit.CRITERION, policy=policy, seed=seed)
        for epoch in range(5):
            before, during, count, stop = len(loader), set(), 0, 4 if epoch == 3 else 100
            for x, y in loader:
                kit.CRITERION(model(x), y).mean().backward()
                during.add(len(loader))
                count += 1
                if count == stop:
                    break
            left = loader._pipeline.left_over
            results.append([before, sorted(during), count, len(left.indices), loader.epoch])
    return results


def test_the_length_of_planned_epochs_is_the_same_on_all_ranks(two):
    first, second = two("lengths", file=__file__)
    for (before, during, count, waiting, epoch), other in zip(first, second, strict=True):
        assert (during, count, epoch) == (other[1], other[2], other[4])
        assert count <= before
        assert during in ([count], []) or (epoch == 4 and count == 4)
        assert waiting < 8


class Together:
    """Loader whose ranks begin each epoch together, as Accelerate's, which share a random state."""

    def __iter__(self):
        dist.barrier()
        yield from kit.batches(12)


def shares_that_differ():
    """Return the number of batches of each epoch: one rank keeps a third of its samples, and the other one nearly all."""
    model, share = kit.replica(), 0.3 + 0.6 * kit.rank()
    policy = lambda losses: losses * 0 + share  # noqa: E731
    return kit.train(kit.sift(Together(), model, kit.CRITERION, policy=policy, pool=1, seed=0), model, 5)


def test_ranks_of_differing_shares_begin_epochs_together(two):
    """A rank whose samples of the last epoch fill a batch must not yield it before it begins to read."""
    first, second = two("shares_that_differ", file=__file__)
    assert first == second
    assert sum(first) > 10


def test_a_bad_batch_on_one_rank_is_an_error_on_all_that_names_it(two):
    (kind, message, count), (own, _, other) = two("bad_batch")
    assert (kind, own) == ("StateError", "KeyError")
    assert message.startswith(
        "seen: rank 1 could not make its next batch: KeyError: 'sample 40 is missing'\n"
        "expected: a batch on every rank\n"
    )
    assert count == other == 4


def test_remembered_losses_and_percentiles_are_global(two):
    results = two("global_losses")
    assert results[0][0] == results[1][0] == [4]
    for _, only_worst, kept, from_others in results:
        assert only_worst
        assert 8 <= kept <= 32
        assert from_others == 32


def test_ranks_with_data_of_their_own_exchange_no_losses(two):
    assert two("own_shards") == [[0, True], [0, True]]


def test_a_rank_that_cannot_read_its_losses_lets_all_train_on_everything(two):
    assert two("one_rank_cannot_read") == [[8, 4, 8, 4, 4]] * 2


def test_a_loader_that_is_older_than_the_process_group(tmp_path):
    ranks = [
        subprocess.Popen(
            [forks.python(), __file__, str(rank), str(tmp_path)], env=os.environ | {"RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [process.wait() for process in ranks] == [0, 0]
    counts = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    assert counts[0] == counts[1] == "[6, 3]"


def train_in_a_later_group(rank, folder):
    torch.set_num_threads(1)
    data = TensorDataset(torch.randn(64 - 16 * rank, 6), torch.zeros(64 - 16 * rank, dtype=torch.int64))
    model = nn.Linear(6, 3)
    loader = SiftingDataLoader(
        DataLoader(data, 8), model, nn.CrossEntropyLoss(reduction="none"), policy=TopLoss(0.5)
    )
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(model)
    counts = []
    for _ in range(2):
        counts.append(0)
        for x, y in loader:
            counts[-1] += 1
            nn.functional.cross_entropy(model(x), y).backward()
    Path(folder, str(rank)).write_text(str(counts))
    torch.distributed.destroy_process_group()


def test_the_share_is_that_of_one_process(two):
    kept, seen = (sum(column) for column in zip(*two("share"), strict=True))
    assert kept / seen == pytest.approx(0.4, abs=0.03)


def test_resume_to_the_bit_on_every_rank(two):
    results = two("resume")
    assert all(map(all, results))
    assert len(results[0]) >= 6


def test_a_sharded_model_sifts_by_its_training_losses(two):
    first, second = two("sharded_step_losses")
    assert first == second
    counts, scored, message = first
    assert counts[0] == 4
    assert 1 <= counts[1] <= 3
    assert scored == 0
    assert message == (
        "seen: a model sharded by fully_shard with auto=True and score_every=1\n"
        "expected: auto=False, or score_every=0: losses of the training steps\n"
        "likely cause: each rank would decide by its own clock whether to score, and scoring takes all ranks\n"
        "fix: drop auto; report() tells whether scoring pays"
    )


def test_scoring_through_a_sharded_model_keeps_the_same_samples_as_through_a_replica(two):
    for replicated, sharded in two("sharded_and_replicated"):
        assert len(replicated) > 8
        assert replicated == sharded


def test_sharded_ranks_of_uneven_data_score_together(two):
    first, second = two("sharded_uneven")
    assert first == second
    assert min(first) >= 4


def test_a_bad_batch_under_a_sharded_model_ends_all_ranks(two):
    """A rank that learns of another's error must not post the end of the epoch: time decided which one was read."""
    (first, posted), (second, _) = two("sharded_bad_batch")
    assert all(posted)
    assert first.startswith("seen: rank 1 could not make its next batch: InputError")
    assert "3" in second


if __name__ == "__main__":
    train_in_a_later_group(int(sys.argv[1]), sys.argv[2])
