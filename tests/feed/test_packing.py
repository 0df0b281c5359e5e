"""Packed batches: every structure comes back equal, large tensors are stacked in place, nothing large is pickled."""

import gc
import weakref
from collections import namedtuple

import numpy as np
import pytest
import torch
from feed_kit import equal
from torch.utils.data import default_collate

from loopwise.feed.packing.memory import INLINE, LARGE, Block
from loopwise.feed.packing.pack import Collating, Packer
from loopwise.feed.packing.unpack import unpack

Point = namedtuple("Point", ["x", "y"])


class Memory:
    """Blocks that are counted."""

    def __init__(self):
        self.blocks, self.freed = [], []

    def allocate(self, nbytes):
        self.blocks.append(Block(memoryview(bytearray(nbytes)), len(self.blocks)))
        return self.blocks[-1]

    def free(self, block):
        self.freed.append(block.place)


class Own:
    def __init__(self, tensor):
        self.tensor = tensor

    def __eq__(self, other):
        return torch.equal(self.tensor, other.tensor)


def travelled(batch, memory=None):
    packed = Packer(memory or Memory()).pack(batch)
    return unpack(packed.header, packed.inline, [block.buffer for block in packed.blocks]), packed


LARGE_IMAGE = torch.arange(2 * 3 * 64 * 64, dtype=torch.float32).view(2, 3, 64, 64)
BATCHES = {
    "nested": {"a": [torch.arange(5), (1, "text", None)], "b": {"c": torch.rand(3, 4), "d": b"bytes"}},
    "named tuple": Point(torch.ones(2), [1.5, torch.tensor(2)]),
    "large and small": [LARGE_IMAGE, torch.arange(7), torch.ones(100, 200)],
    "empty": [torch.empty(0, 3), torch.empty(0, dtype=torch.int8), [], {}, np.empty((0, 2))],
    "dtypes": [
        torch.ones(3).to(dtype) for dtype in (torch.bool, torch.bfloat16, torch.complex64, torch.uint8)
    ],
    "arrays": [np.arange(5), np.ones((200, 300)), np.array(["a", "b"]), np.float32(2.5)],
    "many": [torch.full((64,), float(number)) for number in range(256)],
    "own class": Own(torch.rand(200, 100)),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_comes_back_equal(name):
    assert equal(travelled(BATCHES[name])[0], BATCHES[name])


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 128, 128)])
def test_memory_formats_are_kept(shape):
    batch = torch.rand(shape).to(memory_format=torch.channels_last)
    back, _ = travelled([batch, batch.transpose(0, 3), batch[:, :2]])
    assert torch.equal(back[0], batch)
    assert back[0].stride() == batch.stride()
    assert back[1].stride() == batch.transpose(0, 3).stride()
    assert torch.equal(back[2], batch[:, :2])
    expanded = torch.rand(2, 1).expand(2, 9)
    assert torch.equal(travelled(expanded)[0], expanded)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.rand(2, 1, 8, 8).to(memory_format=torch.channels_last),
        torch.rand(64, 1, 32, 32).to(memory_format=torch.channels_last),
        torch.rand(6).as_strided((1, 6), (77, 1)),
        torch.empty(0, 3, 4).transpose(0, 2),
        torch.rand(3, 4, 5).permute(2, 0, 1),
    ],
    ids=["small", "large", "one row", "empty", "permuted"],
)
def test_strides_of_tensors_without_gaps_are_kept(tensor):
    back, _ = travelled(tensor)
    assert torch.equal(back, tensor)
    assert back.stride() == tensor.stride()


def test_a_tensor_of_zeros_without_memory_comes_as_zeros():
    assert torch.equal(travelled(torch._efficientzerotensor((3,)))[0], torch.zeros(3))


def test_the_default_device_does_not_matter():
    packer = Packer(Memory())
    with torch.device("meta"):
        batch = packer.stack([torch.ones(3, device="cpu")] * 2), torch.empty(0, 3, device="cpu")
        packed = packer.pack(batch)
        back = unpack(packed.header, packed.inline, [])
    assert equal(back, batch)
    assert {tensor.device.type for tensor in back} == {"cpu"}


def test_one_tensor_in_two_places_stays_one():
    image = torch.rand(200, 200)
    back, packed = travelled([image, image])
    assert back[0] is back[1]
    assert len(packed.blocks) == 1


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(2, requires_grad=True),
        torch.complex(torch.ones(2), torch.ones(2)).conj(),
    ],
    ids=["sparse", "parameter", "gradient", "conjugate"],
)
def test_tensors_that_are_more_than_numbers_are_pickled_and_counted(tensor):
    back, packed = travelled([tensor])
    assert type(back[0]) is type(tensor)
    assert back[0].requires_grad == tensor.requires_grad
    assert torch.equal(back[0].to_dense(), tensor.to_dense())
    assert packed.pickled == 1


def test_no_numbers_of_plain_tensors_are_in_the_header():
    _, packed = travelled([LARGE_IMAGE, torch.ones(1000)])
    assert len(packed.header) < 500
    assert packed.pickled == 0


