"""Runs on disk, written step by step as a ``Watch`` writes them."""

import contextlib
import json

import numpy as np
import pytest
import torch

from loopwise.debug.statistics import native
from loopwise.debug.statistics import sums as partials
from loopwise.debug.store.segments import Segments
from loopwise.run import Run


class Recorded(str):
    """A group as the index has it, equal to another one with the same text."""

    __slots__ = ()

    def record(self):
        return json.loads(self)


class Saving:
    """Saved steps of one rank."""

    def __init__(self, path, as_rank, resume, full):
        self._as_rank = as_rank
        with as_rank():
            self.run = Run(str(path), resume=resume)
            self.segments = Segments(self.run, full=full)

    def step(self, step, tensors=(), scalars=(), table=None, mode="train", mode_step=None, **more):
        """Save ``{collection: {name: tensor}}``, ``{collection: {name: number}}`` and groups with ``values``.

        A tensor may be a pair of a shard and ``{"shape": [...], "start": [...]}``.
        """
        self._groups, self._chunks, self._size = [], [], 0
        for collection, members in dict(tensors).items():
            self._add_tensors(collection, members)
        for collection, members in dict(scalars).items():
            self._add_table(
                list(members.values()), collection=collection, rows=list(members), columns=["value"]
            )
        if table:
            self._add_table(**table)
        record = {"step": step, "mode": mode, "mode_step": step if mode_step is None else mode_step}
        with self._as_rank():
            record |= {"time": 1e9 + step, "marks": {}} | more
            groups = [Recorded(json.dumps(group)) for group in self._groups]
            self.segments.write(groups, self._chunks, record)

    def event(self, text, step):
        with self._as_rank():
            self.segments.event(text, step)

    def end(self, state="finished"):
        with self._as_rank():
            self.segments.close()
            self.run.close(state)

    def _add_tensors(self, collection, members):
        entries = []
        for name, given in members.items():
            tensor, *shard = given if isinstance(given, tuple) else (given,)
            data = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""
            kind = str(tensor.dtype).removeprefix("torch.")
            entries.append([name, kind, list(tensor.shape), self._size, len(data), *shard])
            self._put(data)
        self._groups.append({"collection": collection, "tensors": entries})

    def _add_table(self, values, **group):
        self._groups.append({**group, "offset": self._size})
        self._put(np.array(values, "<f8").tobytes())

    def _put(self, data):
        self._chunks.append(data + bytes(-len(data) % 64))
        self._size += len(self._chunks[-1])


@pytest.fixture
def saving(monkeypatch):
    """``saving(path, rank=0, resume=False, full=2**28)``: a ``Saving`` of that rank."""

    def make(path, rank=0, resume=False, full=2**28):
        @contextlib.contextmanager
        def as_rank():
            with monkeypatch.context() as patch:
                patch.setenv("RANK", str(rank))
                yield

        return Saving(path, as_rank, resume, full)

    return make


@pytest.fixture(params=["as it is", "without a compiler", "joined", "apart"])
def way(request, monkeypatch):
    """Ways to measure tensors: as it is chosen, with a compiler and without; all joined, as on an accelerator;
    or all one by one."""
    if request.param != "as it is":
        monkeypatch.setattr(native, "kernel", lambda: None)
    if request.param in ("joined", "apart"):
        monkeypatch.setattr(partials, "CACHED", 64)
        monkeypatch.setattr(partials, "JOINED", 1024)
        monkeypatch.setattr(partials, "SMALL", 2**40)
        monkeypatch.setattr(partials, "MANY", 0 if request.param == "joined" else 2**40)
