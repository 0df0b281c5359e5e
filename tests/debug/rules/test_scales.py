"""Scales of inputs, targets and weights, class counts, and training on all of the data: faults and their healthy neighbours."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from watch_kit import classes, net, numbers, train

from loopwise.debug import every

F = nn.functional


@pytest.mark.parametrize(
    ("scale", "what"),
    [(1e3, "the targets have a root mean square of "), (1e-4, "the targets have a root mean square of ")],
)
def test_targets_far_from_the_outputs(tmp_path, scale, what):
    finding = train(tmp_path, net(1), numbers(scale), F.mse_loss)["target_scale"]
    assert finding.what.startswith(what)
    assert finding.evidence["target"][0][1] == pytest.approx(
        scale * float(numbers(1.0)(0)[1].square().mean().sqrt()), rel=1e-3
    )


@pytest.mark.parametrize("scale", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("criterion", [F.mse_loss, F.l1_loss, lambda y, t: 3 * F.mse_loss(y, t)])
def test_usual_targets_and_other_losses(tmp_path, scale, criterion):
    assert "target_scale" not in train(tmp_path, net(1), numbers(scale), criterion, steps=3)


def test_large_targets_of_a_loss_that_is_no_squared_error_are_unknown(tmp_path):
    assert "target_scale" not in train(tmp_path, net(1), numbers(1e3), F.l1_loss, steps=3)


def test_a_zero_initialised_output_is_no_fault(tmp_path):
    model = net(1)
    nn.init.zeros_(model[-1].weight)
    assert "target_scale" not in train(tmp_path, model, numbers(1.0), F.mse_loss, steps=3)


def test_pixels_divided_twice(tmp_path):
    def batch(step):
        x, y = classes(step)
        return x.sigmoid() / 255, y

    finding = train(tmp_path, net(), batch, F.cross_entropy)["input_not_normalized"]
    assert finding.what.startswith("the model's input is tiny: mean 0.00")


def test_sparse_inputs_are_not_tiny(tmp_path):
    def batch(step):
        x, y = classes(step)
        return F.one_hot(x.argmax(1) * 100, 1000).float(), y

    assert "input_not_normalized" not in train(tmp_path, net(inputs=1000), batch, F.cross_entropy)


@pytest.mark.parametrize("layer", [nn.Softmax(0), nn.LogSoftmax(0)])
def test_softmax_over_the_batch(tmp_path, layer):
    def criterion(y, t):
        return F.nll_loss(y if isinstance(layer, nn.LogSoftmax) else y.log(), t)

    finding = train(tmp_path, net(3, layer), classes, criterion, steps=4)["softmax_axis"]
    assert finding.what.startswith("the outputs of the model sum up to 1 over the batch (to ")


@pytest.mark.parametrize("layer", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid(), nn.ReLU()])
def test_softmax_over_classes_and_other_outputs(tmp_path, layer):
    found = train(tmp_path, net(3, layer), classes, lambda y, t: y.var() + F.cross_entropy(y, t), steps=4)
    assert "softmax_axis" not in found


def test_imbalance_is_seen_from_targets_that_are_not_saved(tmp_path):
    def batch(step):
        x, y = classes(step)
        return x, torch.where(torch.arange(32) > 0, 0, y)

    finding = train(tmp_path, net(), batch, F.cross_entropy, save=None)["class_imbalance"]
    assert " targets are of class " in finding.what  # 1 or 2, or both, by the steps that a slow machine saves
    assert finding.what.endswith(" are of class 0")


def test_classes_of_a_third_and_of_a_tenth_are_no_imbalance(tmp_path):
    def batch(step):
        x, _ = classes(step)
        draws = torch.rand(32, generator=torch.Generator().manual_seed(step))
        return x, (draws > 0.6).long() + (draws > 0.9).long()

    assert "class_imbalance" not in train(tmp_path, net(), batch, F.cross_entropy)


def test_weight_decay_that_dominates(tmp_path):
    def make(parameters):
        return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=50.0)

    finding = train(tmp_path, net(), classes, F.cross_entropy, steps=60, make=make)["over_regularization"]
    assert "under a weight decay of 50, and loss is " in finding.what


@pytest.mark.parametrize("decay", [0.0, 0.01, 0.1])
def test_usual_weight_decay(tmp_path, decay):
    def make(parameters):
        return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=decay)

    found = train(tmp_path, net(), classes, F.cross_entropy, steps=60, make=make)
    assert "over_regularization" not in found


X, Y = classes(0, 200)


def by_loader(size, shuffle, again=False):
    loader = DataLoader(TensorDataset(X, Y), batch_size=size, shuffle=shuffle)
    batches = iter(loader)

    def batch(step):
        nonlocal batches
        if again:
            return next(iter(loader))
        try:
            return next(batches)
        except StopIteration:
            batches = iter(loader)
            return next(batches)

    return batch


@pytest.mark.parametrize("batch", [lambda step: (X, Y), by_loader(200, False)], ids=["tensors", "loader"])
@pytest.mark.parametrize("save", [None, every(1)])
def test_training_on_all_of_the_data_is_no_repeated_batch(tmp_path, batch, save):
    found = train(tmp_path, net(), batch, F.cross_entropy, save=save, profile=True)
    assert "repeated_batch" not in found


def test_the_first_batch_again_and_again_is_one(tmp_path):
    found = train(tmp_path, net(), by_loader(16, False, again=True), F.cross_entropy, save=None)
    assert "repeated_batch" in found


def test_a_head_over_a_random_frozen_trunk_is_healthy(tmp_path):
    model = net()
    model[0].requires_grad_(False)

    def make(parameters):
        return torch.optim.Adam([p for p in parameters if p.requires_grad], lr=1e-2)

    assert train(tmp_path, model, classes, F.cross_entropy, steps=120, make=make, save=None) == {}


class Attention(nn.Module):
    """One layer of attention over tokens, whose scores are tiny at first."""

    def __init__(self, scale):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 16)
        self.query, self.key, self.value = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.head = nn.Linear(16, 20)
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=scale)

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = x + F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        return self.head(x).mean(1)


def tokens(step):
    x = torch.randint(20, (16, 6), generator=torch.Generator().manual_seed(step))
    return x, x[:, 0]


@pytest.mark.parametrize("scale", [1e-6, 0.02])
def test_attention_that_is_uniform_at_first(tmp_path, scale):
    """Queries and keys of a small BERT had a gradient of a ten-thousandth, beside values with a usual one."""
    found = train(
        tmp_path, Attention(scale), tokens, F.cross_entropy, 8, lambda p: torch.optim.SGD(p, lr=1e-2)
    )
    assert "vanishing_gradient" not in found


def test_gradients_that_vanish_from_layer_to_layer(tmp_path):
    layers = [layer for _ in range(9) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    model = nn.Sequential(nn.Linear(10, 32), nn.Sigmoid(), *layers, nn.Linear(32, 3))
    finding = train(tmp_path, model, classes, F.cross_entropy, steps=8)["vanishing_gradient"]
    assert finding.tensors[0] == "0.weight"
    assert "20.weight" not in finding.tensors
