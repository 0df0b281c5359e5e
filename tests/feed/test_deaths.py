"""Workers that die: every batch comes exactly once and unchanged, and a sample that kills its worker is named."""

import gc
import multiprocessing
import os
import random
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import feed_kit
import forks
import psutil
import pytest
import torch
from feed_kit import Augmented, Counting, Failing, Stream, equal
from torch.utils.data import DataLoader

from loopwise.errors import StateError
from loopwise.feed import RemoteDataLoader
from loopwise.warnings import LoopwiseWarning


def epochs(make, dataset, kills=0, times=1, **options):
    """Return all batches of some epochs, killing a random worker now and then."""
    torch.manual_seed(1)
    draws, loader, batches = random.Random(kills), make(dataset, **options), []
    for _ in range(times):
        iterator = iter(loader)
        for batch in iterator:
            batches.append(batch)
            if kills and draws.random() < 0.4:
                victim = draws.choice(iterator._workers)
                os.kill(victim.pid, signal.SIGKILL)
    return batches, loader


@pytest.mark.parametrize(
    "options", [{"batch_size": 2}, {"batch_size": 3, "persistent_workers": True}], ids=str
)
def test_batches_after_deaths_are_those_of_dataloader(options):
    options |= {"shuffle": True, "num_workers": 2, "times": 2}
    expected, _ = epochs(DataLoader, Augmented(24), **options)
    batches, loader = epochs(RemoteDataLoader, Augmented(24), kills=5, **options)
    assert equal(batches, expected)
    assert loader.report()["workers_lost"] > 0


def test_streams_after_deaths_are_those_of_dataloader():
    options = {"batch_size": 2, "num_workers": 2, "persistent_workers": True, "times": 2}
    expected, _ = epochs(DataLoader, Stream((9, 14)), **options)
    batches, loader = epochs(RemoteDataLoader, Stream((9, 14)), kills=5, **options)
    assert equal(batches, expected)
    assert loader.report()["workers_lost"] > 0


def test_a_stream_with_a_state_goes_on_from_it():
    loader = RemoteDataLoader(Counting(12), 2, num_workers=1)
    iterator = iter(loader)
    rows = [next(iterator)]
    os.kill(iterator._workers[0].pid, signal.SIGKILL)
    rows += list(iterator)
    assert torch.cat(rows)[:, 0].tolist() == list(range(1, 13))
    assert torch.cat(rows)[-1, 1] < 12  # it was not iterated from the start


class Stateless(Counting):
    """A stream whose state cannot be had after some samples, or cannot be sent."""

    def state_dict(self):
        if self.at == 4:
            raise ValueError("no state now")
        return {"at": self.at, "generator": (n for n in ()) if self.at > 4 else None}


def test_a_stream_that_cannot_tell_its_state_is_iterated_again():
    loader = RemoteDataLoader(Stateless(12), 2, num_workers=1)
    with pytest.warns(LoopwiseWarning) as caught:
        for _ in range(2):
            iterator = iter(loader)
            rows = [next(iterator), next(iterator), next(iterator)]
            state = loader.state_dict()
            os.kill(iterator._workers[0].pid, signal.SIGKILL)
            rows += list(iterator)
            assert torch.cat(rows)[:, 0].tolist() == list(range(1, 13))
            assert torch.cat(rows)[-1, 1] == 12  # it was iterated from the start
        loader.load_state_dict(state)
        assert torch.cat(list(loader))[:, 0].tolist() == list(range(7, 13))
    assert [str(warning.message) for warning in caught] == [
        "state_dict() of the dataset raised ValueError: no state now: after a worker's death, and after load_state_dict, the "
        "dataset is iterated again up to the batch that is due, which takes time; mend its state_dict, or remove it"
    ]
    assert caught[0].filename == __file__


def test_a_single_death_over_a_sample_is_repeated(tmp_path):
    loader = RemoteDataLoader(Failing(8, {3: "once"}, str(tmp_path)), 2, num_workers=2)
    assert [batch[:, 0, 0].int().tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("kind", "end"), [("kill", "was ended by SIGKILL"), ("exit", "ended with exit status 0")]
)
def test_a_sample_that_always_kills_its_worker_is_named_and_the_epoch_goes_on(kind, end):
    iterator = iter(RemoteDataLoader(Failing(10, {5: kind}), 2, num_workers=2))
    batches = [next(iterator), next(iterator)]
    with pytest.raises(StateError) as error:
        next(iterator)
    assert str(error.value) == (
        f"seen: twice, the worker process that loaded sample 5 of batch 2 {end}\n"
        "expected: samples that can be loaded, or that raise an exception\n"
        "likely cause: a crash in native code, too little memory, or a call that ends the process\n"
        "fix: load that sample in this process (num_workers=0) to see the fault, or leave such samples out with "
        'on_crash="skip"'
    )
    batches += list(iterator)
    assert [batch[0, 0, 0].int().item() for batch in batches] == [0, 2, 6, 8]


