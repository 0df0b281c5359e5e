"""Whole messages of all errors about arguments, batches and losses."""

import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from loopwise.errors import InputError, StateError
from loopwise.sift import Indexed, LowResolution, Padded, RelativeLoss, SiftingDataLoader, pilot
from loopwise.sift.loader import DEFAULTS
from loopwise.sift.options import RULES
from loopwise.warnings import LoopwiseWarning

CRITERION = nn.CrossEntropyLoss(reduction="none")
X, Y = torch.randn(8, 6), torch.arange(8) % 3


def made(loader=((X, Y),), model=None, loss=CRITERION, **options):
    return SiftingDataLoader(loader, model or nn.Linear(6, 3), loss, **options)


def go(**arguments):
    return list(made(**arguments))


def refused(seen, expected, cause, fix, **options):
    with pytest.raises(InputError) as error:
        go(**options)
    assert str(error.value) == f"seen: {seen}\nexpected: {expected}\nlikely cause: {cause}\nfix: {fix}"


def test_mean_reduced_loss():
    refused(
        "a criterion with reduction='mean'",
        "one loss per sample: reduction='none'",
        "the criterion of the training step was passed, which reduces over the batch",
        "pass loss=CrossEntropyLoss(reduction='none'); the one in the training step stays as it is",
        loss=nn.CrossEntropyLoss(),
    )


def test_a_loss_function_that_averages():
    refused(
        "a loss that is a single number",
        "a Tensor of shape (8,): one loss per sample",
        "the criterion averages over the batch (reduction='mean' is the default)",
        "make the criterion with reduction='none'; the one in the training step stays as it is",
        loss=lambda output, target: nn.functional.cross_entropy(output, target),
    )


def test_loss_of_the_wrong_length():
    refused(
        "losses of shape (4,) for a batch of 8",
        "a Tensor of shape (8,): one loss per sample",
        "losses per token or pixel, or of another batch",
        "average over all dimensions but the first, for instance loss.flatten(1).mean(1)",
        loss=lambda model, batch: CRITERION(model(batch[0]), batch[1])[:4],
    )


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, 50, "half", float("nan"), True])
def test_keep_outside_its_range(keep):
    refused(
        f"keep={keep!r}",
        "the share of samples to train on, a number in (0, 1]",
        "a percentage or a count instead of a fraction",
        "pass a fraction, for instance keep=0.5",
        keep=keep,
    )


def test_no_batch_dimension():
    refused(
        "a batch without a batch dimension: tuple(Tensor(), float)",
        "tensors, arrays or lists whose first dimension is the batch",
        "the loader yields single samples (batch_size=None) or only scalars",
        "give the loader a batch_size, or yield batches",
        loader=[(torch.tensor(1.0), 2.0)],
    )


def test_fields_of_different_lengths():
    refused(
        "a batch whose fields differ in length: tuple(Tensor(8, 6), Tensor(7,))",
        "fields with the same number of samples in their first dimension",
        "a collate_fn that joins fields of different samples, or puts the batch in another dimension",
        "make every field's first dimension the batch",
        loader=[(X, Y[:7])],
    )


def test_a_model_on_another_device():
    refused(
        "a model on meta and a batch on cpu",
        "both on one device, or the batch on the CPU (it is moved for scoring)",
        "model.to(device) was forgotten, or names another device than the loader's",
        "model.to('cpu'), or let the loader yield batches on the CPU",
        model=nn.Linear(6, 3, device="meta"),
    )


def test_an_empty_loader():
    refused(
        "a loader that yields no batch",
        "at least one batch an epoch",
        "an empty dataset, fewer samples than batch_size with drop_last=True, or an iterator that an earlier "
        "epoch used up",
        "check len(dataset), or give a loader that can be iterated again",
        loader=[],
    )


