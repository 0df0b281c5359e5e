"""Scales of inputs, targets and weights, class counts, and training on all of the data: faults and their healthy neighbours."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.debug import Watch, every, open_run

F = nn.functional


def train(folder, model, batch, criterion, steps=30, make=None, **options):
    """Train, and return the findings by rule; those of the saved run are the same."""
    optimizer = (make or (lambda p: torch.optim.Adam(p, lr=1e-3)))(model.parameters())
    settings = {"save": every(1), "profile": False, "trap": False, "on_finding": []}
    with Watch(model, optimizer, run=folder / "run", **(settings | options)) as watch:
        for step in range(steps):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
    assert not watch.counts["failed"]
    assert [str(f) for f in open_run(folder / "run").judge()] == [str(f) for f in watch.findings]
    return {finding.rule: finding for finding in watch.findings}


def net(outputs=3, *more, inputs=10):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs), *more)


def classes(step, size=32):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(size, 10, generator=generator)
    return x, (x @ torch.eye(10)[:, :3]).argmax(1)


def numbers(scale):
    def batch(step):
        x, _ = classes(step)
        return x, scale * x[:, :1]

    return batch


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


# -- outputs of another shape or range --------------------------------------------------------------


def flat(step):
    x, y = numbers(1.0)(step)
    return x, y[:, 0]


@pytest.mark.parametrize("criterion", [F.mse_loss, F.smooth_l1_loss, F.huber_loss])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_outputs_that_the_loss_compares_with_all_targets(tmp_path, criterion):
    finding = train(tmp_path, net(1), flat, criterion, steps=3)["loss_input"]
    assert finding.what.endswith(
        "with the targets of other samples: it expands outputs of (32, 1) to (32, 32)"
    )


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_targets_that_stand_for_all_outputs_of_a_sample(tmp_path, outputs):
    assert "loss_input" not in train(tmp_path, net(outputs), numbers(1.0), F.mse_loss, steps=3)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_one_number_that_is_the_output_for_all_samples(tmp_path):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.value * 1.0

    assert "loss_input" not in train(tmp_path, Mean(), flat, F.mse_loss, steps=3)


@pytest.mark.parametrize("last", [nn.Tanh(), nn.ReLU(), nn.Hardtanh()])
@pytest.mark.parametrize(
    "criterion", [F.cross_entropy, lambda y, t: F.cross_entropy(y, t, label_smoothing=0.1)]
)
def test_logits_that_are_bounded(tmp_path, last, criterion):
    finding = train(tmp_path, net(3, last), classes, criterion, steps=3)["loss_input"]
    assert finding.what.endswith(f"gets the outputs of {type(last).__name__.lower()}")


def test_bounded_logits_of_a_binary_loss(tmp_path):
    def batch(step):
        x, y = classes(step)
        return x, F.one_hot(y, 3).float()

    criterion = F.binary_cross_entropy_with_logits
    assert "loss_input" in train(tmp_path, net(3, nn.Tanh()), batch, criterion, steps=3)


def test_logits_that_are_capped_by_a_scaled_tanh_are_usual(tmp_path):
    class Capped(nn.Module):
        def forward(self, x):
            return 30 * torch.tanh(x / 30)

    assert "loss_input" not in train(tmp_path, net(3, Capped()), classes, F.cross_entropy, steps=3)


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Tanh()])
def test_targets_that_outputs_cannot_reach(tmp_path, last):
    finding = train(tmp_path / "far", net(1, last), numbers(5.0), F.mse_loss, steps=3)["target_scale"]
    name = type(last).__name__.lower()
    assert finding.what.endswith(f", as {name} gives at most 1")
    assert finding.advice == f"leave {name} out after the last layer, or scale the targets into its range"
    assert "target_scale" not in train(tmp_path / "near", net(1, last), numbers(0.5), F.mse_loss, steps=3)


# -- inputs, dropout and updates --------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "found"), [(-1.0, True), (0.05, False)])
def test_inputs_that_hardly_differ_from_their_mean(tmp_path, mean, found):
    def batch(step):
        x, y = classes(step)
        return 0.02 * x + mean, y

    findings = train(tmp_path, net(), batch, F.cross_entropy, steps=4)
    assert ("input_not_normalized" in findings) == found
    if found:
        assert findings["input_not_normalized"].what.startswith(
            "the model's input is nearly constant: mean -"
        )


@pytest.mark.parametrize(("p", "found"), [(0.95, True), (0.8, False), (1.0, False)])
def test_dropout_of_nearly_everything(tmp_path, p, found):
    findings = train(tmp_path, net(32, nn.Dropout(p), nn.Linear(32, 3)), classes, F.cross_entropy, steps=3)
    assert ("over_regularization" in findings) == found
    if found:
        assert findings["over_regularization"].what == "3 drops nine values of ten, or more, in training"


def slow(optimizer):
    return lambda parameters: optimizer(parameters, 1e-6)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_updates_that_lead_nowhere(tmp_path, optimizer):
    findings = train(tmp_path, net(), classes, F.cross_entropy, steps=60, make=slow(optimizer))
    assert " updates moved no weight by more than 0." in findings["weight_update_ratio"].what
    assert "raise the learning rate" in findings["weight_update_ratio"].advice


def test_small_updates_with_a_falling_loss_are_usual(tmp_path):
    def make(parameters):
        return torch.optim.Adam(parameters, 5e-5)

    findings = train(tmp_path, net(), lambda step: classes(0), F.cross_entropy, steps=60, make=make)
    assert "weight_update_ratio" not in findings


def test_a_rate_that_falls_to_zero_has_moved_the_weights_before(tmp_path):
    rates = iter([0.05] * 10 + [1e-9] * 1000)

    class Falling(torch.optim.SGD):
        def step(self, closure=None):
            self.param_groups[0]["lr"] = next(rates)
            return super().step(closure)

    findings = train(tmp_path, net(), classes, F.cross_entropy, steps=60, make=lambda p: Falling(p, 0.05))
    assert "moved no weight" not in str(findings.get("weight_update_ratio"))


# -- targets of language models ---------------------------------------------------------------------


class Tokens(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.embed, self.head, self.last = nn.Embedding(11, 16), nn.Linear(16, 11), last

    def forward(self, x):
        y = self.head(self.embed(x))
        return y.transpose(1, 2) if self.last else y


def texts(shift, ignored=0):
    def batch(step):
        tokens = torch.randint(11, (8, 13), generator=torch.Generator().manual_seed(step))
        inputs, targets = tokens[:, :-1], tokens[:, shift : shift + 12].clone()
        targets[:, :ignored] = -100
        return inputs, targets

    return batch


def token_loss(output, target):
    output = output if output.shape[1] == 11 else output.transpose(1, 2)
    return F.cross_entropy(output, target)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("shift", "ignored", "found"), [(0, 0, True), (0, 4, True), (0, 11, False), (1, 0, False)]
)
def test_targets_that_are_the_input(tmp_path, last, shift, ignored, found):
    torch.manual_seed(0)
    findings = train(tmp_path, Tokens(last), texts(shift, ignored), token_loss, steps=3)
    assert ("targets_are_inputs" in findings) == found
