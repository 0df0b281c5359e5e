"""Rules over tensors that users save by hand: each detects its fault, live and in the stored run, and nothing else."""

import pytest
import torch
from torch import nn

from loopwise.debug import Collection, Watch, every, open_run
from loopwise.debug.rules.arrays import classes

NAMES = "labels|predictions|tokens|tree_depths|feature_importance"
ARRAYS = [
    "class_imbalance",
    "confusion",
    "token_ratio",
    "tensor_variance",
    "tree_depth",
    "feature_importance",
]
GENERATOR = torch.Generator().manual_seed(0)


def run(path, saved, steps=6, mode="train", rules=ARRAYS, more=()):
    """Return the findings of a run that saves the tensors of ``saved(step)``."""
    kept = [Collection("arrays", include=f"^({NAMES})$"), *more]
    with (
        Watch(
            nn.Linear(1, 1), run=path, save=every(1), collections=kept, rules=rules, on_finding=lambda _: None
        ) as watch,
        watch.mode(mode),
    ):
        for step in range(steps):
            for name, value in saved(step).items():
                watch.save(name, value)
            watch.step()
    assert not watch.counts["failed"]
    saved = open_run(path)
    assert watch.findings == saved.findings() == saved.judge(rules)
    return watch.findings


def draws(shares, count=200):
    return torch.multinomial(torch.tensor(shares), count, replacement=True, generator=GENERATOR)


def test_no_findings_if_nothing_is_saved(tmp_path):
    assert run(tmp_path / "run", lambda step: {}) == []


def test_tensors_without_a_collection_are_saved_all_the_same(tmp_path):
    with Watch(nn.Linear(1, 1), run=tmp_path / "run", save=every(1), collections=["losses"]) as watch:
        watch.save("labels", torch.zeros(3))
        watch.step(loss=1.0)
    assert open_run(tmp_path / "run").names() == ["labels", "loss"]


@pytest.mark.parametrize(("shares", "said"), [([0.9, 0.08, 0.02], True), ([0.6, 0.3, 0.1], False)])
def test_class_imbalance(tmp_path, shares, said):
    found = run(tmp_path / "run", lambda step: {"labels": draws(shares)})
    assert [finding.rule for finding in found] == ["class_imbalance"] * said
    if said:
        assert found[0].step == 2, "after 500 labels"
        assert found[0].tensors == ("class 1", "class 2")
        assert " of 600 labels are of class 1, class 2" in found[0].what
        thresholds = {"class_imbalance": {"ratio": 1000}}
        assert run(tmp_path / "other", lambda step: {"labels": draws(shares)}, rules=thresholds) == []


def predicted(labels, wrong):
    """Return scores for each class; samples of the classes ``wrong`` get the scores of class 0."""
    scores = nn.functional.one_hot(labels, 3).float()
    scores[torch.isin(labels, torch.tensor(wrong, dtype=torch.long))] = torch.tensor([1.0, 0, 0])
    return scores


@pytest.mark.parametrize("wrong", [[], [2]])
def test_rare_classes_are_no_fault_if_they_are_learned(tmp_path, wrong):
    def saved(step):
        labels = draws([0.6, 0.36, 0.04])
        return {"labels": labels, "predictions": predicted(labels, wrong)}

    found = run(tmp_path / "run", saved)
    assert [finding.tensors for finding in found] == ([("class 2",)] if wrong else [])


@pytest.mark.parametrize("wrong", [[], [1], [1, 2]])
def test_confusion(tmp_path, wrong):
    def saved(step):
        labels = draws([0.4, 0.2, 0.4])
        ignored = torch.full((5,), -100)
        return {"labels": torch.cat([labels, ignored]), "predictions": torch.cat([predicted(labels, wrong), torch.eye(3)[[0] * 5]])}  # fmt: skip

    found = run(tmp_path / "run", saved, steps=3, mode="eval")
    assert [(finding.rule, finding.tensors) for finding in found] == (
        [("confusion", ("class 1",))] if wrong == [1] else []
    )
    if wrong == [1]:
        assert "samples of class 1 are predicted as class 0" in found[0].what


