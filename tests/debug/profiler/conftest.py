"""Fixtures: a clock that only the test moves, and runs to record into."""

import pytest

from loopwise.run import Run


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def tick(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def run(tmp_path):
    with Run(str(tmp_path / "run")) as run:
        yield run