def test_small_tensors_share_one_buffer_and_too_many_of_them_a_block():
    _, packed = travelled([torch.ones(64) for _ in range(256)])
    assert (len(packed.inline), packed.blocks) == (256 * 256, [])
    batch = [torch.full((1000,), float(number)) for number in range(INLINE // 4000 + 2)]
    back, packed = travelled(batch)
    assert (len(packed.inline), len(packed.blocks)) == (0, 1)
    assert equal(back, batch)


def collated(samples, function=default_collate):
    memory = Memory()
    packer = Packer(memory)
    with Collating(packer):
        batch = function(samples)
    packed = packer.pack(batch)
    del batch
    packer.finish(packed)
    return unpack(packed.header, packed.inline, [block.buffer for block in packed.blocks]), memory, packed


def test_samples_are_stacked_right_into_a_block():
    samples = [(torch.rand(100, 100), number) for number in range(4)]
    batch, memory, packed = collated(samples)
    assert equal(batch, default_collate(samples))
    assert len(memory.blocks) == len(packed.blocks) == 1
    assert memory.freed == []


def test_a_function_that_calls_default_collate_stacks_into_blocks_too():
    samples = [torch.rand(100, 100) for _ in range(4)]
    batch, memory, _ = collated(samples, lambda samples: {"x": default_collate(samples)})
    assert equal(batch, {"x": torch.stack(samples)})
    assert len(memory.blocks) == 1


def test_a_block_that_is_not_part_of_the_batch_is_given_back():
    samples = [torch.rand(100, 100) for _ in range(4)]
    batch, memory, packed = collated(samples, lambda samples: default_collate(samples) * 2)
    assert equal(batch, torch.stack(samples) * 2)
    assert memory.freed == [0]
    assert [block.place for block in packed.blocks] == [1]


def test_all_blocks_are_given_back_if_a_batch_cannot_be_packed():
    memory = Memory()
    packer = Packer(memory)
    with pytest.raises(Exception, match="pickle"):
        packer.pack([LARGE_IMAGE, lambda: None])
    packer.finish(None)
    assert memory.freed == [0]


def test_a_tensor_that_the_dataset_keeps_is_copied_and_its_block_waits_for_it():
    samples, memory, kept = [torch.rand(100, 100) for _ in range(4)], Memory(), []
    packer = Packer(memory)
    with Collating(packer):
        kept += [default_collate(samples), default_collate(samples)]
    packed = packer.pack(kept[0])
    retained = packer.finish(packed)
    assert [block.place for block in packed.blocks] == [2]
    assert memory.freed == []
    kept[0] += 1
    assert torch.equal(unpack(packed.header, packed.inline, [packed.blocks[0].buffer]), torch.stack(samples))
    del kept[0]
    assert [reference() is None for reference, _ in retained] == [True, False]


def test_a_function_that_is_kept_does_not_use_the_memory_of_a_later_batch():
    memory = Memory()
    packer = Packer(memory)
    packer.finish(packer.pack([]))
    assert torch.equal(packer.stack([LARGE_IMAGE, LARGE_IMAGE]), torch.stack([LARGE_IMAGE, LARGE_IMAGE]))
    assert memory.blocks == []


def test_a_function_that_is_registered_meanwhile_stays():
    from torch.utils.data._utils.collate import collate_tensor_fn, default_collate_fn_map

    with Collating(Packer(Memory())):
        default_collate_fn_map[torch.Tensor] = pairs
    assert default_collate_fn_map[torch.Tensor] is pairs
    default_collate_fn_map[torch.Tensor] = collate_tensor_fn


def pairs(tensors, **_):
    return tensors


def test_samples_of_unequal_shapes_raise_the_error_of_default_collate():
    samples = [torch.rand(LARGE), torch.rand(LARGE + 1)]
    with pytest.raises(RuntimeError) as theirs:
        default_collate(samples)
    with pytest.raises(RuntimeError) as ours:
        collated(samples)
    assert str(ours.value) == str(theirs.value)


def test_default_collate_is_as_before_afterwards():
    from torch.utils.data._utils.collate import collate_tensor_fn, default_collate_fn_map

    collated([torch.rand(2)])
    assert default_collate_fn_map[torch.Tensor] is collate_tensor_fn


def test_memory_is_free_when_the_batch_is_dropped_without_the_garbage_collector():
    packed = Packer(Memory()).pack([LARGE_IMAGE, torch.ones(3)])
    block = np.frombuffer(bytearray(packed.blocks[0].buffer), np.uint8)
    freed = weakref.ref(block.base)
    gc.disable()
    try:
        batch = unpack(packed.header, packed.inline, [block])
        del block
        assert freed() is not None
        del batch
        assert freed() is None
    finally:
        gc.enable()


def test_storages_come_as_storages():
    storages = [torch.arange(count).untyped_storage() for count in (0, 5, 20_000)]
    came, packed = travelled(storages)
    assert [type(storage) for storage in came] == [torch.UntypedStorage] * 3
    assert [storage.tolist() for storage in came] == [storage.tolist() for storage in storages]
    assert packed.pickled == 0
    assert len(packed.blocks) == 1