def test_samples_that_always_kill_their_worker_can_be_left_out():
    loader = RemoteDataLoader(
        Failing(8, {1: "kill", 4: "kill", 5: "exit"}), 2, num_workers=1, on_crash="skip"
    )
    with pytest.warns(
        LoopwiseWarning, match=r"^sample \d was left out: twice, the worker process that loaded it"
    ):
        batches = [batch[:, 0, 0].int().tolist() for batch in loader]
    assert batches == [[0], [2, 3], [6, 7]]


def test_a_stream_that_always_kills_its_worker_is_named():
    with pytest.raises(StateError, match=r"that loaded batch 0 of lane 0 was ended by SIGKILL"):
        list(RemoteDataLoader(Lethal(), 2, num_workers=1))


class Lethal(torch.utils.data.IterableDataset):
    def __iter__(self):
        os.kill(os.getpid(), signal.SIGKILL)
        yield 1


def die(lane):
    os._exit(7)


def test_workers_that_cannot_start_are_an_error():
    with pytest.raises(StateError) as error:
        list(RemoteDataLoader(Augmented(), 2, num_workers=1, worker_init_fn=die))
    assert str(error.value) == (
        "seen: 3 worker processes in a row that loaded nothing; the last one ended with exit status 7\n"
        "expected: worker processes that start and load batches\n"
        "likely cause: the machine has no memory left, or the dataset cannot be loaded in a new process\n"
        "fix: look at what the workers printed, or try num_workers=0, which loads in this process"
    )


TRAINER = """
import os, sys, time, torch
from feed_kit import Augmented, RemoteDataLoader
class Slow(Augmented):
    def __getitem__(self, index):
        if index > 3:
            time.sleep(600)
        return super().__getitem__(index)
iterator = iter(RemoteDataLoader(Slow(), 2, num_workers=2))
next(iterator)
print(*[worker.pid for worker in iterator._workers], flush=True)
time.sleep(600)
"""


def test_workers_end_soon_after_the_training_process_was_killed_and_leave_nothing():
    before = set(os.listdir("/dev/shm"))
    environment = os.environ | {"PYTHONPATH": os.path.dirname(feed_kit.__file__)}
    command = [forks.python(), "-c", textwrap.dedent(TRAINER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as trainer:
        workers = [psutil.Process(int(pid)) for pid in trainer.stdout.readline().split()]
        assert len(workers) == 2
        forks.kill(trainer)
    _, alive = psutil.wait_procs(
        workers, timeout=60
    )  # one second on an idle machine, in the middle of samples
    assert not alive
    assert set(os.listdir("/dev/shm")) <= before


class Forking(Failing):
    """Samples of a worker that leaves a process behind when it dies, which has copies of its descriptors."""

    def __getitem__(self, index):
        if index == 3 and not os.path.exists(self.folder + "/forked"):
            child = os.fork()
            if not child:
                while os.path.exists(self.folder + "/wait"):
                    time.sleep(0.05)
                os._exit(0)
            Path(self.folder, "forked").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_death_is_noticed_while_a_process_of_the_worker_lives(tmp_path, monkeypatch):
    monkeypatch.setattr("loopwise.feed.processes.pool.LOOK", 0.1)
    waiting = tmp_path / "wait"
    waiting.touch()
    try:
        loader = RemoteDataLoader(Forking(8, {}, str(tmp_path)), 2, num_workers=1, timeout=100)
        assert [batch[:, 0, 0].int().tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5], [6, 7]]
        assert waiting.exists()
    finally:
        waiting.unlink()


def test_workers_end_at_once_while_a_process_that_was_forked_meanwhile_lives(monkeypatch):
    monkeypatch.setattr("loopwise.feed.processes.pool.PATIENCE", 100.0)
    iterator = iter(RemoteDataLoader(Augmented(4), 2, num_workers=1))
    next(iterator)
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
    process.start()
    try:
        worker = iterator._workers[0]
        del iterator
        assert worker.exitcode == 0  # it was not killed
    finally:
        process.kill()
        process.join()


def test_no_process_descriptor_or_thread_is_left_by_loops_that_are_left_early():
    next(iter(RemoteDataLoader(Augmented(), 2, num_workers=1)))
    gc.collect()  # iterators that tracebacks of earlier tests refer to
    process = psutil.Process()
    before, children, threads = process.num_fds(), set(process.children()), process.num_threads()
    for _ in range(10):
        for _ in RemoteDataLoader(Augmented(), 2, num_workers=1):
            break
    assert process.num_fds() <= before
    assert set(process.children()) <= children
    assert process.num_threads() <= threads
