"""Checksums of rows, by which a batch is recognised."""

import pytest
import torch

from loopwise.sift.step_losses import checksums
from loopwise.sift.step_losses.checksums import Fingerprint

# -- checksums ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool]
)
def test_checksums_tell_rows_apart(dtype):
    values = (torch.randn(200, 3, 50, generator=torch.Generator().manual_seed(0)) * 20).clamp(min=0).to(dtype)
    sums = checksums.checksums(checksums.sampled(values))
    assert sums.shape == (200,)
    assert len(set(sums.tolist())) == 200
    order = torch.randperm(200)
    assert torch.equal(checksums.checksums(checksums.sampled(values[order])), sums[order])


def test_checksums_of_long_rows_cover_all_parts_and_take_no_random_numbers():
    state = torch.get_rng_state()
    image = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = checksums.checksums(checksums.sampled(image))
    for channel in range(3):
        for row in range(0, 64, 8):
            changed = image.clone()
            changed[:, channel, row : row + 8, :16] = 0
            assert not (checksums.checksums(checksums.sampled(changed)) == before).any()
    assert torch.equal(torch.get_rng_state(), state)


def test_checksums_do_not_depend_on_the_memory_layout():
    image = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    other = image.to(memory_format=torch.channels_last)
    assert torch.equal(checksums.sampled(image), checksums.sampled(other))
    assert checksums.Fingerprint(image, 4).equals(other)
    assert checksums.Fingerprint(other.flatten(1), 4).equals(image)


def test_the_very_tensor_is_unchanged_until_torch_writes_to_it():
    tensor = torch.randn(4, 3)
    fingerprint = Fingerprint((tensor, "name"), 4)
    assert fingerprint.is_unchanged((tensor, torch.randn(4)))
    assert not fingerprint.is_unchanged(tensor.clone())
    assert Fingerprint(tensor, 4, copied=False).is_unchanged(tensor)
    assert Fingerprint(tensor, 4, copied=False).equals(tensor) is None
    tensor.mul_(1.0)
    assert not fingerprint.is_unchanged(tensor)
    assert bool(fingerprint.equals(tensor))


def test_a_tensor_of_inference_mode_counts_no_writes():
    with torch.inference_mode():
        tensor = torch.randn(4, 3)
    assert not Fingerprint(tensor, 4).is_unchanged(tensor)
