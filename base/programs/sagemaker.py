"""The folder, files, arguments and variables that a training script finds in SageMaker's container.

The reference is the package ``sagemaker-training`` 5.1, which starts scripts there; ``Environment()`` of that package reads
this folder.  Paths that a script spells out, such as ``/opt/ml/model``, do not lead here: it has to use ``SM_MODEL_DIR``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HOST = "algo-1"
GROUP = "homogeneousCluster"
ONE_HOST: dict[str, Any] = {
    "current_host": HOST,
    "hosts": [HOST],
    "current_group_name": GROUP,
    "current_instance_type": "local",
    "network_interface_name": "lo",
    "instance_groups": [{"instance_group_name": GROUP, "instance_type": "local", "hosts": [HOST]}],
}
FOLDERS = ("input/config", "input/data", "model", "output/data", "output/intermediate", "code")


def prepare(
    base: Path,
    values: Mapping[str, Any],
    metric: str | None,
    channels: Mapping[str, str],
    program: str,
    resources: Mapping[str, Any] | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Make the folder and return the script's further arguments and its variables.

    Args:
        base: the folder that stands for ``/opt/ml``.
        values: hyperparameters.
        metric: the objective of a tuning job, which scripts find as ``_tuning_objective_metric`` in
            ``hyperparameters.json``; ``None``: there is none.
        channels: name -> folder with input data.
        program: the script's file name.
        resources: content of ``resourceconfig.json``; default: one host in one group.
    """
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    for name, folder in channels.items():
        link = base / "input/data" / name
        if not link.is_symlink():
            link.symlink_to(os.path.abspath(folder))
    raw = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    resources = ONE_HOST if resources is None else resources
    kind = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
    inputs = {name: dict(kind) for name in channels}
    files = {
        "hyperparameters": raw | ({} if metric is None else {"_tuning_objective_metric": metric}),
        "resourceconfig": resources,
        "inputdataconfig": inputs,
    }
    for name, content in files.items():
        (base / "input/config" / f"{name}.json").write_text(json.dumps(content))
    decoded = {name: _decoded(text) for name, text in raw.items() if not name.startswith("sagemaker_")}
    arguments = _arguments(decoded)
    variables = {
        "HPS": decoded,
        "USER_ARGS": arguments,
        "MODEL_DIR": f"{base}/model",
        "INPUT_DIR": f"{base}/input",
        "INPUT_CONFIG_DIR": f"{base}/input/config",
        "OUTPUT_DIR": f"{base}/output",
        "OUTPUT_DATA_DIR": f"{base}/output/data",
        "OUTPUT_INTERMEDIATE_DIR": f"{base}/output/intermediate",
        "MODULE_DIR": f"{base}/code",
        "USER_ENTRY_POINT": program,
        "MODULE_NAME": program.removesuffix(".py"),
        "LOG_LEVEL": _decoded(raw.get("sagemaker_container_log_level", "20")),
        "NUM_GPUS": len(
            [number for number in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if number]
        ),
        "NUM_CPUS": os.cpu_count(),
        "CHANNELS": sorted(channels),
        "INPUT_DATA_CONFIG": inputs,
        "FRAMEWORK_PARAMS": {n: _decoded(t) for n, t in raw.items() if n.startswith("sagemaker_")},
    }
    variables |= _of_hosts(resources)
    variables |= {f"HP_{name.upper()}": value for name, value in decoded.items()}
    variables |= {f"CHANNEL_{name.upper()}": f"{base}/input/data/{name}" for name in channels}
    texts = {f"SM_{name}": text_of(value) for name, value in variables.items()}
    return arguments, texts | {"SAGEMAKER_BASE_DIR": str(base), "CURRENT_HOST": resources["current_host"]}


def _of_hosts(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables about hosts and groups, without ``SM_``."""
    groups = {group["instance_group_name"]: group for group in resources["instance_groups"]}
    return {
        "HOSTS": resources["hosts"],
        "CURRENT_HOST": resources["current_host"],
        "CURRENT_INSTANCE_TYPE": resources["current_instance_type"],
        "CURRENT_INSTANCE_GROUP": resources["current_group_name"],
        "CURRENT_INSTANCE_GROUP_HOSTS": groups[resources["current_group_name"]]["hosts"],
        "INSTANCE_GROUPS": list(groups),
        "INSTANCE_GROUPS_DICT": groups,
        "DISTRIBUTION_INSTANCE_GROUPS": [],
        "IS_HETERO": len(groups) > 1,
        "NETWORK_INTERFACE_NAME": resources["network_interface_name"],
        "RESOURCE_CONFIG": resources,
    }


def _arguments(values: Mapping[str, Any]) -> list[str]:
    """Return ``--name value``, or ``-n value``, sorted by name, as the reference passes them."""
    result = []
    for name in sorted(values):
        value = values[name]
        result += [f"--{name}" if len(name) > 1 else f"-{name}", "" if value is None else str(value)]
    return result


def _decoded(text: str) -> Any:
    """Return what the reference reads from a hyperparameter's text: JSON, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def text_of(value: Any) -> str:
    """Return the text of a variable: strings as they are, everything else as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
