"""Tensors of every kind and in every structure."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import nn

from loopwise.debug import Collection, Watch, every, open_run


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    extra: dict


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


def test_structures_are_walked(tmp_path):
    class Inner(nn.Module):
        def forward(self, x, *, mask=None, kind="a"):
            return {"logits": x * mask, "pair": Pair(x + 1, x + 2), "text": "none", "many": [x, (x,)]}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            found = self.inner(x, mask=x > 0)
            return Output(found["logits"], {"left": found["pair"].left})

    x = torch.randn(6, 4)
    net = Net()
    with Watch(net, run=tmp_path / "run", save=every(1), collections=["inputs", "outputs"]) as watch:
        net(x)
        watch.step()
    saved = open_run(tmp_path / "run")
    assert sorted(saved.names()) == sorted(
        [
            "input.0",
            "inner.input.0",
            "inner.input.mask",
            "inner.output.logits",
            "inner.output.pair.0",
            "inner.output.pair.1",
            "inner.output.many.0",
            "inner.output.many.1.0",
            "output.logits",
            "output.extra.left",
        ]
    )
    assert torch.equal(saved.value("inner.output.pair.1", 0), x + 2)
    assert torch.equal(saved.value("inner.input.mask", 0), x > 0)


ODD = {
    "bf16": torch.randn(3, 5).bfloat16(),
    "fp16": torch.randn(3, 5).half(),
    "fp8": torch.randn(3, 5).to(torch.float8_e4m3fn),
    "complex": torch.randn(3, 5, dtype=torch.complex64),
    "conjugate": torch.randn(3, 5, dtype=torch.complex64).conj(),
    "int": torch.arange(7),
    "bool": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(3.0),
    "turned": torch.randn(3, 5).t(),
    "expanded": torch.randn(3, 1).expand(3, 5),
    "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "double": torch.randn(4, dtype=torch.float64),
}


@pytest.mark.parametrize("kind", ODD)
def test_tensors_of_every_kind(tmp_path, kind):
    class Net(nn.Module):
        def forward(self, x):
            return x

    net, value = Net(), ODD[kind]
    collections = ["outputs", Collection("statistics", include="output", statistics=("count", "min", "mean"))]
    with Watch(net, run=tmp_path / "run", save=every(1), collections=collections) as watch:
        net(value)
        watch.step()
    assert watch.counts["failed"] == 0
    found = open_run(tmp_path / "run").value("output.0", 0)
    assert (found.dtype, found.shape) == (value.dtype, value.shape)
    assert torch.equal(
        torch.view_as_real(found.resolve_conj()) if found.is_complex() else found.double(),
        torch.view_as_real(value.resolve_conj()) if value.is_complex() else value.double(),
    )


def test_sparse_gradients_are_saved_as_they_are_stored(tmp_path):
    net = nn.EmbeddingBag(10, 3, sparse=True, mode="sum")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    collections = ["gradients", Collection("s", include="^gradient", statistics=("sum", "count"))]
    with Watch(net, optimizer, run=tmp_path / "run", save=every(1), collections=collections) as watch:
        net(torch.tensor([[1, 4, 4]])).sum().backward()
        dense = net.weight.grad.to_dense()
        optimizer.step()
        watch.step()
    saved = open_run(tmp_path / "run")
    assert saved.value("gradient/weight.indices", 0).tolist() == [[1, 4]]
    assert torch.equal(saved.value("gradient/weight.values", 0), dense[[1, 4]])
    assert saved.statistic("gradient/weight", "sum", 0) == dense.sum().item()
