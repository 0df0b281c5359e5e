"""Errors: those of user code and of arguments as DataLoader has them, those of our own arguments in full."""

import functools
import gc
import sys
import threading
import time

import pytest
from feed_kit import Augmented, Failing, Stream
from torch.utils.data import DataLoader, SequentialSampler

from loopwise.errors import InputError
from loopwise.feed import RemoteDataLoader, rebuilt, torch_internals


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


class Transform:
    """A transform with a lock, which it does not pickle, and a function."""

    def __init__(self, fn):
        self.lock, self.fn = threading.Lock(), fn

    def __getstate__(self):
        return {"fn": self.fn}


UNPICKLABLE = {
    "dataset.transform.fn of type function": lambda data: {"transform": Transform(lambda image: image)},
    "dataset.readers['train'][1] of type lock": lambda data: {"readers": {"train": (0, threading.Lock())}},
    "collate_fn.keywords['lock'] of type lock": lambda data: functools.partial(keep, lock=threading.Lock()),
}


def keep(samples, lock=None):
    return samples


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("seen", UNPICKLABLE)
def test_what_cannot_be_pickled_is_named(seen, method):
    dataset, collate_fn, given = Augmented(4), None, UNPICKLABLE[seen](None)
    if isinstance(given, dict):
        vars(dataset).update(given)
    else:
        collate_fn = given
    loader = RemoteDataLoader(
        dataset, 2, num_workers=1, collate_fn=collate_fn, multiprocessing_context=method
    )
    with pytest.raises(InputError) as error:
        iter(loader)
    first, *rest = str(error.value).splitlines()
    name = seen.split(" of type")[0]
    assert first.startswith(f"seen: {seen}, which cannot be pickled (")
    assert rest == [
        "expected: a dataset, collate_fn and worker_init_fn that can be pickled, since "
        f"{method!r} starts the workers",
        "likely cause: a lambda or a function inside of a function, an open file, a lock, a connection or a generator",
        f"fix: use a function of a module, leave {name} out in __getstate__ and make it in the worker when it is first used, "
        "or pass multiprocessing_context='fork'",
    ]


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


def test_processors_are_counted_with_a_torch_that_does_not_count_them(monkeypatch):
    """As torch 2.11, on which no loader with workers could be made."""
    counted = torch_internals.cpu_count()
    monkeypatch.delattr("torch._utils.cpu_count", raising=False)
    assert torch_internals.cpu_count() == counted


def test_too_many_workers_are_warned_of_by_the_number_of_processes(monkeypatch):
    monkeypatch.setattr("loopwise.feed.options.cpu_count", lambda: 2)
    monkeypatch.setattr("loopwise.feed.loader.cpu_count", lambda: 2)
    monkeypatch.setattr("torch._utils.cpu_count", lambda: 2, raising=False)
    RemoteDataLoader(Augmented(4), num_workers=8, workers=2)
    RemoteDataLoader(Augmented(4), num_workers=8, workers="auto")
    RemoteDataLoader(Augmented(4), num_workers=8, group="data")
    with pytest.warns(UserWarning, match="This DataLoader will create 8 worker processes"):
        RemoteDataLoader(Augmented(4), num_workers=8)


def test_a_loader_that_outlives_the_names_of_modules_at_exit_ends_silently(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    loader = RemoteDataLoader(list(range(4)), 2)
    for name in ("_remove", "_unused", "_end"):  # as the interpreter does before it frees the last objects
        monkeypatch.setattr(rebuilt, name, None)
    del loader
    gc.collect()
    assert not told
