"""Profile rules: faults and healthy runs, with the same findings live and offline."""

import inspect
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from loopwise.debug import RULES
from loopwise.debug.profiler import Profile, Profiler, reading
from loopwise.debug.rules.profile import load_balancing
from loopwise.debug.rules.profile.records import ProfileRules
from loopwise.debug.rules.profile.series import FIXED, Series, Table
from loopwise.debug.rules.thresholds import select
from loopwise.errors import InputError

START, GIB = 1000.0, 2**30
SAMPLES, STEPS = 1000, 400


def machine(devices=0, **columns):
    """Return a header and samples, two a second, of a machine with two cores; columns are numbers or arrays."""
    names = ["time", "late", "missed", "process_cpu", "process_memory", "cpu", "iowait", "cpu0", "cpu1"]
    names += [f"gpu{i}{suffix}" for i in range(devices) for suffix in ("", "_memory", "_power")]
    values = dict.fromkeys(names, 0.0) | {"cpu": 50.0, "cpu0": 60.0, "cpu1": 40.0, "process_memory": GIB}
    for i in range(devices):
        values |= {f"gpu{i}": 95.0, f"gpu{i}_memory": 30 * GIB, f"gpu{i}_power": 300.0}
    values |= columns | {"time": START + 2 + 0.5 * np.arange(SAMPLES)}
    rows = np.stack([np.broadcast_to(values[name], SAMPLES) for name in names], axis=1).astype(float)
    totals = {f"gpu{i}_memory": 40 * GIB for i in range(devices)}
    used = [f"gpu{i}" for i in range(devices)]
    header = {"session": START, "interval": 0.5, "cores": 2, "totals": totals, "used": used, "columns": names}
    return header, Table(tuple(names), rows)


def loop(seconds=0.5, data=0.02, workers=2, **columns):
    """Return a table of training steps, one in each row."""
    each = np.broadcast_to(np.asarray(seconds, float), STEPS)
    values = dict.fromkeys(FIXED, 0.0) | {"step": np.arange(STEPS), "count": 1, "workers": workers}
    values |= {"seconds": each, "longest": each, "time": START + 1 + np.cumsum(each), "data": data}
    values |= {"forward": each - data} | columns
    rows = np.stack([np.broadcast_to(values[name], STEPS) for name in FIXED], axis=1)
    return Table(FIXED, rows.astype(float), ("train",) * STEPS)


def seen(rule, system=None, phases=None, first=START + 1.5, **thresholds):
    header, table = system or machine()
    phases = loop() if phases is None else phases
    return list(RULES[rule].detect(Series(START, header, table, phases, first), **thresholds))


rng = np.random.default_rng(0)
saw = np.where(np.arange(SAMPLES) % 4, 0.0, 50.0)
FAULTS = {
    "batch_size": ({"system": machine(1, gpu0=30.0, gpu0_memory=8 * GIB)}, "gpu0 is below 30 %"),
    "cpu_bottleneck": ({"system": machine(1, gpu0=2.0, cpu0=100.0)}, "in 100% of the samples gpu0"),
    "dataloader": ({"phases": loop(data=0.3)}, "60% of a step"),
    "gpu_memory_increase": (
        {"system": machine(1, gpu0_memory=np.linspace(4, 30, SAMPLES) * GIB)},
        "memory in use of gpu0 grew",
    ),
    "io_bottleneck": ({"system": machine(iowait=60.0), "phases": loop(data=0.3)}, "waited for a disk"),
    "load_balancing": ({"system": machine(2, gpu1=10.0)}, "gpu1 is at 10 % on average while gpu0 is at 95 %"),
    "low_gpu_utilization": ({"system": machine(1, gpu0=saw)}, "utilization of gpu0"),
    "max_initialization_time": ({"first": START + 3600}, "the first step ended 60 minutes"),
    "step_outlier": (
        {"phases": loop(seconds=np.where(np.arange(STEPS) % 10, 0.2, 2.0))},
        "40 steps took more than 0.6 s, with a median of 0.2 s",
    ),
}


def test_every_rule_has_a_fault():
    assert set(FAULTS) == {name for name, rule in RULES.items() if rule.source == "profile"}


@pytest.mark.parametrize("rule", FAULTS)
def test_each_rule_detects_its_fault(rule):
    given, text = FAULTS[rule]
    (found,) = seen(rule, **given)
    assert text in found.what
    for name, points in found.evidence.items():
        assert name
        assert 1 <= len(points) <= 101
        assert all(isinstance(step, int) and isinstance(value, float) for step, value in points)