@pytest.mark.parametrize(
    ("given", "indices"),
    [
        (torch.tensor([2, -100, 0]), [2, -100, 0]),
        (torch.tensor([300.0, 2.0]), [300, 2]),
        (torch.eye(3)[[2, 0]].long(), [2, 0]),
        (torch.tensor([[1, 2], [0, 3]]), [1, 2, 0, 3]),
        (torch.tensor([[0.1, 0.9], [2.0, 0.5]]), [1, 0]),
        (torch.tensor([[1.0], [0.0]]), [1, 0]),
        (torch.tensor([[0.7], [-0.2]]), None),
        (torch.tensor([0.7, 0.2]), None),
        (torch.empty(0, dtype=torch.long), []),
    ],
)
def test_classes(given, indices):
    found = classes(given.numpy())
    assert (None if found is None else found.tolist()) == indices
    assert found is None or found.dtype.itemsize <= 2


def test_one_float_for_each_sample_is_no_class(tmp_path):
    def saved(step):
        labels = draws([0.5, 0.5])
        return {"labels": labels[:, None].float(), "predictions": labels[:, None] - 0.4}

    assert run(tmp_path / "run", saved, steps=3, mode="eval") == []


def test_predictions_in_two_bytes_and_one_hot_labels(tmp_path):
    def saved(step):
        labels = draws([0.4, 0.2, 0.4])
        return {"labels": nn.functional.one_hot(labels), "predictions": predicted(labels, [1]).bfloat16()}

    (found,) = run(tmp_path / "run", saved, steps=3, mode="eval")
    assert (found.rule, found.tensors) == ("confusion", ("class 1",))


@pytest.mark.parametrize(("padding", "said"), [(6, True), (3, False)])
def test_token_ratio(tmp_path, padding, said):
    tokens = torch.ones(4, 10, dtype=torch.long)
    tokens[:, :padding] = 0
    found = run(tmp_path / "run", lambda step: {"tokens": tokens})
    assert [finding.what for finding in found] == ["60% of the tokens of a batch are 0"] * said
    other = run(tmp_path / "other", lambda step: {"tokens": tokens}, rules={"token_ratio": {"value": 1}})
    assert bool(other) is not said


def test_token_inputs_of_a_model(tmp_path):
    net = nn.Embedding(5, 2)
    kept = [Collection("tokens", include=r"^input\.0$")]
    with Watch(net, run=tmp_path / "run", save=every(1), collections=kept, rules=["token_ratio"]) as watch:
        for _ in range(3):
            net(torch.zeros(2, 7, dtype=torch.long))
            watch.step()
    assert [finding.tensors for finding in watch.findings] == [("input.0",)]


@pytest.mark.parametrize("statistics", [(), ("std", "mean")])
@pytest.mark.parametrize(("factor", "said"), [(1e-4, True), (1e4, True), (1e-2, False)])
def test_tensor_variance(tmp_path, statistics, factor, said):
    start = torch.randn(100, generator=GENERATOR)
    more = [Collection("variance", include="^hidden$", statistics=statistics)]
    found = run(tmp_path / "run", lambda step: {"hidden": start * (factor if step > 3 else 1)}, more=more)
    assert [(finding.rule, finding.tensors, finding.step) for finding in found] == [
        ("tensor_variance", ("hidden",), 4)
    ] * said
    if said:
        assert [step for step, _ in found[0].evidence["hidden"]] == [0, 1, 2, 3, 4]
    bound = {"tensor_variance": {"most": 1e-3}}
    found = run(tmp_path / "other", lambda step: {"hidden": start}, more=more, rules=bound)
    assert [finding.step for finding in found] == [0]


@pytest.mark.parametrize(("depth", "said"), [(12, True), (6, False)])
def test_tree_depth(tmp_path, depth, said):
    found = run(tmp_path / "run", lambda step: {"tree_depths": torch.tensor([3, depth, 4])})
    assert [finding.what for finding in found] == [
        "1 of 3 trees are deeper than 10 levels; the deepest has 12"
    ] * said


@pytest.mark.parametrize(("numbers", "said"), [([9.0, 1, 1] + [0.1] * 9, True), ([1.0] * 12, False), ([1.0] * 3, False)])  # fmt: skip
def test_feature_importance(tmp_path, numbers, said):
    found = run(tmp_path / "run", lambda step: {"feature_importance": torch.tensor(numbers)})
    assert [finding.tensors for finding in found] == [("feature 0", "feature 1", "feature 2")] * said


def test_evidence_has_the_first_variance_and_the_last_ones(tmp_path):
    more = [Collection("variance", include="^hidden$", raw=True)]
    start = torch.randn(100, generator=GENERATOR)
    (found,) = run(
        tmp_path / "run",
        lambda step: {"hidden": start * (1e4 if step > 28 else 1)},
        30,
        rules=["tensor_variance"],
        more=more,
    )
    assert [step for step, _ in found.evidence["hidden"]] == [0, *range(10, 30)]
