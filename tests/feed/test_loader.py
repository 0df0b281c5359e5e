"""The loader beside DataLoader: equal order and equal batches, for every kind of loader."""

import copy
import os
import pickle
import queue
import random
import re
import subprocess
import threading
from pathlib import Path

import feed_kit
import forks
import numpy as np
import pytest
import torch
from feed_kit import Augmented, Fetching, Stream, equal, pair
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    get_worker_info,
)

from loopwise.feed import RemoteDataLoader
from loopwise.warnings import LoopwiseWarning

pytestmark = pytest.mark.filterwarnings("ignore:Length of IterableDataset")


class Eager:
    """A sampler that draws when it is iterated, not at its first item."""

    def __len__(self):
        return 12

    def __iter__(self):
        return iter(torch.randperm(12).tolist())


class Seeded(torch.utils.data.Sampler):
    """A sampler that draws from Python's generator at each item."""

    def __len__(self):
        return 12

    def __iter__(self):
        for _ in range(12):
            yield random.randrange(22)


def pairs(samples):
    return [sample["index"] for sample in samples], torch.stack([sample["image"] for sample in samples])


def keep(sample):
    return sample


def name_worker(lane):
    info = get_worker_info()
    assert (info.id, info.num_workers) == (lane, info.num_workers)
    info.dataset.length += 100 * lane
    torch.rand(lane + 1)


class Named(Dataset):
    def __init__(self):
        self.length = 12

    def __len__(self):
        return 12

    def __getitem__(self, index):
        info = get_worker_info()
        return torch.tensor([index, info.id, info.num_workers, self.length, info.seed % 1000]), torch.rand(())


CASES = {
    "sequential": {"batch_size": 4},
    "shuffled": {"batch_size": 4, "shuffle": True},
    "short last batch dropped": {"batch_size": 4, "drop_last": True, "shuffle": True},
    "single samples": {"batch_size": None, "shuffle": True},
    "collate function": {"batch_size": 4, "collate_fn": pairs},
    "no collation": {"batch_size": 4, "collate_fn": keep},
    "persistent": {"batch_size": 4, "shuffle": True, "persistent_workers": True},
    "prefetch": {"batch_size": 3, "shuffle": True, "prefetch_factor": 5},
    "eager sampler": {"batch_size": 4, "sampler": Eager()},
    "sampler of Python's numbers": {"batch_size": 4, "sampler": Seeded()},
    "batch sampler": {"batch_sampler": BatchSampler(SubsetRandomSampler(range(3, 20)), 5, False)},
}


@pytest.mark.parametrize("case", CASES)
def test_batches_are_those_of_dataloader(case):
    theirs, ours = pair(Augmented(), num_workers=2, times=2 if "persistent" in case else 1, **CASES[case])
    assert equal(theirs, ours)


