"""Job files: every field wrong in turn, and what a trial's program gets."""

import copy

import pytest
from tune_kit import described

from loopwise.errors import InputError
from loopwise.tune import Categorical, Continuous, Integer, job_of, read_job
from loopwise.tune.job.command import arguments, filled, validate_program


def wrong(**changes):
    content = described("python train.py --x {x}")
    for path, value in changes.items():
        place, *keys = path.split("__")
        if not keys:
            content[place] = value
        else:
            part = content[place]
            for key in keys[:-1]:
                part = part[int(key) if key.isdigit() else key]
            part[keys[-1]] = value
    return content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"command": ""}, "command: String should have at least 1 character"),
        ({"command": "  "}, r"command: it names no program \(seen: '  '\)"),
        ({"command": "python 'x"}, "command: No closing quotation"),
        (
            {"parameters": {"": {"type": "integer", "low": 1, "high": 2}}, "command": "a"},
            "a parameter has no name",
        ),
        ({"limits__target": True}, "limits.target: Input should be a valid number"),
        ({"limits__seconds": "10"}, "limits.seconds: Input should be a valid number"),
        ({"limits__epochs": 3}, "limits.epochs: there is no such field; valid are trials, parallel, seconds"),
        ({"command": 3}, "command: Input should be a valid string"),
        ({"command": "python t.py {y}"}, r"\{y\} in command is no parameter; there are x"),
        ({"command": "python t.py {x:.3f}"}, r"\{x:.3f\} in command is no placeholder"),
        ({"command": "python t.py { x }"}, r"\{ x \} in command is no placeholder"),
        (
            {"command": "sh -c 'echo ${HOME} {x}'"},
            r"\{HOME\} in command .*; write \{\{HOME\}\} for the text \{HOME\} itself",
        ),
        ({"parameters": {}}, "parameters: Input should have at least 1 item"),
        ({"parameters__x__low": 2.0}, "parameters.x: low must be below high, not 2 and 1"),
        ({"parameters__x__low": "a"}, "parameters.x.low: Input should be a valid number"),
        ({"parameters__x__type": "real"}, "parameters.x: Input tag 'real' found using 'type' does not match"),
        ({"parameters__x__scale": "log"}, "parameters.x: scale log needs low above 0, not 0"),
        ({"parameters__x__scale": "reverse_log"}, "scale reverse_log needs 0 <= low < high < 1"),
        (
            {"parameters__x__step": 0.1},
            "parameters.x.step: there is no such field; valid are type, low, high, scale",
        ),
        ({"parameters__x": {"type": "categorical", "values": []}}, "at least 1 item"),
        ({"parameters__x": {"type": "categorical", "values": ["a", "b", "a"]}}, 'the value "a" stands twice'),
        (
            {"parameters__x": {"type": "integer", "low": 1, "high": 2.5}},
            "parameters.x.high: Input should be a valid integer",
        ),
        ({"static": {"x": 3}}, "'x' is searched and static"),
        ({"metrics": {"loss": "(a)"}}, "metrics: Input should be a list"),
        ({"objective": "loss"}, r"objective: Input should be a mapping \(seen: 'loss'\)"),
        ({"parameters__x": {"low": 0.0, "high": 1.0}}, "parameters.x: the field type is missing: 'contin"),
        (
            {"static": {"y": None}},
            r"job.yaml: static.y: Input should be a text, a number, true or false \(seen: None\)\n",
        ),
        ({"metrics": []}, "metrics: Input should have at least 1 item"),
        (
            {"metrics__0__regex": "loss="},
            "metrics.0.regex: the regular expression 'loss=', which has no group",
        ),
        ({"metrics__0__regex": "loss=("}, r"metrics.0.regex: the regular expression 'loss=\('"),
        (
            {"metrics__0__value": "mean"},
            r"metrics.0.value: Input should be 'last', 'max' or 'min' \(seen: 'mean'\)\n",
        ),
        ({"metrics": [{"name": "loss", "regex": "(a)"}] * 2}, "two metrics are named 'loss'"),
        ({"metrics": [{"name": f"m{i}", "regex": "(a)"} for i in range(41)]}, "at most 40 items"),
        ({"objective__metric": "accuracy"}, "the objective 'accuracy' is no metric; defined are 'loss'"),
        ({"objective__goal": "Minimize"}, "objective.goal: Input should be 'maximize' or 'minimize'"),
        ({"environment": {"A-B": "1"}}, "'A-B' is no name of an environment variable"),
        ({"environment": {"A": 1}}, "environment.A: Input should be a valid string"),
        ({"environment": {"A": "{y}"}}, r"\{y\} in A is no parameter"),
        ({"limits__trials": 0}, "limits.trials: Input should be greater than or equal to 1"),
        ({"limits__parallel": True}, "limits.parallel: Input should be a valid integer"),
        ({"limits__seconds": -1}, "limits.seconds: Input should be greater than 0"),
        ({"limits__not_improving": 2}, "limits.not_improving: Input should be greater than or equal to 3"),
        ({"strategy": "genetic"}, "strategy: Input should be 'bayesian', 'random', 'grid' or 'hyperband'"),
        ({"strategy": "grid"}, "strategy grid takes categorical parameters, and 'x' is a range"),
        ({"early_stopping": True}, "early_stopping: Input should be 'off' or 'auto'"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"tags": []}, "tags: there is no such field; valid are command, parameters, static, metrics, "),
    ],
)
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(InputError, match=message) as raised:
        job_of(wrong(**changes), "job.yaml")
    assert str(raised.value).startswith("seen: job.yaml: ")


