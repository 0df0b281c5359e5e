"""The request ``CreateHyperParameterTuningJob`` of SageMaker's API, by its names and limits.

The fields are those of the service model in botocore 1.43.  What has no meaning on one machine is accepted and listed in
``NOT_USED``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from loopwise.extras import required

with required("pydantic", "tune", "tuning"):
    from pydantic import BaseModel, ConfigDict, Field, model_validator
    from pydantic.alias_generators import to_pascal

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,31}$")]
Key = Annotated[str, Field(max_length=256)]
Text = Annotated[str, Field(max_length=2500)]
Variable = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$", max_length=512)]
Short = Annotated[str, Field(max_length=512)]
NOT_USED = {
    "role_arn": "RoleArn",
    "output_data_config": "OutputDataConfig",
    "resource_config": "ResourceConfig",
    "vpc_config": "VpcConfig",
    "checkpoint_config": "CheckpointConfig",
    "hyper_parameter_tuning_resource_config": "HyperParameterTuningResourceConfig",
    "enable_network_isolation": "EnableNetworkIsolation",
    "enable_inter_container_traffic_encryption": "EnableInterContainerTrafficEncryption",
    "enable_managed_spot_training": "EnableManagedSpotTraining",
}
"""Fields of a training job's definition that have no meaning on one machine."""


class Part(BaseModel):
    """Part of a request: the API's names are those of the fields in PascalCase."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_pascal, allow_inf_nan=False)


class Objective(Part):
    """HyperParameterTuningJobObjective."""

    type: Literal["Maximize", "Minimize"]
    metric_name: Annotated[str, Field(min_length=1, max_length=255)]


class Range(Part):
    """ContinuousParameterRange and IntegerParameterRange, whose bounds are texts."""

    name: Key
    min_value: Key
    max_value: Key
    scaling_type: Literal["Auto", "Linear", "Logarithmic", "ReverseLogarithmic"] = "Auto"


class Categories(Part):
    """CategoricalParameterRange."""

    name: Key
    values: Annotated[list[Key], Field(min_length=1, max_length=30)]


class Ranges(Part):
    """ParameterRanges."""

    continuous_parameter_ranges: list[Range] = []
    integer_parameter_ranges: list[Range] = []
    categorical_parameter_ranges: list[Categories] = []
    auto_parameters: list[dict[str, Any]] = []


class HyperbandConfig(Part):
    """HyperbandStrategyConfig."""

    min_resource: Annotated[int, Field(ge=1)] = 1
    max_resource: Annotated[int, Field(ge=1)] | None = None


class StrategyConfig(Part):
    """HyperParameterTuningJobStrategyConfig."""

    hyperband_strategy_config: HyperbandConfig | None = None


class ResourceLimits(Part):
    """ResourceLimits."""

    max_number_of_training_jobs: Annotated[int, Field(ge=1)] | None = None
    max_parallel_training_jobs: Annotated[int, Field(ge=1)]
    max_runtime_in_seconds: Annotated[int, Field(ge=120, le=15_768_000)] | None = None


class NotImproving(Part):
    """BestObjectiveNotImproving."""

    max_number_of_training_jobs_not_improving: Annotated[int, Field(ge=3)] | None = None


class Convergence(Part):
    """ConvergenceDetected."""

    complete_on_convergence: Literal["Disabled", "Enabled"] = "Disabled"


class Criteria(Part):
    """TuningJobCompletionCriteria."""

    target_objective_metric_value: float | None = None
    best_objective_not_improving: NotImproving = NotImproving()
    convergence_detected: Convergence = Convergence()


class Config(Part):
    """HyperParameterTuningJobConfig."""

    strategy: Literal["Bayesian", "Random", "Hyperband", "Grid"]
    strategy_config: StrategyConfig = StrategyConfig()
    hyper_parameter_tuning_job_objective: Objective | None = None
    resource_limits: ResourceLimits
    parameter_ranges: Ranges | None = None
    training_job_early_stopping_type: Literal["Off", "Auto"] = "Off"
    tuning_job_completion_criteria: Criteria = Criteria()
    random_seed: Annotated[int, Field(ge=0)] = 0


class MetricDefinition(Part):
    """MetricDefinition."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    regex: Annotated[str, Field(min_length=1, max_length=500)]


class Algorithm(Part):
    """HyperParameterAlgorithmSpecification."""

    training_image: str | None = None
    training_input_mode: Literal["File", "Pipe", "FastFile"] = "File"
    algorithm_name: str | None = None
    metric_definitions: Annotated[list[MetricDefinition], Field(max_length=40)] = []


class StoppingCondition(Part):
    """StoppingCondition."""

    max_runtime_in_seconds: Annotated[int, Field(ge=1)] | None = None
    max_wait_time_in_seconds: int | None = None
    max_pending_time_in_seconds: int | None = None


class RetryStrategy(Part):
    """RetryStrategy."""

    maximum_retry_attempts: Annotated[int, Field(ge=1, le=30)]


class Definition(Part):
    """HyperParameterTrainingJobDefinition."""

    definition_name: str | None = None
    tuning_objective: Objective | None = None
    hyper_parameter_ranges: Ranges | None = None
    static_hyper_parameters: Annotated[dict[Key, Text], Field(max_length=100)] = {}
    algorithm_specification: Algorithm = Algorithm()
    input_data_config: Annotated[list[dict[str, Any]], Field(max_length=20)] = []
    stopping_condition: StoppingCondition = StoppingCondition()
    retry_strategy: RetryStrategy | None = None
    environment: Annotated[dict[Variable, Short], Field(max_length=48)] = {}
    role_arn: Any = None
    output_data_config: Any = None
    resource_config: Any = None
    vpc_config: Any = None
    checkpoint_config: Any = None
    hyper_parameter_tuning_resource_config: Any = None
    enable_network_isolation: Any = None
    enable_inter_container_traffic_encryption: Any = None
    enable_managed_spot_training: Any = None


class Parent(Part):
    """ParentHyperParameterTuningJob."""

    hyper_parameter_tuning_job_name: Name


class WarmStartConfig(Part):
    """HyperParameterTuningJobWarmStartConfig."""

    parent_hyper_parameter_tuning_jobs: Annotated[list[Parent], Field(min_length=1, max_length=5)]
    warm_start_type: Literal["IdenticalDataAndAlgorithm", "TransferLearning"]


class Autotune(Part):
    """Autotune."""

    mode: Literal["Enabled"]


class Request(Part):
    """CreateHyperParameterTuningJobRequest."""

    hyper_parameter_tuning_job_name: Name | None = None
    hyper_parameter_tuning_job_config: Config
    training_job_definition: Definition | None = None
    training_job_definitions: Annotated[list[Definition], Field(min_length=1, max_length=10)] | None = None
    warm_start_config: WarmStartConfig | None = None
    autotune: Autotune | None = None
    tags: list[dict[str, Any]] = []

    @model_validator(mode="after")
    def _one_definition(self) -> Self:
        if (self.training_job_definition is None) == (self.training_job_definitions is None):
            raise ValueError("either TrainingJobDefinition or TrainingJobDefinitions is needed")
        return self

    @property
    def definitions(self) -> list[Definition]:
        """The definitions of training jobs; one stands alone or in the list."""
        return self.training_job_definitions or [self.training_job_definition or Definition()]
