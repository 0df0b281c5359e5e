"""What the tests of the writer share: a training whose tensors are known, and a disk that is full."""

import contextlib
import resource
import threading

import torch
from torch import nn

from loopwise.debug import Watch, every


class Training:
    """One weight of ``size`` numbers that are all equal to the step; every step is saved."""

    def __init__(self, run, size, collections=("losses", "weights"), save=None, **more):
        self.model = nn.Linear(size, 1, bias=False)
        more = {"collections": collections, "profile": False, **more}
        self.watch = Watch(self.model, run=run, save=save or every(1), **more)
        self.steps = 0

    def train(self, steps=1):
        for _ in range(steps):
            with torch.no_grad():
                self.model.weight.fill_(self.steps)
            self.watch.step(loss=float(self.steps))
            self.steps += 1

    def drain(self):
        """Wait until what was submitted is written, or in the hands of the sender."""
        done = threading.Event()
        self.watch._writer._jobs.put(done.set)
        assert done.wait(600)


@contextlib.contextmanager
def room(size):
    """Files can have so many bytes: what does not fit is cut, then ``os.write`` fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
