"""Findings of rules in trainings with a known fault, and in healthy trainings."""

import functools
import importlib
import pkgutil
import zlib

import pytest
import torch

from benchmarks.zoo import FAULTS, Job, injected, made
from benchmarks.zoo.job import accumulated
from loopwise.debug import RULES, open_run, rules
from loopwise.debug.rules import SEVERITIES
from loopwise.debug.rules.finding import SOURCES
from loopwise.debug.rules.registry import documentation

STEP_RULES = [name for name, rule in RULES.items() if rule.source == "saved step"]
ELSEWHERE = {
    "stalled_training": "monitors/test_stall.py",
    "unlike_healthy_run": "test_unlike_healthy_run.py",
    "targets_are_inputs": "test_outputs.py",
    "new_optimizers": "debug/test_new_optimizers.py",
    **dict.fromkeys(("class_imbalance", "confusion", "token_ratio"), "test_arrays.py"),
    **dict.fromkeys(("tensor_variance", "tree_depth", "feature_importance"), "test_arrays.py"),
}
"""Rules whose faults are in another file."""
ONE_EACH = {rule: name for name, fault in reversed(FAULTS.items()) for rule in fault.named}


DURING_TRAINING = {
    "replicas_differ": "monitors/test_ranks.py",
    "same_batch_on_ranks": "monitors/test_ranks.py",
}
"""Rules about ranks, which are not over saved steps."""


def trained(tmp_path, kind, fault=None, **more):
    job = made(kind, 0, **more) if fault is None else injected(fault, 0)
    watch = job.run(str(tmp_path / "run"))
    saved = open_run(tmp_path / "run")
    found, recorded = (
        [each for each in f if each.rule in STEP_RULES] for f in (watch.findings, saved.findings())
    )
    assert str(found) == str(recorded) == str(saved.judge())  # NaN is not NaN
    return found


def test_every_rule_has_a_fault():
    assert {*ONE_EACH} == {*STEP_RULES} - {*ELSEWHERE} | {*DURING_TRAINING}


def test_new_faults_come_last():
    """The benchmark halves the faults by their order: another order would report faults that were looked at."""
    first = "\n".join([*FAULTS][:80])
    assert zlib.crc32(first.encode()) == 3471927784, "add the fault at the end of benchmarks/zoo/updates.py"


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("rule", [rule for rule in STEP_RULES if rule not in ELSEWHERE])
def test_a_fault_is_named(tmp_path, rule):
    name = ONE_EACH[rule]
    found = {finding.rule: finding for finding in trained(tmp_path, FAULTS[name].kind, name)}
    assert rule in found, found
    finding = found[rule]
    assert finding.severity == RULES[rule].severity
    assert finding.advice == RULES[rule].advice
    assert not finding.what.endswith(".")
    assert all(points and all(len(point) == 2 for point in points) for points in finding.evidence.values())


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("kind", ["mlp", "cnn", "rnn", "transformer", "gan", "ddp"])
def test_healthy_trainings_have_no_findings(tmp_path, kind):
    more = {"evaluations": 20} if kind in ("mlp", "cnn", "rnn") else {}
    assert trained(tmp_path, kind, **more) == []


def test_adversarial_losses_need_not_fall(tmp_path):
    job = made("gan", 1, steps=80)
    job.optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
    assert job.run(str(tmp_path / "run")).findings == []


def test_every_rule_file_is_registered_and_documented():
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(rules.__path__, f"{rules.__name__}.")
    ]
    files = {module.__name__.rpartition(".")[2] for module in modules if hasattr(module, "RULE")}
    assert files == {*RULES}
    for name, rule, summary, texts in documentation():
        assert summary.endswith("."), name
        assert {"Statistic", "Default", "False alarms"} <= texts.keys(), name
        assert rule.source in SOURCES
        assert rule.severity in SEVERITIES
        assert rule.advice[0].islower() or rule.advice[:3].isupper()
        assert rule.mode in ("train", "eval")


# -- healthy trainings ------------------------------------------------------------------------------


def test_accumulation(tmp_path):
    job = Job("mlp", 0)
    accumulated(job, 4)
    assert job.run(str(tmp_path / "run")).findings == []


def test_gradients_set_to_zero_in_place(tmp_path):
    job = Job("cnn", 0)
    job.before_backward = lambda optimizer, step: optimizer.zero_grad(set_to_none=False)
    assert job.run(str(tmp_path / "run")).findings == []


def test_clipping(tmp_path):
    job = Job("rnn", 0)

    def backward(loss, step):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(job.model.parameters(), 0.1)

    job.backward = backward
    assert job.run(str(tmp_path / "run")).findings == []


def test_frozen_layers(tmp_path):
    job = Job("cnn", 0)
    job.model[1].requires_grad_(False)
    job.optimizer = lambda parameters: torch.optim.Adam([p for p in parameters if p.requires_grad], lr=1e-3)
    assert job.run(str(tmp_path / "run")).findings == []


def test_two_optimizers_if_one_loss_reaches_both_models(tmp_path):
    """In adversarial training the generator's backward pass leaves gradients in the critic."""
    from torch import nn

    from loopwise.debug import Watch, every

    torch.manual_seed(0)
    generator, critic = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    models = {"generator": generator, "critic": critic}
    optimizers = {name: torch.optim.Adam(model.parameters(), 1e-3) for name, model in models.items()}
    with Watch(models, optimizers, run=tmp_path / "run", save=every(1)) as watch:
        for _ in range(24):
            real, noise = torch.randn(16, 8) + 1, torch.randn(16, 4)
            optimizers["critic"].zero_grad()
            critic_loss = critic(generator(noise).detach()).mean() - critic(real).mean()
            critic_loss.backward()
            optimizers["critic"].step()
            optimizers["generator"].zero_grad()
            loss = -critic(generator(noise)).mean()
            loss.backward()
            optimizers["generator"].step()
            watch.step(critic_loss=critic_loss, loss=loss)
    assert watch.findings == []
