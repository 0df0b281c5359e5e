"""Requests of SageMaker's API: every field that is read, and what cannot be asked for."""

import shlex
import sys

import pytest
from tune_kit import request_file

from loopwise.errors import InputError
from loopwise.tune import Categorical, Continuous, Hyperband, Integer, WarmStart
from loopwise.tune.job.command import filled, placeholders
from loopwise.tune.sagemaker.request import folder_of, read_request


def test_a_request_is_read_as_it_is(tmp_path):
    found = read_request(request_file(tmp_path))
    assert found.command == f"{shlex.quote(sys.executable)} train.py"
    assert found.parameters == {
        "lr": Continuous(low=1e-5, high=0.1, scale="log"),
        "depth": Integer(low=1, high=4),
        "kind": Categorical(values=("a", "10")),
    }
    assert found.static == {"epochs": 3, "sagemaker_program": "train.py"}
    assert found.objective.goal == "minimize"
    assert found.limits.model_dump() == {
        "trials": 3, "parallel": 2, "seconds": 3600, "trial_seconds": 600, "retries": 2, "target": 0.001, "not_improving": 5,
        "convergence": False,
    }  # fmt: skip
    assert (found.strategy, found.early_stopping, found.seed, found.container) == (
        "random",
        "auto",
        7,
        "sagemaker",
    )
    assert placeholders(found.environment["TEMPLATE"]) == set()
    assert filled(found.environment["TEMPLATE"], {}) == "{lr} {other}"


def config(request):
    return request["HyperParameterTuningJobConfig"]


def definition(request):
    return request["TrainingJobDefinition"]


def test_hyperband_of_a_request(tmp_path):
    def change(request):
        config(request).update(Strategy="Hyperband", TrainingJobEarlyStoppingType="Off")
        config(request)["StrategyConfig"] = {"HyperbandStrategyConfig": {"MinResource": 2, "MaxResource": 30}}

    found = read_request(request_file(tmp_path, change))
    assert (found.strategy, found.hyperband) == ("hyperband", Hyperband(min_resource=2, max_resource=30))

    def without(request):
        change(request)
        del config(request)["StrategyConfig"]

    assert read_request(request_file(tmp_path, without)).static["epochs"] == 3

    def nowhere(request):
        without(request)
        del definition(request)["StaticHyperParameters"]["epochs"]

    with pytest.raises(
        InputError, match=r"one of the static parameters epochs, numepochs, n-epochs, n_epochs, num_"
    ):
        read_request(request_file(tmp_path, nowhere))


def test_warm_start_of_a_request(tmp_path):
    def change(request):
        parents = [{"HyperParameterTuningJobName": name} for name in ("first", "second")]
        request["WarmStartConfig"] = {
            "ParentHyperParameterTuningJobs": parents,
            "WarmStartType": "TransferLearning",
        }

    path = request_file(tmp_path, change)
    assert read_request(path).warm_start == WarmStart(parents=("runs/first", "runs/second"), type="transfer")
    assert folder_of(path) == "runs/digits"


def test_criteria_of_a_request(tmp_path):
    def change(request):
        config(request)["TuningJobCompletionCriteria"] = {
            "ConvergenceDetected": {"CompleteOnConvergence": "Enabled"}
        }

    assert read_request(request_file(tmp_path, change)).limits.convergence


def test_a_grid_of_a_request_has_its_own_number_of_trials(tmp_path):
    def change(request):
        config(request)["Strategy"] = "Grid"
        del config(request)["ResourceLimits"]["MaxNumberOfTrainingJobs"]
        values = [{"Name": "kind", "Values": ["a", "b"]}, {"Name": "size", "Values": ["1", "2", "3"]}]
        config(request)["ParameterRanges"] = {"CategoricalParameterRanges": values}

    assert read_request(request_file(tmp_path, change)).limits.trials == 6


