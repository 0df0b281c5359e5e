"""Measured loops: the verdict, the prediction beside what was seen, scripts, the run's page and wrong arguments."""

import subprocess
import textwrap
import time

import forks
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from loopwise.errors import InputError
from loopwise.feed import diagnose
from loopwise.feed.diagnosis import measure
from loopwise.feed.page import sections
from loopwise.run import read


class Waiting(Dataset):
    """Samples that take time to arrive, and no processor."""

    def __init__(self, seconds=0.0, count=1000):
        self.seconds, self.count = seconds, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return torch.rand(3)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.rand(100, 3))


def test_a_loop_that_waits_for_reading_gets_more_readers():
    """The bars are wide: only sleeping is timed, and a busy machine sleeps longer."""
    found = diagnose(DataLoader(Waiting(0.1), batch_size=2), lambda batch: time.sleep(0.1), batches=5)
    assert found.verdict.name == "more readers"
    assert found.costs.waiting > 0.19
    assert found.costs.step > 0.09
    assert found.verdict.workers >= 2
    assert found.predicted > 0.29
    assert found.seen > 0.29
    assert found.then is not None
    assert "seen" in str(found)


def test_a_loop_that_computes_is_left_alone():
    found = diagnose(DataLoader(Waiting(), batch_size=2), lambda batch: time.sleep(0.2), batches=5)
    assert (found.verdict.name, found.then) == ("nothing", None)
    assert found.verdict.text.endswith("Leave the loader as it is; faster loading gains nothing.")


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Stream(), batch_size=4),
        DataLoader(Waiting(), batch_size=None),
        DataLoader(Waiting(), batch_size=4, shuffle=True, drop_last=True),
    ],
)
def test_loading_leaves_random_states_alone(loader):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    times, data, share = measure.loading(loader, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(times) == 5
    assert data.shape[-1] == 3
    assert 0 <= share <= 1


SCRIPT = """
import sys, time, torch
from torch.utils.data import DataLoader, Dataset
class Waiting(Dataset):
    def __len__(self):
        return 10_000
    def __getitem__(self, index):
        time.sleep(0.1)
        return torch.rand(3)
if __name__ == "__main__":
    for epoch in range(1000):
        for batch in DataLoader(Waiting(), batch_size=2):
            time.sleep(float(sys.argv[1]))
"""


def command(tmp_path, *given, text=SCRIPT):
    (tmp_path / "train.py").write_text(textwrap.dedent(text))
    call = [forks.python(), "-m", "loopwise", "feed", "diagnose", *given]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    return done.returncode, done.stdout, done.stderr


def test_a_script_is_diagnosed_as_it_is(tmp_path):
    status, out, err = command(tmp_path, "--batches", "5", "--run", "runs/a", "train.py", "0.1")
    assert status == 0, err
    assert "They wait rather than compute" in out
    assert out.splitlines()[-3].split() == ["workers", "predicted", "seen"]
    (record,), torn = read(tmp_path / "runs/a", "feed", "diagnosis")
    assert (record["verdict"], torn) == ("more readers", 0)
    (section,) = sections(str(tmp_path / "runs/a"))
    assert section["title"] == "Feeding"
    assert section["blocks"][1]["rows"][0][0] == 0
    assert sections(str(tmp_path / "runs/b")) == []


def test_a_script_without_a_loop_says_so(tmp_path):
    status, out, err = command(tmp_path, "train.py", text="print('done')")
    assert (status, out) == (1, "done\n")
    assert err == (
        "Error: \nseen: 0 batches\nexpected: at least 2 batches to measure\n"
        "likely cause: a dataset that is too small, or a script that ended early\nfix: diagnose a loop with more data\n"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"loader": [1, 2]},
            "seen: loader of type list\nexpected: a torch.utils.data.DataLoader\nlikely cause: arguments changed places\n"
            "fix: pass the loader that the loop iterates over",
        ),
        (
            {"batches": 1},
            "seen: batches=1\nexpected: a whole number of batches, at least 5\n"
            "likely cause: a fraction, a negative number or a text\nfix: pass for instance batches=20",
        ),
        (
            {"price": -1.0},
            "seen: price=-1.0\nexpected: a price for an hour above 0\n"
            "likely cause: zero or None for 'none', a negative number or a text\nfix: pass for instance price=3.825",
        ),
        (
            {"host": (0, None)},
            "seen: host=0\nexpected: a whole number of processors, at least 1\n"
            "likely cause: a fraction, a negative number or a text\nfix: pass for instance host=36",
        ),
        (
            {"bandwidth": 0},
            "seen: bandwidth=0\nexpected: a number of Gbit/s above 0\n"
            "likely cause: zero or None for 'none', a negative number or a text\nfix: pass for instance bandwidth=10",
        ),
        (
            {"loader": DataLoader(Waiting(count=1))},
            "seen: 1 batches\nexpected: at least 2 batches to measure\n"
            "likely cause: a dataset that is too small, or a script that ended early\nfix: diagnose a loop with more data",
        ),
    ],
)
def test_wrong_arguments_are_explained(given, expected):
    given = {"loader": DataLoader(Waiting()), "step": lambda batch: None, **given}
    with pytest.raises(InputError) as error:
        diagnose(**given)
    assert str(error.value) == expected


def test_time_in_which_other_programs_ran_is_no_waiting(monkeypatch):
    taken = [0.0]

    class Displaced(Waiting):
        def __getitem__(self, index):
            start = time.perf_counter()
            time.sleep(0.05)
            taken[0] += time.perf_counter() - start
            return torch.rand(3)

    monkeypatch.setattr(measure, "queued", lambda: taken[0])
    times, data, _ = measure.loading(DataLoader(Displaced(), batch_size=4), 5)
    assert measure.costs_of(times, data, 0.1).waiting < 0.1  # of at least 0.2 s
    monkeypatch.undo()
    assert measure.queued() >= 0.0