def test_nan_losses_are_kept_counted_and_warned_about_once():
    bad = X.clone()
    bad[2] = float("nan")
    loader = SiftingDataLoader(
        [(bad, Y)] * 3, nn.Linear(6, 3), loss=CRITERION, policy=torch.zeros_like, pool=1
    )
    with pytest.warns(LoopwiseWarning) as warnings:
        kept = torch.cat([x for x, _ in loader])
    assert kept.shape == (3, 6)
    assert kept.isnan().all()
    assert loader.report().not_finite == 3
    assert [str(w.message) for w in warnings] == [
        "loopwise.sift: 1 of 8 samples have a loss that is NaN or infinite; they are kept and counted in "
        "report().not_finite. Likely causes: a diverging model, or corrupt samples."
    ]


def test_a_policy_of_the_wrong_form():
    with pytest.raises(InputError, match=r"shape \(3,\) from policy"):
        go(policy=lambda losses: losses[:3])
    with pytest.raises(InputError, match=r"values from -2.0 to -2.0"):
        go(policy=lambda losses: torch.full_like(losses, -2))


def test_a_criterion_needs_pairs():
    with pytest.raises(InputError, match="pass loss=function"):
        go(loader=[{"x": X, "y": Y}])


WHOLE = "a fraction, a negative number or a text"
FRACTION = "a percentage or a count instead of a fraction"
ORDER = "pass the arguments in the order loader, model, loss, or by name"
WRONG = {
    "loader": (
        {"loader": nn.Linear(6, 3)},
        "loader of type Linear",
        "an iterable of batches, such as a DataLoader",
        "arguments changed places",
        ORDER,
    ),
    "model": (
        {"model": CRITERION.forward},
        "model of type method",
        "an nn.Module",
        "arguments changed places",
        ORDER,
    ),
    "model class": (
        {"model": nn.Linear},
        "model=Linear, a class",
        "an nn.Module",
        "the class was passed, not an instance",
        ORDER,
    ),
    "loss": (
        {"loss": torch.ones(3)},
        "loss of type Tensor",
        "a criterion that returns one loss per sample, or a function of (model, batch)",
        "a value was passed in place of a function, or arguments changed places",
        "pass loss=nn.CrossEntropyLoss(reduction='none')",
    ),
    "loss class": (
        {"loss": nn.CrossEntropyLoss},
        "loss=CrossEntropyLoss, a class",
        "a criterion that returns one loss per sample, or a function of (model, batch)",
        "the class was passed, not an instance",
        "pass loss=nn.CrossEntropyLoss(reduction='none')",
    ),
    "keep and policy": (
        {"keep": 0.5, "policy": RelativeLoss()},
        "keep=0.5 and policy=RelativeLoss(beta=1, floor=0, history=2048)",
        "one of keep and policy",
        "a policy itself defines how much it keeps",
        "drop keep, and give the share to the policy if it takes one",
    ),
    "policy": (
        {"policy": RelativeLoss},
        f"{RelativeLoss!r} instead of a policy",
        "a Policy, or a function from losses to keep probabilities",
        "the class of a policy instead of an instance, or a share instead of a policy",
        "pass a policy with its settings, for instance TopLoss(keep=0.5)",
    ),
    "pool": (
        {"pool": 0},
        "pool=0",
        "a whole number of batches, at least 1",
        WHOLE,
        "pass for instance pool=4",
    ),
    "delay": (
        {"delay": 1.5},
        "delay=1.5",
        "a whole number of batches, at least 0",
        WHOLE,
        "pass for instance delay=4",
    ),
    "score_every": (
        {"score_every": True},
        "score_every=True",
        "a whole number of epochs, at least 0",
        WHOLE,
        "pass for instance score_every=1",
    ),
    "batch_size": (
        {"batch_size": 0},
        "batch_size=0",
        "a whole number of samples, at least 1",
        WHOLE,
        "pass for instance batch_size=32",
    ),
    "anneal": (
        {"anneal": 1},
        "anneal=1",
        "the last share of training that uses all data, a number in [0, 1)",
        FRACTION,
        "pass a fraction, for instance anneal=0.125",
    ),
    "anneal without epochs": (
        {"anneal": 0.5},
        "anneal=0.5 without epochs",
        "epochs, the number of epochs of the whole training",
        "the loader does not know the end of training",
        "pass epochs= as well",
    ),
    "weights": (
        {"weights": "auto"},
        "weights='auto'",
        "one of False, True",
        "a typo",
        "pass for instance weights=False",
    ),
    "compile": (
        {"compile": "max-autotune"},
        "compile='max-autotune'",
        "one of False, True, auto",
        "a mode or options of torch.compile",
        "pass compile='auto' to have it tried and measured",
    ),
    "dtype": (
        {"dtype": "bfloat16"},
        "dtype='bfloat16'",
        "one of auto, torch.float32, torch.bfloat16, torch.float16",
        "the name of a dtype, or one of integers",
        "pass for instance dtype='auto'",
    ),
    "classes": (
        {"classes": [0, 1, 2]},
        "classes of type list",
        "a function from a batch to its class labels, int64 of shape (batch,)",
        "a value was passed in place of a function, or arguments changed places",
        "pass classes=lambda batch: batch[1]",
    ),
    "scorer": (
        {"scorer": nn.Linear},
        "scorer=Linear, a class",
        "a module that takes the model's input",
        "the class was passed, not an instance",
        "pass for instance scorer=LowResolution(model)",
    ),
    "resume": (
        {"resume": True},
        "resume=True without run",
        "run=, the folder of the run to go on in",
        "run= was forgotten, or resume= is meant for load_state_dict",
        "pass run= as well, or leave resume out",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    options, *message = WRONG[name]
    refused(*message, **options)


@pytest.mark.parametrize("name", ["loader", "model", "loss class"])
def test_the_pilot_checks_the_same(name):
    options, *message = WRONG[name]
    arguments = {"loader": [(X, Y)], "model": nn.Linear(6, 3), "loss": CRITERION} | options
    with pytest.raises(InputError) as error:
        pilot(**arguments)
    assert error.value.args == tuple(message)


def test_every_option_is_validated():
    of_several = {"keep", "policy", "run"}  # by validate_options, which also compares options
    assert set(RULES) | of_several == set(DEFAULTS)


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda: LowResolution(0.5), "model of type float"),
        (lambda: Padded(-100), "values of type int"),
        (lambda: Padded()([(X, Y)], [8]), "batches to pad: tuple(Tensor(8, 6), Tensor(8,))"),
        (lambda: Indexed.collate([1]), "function of type list"),
        (lambda: Indexed(iter([1])), "Indexed(list_iterator)"),
        (lambda: made().set_epoch(-1), "epoch=-1"),
        (lambda: made().state_dict(untrained=None), "untrained=None"),
        (lambda: made().hold_yielded(0.5), "count=0.5"),
        (lambda: made().load_state_dict({"epoch": 1}), "a state of type dict"),
        (lambda: made().record_losses([1.0]), "record_losses() of a list"),
    ],
)
def test_other_public_functions(make, seen):
    with pytest.raises(InputError) as error:
        make()
    assert error.value.args[0] == seen
    assert all(error.value.args)


