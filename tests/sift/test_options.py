"""Whole messages of everything that the loader refuses."""

import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from loopwise.errors import InputError, StateError
from loopwise.sift import RelativeLoss, SiftingDataLoader
from loopwise.warnings import LoopwiseWarning

CRITERION = nn.CrossEntropyLoss(reduction="none")
X, Y = torch.randn(8, 6), torch.arange(8) % 3


def go(loader=((X, Y),), model=None, loss=CRITERION, **options):
    return list(SiftingDataLoader(loader, model or nn.Linear(6, 3), loss=loss, **options))


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


def test_nan_losses_are_kept_counted_and_said_once():
    bad = X.clone()
    bad[2] = float("nan")
    loader = SiftingDataLoader(
        [(bad, Y)] * 3, nn.Linear(6, 3), loss=CRITERION, policy=torch.zeros_like, pool=1
    )
    with pytest.warns(LoopwiseWarning) as told:
        kept = torch.cat([x for x, _ in loader])
    assert kept.shape == (3, 6)
    assert kept.isnan().all()
    assert loader.report().not_finite == 3
    assert [str(w.message) for w in told] == [
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


@pytest.mark.parametrize(
    "options", [{"pool": 0}, {"delay": -1}, {"delay": 1.5}, {"keep": 0.5, "policy": RelativeLoss()}]
)
def test_bad_options(options):
    with pytest.raises(InputError):
        go(**options)


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
