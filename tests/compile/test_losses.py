"""Loss functions: errors of wrong ones name the mistake and the cure."""

import functools

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.errors import InputError

F = nn.functional
NET = nn.Linear(6, 3)
SGD = torch.optim.SGD(NET.parameters(), lr=0.1)
BATCH = torch.randn(4, 6), torch.arange(4) % 3
A_LOSS = (
    "a criterion of (output, target), or a function of (model, batch) whose first parameter is named model"
)


def misnamed(net, batch):
    return F.cross_entropy(net(batch[0]), batch[1])


class Misnamed:
    def __call__(self, net, batch):
        return misnamed(net, batch)

    def method(self, net, batch):
        return F.cross_entropy(net.forward(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), "<lambda>"),
        (misnamed, "misnamed"),
        (functools.partial(misnamed), "misnamed"),
        (Misnamed().method, "Misnamed.method"),
    ],
)
def test_a_function_whose_first_parameter_is_not_named_model(loss, name):
    with pytest.raises(InputError) as error:
        TrainStep(NET, loss, SGD, plan=Plan())(BATCH)
    seen, expected, cause, fix = error.value.args
    assert (
        f"{name}, which was called as a criterion, loss(model(input), target), and failed: 'Tensor' object"
        in seen
    )
    assert (expected, cause) == (A_LOSS, "its first parameter is named net, and is meant to be the model")
    assert fix.startswith("name it model: lambda model, batch: ..., or def loss(model, batch)")


def test_an_object_that_is_called_with_the_model():
    class Named(Misnamed):
        def __call__(self, model, batch):
            return misnamed(model, batch)

    step = TrainStep(NET, Named(), SGD, plan=Plan())
    assert step(BATCH).isfinite()
    with pytest.raises(InputError, match="seen: a batch that is no pair") as error:
        TrainStep(NET, Misnamed(), SGD, plan=Plan())({"x": BATCH[0], "y": BATCH[1]})
    assert "its first parameter named model" in error.value.args[3]


def test_an_error_of_the_users_own_stays_as_it_is():
    def criterion(output, target):
        return output.no_such_method(target)

    def broken(model, batch):
        return model.no_such_method

    def calling(output, target):
        return F.cross_entropy(output, target, no_such_argument=1)

    for loss in (criterion, broken, calling):
        with pytest.raises((AttributeError, TypeError), match="no_such"):
            TrainStep(NET, loss, SGD, plan=Plan())(BATCH)


def test_classes_in_the_last_dimension():
    step = TrainStep(NET, nn.CrossEntropyLoss(reduction="none"), SGD, plan=Plan())
    with pytest.raises(InputError) as error:
        step((torch.randn(4, 5, 6), torch.zeros(4, 5, dtype=torch.long)))
    seen, expected, cause, fix = error.value.args
    assert seen == "targets that do not fit the model's output. Expected target size [4, 3], got [4, 5]"
    assert expected == "an output of shape (batch, classes, tokens) for targets of shape (batch, tokens)"
    assert cause == "the classes are the output's last dimension"
    assert "model(batch[0]).flatten(0, 1)" in fix


OUTPUTS = {
    "tokens": (
        lambda model, b: F.cross_entropy(model(b[0]), b[1], reduction="none").expand(2, 4),
        "a loss of shape (2, 4)",
        "loss.flatten(1).mean(1)",
    ),
    "a dict": (
        lambda model, b: {"loss": model(b[0]).sum(), "logits": model(b[0])},
        "a loss of type dict: {'loss': Tensor(), 'logits': Tensor(4, 3)}",
        "return the loss alone, outputs['loss']",
    ),
    "a pair": (
        lambda model, b: (model(b[0]).sum(), model(b[0])),
        "a loss of type tuple: tuple(Tensor(), Tensor(4, 3))",
        "return the loss alone, for instance outputs[0]",
    ),
    "a share": (
        lambda model, b: (model(b[0]).sum(), torch.tensor(0.5)),
        "a loss of type tuple: tuple(Tensor(), Tensor())",
        "return the loss alone, for instance outputs[0]",
    ),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_loss_function_that_returns_something_else(kind):
    def loss(model, batch):
        return OUTPUTS[kind][0](model, batch)

    with pytest.raises(InputError) as error:
        TrainStep(NET, loss, SGD, plan=Plan())(BATCH)
    assert error.value.args[0] == OUTPUTS[kind][1]
    assert OUTPUTS[kind][2] in error.value.args[3]
    assert ("a pair of it and a count" in error.value.args[1]) == (kind in ("a pair", "a share"))