@pytest.mark.parametrize(
    "make",
    [lambda: RelativeLoss(0.5, beta=1), lambda: RelativeLoss(beta=-1), lambda: RelativeLoss(history=1)],
)
def test_bad_policies(make):
    with pytest.raises(InputError):
        make()


class Broken(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 8

    def __getitem__(self, i):
        if self.error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        raise self.error


def test_an_exception_of_the_dataset_passes_unchanged():
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        go(loader=DataLoader(Broken(error), 4))
    assert caught.value is error


def test_a_dead_worker():
    with pytest.raises(StateError) as error:
        go(loader=DataLoader(Broken(None), 4, num_workers=1))
    text = str(error.value)
    assert text.startswith("seen: a worker process of the wrapped DataLoader died (DataLoader worker (pid")
    assert text.endswith(
        "\nexpected: workers that live until the epoch ends"
        "\nlikely cause: out of memory (the kernel killed it), too little shared memory, or a crash in native code"
        "\nfix: lower num_workers or batch_size, enlarge /dev/shm, or use num_workers=0 to see the crash itself"
    )


def test_the_data_can_still_be_used_after_an_error():
    data = TensorDataset(X, Y)
    with pytest.raises(InputError):
        go(loader=DataLoader(data, 4), loss=nn.CrossEntropyLoss())
    assert sum(len(y) for _, y in go(loader=DataLoader(data, 4), keep=1.0)) == 8
