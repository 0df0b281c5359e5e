"""The rule engine: selection, thresholds, failing rules, and the delivery of findings."""

import dataclasses
import logging
import threading

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from loopwise.debug import RULES, Collection, Finding, Watch, every, open_run
from loopwise.debug.cli import command
from loopwise.debug.rules.finding import SOURCES
from loopwise.debug.rules.thresholds import select
from loopwise.errors import InputError
from loopwise.warnings import LoopwiseWarning

FEW = RULES["unheld_parameter"].most


def faulty(run, steps=6, **options):
    """Train without zero_grad, on an input that is too large."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    with Watch(net, optimizer, run=run, save=every(1), **options) as watch:
        for _ in range(steps):
            loss = nn.functional.cross_entropy(net(100 * torch.randn(6, 4)), torch.arange(6) % 3)
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
    return watch


def names(findings):
    return sorted({finding.rule for finding in findings})


def test_all_rules_are_applied_by_default(tmp_path):
    watch = faulty(tmp_path / "run")
    assert {"gradient_not_zeroed", "input_not_normalized"} <= {*names(watch.findings)}


def test_selection_by_name(tmp_path):
    assert names(faulty(tmp_path / "one", rules=["gradient_not_zeroed"]).findings) == ["gradient_not_zeroed"]
    assert names(faulty(tmp_path / "name", rules="gradient_not_zeroed").findings) == ["gradient_not_zeroed"]
    assert faulty(tmp_path / "none", rules=False).findings == []
    assert faulty(tmp_path / "else", collections=["losses"]).findings == []


def test_thresholds(tmp_path):
    tolerant = {"input_not_normalized": {"size": 1e6}, "gradient_not_zeroed": {}}
    watch = faulty(tmp_path / "run", rules=tolerant)
    assert names(watch.findings) == ["gradient_not_zeroed"]
    saved = open_run(tmp_path / "run")
    assert saved.judge(tolerant) == watch.findings == saved.findings()
    assert names(saved.judge(["input_not_normalized"])) == ["input_not_normalized"]


@pytest.mark.parametrize(
    ("rules", "seen"),
    [
        (["vanishing"], "the rule 'vanishing'"),
        (
            {"vanishing_gradient": {"rato": 1.0}},
            "the thresholds {'rato': 1.0} of the rule vanishing_gradient",
        ),
        ({"vanishing_gradient": 1e-3}, "the thresholds 0.001"),
        ({"vanishing_gradient": {"ratio": "1%"}}, "ratio='1%' of the rule vanishing_gradient"),
        ({"vanishing_gradient": {"ratio": -1}}, "ratio=-1"),
        ({"vanishing_gradient": {"ratio": True}}, "ratio=True"),
        ({"dead_relu": {"steps": 21}}, "steps=21 of the rule dead_relu"),
        ({"unheld_parameter": {"steps": 2}}, "the thresholds {'steps': 2} of the rule unheld_parameter"),
    ],
)
def test_invalid_rules_are_refused(tmp_path, rules, seen):
    with pytest.raises(InputError) as error:
        faulty(tmp_path / "run", rules=rules)
    assert f"seen: {seen}" in str(error.value)


def test_rules_about_whole_runs_accept_any_number_of_steps():
    assert select({"loss_not_decreasing": {"steps": 100}}, "saved step")


def broken(history):
    raise ZeroDivisionError("of its own")
    yield


def test_a_rule_that_fails_is_named_and_switched_off(tmp_path, monkeypatch):
    monkeypatch.setitem(RULES, "overfit", dataclasses.replace(RULES["overfit"], detect=broken, mode="train"))
    with pytest.warns(LoopwiseWarning, match="the rule overfit is switched off: ZeroDivisionError") as said:
        watch = faulty(tmp_path / "run")
    assert len(said) == 1
    assert "gradient_not_zeroed" in names(watch.findings)
    assert watch.counts["saved"] == 6


def test_findings_are_told_once_on_the_training_thread(tmp_path):
    told = []
    watch = faulty(
        tmp_path / "run", on_finding=lambda finding: told.append((finding, threading.current_thread()))
    )
    assert [finding for finding, _ in told] == watch.findings
    assert {thread for _, thread in told} == {threading.main_thread()}


def test_findings_are_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "loopwise.debug"):
        watch = faulty(tmp_path / "run", rules=["gradient_not_zeroed"])
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("ERROR", str(watch.findings[0]))


def test_errors_of_the_users_function_are_raised(tmp_path):
    def stop(finding):
        raise StopIteration(finding.rule)

    with pytest.raises(StopIteration, match="gradient_not_zeroed"):
        faulty(tmp_path / "run", rules=["gradient_not_zeroed"], on_finding=stop)
    assert open_run(tmp_path / "run").info["state"] == "failed"


def test_a_rule_reports_each_tensor_once_and_a_limited_number_of_times(tmp_path):
    net = nn.ModuleList(nn.Linear(1, 1) for _ in range(2 * FEW))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, run=tmp_path / "run", save=every(1), on_finding=lambda _: None) as watch:
        for layer in list(net)[: FEW + 5]:
            net.append(nn.Linear(1, 1))  # which no optimizer holds
            optimizer.zero_grad()
            net[-1](layer(torch.randn(3, 1))).square().sum().backward()
            optimizer.step()
            watch.step()
    found = [finding for finding in watch.findings if finding.rule == "unheld_parameter"]
    assert len(found) == FEW
    assert found[0].tensors == (f"{2 * FEW}.weight", f"{2 * FEW}.bias")


def test_no_hooks_and_threads_are_left(tmp_path):
    net = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, run=tmp_path / "run", save=every(1)) as watch:
        net(torch.randn(6, 4)).square().sum().backward()
        optimizer.step()
        watch.step()
        assert net.bias._backward_hooks
    assert not net.bias._backward_hooks
    assert not net.bias._post_accumulate_grad_hooks
    assert not net._forward_hooks
    assert not net._forward_pre_hooks


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_health_does_not_change_compiled_graphs(tmp_path, backend):
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    forward = torch.compile(net, backend=keep, fullgraph=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, run=tmp_path / "run", save=every(1)) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            forward(torch.randn(6, 4)).square().mean().backward()
            optimizer.step()
            watch.step()
    assert len(graphs) == 1
    assert not [node for node in graphs[0].graph.nodes if "observe" in str(node.target)]
    found = open_run(tmp_path / "run").names()
    assert "gradient/0.weight" in found
    assert "update/0.weight" in found
    assert not watch.counts["failed"]


def test_health_keeps_statistics():
    assert not Collection("health").raw
    assert Collection("health", statistics=("mean",)).statistics == ("mean",)


def test_findings_survive_json():
    finding = Finding("r", "info", 3, "train", "w", ("a", "b"), {"x": [(1, 2.0), (3, float("inf"))]}, "a")
    record = {**finding.record(), "evidence": {"x": [[1, 2.0], [3, "Infinity"]]}}
    assert Finding.of(record) == finding


def test_the_command(tmp_path):
    faulty(tmp_path / "run")
    done = CliRunner().invoke(command, ["findings", str(tmp_path / "run")])
    assert done.exit_code == 1
    assert "gradient_not_zeroed" in done.output
    done = CliRunner().invoke(command, ["findings", str(tmp_path / "run"), "--rule", "overfit"])
    assert (done.exit_code, done.output) == (0, "0 findings, 0 critical\n")
    done = CliRunner().invoke(command, ["findings", str(tmp_path / "run"), "--rule", "overfitt"])
    assert done.exit_code == 1
    assert "seen: the rule 'overfitt'" in done.output


def test_true_and_auto_select_all_rules():
    assert [*select(True, *SOURCES)] == [*select("auto", *SOURCES)] == [*RULES]


def spiking(saving, path, samples, shown=range(30), last=1.0):
    """Write 30 steps with a loss of about 0.1 from batches of 32 samples, and one more step with its own batch."""
    writer = saving(path)
    for number in range(31):
        loss = last if number == 30 else 0.1 + 0.01 * (number % 3)
        count = samples if number == 30 else 32
        table = {"values": [[0.0]], "collection": "health", "rows": ["input.0"], "columns": ["mean"]}
        table = table | {"of": [["float32", [count, 4]]]} if number in (*shown, 30) else None
        writer.step(number, scalars={"losses": {"loss": loss}}, table=table)
    writer.end()
    return names(open_run(path).judge(["loss_spike"]))


def test_a_short_batch_with_one_hard_sample_is_no_spike(tmp_path, saving):
    """The mean loss of 3 samples is noise; that of a full batch is not."""
    assert spiking(saving, tmp_path / "full", 32) == ["loss_spike"]
    assert spiking(saving, tmp_path / "short", 3) == []
    assert spiking(saving, tmp_path / "short and wrong", 3, last=100.0) == ["loss_spike"]


def test_a_short_batch_is_no_spike_if_other_batches_were_not_seen(tmp_path, saving):
    """A compiled step shows its inputs only if it runs eagerly, which it does for the last batch of an epoch."""
    assert spiking(saving, tmp_path / "never", 3, shown=()) == []
    assert spiking(saving, tmp_path / "once", 3, shown=[20]) == []


SOURCES_OF_A_WATCH = ["overfit", "replicas_differ", "stalled_training", "non_finite", "dataloader"]


def test_a_watch_takes_rules_of_every_source(tmp_path):
    watch = faulty(tmp_path / "run", rules=[*SOURCES_OF_A_WATCH, "gradient_not_zeroed"])
    assert names(watch.findings) == ["gradient_not_zeroed"]
    thresholds = {"dataloader": {"share": 0.3}, "replicas_differ": {"difference": 1e-5}}
    assert faulty(tmp_path / "thresholds", rules=thresholds).findings == []


@pytest.mark.parametrize(
    ("rules", "options", "seen"),
    [
        (["bad_targets"], {}, "the rule 'bad_targets', whose source is 'preflight'"),
        (["dataloader"], {"profile": False}, "the rule 'dataloader', whose source is 'profile'"),
        (["non_finite"], {"trap": False}, "the rule 'non_finite', whose source is 'NaN trap'"),
        ((), {}, r"rules=\(\)"),
        (None, {}, "rules=None"),
    ],
)
def test_rules_whose_source_is_not_available_are_refused(tmp_path, rules, options, seen):
    with pytest.raises(InputError, match=seen):
        faulty(tmp_path / "run", rules=rules, **options)
    assert not (tmp_path / "run").exists()


def test_stored_steps_are_judged_by_rules_over_saved_steps_only(tmp_path):
    faulty(tmp_path / "run")
    with pytest.raises(InputError, match="the rule 'dataloader', whose source is 'profile'"):
        open_run(tmp_path / "run").judge(["dataloader"])
    assert open_run(tmp_path / "run").judge(False) == []