def test_further_epochs_are_those_of_dataloader():
    theirs, ours = pair(Augmented(), batch_size=4, shuffle=True, num_workers=1, times=2)
    assert equal(theirs, ours)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_every_start_method_gives_the_same(method, tmp_path):
    """The server of forkserver lives as long as the program, hence one of its own."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from feed_kit import Augmented, DataLoader, RemoteDataLoader, equal\n"
        "def epoch(make, **options):\n"
        "    torch.manual_seed(3)\n"
        "    return list(make(Augmented(8), 4, shuffle=True, num_workers=1, **options))\n"
        "if __name__ == '__main__':\n"
        f"    assert equal(epoch(RemoteDataLoader, multiprocessing_context='{method}'), epoch(DataLoader))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(feed_kit.__file__).parent)}
    subprocess.run([forks.python(), script], env=environment, check=True, timeout=600)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_processes_does_not_matter(workers):
    theirs, ours = pair(Augmented(), batch_size=3, shuffle=True, num_workers=3, theirs={"workers": workers})
    assert equal(theirs, ours)


def test_lanes_that_share_a_process_have_datasets_of_their_own():
    theirs, ours = pair(
        Named(), batch_size=2, num_workers=2, worker_init_fn=name_worker, theirs={"workers": 1}
    )
    assert equal(theirs, ours)


def test_getitems_is_used():
    theirs, ours = pair(Fetching(), batch_size=4, shuffle=True, num_workers=2)
    assert equal(theirs, ours)


def test_another_generator_of_numpy_does_not_matter():
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(3))
    try:
        for workers in (0, 1):
            theirs, ours = pair(TensorDataset(torch.rand(8, 2)), batch_size=2, num_workers=workers)
            assert equal(theirs, ours)
    finally:
        np.random.set_bit_generator(before)


class OneList:
    """A batch sampler that uses its list again."""

    def __len__(self):
        return 5

    def __iter__(self):
        batch = [0, 0]
        for start in range(0, 10, 2):
            batch[:] = start, start + 1
            yield batch


def test_a_batch_sampler_may_use_its_list_again():
    loader = RemoteDataLoader(Augmented(), batch_sampler=OneList(), num_workers=1, prefetch_bytes=40_000)
    assert [batch["index"].tolist() for batch in loader] == [[n, n + 1] for n in range(0, 10, 2)]


def test_a_copy_of_a_loader_begins_a_new_epoch():
    loader = RemoteDataLoader(Augmented(8), 4, num_workers=1, persistent_workers=True)
    next(iter(loader))
    for again in (pickle.loads(pickle.dumps(loader)), copy.deepcopy(loader)):
        assert [batch["index"][0].item() for batch in again] == [0, 4]


def test_a_generator_leaves_the_global_random_numbers_alone():
    results = []
    for make in (DataLoader, RemoteDataLoader):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(8)
        loader = make(Augmented(), 4, shuffle=True, num_workers=2, generator=generator)
        results.append([list(loader), list(loader), torch.rand(3), torch.rand(3, generator=generator)])
    assert equal(*results)


@pytest.mark.parametrize("options", [{}, {"persistent_workers": True}, {"drop_last": True}], ids=str)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_unequal_streams_come_in_the_order_of_dataloader(options):
    theirs, ours = pair(
        Stream((5, 1, 9)), batch_size=2, num_workers=3, times=2, theirs={"workers": 2}, **options
    )
    assert equal(theirs, ours)


def test_a_persistent_loader_that_is_left_early_goes_on_as_dataloader():
    results = []
    for make in (DataLoader, RemoteDataLoader):
        torch.manual_seed(2)
        loader = make(Augmented(), 2, shuffle=True, num_workers=2, persistent_workers=True)
        batches = [next(iter(loader)), next(iter(loader))]
        results.append([*batches, list(loader)])
    assert equal(*results)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_seeds_of_samples_do_not_depend_on_the_number_of_workers():
    def epochs(**options):
        torch.manual_seed(4)
        loader = RemoteDataLoader(Augmented(), 4, shuffle=True, seeding="sample", **options)
        return [list(loader), list(loader)]

    one = epochs(num_workers=1)
    assert equal(one, epochs(num_workers=3, workers=1))
    assert not equal(one[0][0]["draws"], one[1][0]["draws"])
    assert len(set(one[0][0]["draws"][0].tolist())) == 4  # each sample draws other numbers


def test_seeds_of_samples_depend_on_the_epoch_that_was_set():
    def epochs(*numbers):
        torch.manual_seed(4)
        loader = RemoteDataLoader(Augmented(4), 4, num_workers=1, seeding="sample", persistent_workers=True)
        batches = []
        for number in numbers:
            loader.set_epoch(number)
            batches += list(loader)
        return batches

    first, second = epochs(0, 7)
    assert equal(epochs(7, 0), [second, first])


def test_set_epoch_reaches_the_datasets_of_persistent_workers():
    loader = RemoteDataLoader(Stream((3,)), None, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in (4, 5):
        loader.set_epoch(epoch)
        epochs.append([item[0][0].item() for item in loader])
    assert epochs == [[4, 4, 4], [5, 5, 5]]


class Buffered(IterableDataset):
    """Collated batches that are yielded later, as by a shuffle buffer; with a thread, also made in advance."""

    def __init__(self, thread):
        self.thread = thread

    def batches(self):
        for number in range(16):
            yield torch.utils.data.default_collate([torch.full((64, 64), float(number)) for _ in range(3)])

    def __iter__(self):
        if not self.thread:
            kept = []
            for batch in self.batches():
                kept.append(batch)
                if len(kept) > 3:
                    yield kept.pop(0)
            yield from kept
            return
        ready = queue.Queue(3)
        thread = threading.Thread(target=lambda: [ready.put(batch) for batch in [*self.batches(), None]])
        thread.start()
        yield from iter(ready.get, None)
        thread.join()


class Previous:
    """Collate function that returns the batch before."""

    def __init__(self):
        self.last = None

    def __call__(self, samples):
        batch, self.last = self.last, torch.utils.data.default_collate(samples)
        return self.last if batch is None else batch


@pytest.mark.parametrize("thread", [False, True])
def test_batches_that_the_dataset_keeps_for_later_do_not_change(thread):
    batches = [batch for batch in RemoteDataLoader(Buffered(thread), None, num_workers=1)]
    assert [batch.unique().tolist() for batch in batches] == [[number] for number in range(16)]
    values = []
    for batch in RemoteDataLoader(Buffered(thread), None, num_workers=1):
        values.append(batch.unique().tolist())  # the memory is used again at once
    assert values == [[number] for number in range(16)]


def test_batches_that_the_collate_function_keeps_do_not_change():
    theirs, ours = pair(Augmented(), batch_size=4, num_workers=1, collate_fn=Previous())
    assert equal(theirs, ours)


def test_batches_are_writable_and_stay_valid_after_the_loader():
    loader = RemoteDataLoader(Augmented(8), 4, num_workers=1)
    first, second = list(loader)
    del loader
    first["image"] += 1
    assert first["image"].shape == (4, 64, 64)
    assert (second["image"].floor() == second["index"].view(4, 1, 1)).all()


def test_without_workers_it_is_dataloader():
    theirs, ours = pair(Augmented(), batch_size=4, shuffle=True)
    assert equal(theirs, ours)


def test_the_length_is_that_of_dataloader():
    assert len(RemoteDataLoader(Augmented(22), 4, num_workers=1)) == 6
    assert len(RemoteDataLoader(Augmented(22), 4, drop_last=True)) == 5


def test_batches_out_of_order_are_all_there():
    loader = RemoteDataLoader(Augmented(21), 2, num_workers=2, in_order=False)
    assert sorted(index for batch in loader for index in batch["index"].tolist()) == list(range(21))


def test_few_bytes_in_advance_change_nothing():
    with pytest.warns(LoopwiseWarning) as caught:
        theirs, ours = pair(
            Augmented(), batch_size=4, shuffle=True, num_workers=2, times=2, theirs={"prefetch_bytes": 1000}
        )
    assert equal(theirs, ours)
    (text,) = [str(warning.message) for warning in caught if warning.category is LoopwiseWarning]
    seen = re.match(r"a batch of (\d\d,\d\d\d) bytes is larger than prefetch_bytes=1,000: (.*)$", text)
    assert seen[2] == (
        "each of the 2 lanes loads one batch at a time, and the next one only after the training loop has taken it; "
        f"pass prefetch_bytes={4 * int(seen[1].replace(',', ''))} for two batches of each lane, or leave it out"
    )
    assert feed_kit.__file__ in {warning.filename for warning in caught}


def test_the_bytes_in_advance_are_limited():
    loader = RemoteDataLoader(Augmented(64), 4, num_workers=1, prefetch_factor=8, prefetch_bytes=150_000)
    iterator = iter(loader)
    next(iterator)
    for _ in range(5):
        next(iterator)
        lane = iterator.position.lanes[0]
        assert len(lane.submitted) <= 2  # batches of 66 KB, one of which the test has
        assert len(lane.waiting) >= 5


def test_numpy_arrays_come_as_arrays():
    loader = RemoteDataLoader(Augmented(2), None, num_workers=1, collate_fn=_as_array)
    arrays = list(loader)
    assert [type(array) for array in arrays] == [np.ndarray] * 2
    arrays[0][:] = 0
    assert arrays[1].max() > 1


def _as_array(sample):
    return sample["image"].numpy()


class Locked(Augmented):
    """Samples behind locks of every kind, with a state of their own that ``worker_init_fn`` sets."""

    def __init__(self):
        super().__init__(12)
        self.lock, self.again, self.ready = threading.Lock(), threading.RLock(), queue.Queue()
        self.lane = None

    def __getitem__(self, index):
        with self.lock, self.again:
            self.ready.put(super().__getitem__(index))
            return self.ready.get(timeout=60) | {"lane": self.lane}


def set_lane(lane):
    get_worker_info().dataset.lane = lane


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_lanes_that_share_a_worker_have_copies_of_a_dataset_with_locks():
    options = {"batch_size": 2, "num_workers": 3, "worker_init_fn": set_lane}
    theirs, ours = pair(Locked(), theirs={"workers": 1}, **options)
    assert equal(theirs, ours)
    assert [batch["lane"].tolist() for batch in ours[0]] == [[0, 0], [1, 1], [2, 2]] * 2


def test_a_dataset_that_cannot_be_copied_for_another_lane_is_refused():
    data = Locked()
    data.reader = {"numbers": iter(n for n in ())}
    loader = RemoteDataLoader(data, 2, num_workers=2, workers=1, worker_init_fn=set_lane)
    with pytest.raises(RuntimeError) as error:
        next(iter(loader))
    assert str(error.value).splitlines()[-4:] == [
        "loopwise.errors.InputError: seen: dataset.reader['numbers'] of type generator, which cannot be copied (cannot pickle "
        "'generator' object)",
        "expected: a dataset that can be copied: each of the num_workers random streams needs a dataset of its own, and there "
        "are fewer workers",
        "likely cause: it holds an open file, a connection or a generator",
        "fix: leave out workers=, open dataset.reader['numbers'] when it is first used, or give the dataset a __deepcopy__",
    ]
