"""Scripts and job files that were written for SageMaker."""

import json
import subprocess
import sys

import pytest
from tune_kit import job, program, request_file

from loopwise.errors import InputError
from loopwise.programs.sagemaker import prepare
from loopwise.tune import run
from loopwise.tune.job.command import filled, literal
from loopwise.tune.sagemaker.request import read_request
from loopwise.tune.trials import recorded


@pytest.mark.parametrize("text", ["{x}", "{{x}}", '{"a": {"b": 1}}', "{a b}", "{", "{x}{y} {{z}}"])
def test_texts_without_placeholders(text):
    assert filled(literal(text), {}) == text


SCRIPT = """
import argparse, json, os
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--depth", type=int)
parser.add_argument("--epochs", type=int)
parser.add_argument("--kind")
parser.add_argument("--model-dir", default=os.environ["SM_MODEL_DIR"])
parser.add_argument("--train", default=os.environ["SM_CHANNEL_TRAIN"])
arguments = parser.parse_args()
assert json.loads(os.environ["SM_HPS"])["lr"] == arguments.lr
assert open(os.path.join(arguments.train, "data.txt")).read() == "data"
open(os.path.join(arguments.model_dir, "model.txt"), "w").write("model")
raw = json.load(open(os.environ["SM_INPUT_CONFIG_DIR"] + "/hyperparameters.json"))
assert raw["_tuning_objective_metric"] == "validation:loss", raw
assert os.environ["SM_LOG_LEVEL"] == "10" and os.environ["TEMPLATE"] == "{lr} {other}"
for epoch in range(arguments.epochs):
    print(f"Loss = {arguments.depth / (epoch + 1)};", flush=True)
"""


def test_a_script_for_sagemaker_runs_unchanged(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "data.txt").write_text("data")

    def change(request):
        source = {"S3DataSource": {"S3Uri": f"file://{data}"}}
        request["TrainingJobDefinition"]["InputDataConfig"] = [{"ChannelName": "train", "DataSource": source}]

    found = read_request(request_file(tmp_path, change), program(tmp_path, SCRIPT))
    best = run(found, str(tmp_path / "run"))
    trials = recorded(str(tmp_path / "run"))
    assert [trial.state for trial in trials] == ["finished"] * 3, [trial.reason for trial in trials]
    assert best.objective == min(trial.objective for trial in trials)
    assert len(list((tmp_path / "run").glob("tune/trials/*/0/ml/model/model.txt"))) == 3


def test_channels_need_a_container(tmp_path):
    with pytest.raises(InputError, match="channels need container: sagemaker"):
        job("python train.py", channels={"train": str(tmp_path)})


def test_the_reference_reads_the_folder(tmp_path):
    """The real ``sagemaker-training`` reads our folder and makes the same arguments and variables of it."""
    pytest.importorskip("sagemaker_training", reason="sagemaker-training is not installed")
    data = tmp_path / "data"
    data.mkdir()
    values = {
        "lr": 1e-5,
        "depth": 3,
        "flag": True,
        "list": "[0.9, 0.99]",
        "kind": "10",
        "name": "a b",
        "k": 4,
    }
    arguments, variables = prepare(tmp_path / "ml", values, "loss", {"train": str(data)}, "train.py")
    code = """
import json
from sagemaker_training import environment
found = environment.Environment()
print(json.dumps([found.to_cmd_args(), found.to_env_vars()]))
"""
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
    )
    assert output.returncode == 0, output.stderr
    their_arguments, theirs = json.loads(output.stdout.splitlines()[-1])
    assert arguments == their_arguments
    compared = {name for name in variables if name in theirs} - {
        "SM_USER_ENTRY_POINT",
        "SM_MODULE_NAME",
        "SM_NUM_GPUS",
    }
    assert {"SM_HPS", "SM_HP_LR", "SM_CHANNEL_TRAIN", "SM_MODEL_DIR", "SM_USER_ARGS", "SM_HOSTS"} <= compared
    different = {n for n in compared if theirs[n] != variables[n] and not _same_json(theirs[n], variables[n])}
    assert not different
    raw = json.loads((tmp_path / "ml/input/config/hyperparameters.json").read_text())
    assert raw["_tuning_objective_metric"] == "loss"
    assert "_tuning_objective_metric" not in variables["SM_HPS"]


def _same_json(first, second):
    try:
        return json.loads(first) == json.loads(second)
    except (TypeError, ValueError):
        return False
