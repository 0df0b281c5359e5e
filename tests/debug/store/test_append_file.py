"""Files that are appended to: large pieces bypass the page cache, and the bytes are the same."""

import fcntl
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.debug import Watch, every, open_run
from loopwise.debug.store.append_file import LARGE, PAGE, AppendFile
from loopwise.debug.store.host_buffer import HostBuffer


def memory(size, off=0):
    """Return bytes at a multiple of a page, or ``off`` bytes after one."""
    data = np.random.default_rng(size).integers(0, 255, size + 2 * PAGE, np.uint8)
    start = -data.ctypes.data % PAGE + off
    return data[start : start + size].data


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 100, LARGE - 1, LARGE, LARGE + 1, LARGE + PAGE + 64]),
            st.sampled_from([0, 64]),
        ),
        max_size=5,
    )
)
def test_bytes_are_read_back_as_they_were_written(tmp_path_factory, pieces):
    path = str(tmp_path_factory.mktemp("grown") / "file")
    file, expected = AppendFile(path), b""
    for size, off in pieces:
        file.align(size)
        if size >= LARGE:
            expected += bytes(-len(expected) % PAGE)
        data = memory(size, off)
        file.append([data[:100], data[100:]] if off else [data])
        file.commit()
        expected += bytes(data)
        assert file.size == len(expected)
        with open(path, "rb") as read:
            assert read.read() == expected
    file.close()


def test_large_pieces_bypass_the_page_cache(tmp_path, monkeypatch):
    seen = []
    write = os.write

    def watched(number, data):
        seen.append((len(data), bool(fcntl.fcntl(number, fcntl.F_GETFL) & os.O_DIRECT)))
        return write(number, data)

    monkeypatch.setattr(os, "write", watched)
    file = AppendFile(str(tmp_path / "file"))
    file.append([memory(LARGE + PAGE + 64)])
    file.append([memory(100)])
    file.close()
    if not seen[0][1]:
        pytest.skip("a file system without O_DIRECT")
    assert seen == [(LARGE + PAGE, True), (64, False), (100, False)]


@pytest.mark.parametrize("refused", ["the flag", "the write", "the rest of the write"])
def test_large_pieces_go_through_the_page_cache_if_it_cannot_be_bypassed(tmp_path, monkeypatch, refused):
    control, write = fcntl.fcntl, os.write
    file, data, direct = AppendFile(str(tmp_path / "file")), memory(LARGE + 100), []

    def controlled(number, command, *rest):
        if command == fcntl.F_SETFL:
            if refused == "the flag":
                raise OSError(22, "Invalid argument")
            direct[:] = [bool(rest[0] & os.O_DIRECT)]
        return control(number, command, *rest)

    def written(number, data):
        if direct == [True] and (refused == "the write" or len(data) < LARGE):
            raise OSError(22, "Invalid argument")
        return write(number, data[: 5 * PAGE + 10] if direct == [True] else data)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", controlled)
        patch.setattr(os, "write", written)
        file.append([data])
        file.append([data])
    file.commit()
    file.close()
    assert (tmp_path / "file").read_bytes() == 2 * bytes(data)


def test_buffers_begin_at_a_page():
    snapshot = HostBuffer()
    for size in (10, 10**6):
        snapshot.put([torch.ones(size)])
        assert all(
            np.frombuffer(chunk, np.uint8).ctypes.data % PAGE == 0
            for chunk in snapshot.chunks()
            if len(chunk)
        )
        snapshot.clear()


def test_steps_of_several_megabytes_are_read_back(tmp_path):
    net = torch.nn.Linear(600, 700)
    with Watch(
        net, run=tmp_path / "run", save=every(1), collections=["losses", "weights", "biases"]
    ) as watch:
        kept = []
        for step in range(5):
            with torch.no_grad():
                net.weight.add_(step)
            kept.append(net.weight.detach().clone())
            watch.step(loss=step)
    saved = open_run(tmp_path / "run")
    assert saved.verify() == []
    assert all(torch.equal(saved.value("weight", step), kept[step]) for step in range(5))
    (segment,) = (tmp_path / "run" / "debug").glob("*.seg")
    assert segment.stat().st_size < 5 * (net.weight.nbytes + 2 * PAGE + net.bias.nbytes)
