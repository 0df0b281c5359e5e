"""Hyperband: its rungs, brackets and decisions, and whole jobs, also when they are killed."""

import json
import statistics
from collections import Counter

import pytest
from tune_kit import described, job, program, wait_for

from loopwise.errors import InputError
from loopwise.tune import Tuner, job_of, run
from loopwise.tune.search.hyperband import HyperbandRule, bracket_of, goes_on, rungs_of
from loopwise.tune.trials import Trial, recorded
from loopwise.warnings import LoopwiseWarning

CURVES = """
import json, os, sys, time
reports, trial = int(sys.argv[1]), os.environ["LOOPWISE_TRIAL"]
held = json.loads(os.environ.get("HELD", "{}"))  # trial -> the report at which it waits for its end
for step in range(1, reports + 1):
    print(f" loss={int(trial) + 1 / step:.6f}", flush=True)
    if held.get(trial) == step:
        time.sleep(1000)
"""


def hyperband(command, resource=None, **changes):
    return job(command, strategy="hyperband", hyperband=resource or {"max_resource": 27}, **changes)


def test_rungs():
    assert rungs_of(1, 27) == [1, 3, 9]
    assert rungs_of(2, 27) == [2, 6, 18]
    assert rungs_of(5, 5) == []
    assert rungs_of(1, 20_000)[-1] == 3**9


def test_brackets_have_the_shares_of_hyperband():
    counts = Counter(bracket_of(0, number, 3) for number in range(2000))
    shares = [27, 12, 6, 4]  # ceil((s_max + 1) / (s + 1) * 3 ** s) for s = 3, 2, 1, 0
    for bracket, share in enumerate(shares):
        assert counts[bracket] / 2000 == pytest.approx(share / sum(shares), abs=0.03)
    assert [bracket_of(1, n, 3) for n in range(50)] != [bracket_of(0, n, 3) for n in range(50)]
    assert {bracket_of(0, number, 0) for number in range(9)} == {0}


@pytest.mark.parametrize(
    ("value", "others", "expected"),
    [
        (9.0, [1.0], True),  # two decide nothing
        (2.0, [1.0, 3.0], False),
        (1.0, [1.0, 3.0], True),  # level with the best
        (2.0, [1.0, 3.0, 4.0, 5.0, 6.0], True),  # second of six
        (3.5, [1.0, 3.0, 4.0, 5.0, 6.0], False),
        (float("nan"), [1.0, 3.0], False),
        (float("nan"), [float("inf")] * 5, False),
    ],
)
def test_the_best_third_goes_on(value, others, expected):
    assert goes_on(value, others) is expected


def trials_of_bracket(described_job, bracket, count):
    rungs = len(rungs_of(1, 27))
    numbers = (n for n in range(10_000) if bracket_of(described_job.seed, n, rungs) == bracket)
    return [next(numbers) for _ in range(count)]


@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_a_trial_is_compared_with_those_of_its_bracket(goal):
    described_job = hyperband("python t.py {x}", objective={"metric": "loss", "goal": goal})
    rule, sign = HyperbandRule(described_job), 1 if goal == "minimize" else -1
    first, second, third = trials_of_bracket(described_job, 0, 3)
    assert rule.verdict(Trial(first, {}, reports=[sign * 1.0]), 0) == ""
    assert rule.verdict(Trial(second, {}, reports=[sign * 2.0]), 0) == ""
    (other,) = trials_of_bracket(described_job, 1, 1)
    assert rule.verdict(Trial(other, {}, reports=[sign * 9.0] * 3), 0) == ""
    told = rule.verdict(Trial(third, {}, reports=[sign * 3.0]), 0)
    assert told == "not among the best third of 3 trials of bracket 0 at report 1"
    assert rule.verdict(Trial(third, {}, reports=[sign * 3.0, sign * 3.0]), 1) == ""  # no rung


def test_the_same_trials_give_the_same_decisions_after_a_resumption():
    described_job = hyperband("python t.py {x}")
    numbers = trials_of_bracket(described_job, 0, 12)
    curves = {n: [((n * 7) % 13) + 1 / step for step in range(1, 28)] for n in numbers}
    rule, verdicts, ended = HyperbandRule(described_job), {}, []
    for number in numbers:
        again = HyperbandRule(described_job)  # as a tuner that was started anew
        for trial in ended:
            again.ended(trial)
        for length in range(1, 28):
            trial = Trial(number, {}, reports=curves[number][:length])
            verdict = rule.verdict(trial, length - 1)
            assert again.verdict(trial, length - 1) == verdict
            if verdict:
                break
        verdicts[number] = length
        rule.ended(trial)
        ended.append(trial)
    assert set(verdicts.values()) <= {1, 3, 9, 27}
    assert statistics.mean(verdicts.values()) < 27 / 2


def test_reports_that_were_judged_before_a_resumption_are_compared_with_and_not_judged_again():
    described_job = hyperband("python t.py {x}")
    rule = HyperbandRule(described_job)
    first, second, third, fourth = trials_of_bracket(described_job, 0, 4)
    for number, value in ((first, 1.0), (second, 2.0)):
        rule.ended(Trial(number, {}, reports=[value]))
    assert rule.verdict(Trial(third, {}, reports=[3.0, 3.0]), 1) == ""
    told = rule.verdict(Trial(fourth, {}, reports=[4.0]), 0)
    assert told == "not among the best third of 4 trials of bracket 0 at report 1"


