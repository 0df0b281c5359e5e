"""The page for those who come from SageMaker names what exists here, and has the names from there."""

import re

import pytest
from docs_kit import ROOT, adapter_names, parameters, public_names, spans

from loopwise.debug import RULES, SavedRun, Watch
from loopwise.tune import Job, Limits

TEXT = (ROOT / "docs" / "sagemaker.md").read_text()
ROWS = re.findall(r"^\| (.*) \| (.*) \|$", TEXT.replace(r"\|", ";"), re.MULTILINE)
HERE = [span for _, here in ROWS for span in spans(here)]
THERE = """
SiftingDataloader RelativeProbabilisticSiftConfig LossConfig SiftingBaseConfig SiftingBatchTransform ListBatch enable_sifting
DebuggerHookConfig CollectionConfig TensorBoardOutputConfig SaveConfig ReductionConfig create_from_json_file create_trial
Rule.sagemaker Rule.custom ActionList StopTraining Email SMS
ProfilerConfig FrameworkProfile DetailedProfilingConfig DataloaderProfilingConfig PythonProfilingConfig ProfilerReport
VanishingGradient ExplodingTensor PoorWeightInitialization SaturatedActivation DeadRelu AllZero TensorVariance UnchangedTensor
LossNotDecreasing Overfit Overtraining WeightUpdateRatio ClassImbalance Confusion SimilarAcrossRuns StalledTrainingRule
CheckInputImages NLPSequenceRatio TreeDepth FeatureImportanceOverweight CreateXgboostReport
BatchSize CPUBottleneck GPUMemoryIncrease IOBottleneck LoadBalancing LowGPUUtilization MaxInitializationTime
OverallSystemUsage OverallFrameworkMetrics StepOutlier
TrainingCompilerConfig HyperparameterTuner ContinuousParameter IntegerParameter CategoricalParameter WarmStartConfig
HyperbandStrategyConfig TuningJobCompletionCriteriaConfig
"""


def members(kind):
    """Return the names that an object of a class has, the fields of a pydantic model included."""
    return set(dir(kind)) | set(getattr(kind, "model_fields", ()))


@pytest.mark.parametrize("name", THERE.split())
def test_a_name_from_there_is_told(name):
    assert any(name in there for there, _ in ROWS)


def test_names_exist_here():
    names = public_names()
    known = parameters(names) | adapter_names() | names.keys() | members(Job) | members(Limits)
    for span in HERE:
        for name in re.findall(r"(?<![\w./])([A-Z][a-z]+[A-Z]\w*)", span):
            assert name in known, span
        for name in re.findall(r"(?<![\w.\[])([a-z_]+)=(?!=)", span):
            assert name in known | {"backend", "reduction", "name"}, span
        for owner, name in re.findall(r"\b(watch|saved)\.(\w+)", span):
            assert name in members({"watch": Watch, "saved": SavedRun}[owner]), span


def test_rules_exist_here():
    told = [
        span
        for there, here in ROWS
        if re.search("AllZero|CheckInput|BatchSize", there)
        for span in spans(here)
    ]
    assert len(told) > 25
    assert set(told) <= RULES.keys()


def test_an_unknown_name_would_be_seen():
    assert "Watch" in public_names()
    assert "Hook" not in public_names()
    assert "no_such" not in members(SavedRun)