def test_one_definition_in_a_list_is_read(tmp_path):
    def change(request):
        part = request.pop("TrainingJobDefinition")
        part["TuningObjective"] = config(request).pop("HyperParameterTuningJobObjective")
        part["HyperParameterRanges"] = config(request).pop("ParameterRanges")
        request["TrainingJobDefinitions"] = [part]

    assert read_request(request_file(tmp_path, change)) == read_request(request_file(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("TrainingJobDefinition"), "either TrainingJobDefinition or TrainingJobDefinitions"),
        (lambda r: r.pop("HyperParameterTuningJobConfig"), "HyperParameterTuningJobConfig: Field required"),
        (
            lambda r: r.update(TrainingJobDefinitions=[r.pop("TrainingJobDefinition")] * 2),
            "2 TrainingJobDefinitions\nexpected: one algorithm to a job",
        ),
        (lambda r: r.update(WarmStartConfig={}), "WarmStartConfig.ParentHyperParameterTuningJobs: Field req"),
        (
            lambda r: r.update(Autotune={"Mode": "Enabled"}),
            "Autotune\nexpected: ranges, objective and limits",
        ),
        (lambda r: r.update(HyperParameterTuningJobName="a_b"), "HyperParameterTuningJobName: String should"),
        (lambda r: r.update(Typo=1), "Typo: there is no such field"),
        (lambda r: config(r).update(Strategy="Foo"), "Strategy: Input should be 'Bayesian', 'Random', 'Hyp"),
        (lambda r: config(r).pop("HyperParameterTuningJobObjective"), "without .*TuningJobObjective"),
        (
            lambda r: config(r)["HyperParameterTuningJobObjective"].update(MetricName="accuracy"),
            "the objective 'accuracy' is no metric; defined are 'validation:loss'",
        ),
        (
            lambda r: config(r)["ResourceLimits"].pop("MaxParallelTrainingJobs"),
            "MaxParallelTrainingJobs: Field",
        ),
        (
            lambda r: config(r)["ResourceLimits"].pop("MaxNumberOfTrainingJobs"),
            "without ResourceLimits.MaxNumberOfTrainingJobs",
        ),
        (
            lambda r: config(r)["ResourceLimits"].update(MaxRuntimeInSeconds=60),
            "MaxRuntimeInSeconds: Input should be greater than or equal to 120",
        ),
        (lambda r: config(r).update(RandomSeed=-1), "RandomSeed: Input should be greater"),
        (
            lambda r: config(r)["ParameterRanges"].update(AutoParameters=[{"Name": "a", "ValueHint": "1"}]),
            "AutoParameters\nexpected: ranges that are written out",
        ),
        (
            lambda r: config(r)["ParameterRanges"]["IntegerParameterRanges"][0].update(MinValue="1.5"),
            "the range of 'depth' from '1.5' to '4'\nexpected: whole numbers as texts",
        ),
        (
            lambda r: config(r)["ParameterRanges"]["IntegerParameterRanges"][0].update(Name="lr"),
            "two ranges of 'lr'",
        ),
        (
            lambda r: config(r)["ParameterRanges"]["IntegerParameterRanges"][0].update(
                ScalingType="ReverseLogarithmic"
            ),
            "parameters.depth.scale: Input should be 'auto', 'linear' or 'log'",
        ),
        (
            lambda r: definition(r)["AlgorithmSpecification"]["MetricDefinitions"][0].pop("Regex"),
            "AlgorithmSpecification.MetricDefinitions.0.Regex: Field required",
        ),
        (lambda r: definition(r)["StaticHyperParameters"].pop("sagemaker_program"), "pass --command"),
        (lambda r: definition(r)["StaticHyperParameters"].update(a="x" * 2501), "at most 2500 characters"),
        (
            lambda r: definition(r)["StaticHyperParameters"].update({f"s{i}": "1" for i in range(98)}),
            "StaticHyperParameters|hyperparameters\nexpected: at most 100",
        ),
        (
            lambda r: definition(r)["RetryStrategy"].update(MaximumRetryAttempts=31),
            "less than or equal to 30",
        ),
        (lambda r: definition(r).update(Environment=[]), "Environment: Input should be a "),
        (lambda r: definition(r).update(Environment={"A": 1}), "Environment.A: Input should be a valid str"),
        (lambda r: definition(r).update(Environment={"A-B": "1"}), "Environment.A-B.*: String should match"),
        (lambda r: definition(r).update(Environment={"A": "x" * 513}), "A: String should have at most 512"),
        (
            lambda r: definition(r).update(Environment={f"A{i}": "" for i in range(49)}),
            "Environment: Input should have at most 48 items",
        ),
        (
            lambda r: definition(r).update(
                InputDataConfig=[
                    {"ChannelName": "train", "DataSource": {"S3DataSource": {"S3Uri": "s3://a/b"}}}
                ]
            ),
            "the channel 'train' at 's3://a/b'",
        ),
    ],
)
def test_what_a_request_cannot_ask_for(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_request(request_file(tmp_path, change))


def test_what_is_no_request(tmp_path):
    (tmp_path / "request.json").write_text("[1]")
    with pytest.raises(InputError, match="a JSON object"):
        read_request(str(tmp_path / "request.json"))
