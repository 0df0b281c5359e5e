"""Shared memory: an extent is used again only when nobody holds it, and memory stays bounded."""

import gc
import os

import numpy as np
import psutil
import pytest
import torch

from loopwise.feed.packing.pack import Packer
from loopwise.feed.protocol import Counters
from loopwise.feed.remote.link import layout
from loopwise.feed.remote.member import Arena
from loopwise.feed.ring import views as views_module
from loopwise.feed.ring.batch import Batch
from loopwise.feed.ring.extents import Extents, rounded
from loopwise.feed.ring.file import MOST_MAPPED, PAGE, SharedFile, mapped
from loopwise.feed.ring.views import Views


@pytest.fixture
def sides():
    file = SharedFile()
    yield Extents(file, 2), Views(file)
    file.close()


def written(extents, views, value, size=100_000):
    """Write a batch of one tensor in the worker, and return the training process's view of it, and its place."""
    extents.begin(views.take_released())
    block = extents.allocate(size)
    torch.frombuffer(block.buffer, dtype=torch.uint8, count=size).fill_(value)
    views.forget(extents.take_retired())
    return block.place, size


def tensor(views, place, size):
    return torch.frombuffer(views.arrays([place], [size])[0], dtype=torch.uint8)


def test_an_extent_is_not_used_again_while_any_view_of_it_lives(sides):
    kept = []
    for value in range(20):
        place, size = written(*sides, value)
        kept.append(tensor(sides[1], place, size)[7:].view(-1, 3)[1:].numpy()[::2])
    gc.collect()
    assert [int(view.min()) for view in kept] == list(range(20))
    assert [int(view.max()) for view in kept] == list(range(20))
    assert sides[1].held == 20


@pytest.mark.parametrize("slices", [False, True])
def test_arrays_hold_their_extent_too(sides, slices):
    place, size = written(*sides, 5)
    array = np.frombuffer(sides[1].arrays([place], [size])[0], np.uint8, size)
    array = array[10:][::3] if slices else array
    gc.collect()
    assert sides[1].held == 1
    del array
    assert sides[1].held == 0


def test_released_extents_are_used_again(sides):
    places = set()
    for value in range(20):
        place, size = written(*sides, value)
        assert int(tensor(sides[1], place, size).max()) == value
        places.add(place)
    assert len(places) == 1


def test_batches_of_varying_size_share_extents(sides):
    places = set()
    for value in range(30):
        place, size = written(*sides, value, 100_000 + 1000 * (value % 7))
        tensor(sides[1], place, size)
        places.add(place)
    assert len(places) <= 3


def test_memory_that_was_held_and_is_free_is_given_back(sides):
    extents, views = sides
    file = extents._file.descriptor
    kept = [tensor(views, *written(extents, views, value)) for value in range(30)]
    assert os.fstat(file).st_blocks * 512 >= 30 * 100_000
    kept.clear()
    for value in range(3):
        tensor(views, *written(extents, views, value))
    assert os.fstat(file).st_blocks * 512 <= 4 * rounded(100_000) + PAGE


def test_copies_release_their_extents_at_once(sides):
    place, size = written(*sides, 5)
    (copy,) = sides[1].copies([place], [size])
    assert (copy.min(), copy.max(), copy.size) == (5, 5, size)
    assert sides[1].held == 0
    assert sides[1].take_released() == [place]


def test_private_copies_are_made_when_too_many_extents_are_held(monkeypatch):
    monkeypatch.setattr("loopwise.feed.ring.batch.MOST_HELD", 2)
    file = SharedFile()
    extents, views, counters = Extents(file, 2), Views(file), Counters()
    kept = []
    for value in range(5):
        extents.begin(views.take_released())
        packed = Packer(extents).pack(torch.full((20_000,), float(value)))
        body = packed.header, packed.inline, [b.place for b in packed.blocks], packed.sizes, 0, packed.nbytes
        kept.append(Batch(views, counters, body)())
    file.close()
    assert [float(batch.max()) for batch in kept] == [0, 1, 2, 3, 4]
    assert (counters.copies, views.held) == (3, 2)
    assert views_module.MOST_HELD > 1000


def test_a_batch_that_nobody_opens_releases_its_memory(sides):
    place, size = written(*sides, 1)
    del size
    Batch(sides[1], Counters(), (b"", b"", [place], [1], 0, 0))
    assert sides[1].take_released() == [place]


