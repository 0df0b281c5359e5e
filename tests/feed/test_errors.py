"""Errors: those of user code and of arguments as DataLoader has them, those of our own arguments in full."""

import threading
import time

import pytest
from feed_kit import Augmented, Failing, Stream
from torch.utils.data import DataLoader, SequentialSampler

from loopwise.errors import InputError
from loopwise.feed import RemoteDataLoader


class TwoArguments(Exception):
    def __init__(self, one, two):
        super().__init__(one, two)


def outcomes(make, error):
    """Return what a loop sees that goes on after exceptions."""
    iterator, seen = iter(make(Failing(8, {3: error}), 2, num_workers=2)), []
    for _ in range(8):
        try:
            seen.append(next(iterator)[:, 0, 0].int().tolist())
        except StopIteration:
            seen.append("end")
            break
        except Exception as raised:
            lines = str(raised).splitlines()
            seen.append((type(raised), lines[0], lines[-1]))
    return seen


@pytest.mark.parametrize(
    "error",
    [ValueError("bad"), KeyError("name"), TwoArguments(1, 2), "stop"],
    ids=["value", "key", "two", "stop"],
)
def test_an_exception_is_raised_as_dataloader_raises_it_and_the_loop_goes_on(error):
    assert outcomes(RemoteDataLoader, error) == outcomes(DataLoader, error)


def test_an_exception_whose_class_cannot_be_pickled_is_a_runtime_error():
    class Local(Exception):
        pass

    with pytest.raises(RuntimeError, match=r"(?s)in DataLoader worker process 1.*Local: "):
        list(RemoteDataLoader(Failing(8, {3: Local("here")}), 2, num_workers=2))


def unpicklable(samples):
    return lambda: samples


def test_a_batch_that_cannot_be_pickled_is_an_error_in_its_place():
    iterator = iter(RemoteDataLoader(Augmented(4), 2, num_workers=1, collate_fn=unpicklable))
    with pytest.raises(Exception, match="pickle"):
        next(iterator)


def fail(lane):
    raise ValueError(f"lane {lane}")


def test_an_exception_of_worker_init_fn_is_raised():
    with pytest.raises(ValueError, match="lane 0"):
        list(RemoteDataLoader(Augmented(4), 2, num_workers=1, worker_init_fn=fail))


class Slow(Augmented):
    def __getitem__(self, index):
        time.sleep(3 * (index == 2))
        return index


def test_the_timeout_is_that_of_dataloader():
    iterator = iter(RemoteDataLoader(Slow(4), 2, num_workers=1, timeout=1))
    messages, batches = set(), []
    while len(batches) < 2:
        try:
            batches.append(next(iterator).tolist())
        except RuntimeError as error:  # on a busy machine also for the first batch
            messages.add(str(error))
    assert batches == [[0, 1], [2, 3]]
    assert messages == {"DataLoader timed out after 1 seconds"}


def test_a_dataset_that_cannot_be_pickled_is_reported_as_by_dataloader():
    dataset = Augmented(4)
    dataset.lock = threading.Lock()
    with (
        pytest.warns(UserWarning, match="Got pickle error when attempting to start a worker Process"),
        pytest.raises(TypeError, match="cannot pickle"),
    ):
        iter(RemoteDataLoader(dataset, 2, num_workers=1, multiprocessing_context="spawn"))


INVALID = [
    {"num_workers": -1},
    {"timeout": -1},
    {"prefetch_factor": 2},
    {"persistent_workers": True},
    {"sampler": SequentialSampler(range(4)), "shuffle": True},
    {"batch_sampler": [[0]], "batch_size": 2},
    {"batch_size": None, "drop_last": True},
    {"multiprocessing_context": "fork"},
    {"num_workers": 1, "multiprocessing_context": "bad"},
    {"num_workers": 1, "multiprocessing_context": 3},
]


@pytest.mark.parametrize("options", INVALID, ids=lambda options: " ".join(options))
def test_invalid_arguments_raise_the_errors_of_dataloader(options):
    with pytest.raises((ValueError, TypeError)) as theirs:
        DataLoader(Augmented(4), **options)
    with pytest.raises(theirs.type) as ours:
        RemoteDataLoader(Augmented(4), **options)
    assert str(ours.value) == str(theirs.value)


def test_attributes_that_dataloader_protects_are_protected():
    loader = RemoteDataLoader(Augmented(4), num_workers=1)
    with pytest.raises(ValueError, match="batch_size attribute should not be set after RemoteDataLoader is"):
        loader.batch_size = 3


MESSAGES = {
    "seeding='sample' with an IterableDataset": {"dataset": Stream(), "seeding": "sample"},
    "seeding='other'": {"seeding": "other"},
    "on_crash='ignore'": {"on_crash": "ignore"},
    "prefetch_bytes=0": {"prefetch_bytes": 0},
    "workers=3 with num_workers=1": {"workers": 3},
    "workers='all'": {"workers": "all"},
    "workers=1 with num_workers=0": {"workers": 1, "num_workers": 0},
    "group='data' with num_workers=0": {"group": "data", "num_workers": 0},
}


@pytest.mark.parametrize("seen", MESSAGES)
def test_our_own_arguments_are_checked(seen):
    options = {"dataset": Augmented(4), "num_workers": 1} | MESSAGES[seen]
    with pytest.raises(InputError) as error:
        RemoteDataLoader(**options)
    assert str(error.value).splitlines()[0] == f"seen: {seen}"


def test_too_many_workers_are_warned_of_by_the_number_of_processes(monkeypatch):
    monkeypatch.setattr("loopwise.feed.options.cpu_count", lambda: 2)
    monkeypatch.setattr("loopwise.feed.loader.cpu_count", lambda: 2)
    monkeypatch.setattr("torch._utils.cpu_count", lambda: 2)
    RemoteDataLoader(Augmented(4), num_workers=8, workers=2)
    RemoteDataLoader(Augmented(4), num_workers=8, workers="auto")
    RemoteDataLoader(Augmented(4), num_workers=8, group="data")
    with pytest.warns(UserWarning, match="This DataLoader will create 8 worker processes"):
        RemoteDataLoader(Augmented(4), num_workers=8)