def test_missing_fields_are_all_named():
    content = described("python train.py")
    del content["limits"], content["command"]
    with pytest.raises(InputError, match="command: Field required; limits: Field required"):
        job_of(content, "job.yaml")
    content = described("python train.py")
    del content["objective"]
    with pytest.raises(InputError, match=r"job\.yaml: job: either objective or objectives is needed"):
        job_of(content, "job.yaml")


def test_job_files(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "command: python train.py --lr {lr}\n"
        "parameters:\n  lr: {type: continuous, low: 1e-5, high: 1e-1, scale: log}\n"
        "metrics: [{name: loss, regex: 'loss=(.*)'}]\n"
        "objective: {metric: loss, goal: minimize}\nlimits: {trials: 3}\n"
    )
    assert read_job(str(path)).parameters["lr"] == Continuous(low=1e-5, high=0.1, scale="log")
    path.write_text("command: 'python\n")
    with pytest.raises(InputError, match="an unbalanced quotation"):
        read_job(str(path))
    path.write_text("- a\n- b\n")
    with pytest.raises(InputError, match="with list at the top"):
        read_job(str(path))
    with pytest.raises(InputError, match="which does not exist"):
        read_job(str(tmp_path / "other.yaml"))


def test_values_are_those_of_yaml_1_2(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "command: python train.py {x}\n"
        "parameters:\n  x: {type: categorical, values: [yes, no, on, true, 1e3, 010, 1:30, 2026-01-01, '10', .5, 0x1F]}\n"
        "metrics: [{name: loss, regex: 'loss=(.*)'}]\n"
        "objective: {metric: loss, goal: minimize}\nlimits: {trials: 3}\n"
    )
    values = read_job(str(path)).parameters["x"].values
    assert values == ("yes", "no", "on", True, 1000.0, 10, "1:30", "2026-01-01", "10", 0.5, 31)
    assert [type(value) for value in values[3:6]] == [bool, float, int]
    path.write_text(path.read_text() + "seed: 1\nseed: 2\n")
    with pytest.raises(InputError, match="the key 'seed' stands twice"):
        read_job(str(path))
    with pytest.raises(InputError, match="Is a directory"):
        read_job(str(tmp_path))


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        (Continuous(low=0.5, high=0.99, scale="reverse_log"), [0.5, 0.7, 0.99]),
        (Continuous(low=1e-5, high=0.1), [1e-5, 0.1]),
        (Integer(low=1, high=8), [1, 8]),
        (Categorical(values=(1, True, "1", 1.0, "a b")), [1, True, "1", 1.0, "a b"]),
    ],
)
def test_values_are_stored_and_read_again(parameter, values):
    distribution = parameter.distribution()
    for value in values:
        stored = parameter.stored(value)
        assert distribution._contains(distribution.to_internal_repr(stored))
        again = parameter.value(stored)
        assert type(again) is type(value)
        assert again == pytest.approx(value) if isinstance(value, float) else again == value
        assert value in parameter
    assert "other" not in parameter


def test_arguments_are_split_as_a_shell_does():
    command = "python 'my train.py' --lr={lr} {flag:use_amp} {flag:bias} --name 'a {name}'"
    values = {"lr": 1e-5, "use_amp": True, "bias": False, "name": "b; rm -rf"}
    expected = ["python", "my train.py", "--lr=1e-05", "--use-amp", "--name", "a b; rm -rf"]
    assert arguments(command, values) == expected
    assert filled("{lr}:{use_amp}", values) == "1e-05:true"
    shell = "sh -c 'python t.py {flag:use_amp} {flag:bias} {{HOME}}'"
    assert arguments(shell, values) == ["sh", "-c", "python t.py --use-amp  {HOME}"]


def test_programs_that_cannot_be_executed(tmp_path):
    validate_program("python train.py", str(tmp_path))
    with pytest.raises(InputError, match="the program 'no-such-program'"):
        validate_program("no-such-program --x", str(tmp_path))
    (tmp_path / "train.py").write_text("print(1)")
    with pytest.raises(
        InputError, match=r"which is not executable(.|\n)*write for instance 'python ./train.py'"
    ):
        validate_program("./train.py", str(tmp_path))
    (tmp_path / "train.sh").write_text("#!/usr/bin/env zsh\n")
    with pytest.raises(InputError, match=r"write for instance 'zsh ./train.sh', or call chmod \+x"):
        validate_program("./train.sh", str(tmp_path))
    with pytest.raises(InputError, match="a quotation mark without its partner"):
        validate_program("python 'train.py", str(tmp_path))


def test_the_description_is_not_changed():
    content = described("python train.py --x {x}")
    before = copy.deepcopy(content)
    job_of(content, "job")
    assert content == before