@pytest.mark.parametrize("devices", [0, 1, 2])
@pytest.mark.parametrize("rule", FAULTS)
def test_healthy_runs_have_no_findings(rule, devices):
    noisy = loop(seconds=0.5 + 0.1 * rng.random(STEPS))
    assert not seen(rule, machine(devices), noisy)
    for i in range(devices):
        memory = 20 * GIB + GIB * rng.random(SAMPLES)
        assert not seen(rule, machine(devices, **{f"gpu{i}_memory": memory}), noisy)


@pytest.mark.parametrize("rule", FAULTS)
def test_a_machine_without_a_device_has_no_findings(rule):
    busy = machine(cpu=100.0, cpu0=100.0, cpu1=100.0)
    assert not seen(rule, busy)
    assert not seen(rule, busy, loop().where(np.zeros(STEPS, bool)), first=None, **{})


@pytest.mark.parametrize("rule", FAULTS)
def test_devices_of_other_programs_are_ignored(rule):
    header, table = machine(2, gpu0=saw, gpu1=2.0, cpu0=100.0)
    assert not seen(rule, (header | {"used": []}, table))


@pytest.mark.parametrize("rule", FAULTS)
def test_a_device_that_reports_nothing_has_no_findings(rule):
    nothing = {f"gpu0{suffix}": np.nan for suffix in ("", "_memory", "_power")}
    header, table = machine(2, **nothing)
    totals = dict.fromkeys(header["totals"], float("nan"))
    assert not seen(rule, (header, table))
    assert not seen(rule, (header | {"totals": totals}, table))


@pytest.mark.parametrize(
    "rule", ["batch_size", "gpu_memory_increase", "load_balancing", "low_gpu_utilization"]
)
def test_samples_without_a_report_are_left_out(rule):
    header, table = FAULTS[rule][0]["system"]
    rows = table.rows.copy()
    at = [table.columns.index(name) for name in table.columns if name.startswith("gpu")]
    rows[np.ix_(np.arange(0, SAMPLES, 7), at)] = np.nan
    (found,) = seen(rule, (header, Table(table.columns, rows)))
    for points in found.evidence.values():
        assert points
        assert all(np.isfinite(value) for _, value in points)


@pytest.mark.parametrize("rule", FAULTS)
def test_each_rule_is_documented(rule):
    text = inspect.getmodule(RULES[rule].detect).__doc__
    for word in ("Statistic:", "Default:", "False alarms:"):
        assert word in text
    assert RULES[rule].advice[0].islower()
    assert "loopwise.feed" not in RULES[rule].advice


@pytest.mark.parametrize(
    ("workers", "data", "text"),
    [
        (0, 0.4, "num_workers=0; about 4 workers would suffice"),
        (2, 0.25, "num_workers=2; about 4 workers would suffice"),
        (2, 0.45, "num_workers=2; no number of workers would suffice here"),
    ],
)
def test_number_of_workers_that_suffices(workers, data, text):
    (found,) = seen("dataloader", phases=loop(data=data, workers=workers))
    assert text in found.what


def test_a_rank_that_others_wait_for():
    slow, fast = loop(seconds=0.5, data=0.4, forward=0.1), loop(seconds=0.5, data=0.0, forward=0.1)
    (found,) = load_balancing.between({0: fast, 3: slow})
    assert "rank 3 spends 500 ms" in found.what
    assert "rank 0 100 ms" in found.what
    assert not list(load_balancing.between({0: fast, 1: fast}))
    assert not list(load_balancing.between({0: fast}))


def test_more_workers_than_cores():
    (found,) = seen("dataloader", phases=loop(workers=8))
    assert found.what == "the loader has 8 workers on 2 cores"


def test_more_workers_than_cores_that_the_process_may_use():
    header, table = machine()
    header |= {"cores": 64, "usable": 4}
    assert not seen("dataloader", (header, table), loop(workers=8))
    (found,) = seen("dataloader", (header, table), loop(workers=9))
    assert found.what == "the loader has 9 workers on 4 cores"
    (found,) = seen("dataloader", (header, table), loop(data=0.45, workers=2))
    assert "no number of workers would suffice here" in found.what


def test_the_time_of_the_watch_and_the_first_step_are_no_outliers():
    slow = np.where(np.arange(STEPS) % 10, 0.2, 2.0)
    assert not seen("step_outlier", phases=loop(seconds=slow, loopwise=slow - 0.2))
    first = np.full(STEPS, 0.2)
    first[0] = 500.0
    assert not seen("step_outlier", phases=loop(seconds=first), first=START + 501)


def test_steps_of_a_busy_machine_are_no_outliers():
    varied = np.random.default_rng(1).lognormal(np.log(0.13), 0.9, STEPS)
    assert (varied > 3 * np.median(varied)).sum() > 10
    assert not seen("step_outlier", phases=loop(seconds=varied, data=0.001))
    assert seen("step_outlier", phases=loop(seconds=varied, data=0.001), spread=0.1)