def test_a_tuner_that_takes_a_trial_over_does_not_judge_it_again(tmp_path):
    text = """
    case $LOOPWISE_TRIAL in
        2) echo " loss=9"; while [ ! -e end ]; do sleep 0.05; done;;
        *) while [ ! -e go ]; do sleep 0.05; done; echo " loss=1";;
    esac
    """
    program(tmp_path, text)
    seed = next(s for s in range(1000) if not any(bracket_of(s, number, 3) for number in range(3)))
    limits = {"trials": 3, "parallel": 3}
    described_job = hyperband(f"sh -c 'cd {tmp_path} && . ./train.py'", seed=seed, limits=limits)
    killed = Tuner(described_job, str(tmp_path / "run"))
    wait_for(lambda: killed._step() or list(killed.trials[2].reports))
    killed.close()  # as the kernel does it
    (tmp_path / "go").touch()
    wait_for(lambda: len(list((tmp_path / "run/tune/trials").glob("0000[01]/0/exit"))) == 2)
    resumed = Tuner(described_job, str(tmp_path / "run"), resume=True)
    resumed._recall()
    wait_for(lambda: resumed._step() or not {0, 1} & resumed._running.keys())
    resumed._step()
    assert not resumed._running[2].stopping
    (tmp_path / "end").touch()
    wait_for(resumed._step)
    resumed.close()
    for entry in killed._running.values():
        entry.attempt._process.wait()
    assert {trial.state for trial in recorded(str(tmp_path / "run"))} == {"finished"}


def test_a_trial_that_goes_on_after_its_resource_has_finished():
    described_job = hyperband("python t.py {x}")
    rule = HyperbandRule(described_job)
    trial = Trial(0, {}, reports=[1.0] * 27)
    assert rule.verdict(trial, 26) == ""  # a program whose last report this is ends by itself
    trial.reports = [1.0] * 28
    assert rule.verdict(trial, 27) == "all of its resource is used: 27 reports"
    assert rule.uses_all(trial)
    inferred = HyperbandRule(job("python t.py {x}", strategy="hyperband", static={"epochs": 27}))
    assert inferred.largest == 27
    assert not inferred.uses_all(trial)


def test_a_job_by_hyperband(tmp_path, monkeypatch):
    held, seen = {}, Counter()
    for number in range(9):  # each trial is worse than all before it
        bracket = bracket_of(0, number, 2)
        if bracket < 2 and seen[bracket] >= 2:
            held[str(number)] = 3**bracket
        seen[bracket] += 1
    assert len(held) >= 3
    monkeypatch.setenv("HELD", json.dumps(held))
    resource = {"min_resource": 1, "max_resource": 9}
    command = program(tmp_path, CURVES) + " 9"
    best = run(hyperband(command, resource, limits={"trials": 9, "parallel": 1}), str(tmp_path / "run"))
    trials = recorded(str(tmp_path / "run"))
    assert {str(t.number): len(t.reports) for t in trials if t.state == "stopped"} == held
    assert {len(t.reports) for t in trials if t.state == "finished"} == {9}
    assert all("not among the best third" in t.reason for t in trials if t.state == "stopped")
    assert best.number == 0


def test_a_program_without_an_end_is_ended_at_its_resource(tmp_path, monkeypatch):
    monkeypatch.setenv("HELD", '{"0": 4}')
    command = program(tmp_path, CURVES) + " 1000000"
    best = run(hyperband(command, {"max_resource": 3}, limits={"trials": 1}), str(tmp_path / "run"))
    assert best.state == "finished"
    assert best.reason == "all of its resource is used: 3 reports"


def test_the_objective_is_that_of_the_last_report_of_the_resource(tmp_path):
    command = program(tmp_path, "for report in range(8):\n    print(' loss=', report, sep='')")
    best = run(hyperband(command, {"max_resource": 3}, limits={"trials": 1}), str(tmp_path / "run"))
    assert (best.objective, best.metrics, list(best.reports)) == (2.0, {"loss": 2.0}, [0.0, 1.0, 2.0])
    assert best.reason == "all of its resource is used: 3 reports"


def test_a_rule_that_no_report_reaches_is_told(tmp_path):
    command = program(tmp_path, CURVES) + " 2"
    described_job = hyperband(command, {"min_resource": 5, "max_resource": 50}, limits={"trials": 2})
    with pytest.warns(
        LoopwiseWarning, match=r"looks at trials from report 5 .* longest of 2 trials had 2 reports"
    ):
        run(described_job, str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {},
            "strategy hyperband needs hyperband.max_resource, the number of reports of a whole trial, or one of",
        ),
        (
            {"static": {"epochs": "ten"}},
            "takes the static parameter 'epochs' for max_resource, and it is 'ten'",
        ),
        ({"static": {"n-epochs": 20_001}}, "it is 20001; expected a whole number from 1 to 20000"),
        (
            {"hyperband": {"max_resource": 20_001}},
            "hyperband.max_resource: Input should be less than or equal to",
        ),
        ({"hyperband": {"min_resource": 0, "max_resource": 3}}, "hyperband.min_resource: Input should be gr"),
        ({"hyperband": {"min_resource": 9, "max_resource": 3}}, "max_resource must be at least min_resource"),
        (
            {"hyperband": {"max_resource": 3}, "early_stopping": "auto"},
            "strategy hyperband stops trials itself, and needs early_stopping: off",
        ),
        (
            {"hyperband": {"max_resource": 3}, "strategy": "random"},
            "the field hyperband needs strategy: hyperba",
        ),
    ],
)
def test_wrong_resources(changes, message):
    content = described("python t.py {x}", **({"strategy": "hyperband"} | changes))
    with pytest.raises(InputError, match=message):
        job_of(json.loads(json.dumps(content)), "job")


@pytest.mark.parametrize("name", ["epochs", "numepochs", "n-epochs", "n_epochs", "num_epochs"])
def test_the_resource_is_found_in_the_static_parameters(name):
    found = job("python t.py {x}", strategy="hyperband", static={name: 30})
    assert HyperbandRule(found).largest == 30
