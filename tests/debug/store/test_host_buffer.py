"""Host buffers: every kind of tensor, growth, reuse, padding, and use of memory."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.debug.store.host_buffer import LEAST, SEEN, BufferPool, HostBuffer

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,
    torch.complex64,
    torch.complex128,
    torch.bool,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]


def some(dtype, shape, seed=0):
    """Return a tensor of random bits, among them NaN and denormal numbers; of bool, valid values."""
    size = torch.Size(shape).numel() * dtype.itemsize
    bits = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return (bits % 2 if dtype == torch.bool else bits).view(dtype).reshape(shape)


def bits(tensor):
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def joined(snapshot):
    return b"".join(bytes(chunk) for chunk in snapshot.chunks())


def expected(tensors):
    """Return the block as specified: each tensor at a multiple of 64 bytes, zeros between them."""
    data, offsets = b"", []
    for tensor in tensors:
        offsets.append(len(data))
        data += bits(tensor)
        data += bytes(-len(data) % 64)
    return data, tuple(offsets)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (7,), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape_is_kept_to_the_bit(dtype, shape):
    snapshot, tensor = HostBuffer(), some(dtype, shape)
    signature, offsets = snapshot.put([tensor])
    assert (signature, offsets) == (((dtype, torch.Size(shape)),), (0,))
    assert joined(snapshot) == expected([tensor])[0]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(4, 6).t(),
        torch.randn(9, 9)[::2, 1::3],
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.randn(2, 3, 4, 5, 2).contiguous(memory_format=torch.channels_last_3d),
        torch.randn(5, 1).expand(5, 7),
        torch.randn(()).expand(3),
        torch.randn(6).as_strided((4, 3), (1, 1)),
        torch.randn(4, dtype=torch.complex64).conj(),
        torch.randn(4, dtype=torch.complex64).conj().imag,
        torch.randn(3, requires_grad=True),
        torch.nn.Parameter(torch.randn(3)),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}-{tensor.stride()}",
)
def test_strides_are_resolved_into_c_order(tensor):
    snapshot = HostBuffer()
    with torch.no_grad():
        snapshot.put([tensor])
        plain = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    assert joined(snapshot) == expected([plain])[0]


def test_a_buffer_holds_copies():
    tensor = torch.ones(5)
    snapshot = HostBuffer()
    snapshot.put([tensor])
    tensor.mul_(7)
    assert torch.frombuffer(bytearray(joined(snapshot)), dtype=torch.float32)[:5].tolist() == [1] * 5


members = st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3), st.integers(0, 9))
blocks = st.lists(st.lists(st.lists(members, max_size=4), max_size=4), min_size=1, max_size=6)


@settings(deadline=None)
@given(blocks, st.integers(1, 40))
def test_any_sequence_of_blocks_has_the_specified_bytes(blocks, times):
    snapshot = HostBuffer()
    for block in blocks:
        tensors, offsets = [], ()
        for group in block:
            fresh = [some(dtype, (times, *shape), seed) for dtype, shape, seed in group]
            offsets += snapshot.put(fresh)[1]
            tensors += fresh
        assert (joined(snapshot), offsets) == expected(tensors)
        assert all(offset % 64 == 0 for offset in offsets)
        snapshot.clear()


def test_padding_is_zero_after_any_block():
    snapshot = HostBuffer()
    small, large = [torch.ones(3), torch.ones(5)], [torch.ones(100)]
    for tensors in (small, large, small, [*small, *large], small[::-1], small, [*small, *large]):
        for tensor in tensors:
            snapshot.put([tensor])
        assert joined(snapshot) == expected(tensors)[0]
        snapshot.clear()


def test_memory_of_a_block_that_grew_is_one_piece_the_next_time():
    snapshot = HostBuffer()
    tensors = [torch.randn(LEAST // 4 - 16 * i) for i in range(6)]
    for turn in range(3):
        _, first = snapshot.put(tensors[:2])
        _, second = snapshot.put(tensors[2:])
        assert (joined(snapshot), (*first, *second)) == expected(tensors)
        assert (len(snapshot.chunks()) > 1) == (turn == 0)
        snapshot.clear()


def test_memory_is_allocated_once():
    snapshot, tensor = HostBuffer(), torch.randn(LEAST)
    places = set()
    for _ in range(4):
        snapshot.put([tensor])
        places.add(torch.frombuffer(snapshot.chunks()[0], dtype=torch.uint8).data_ptr())
        snapshot.clear()
    assert len(places) == 1


def test_the_number_of_remembered_arrangements_is_limited():
    snapshot = HostBuffer()
    for size in range(SEEN + 50):
        snapshot.put([torch.ones(size)])
        snapshot.clear()
        assert len(snapshot._seen) <= SEEN


def test_memory_allocated_in_inference_mode_can_be_used_outside_of_it():
    snapshot = HostBuffer()
    with torch.inference_mode():
        snapshot.put([torch.ones(3)])
    snapshot.clear()
    snapshot.put([torch.full((3,), 2.0)])
    assert joined(snapshot) == expected([torch.full((3,), 2.0)])[0]


def test_memory_is_on_the_host_whatever_the_default_device():
    snapshot, tensor = HostBuffer(), torch.ones(3)
    with torch.device("meta"):
        snapshot.put([tensor])
    assert joined(snapshot) == expected([tensor])[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_of_a_gpu_come_into_locked_memory():
    snapshot = HostBuffer(pinned=True)
    for _ in range(2):
        tensors = [some(dtype, (3, 5)) for dtype in DTYPES] + [torch.randn(300, 500).t(), torch.randn(())]
        there = [tensor.cuda() for tensor in tensors]
        snapshot.put(there[:3])
        snapshot.put(there[3:])
        event = torch.cuda.Event()
        event.record()
        for tensor in there:
            tensor.view(torch.uint8).zero_() if tensor.is_contiguous() and tensor.ndim else None
        event.synchronize()
        assert all(piece.is_pinned() for piece in snapshot._pieces)
        assert joined(snapshot) == expected(tensors)[0]
        snapshot.clear()


def test_an_empty_block():
    snapshot = HostBuffer()
    assert snapshot.put([]) == ((), ())
    assert joined(snapshot) == b""
    snapshot.clear()
    assert joined(snapshot) == b""


def test_a_pool_holds_no_more_steps_than_its_count():
    ring, tensor, snapshots = BufferPool(2, pinned=False), torch.ones(2**18), set()
    for _ in range(7):
        snapshots.add(snapshot := ring.take(wait=True))
        snapshot.put([tensor[: 2**17]])
        snapshot.put([tensor[2**17 :]])
        ring.give_back(snapshot)
    assert [piece.nbytes for snapshot in snapshots for piece in snapshot._pieces] == 2 * [2**20]


def test_an_empty_pool():
    ring = BufferPool(2, pinned=False)
    first, second = ring.take(wait=False), ring.take(wait=False)
    assert ring.take(wait=False) is None
    waiting = threading.Thread(target=lambda: ring.give_back(ring.take(wait=True)))
    waiting.start()
    ring.give_back(first)
    waiting.join(600)
    assert ring.take(wait=False) is first
    assert second is not first


def test_a_buffer_without_memory_does_not_shrink_the_pool(monkeypatch):
    ring = BufferPool(1, pinned=False)
    snapshot = ring.take(wait=True)
    snapshot.put([torch.ones(LEAST)])
    snapshot.put([torch.ones(LEAST)])
    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(RuntimeError):
        ring.give_back(snapshot)
    monkeypatch.undo()
    again = ring.take(wait=False)
    again.put([torch.ones(3)])
    assert joined(again) == expected([torch.ones(3)])[0]


def test_a_block_without_the_memory_for_a_tensor_has_the_others(monkeypatch):
    snapshot, tensors = HostBuffer(), [torch.randn(LEAST // 8), torch.randn(LEAST // 4), torch.randn(7)]
    snapshot.put(tensors[:1])
    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(RuntimeError):
        snapshot.put(tensors[1:2])
    monkeypatch.undo()
    snapshot.put(tensors[2:])
    assert joined(snapshot) == expected([tensors[0], tensors[2]])[0]


def fail(*args, **kwargs):
    raise RuntimeError("not enough memory")