# -- records ---------------------------------------------------------------------------------------


class Slow(Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        time.sleep(0.01)  # this is what it is slow by
        return torch.ones(4), index % 3


def trained(run, data, rules, batch_size=2):
    torch.manual_seed(1)
    net = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    profiler = Profiler({"": net}, {"": optimizer}, run, Profile(rules=rules))
    step = 0
    profiler.begin(step, "train")
    for x, y in DataLoader(data, batch_size=batch_size):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        profiler.end(step, "train", {})
        step += 1
        profiler.begin(step, "train")
    profiler.close()
    return profiler.findings()


def test_a_slow_loader_is_named_live_and_offline(run):
    rules = {"dataloader": {"seconds": 0.1}}
    live = trained(run, Slow(), rules)
    assert [finding.rule for finding in live] == ["dataloader"]
    assert live[0].severity == "warning"
    assert "the loader is the bottleneck" in live[0].what
    assert reading.judge(run.path, rules) == {0: live}


def test_a_short_healthy_run_has_no_findings(run):
    data = torch.utils.data.TensorDataset(torch.ones(60, 4), torch.arange(60) % 3)
    assert trained(run, data, "auto") == []
    assert trained(run, Slow(), "auto") == []


def test_rules_are_applied_every_minute_and_report_once():
    header, table = machine(1, gpu0=saw)
    judge, found = ProfileRules({"low_gpu_utilization": {}}), []
    assert judge.add("system", header | {"version": 1}) == []
    judge.add("phases", {"columns": list(FIXED), "rows": [["train", *loop().rows[0]]]})
    for number, row in enumerate(table.rows, 1):
        if now := judge.add("system", {"row": list(row)}):
            found.append((number, now))
    assert [number for number, _ in found] == [600]  # 500 samples since the first step, at a whole minute
    assert judge.add("end", {}) == []


def test_rules_look_back_on_the_last_hour(monkeypatch):
    looked = []

    def keep(series):
        looked.append((list(series.system["time"]), series.phases))
        return iter(())

    monkeypatch.setitem(RULES, "dataloader", type(RULES["dataloader"])(keep, "info", "", source="profile"))
    monkeypatch.setattr("loopwise.debug.rules.profile.records.SAMPLES", 10)
    judge = ProfileRules({"dataloader": {}})
    judge.add("system", {"session": START, "interval": 0.5, "columns": ["time", "cpu"]})
    judge.add("phases", {"columns": [*FIXED, "mine"], "rows": [["train", *loop().rows[0], 0.25]]})
    judge.add("phases", {"columns": list(FIXED), "rows": [["eval", *loop().rows[1]]]})
    for number in range(7):
        judge.add("system", {"row": [float(number), 0.0]})
    judge.add("system", {"row": [1.0]})  # torn
    judge.add("end", {})
    for number in range(7, 23):
        judge.add("system", {"row": [float(number), 0.0]})
    judge.add("end", {})
    assert [times for times, _ in looked] == [list(range(7)), list(range(13, 23))]
    phases = looked[-1][1]
    assert phases.columns == (*FIXED, "mine")
    assert list(phases["mine"]) == [0.25, 0.0]
    assert phases.modes == ("train", "eval")


def test_a_rule_that_raises_is_named_and_the_others_go_on(monkeypatch, caplog):
    def bad(series):
        raise ZeroDivisionError("of a rule")
        yield

    rule = RULES["dataloader"]
    monkeypatch.setitem(RULES, "dataloader", type(rule)(bad, "warning", "", source="profile"))
    judge = ProfileRules(select(True, "profile"))
    judge.add("system", machine()[0])
    judge._first = START + 3600
    found = judge.add("end", {}) + judge.add("end", {})
    assert [finding.rule for finding in found] == ["max_initialization_time"]
    assert [record.message for record in caplog.records] == [
        "the rule dataloader is switched off: ZeroDivisionError('of a rule')"
    ]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rules": ["vanishing_gradient"]}, "the rule 'vanishing_gradient'"),
        ({"rules": ()}, "names of rules, or a dict"),
        ({"rules": {"dataloader": {"part": 1}}}, "a dict of share, seconds, workers"),
        ({"rules": {"dataloader": {"share": 0}}}, "share=0 of the rule dataloader"),
        ({"rules": {"dataloader": {"share": "25 %"}}}, "a number above 0"),
        ({"interval": 0.01}, "interval=0.01"),
        ({"windows": 100}, "windows=100"),
        ({"windows": [1, 2]}, "a Schedule, such as"),
        ({"top": 0}, "top=0"),
        ({"top": True}, "top=True"),
    ],
)
def test_invalid_options_are_refused(options, text):
    with pytest.raises(InputError) as error:
        Profile(**options)
    assert text in str(error.value)
