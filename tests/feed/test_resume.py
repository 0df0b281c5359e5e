"""States: a loader resumed after any batch continues exactly, and states that cannot be continued are refused."""

import io
import random

import numpy as np
import pytest
import torch
from feed_kit import Augmented, Counting, Stream, equal

from loopwise.errors import InputError, StateError
from loopwise.feed import RemoteDataLoader


def seeded():
    torch.manual_seed(6)
    random.seed(6)
    np.random.seed(6)


def stored(state):
    """Return a state as it comes back from a checkpoint."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def continued(make, at):
    """Return the batches of two epochs, and those of a loader resumed after ``at`` of them in another program."""
    seeded()
    loader, batches, state, randoms = make(), [], None, None
    for _ in range(2):
        for batch in loader:
            batches.append(batch)
            if len(batches) == at:
                state, randoms = stored(loader.state_dict()), (torch.get_rng_state(), random.getstate())
        if len(batches) == at and at:
            state = stored(loader.state_dict()) if at % 2 else state  # after the loop, or in its last round
    other = make()
    torch.manual_seed(99)  # the other program's history
    torch.set_rng_state(randoms[0])
    random.setstate(randoms[1])
    other.load_state_dict(state)
    assert equal(other.state_dict(), state)
    rest = list(other)
    if len(rest) + at < len(batches):
        rest += list(other)
    return batches, rest


MAKERS = {
    "shuffled": lambda: RemoteDataLoader(Augmented(10), 2, shuffle=True, num_workers=2),
    "persistent": lambda: RemoteDataLoader(
        Augmented(8), 2, shuffle=True, num_workers=2, persistent_workers=True
    ),
    "generator": lambda: RemoteDataLoader(
        Augmented(8), 2, shuffle=True, num_workers=1, generator=torch.Generator().manual_seed(2)
    ),
    "samples": lambda: RemoteDataLoader(Augmented(8), 2, shuffle=True, num_workers=1, seeding="sample"),
    "streams": lambda: RemoteDataLoader(Stream((5, 2)), 2, num_workers=2, persistent_workers=True),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_loader_resumed_after_any_batch_continues_exactly(name):
    total = 8
    for at in range(1, total):
        batches, rest = continued(MAKERS[name], at)
        assert equal(batches[at:], rest), at


def test_a_loop_that_was_left_is_resumed_where_it_was_left():
    seeded()
    loader = RemoteDataLoader(Augmented(10), 2, shuffle=True, num_workers=1)
    for number, _ in enumerate(loader):
        if number == 1:
            break
    other = RemoteDataLoader(Augmented(10), 2, shuffle=True, num_workers=1)
    other.load_state_dict(loader.state_dict())
    assert len(list(other)) == 3
    assert len(list(loader)) == 5


def test_without_workers_the_order_continues():
    seeded()
    loader = RemoteDataLoader(Augmented(10), 2, shuffle=True)
    iterator = iter(loader)
    next(iterator)
    other = RemoteDataLoader(Augmented(10), 2, shuffle=True)
    other.load_state_dict(stored(loader.state_dict()))
    rest = [batch["index"].tolist() for batch in iterator]
    assert [batch["index"].tolist() for batch in other] == rest


def test_a_stream_with_a_state_is_not_iterated_from_the_start():
    loader = RemoteDataLoader(Counting(12), 2, num_workers=1)
    iterator = iter(loader)
    next(iterator), next(iterator)
    other = RemoteDataLoader(Counting(12), 2, num_workers=1)
    other.load_state_dict(stored(loader.state_dict()))
    assert torch.cat(list(other)).tolist() == [[number, number - 4] for number in range(5, 13)]


def test_seeds_of_samples_resume_with_another_number_of_workers():
    def make(workers):
        return RemoteDataLoader(
            Augmented(12), 2, shuffle=True, num_workers=workers, workers=1, seeding="sample"
        )

    seeded()
    loader = make(2)
    iterator = iter(loader)
    next(iterator), next(iterator), next(iterator)
    other = make(1)
    other.load_state_dict(stored(loader.state_dict()))
    assert equal(list(other), list(iterator))


def refused(state, **options):
    loader = RemoteDataLoader(Augmented(10), **({"batch_size": 2, "num_workers": 1} | options))
    with pytest.raises((InputError, StateError)) as error:
        loader.load_state_dict(state)
        list(loader)
    return str(error.value)


@pytest.fixture(scope="module")
def state():
    seeded()
    loader = RemoteDataLoader(Augmented(10), 2, shuffle=True, num_workers=1)
    iterator = iter(loader)
    next(iterator), next(iterator)
    return loader.state_dict()


def test_a_state_of_another_number_of_workers_is_refused(state):
    assert refused(state, num_workers=2, shuffle=True) == (
        "seen: a state of a loader with num_workers=1, for one with num_workers=2\n"
        "expected: the same num_workers\n"
        "likely cause: with seeding='worker' each of the num_workers random streams belongs to certain batches\n"
        "fix: make the loader with num_workers=1, or begin a new epoch without the state"
    )


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 3}, {"seeding": "sample"}, {"persistent_workers": True}, {"drop_last": True}],
    ids=str,
)
def test_states_of_loaders_with_other_batches_are_refused(state, options):
    (name,) = options
    assert f"a state of a loader with {name}=" in refused(state, shuffle=True, **options)


def test_a_state_is_refused_if_the_sampler_does_not_repeat_its_order(state):
    assert refused(state, shuffle=False) == (
        "seen: a sampler that does not repeat the first 2 batches of the interrupted epoch\n"
        "expected: the same samples in the same order\n"
        "likely cause: another dataset, sampler, batch size or epoch, or a sampler with a random state of its own\n"
        "fix: make the loader as before, call set_epoch as before, and give the sampler a generator"
    )


def test_a_position_of_batches_out_of_order_is_refused(state):
    assert refused(state | {"in_order": False}, shuffle=True) == (
        "seen: a position in an epoch of a loader with in_order=False\n"
        "expected: batches in the order of the sampler\n"
        "likely cause: with in_order=False the batches that were delivered are not the first ones\n"
        "fix: use in_order=True, or take the state between epochs"
    )


def test_other_values_are_no_states():
    assert "a value that is no state of RemoteDataLoader" in refused({"epoch": 3})
