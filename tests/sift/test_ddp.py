"""Sifting in real gloo processes: equal counts, no hang, errors on all ranks, global decisions."""

import pytest
from sift_ranks_kit import Ranks


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
