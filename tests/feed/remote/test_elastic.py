"""Decisions about the number of workers of a group, from measurements."""

from loopwise.feed.remote.elastic import BATCHES, SECONDS, Elastic


def measured(elastic, step, load, best=100):
    """Let batches that take ``load`` seconds come to training of ``step`` seconds a batch; return the number of workers."""
    workers = min(elastic.count, best)  # more do not load faster
    period = max(step, load / workers)
    batches = max(BATCHES, int(SECONDS / period) + 1)
    for _ in range(batches):
        count = elastic.observe(1, period, period - step, load)
    return count


def settled(elastic, *load, **options):
    counts = [elastic.count]
    while len(counts) < 3 or counts[-1] != counts[-2] or counts[-2] != counts[-3]:
        counts.append(measured(elastic, *load, **options))
        assert len(counts) < 20
    return counts


def test_workers_are_added_until_training_does_not_wait():
    assert settled(Elastic(64), 0.1, 1.45) == [1, 4, 15, 15, 15]
    assert settled(Elastic(8), 0.1, 1.45)[-1] == 8


def test_a_number_of_workers_that_does_not_help_is_given_up():
    elastic = Elastic(64)
    assert settled(elastic, 0.1, 1.0, best=3) == [1, 4, 14, 4, 4, 4]
    assert elastic.most == 4


def test_workers_that_have_nothing_to_do_are_ended():
    assert settled(Elastic(64, 40), 1.0, 4.0) == [40, 5, 5, 5]
    assert settled(Elastic(64, 3), 1.0, 0.01) == [3, 1, 1, 1]


def test_nothing_is_decided_by_few_batches():
    elastic = Elastic(8)
    for _ in range(BATCHES - 1):
        assert elastic.observe(1, SECONDS, SECONDS, SECONDS) == 1
    elastic.restart()
    assert elastic.observe(1, SECONDS, SECONDS, SECONDS) == 1