def test_lengths_are_whole_pages_and_little_more_than_needed():
    for nbytes in (1, PAGE, PAGE + 1, 100_000, 9_633_792, 38_535_168):
        assert rounded(nbytes) % PAGE == 0
        assert nbytes <= rounded(nbytes) <= max(nbytes * 9 / 8 + 1, nbytes + PAGE)


def test_a_batch_whose_blocks_came_in_one_place_can_be_opened_after_its_member_was_closed():
    """As batches come from another machine; those from an actor on this one are of the other form."""
    arena = Arena(2)
    values = [torch.full((20_000,), 3.0), torch.full((30_001,), 4, dtype=torch.int16)]
    source = SharedFile()
    packed = Packer(Extents(source, 2)).pack(values)
    starts, total = layout(packed.sizes)
    block = arena.allocate(total)
    for start, size, sent in zip(starts, packed.sizes, packed.blocks, strict=True):
        block.buffer[start : start + size] = sent.buffer[:size]
    batch = Batch(
        arena.views, Counters(), (packed.header, packed.inline, [block.place], packed.sizes), starts
    )
    source.close()
    arena.close()
    assert all(map(torch.equal, batch(), values))


def test_a_batch_of_a_worker_that_has_ended_can_be_opened():
    file = SharedFile()
    extents, views = Extents(file, 2), Views(file)
    packed = Packer(extents).pack(torch.full((20_000,), 3.0))
    body = packed.header, packed.inline, [b.place for b in packed.blocks], packed.sizes, 0, packed.nbytes
    batch = Batch(views, Counters(), body)
    views.close()
    file.close()
    assert batch().tolist() == [3.0] * 20_000


def test_kept_batches_take_no_descriptors(sides):
    before = psutil.Process().num_fds()
    kept = [tensor(sides[1], *written(*sides, value)) for value in range(50)]
    assert psutil.Process().num_fds() == before
    assert [int(view[-1]) for view in kept] == list(range(50))


def opened(extents, views, counters, value):
    """Return a batch of one tensor, written and opened."""
    extents.begin(views.take_released())
    packed = Packer(extents).pack(torch.full((10_000,), float(value)))
    body = packed.header, packed.inline, [b.place for b in packed.blocks], packed.sizes, 0, packed.nbytes
    return Batch(views, counters, body)()


def test_the_mappings_of_all_workers_together_are_limited(monkeypatch):
    files = [SharedFile() for _ in range(3)]
    workers, counters = [(Extents(file, 2), Views(file)) for file in files], Counters()
    monkeypatch.setattr("loopwise.feed.ring.batch.MOST_MAPPED", mapped() + 14)
    kept = [opened(*worker, counters, value) for value in range(10) for worker in workers]
    assert [float(batch.max()) for batch in kept] == [value for value in range(10) for _ in workers]
    held = sum(views.held for _, views in workers)
    assert counters.copies == 30 - held
    assert 4 <= held <= 7  # each is a mapping in the worker and one here, and both are this process
    assert MOST_MAPPED > 1000
    for file in files:
        file.close()


def unmappable(file):
    """Open the file again such that the system refuses to map it, as it does when the process has no mappings left."""
    return SharedFile(os.open(f"/proc/self/fd/{file.descriptor}", os.O_RDONLY))


def test_batches_are_copied_if_the_system_refuses_to_map_their_memory():
    source, arena, counters = SharedFile(), Arena(2), Counters()
    extents, views = Extents(source, 2), Views(unmappable(source))
    extents.begin([])
    packed = Packer(extents).pack([torch.full((10_000,), 3.0), torch.full((9_000,), 4.0)])
    body = packed.header, packed.inline, [b.place for b in packed.blocks], packed.sizes, 0, packed.nbytes
    with pytest.raises(OSError, match="denied"):
        views.map([packed.blocks[0].place])
    batch = Batch(views, counters, body)()
    assert [tensor.unique().tolist() for tensor in batch] == [[3.0], [4.0]]
    assert (counters.copies, views.held, len(views.take_released())) == (1, 0, 2)
    refused = unmappable(arena.file)
    arena.file.close()
    arena.file.descriptor = refused.descriptor
    block = arena.allocate(40_000)
    assert (block.place, block.buffer.nbytes) == (None, 40_000)
    for file in (source, views._file, arena.file):
        file.close()
