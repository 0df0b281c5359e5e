"""Loggers of real packages: what they were given is read back from their files.

Weights & Biases and MLflow start threads and processes that outlive a run, so they have processes of their own.
"""

import json
import subprocess
import textwrap

import forks
import pytest
from torch import nn

from loopwise.debug import Watch
from loopwise.debug.loggers import TensorBoardLogger
from loopwise.errors import InputError

TRAINING = """
    import json, torch
    from torch import nn
    from loopwise.debug import Watch
    from loopwise.debug.loggers import MLflowLogger, WandbLogger

    def train(logger, steps=4):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        with Watch(model, optimizer, run="run", loggers=[logger], profile=False, on_finding=[]) as watch:
            for _ in range(steps):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.randint(0, 3, (16,)))
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                watch.step(loss=loss)
        return losses
"""


def process(folder, code, **environment):
    """Run code after `TRAINING` in a process of its own, and return the JSON that it prints last."""
    import os

    script = textwrap.dedent(TRAINING) + textwrap.dedent(code)
    given = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([forks.python(), "-c", script], cwd=folder, env=given, capture_output=True, text=True, timeout=600)  # fmt: skip
    assert not done.returncode, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in events.Scalars(name)}, events


def test_tensorboard_has_scalars_statistics_and_findings(tmp_path):
    pytest.importorskip("tensorboard")
    model = nn.Linear(4, 3)
    logger = TensorBoardLogger(tmp_path / "tb", prefix="mine/", statistics=("std",))
    with Watch(model, run=tmp_path / "run", loggers=[logger], profile=False, on_finding=[]) as watch:
        for number in range(4):
            watch.step(loss=float("nan") if number == 3 else float(number))
    values, events = scalars(tmp_path / "tb", "mine/train/loss")
    assert [values[step] for step in range(3)] == [0.0, 1.0, 2.0]
    assert set(values) == {0, 1, 2, 3}
    assert "mine/std/weight" in events.Tags()["scalars"]
    assert [event.value for event in events.Scalars("mine/finding/exploding_tensor/severity")] == [3.0]
    (tensor,) = events.Tensors("mine/finding/exploding_tensor/text_summary")
    assert tensor.step == 3
    assert b"critical: exploding_tensor at step 3: loss is not finite" in tensor.tensor_proto.string_val[0]


def test_a_summary_writer_of_the_user_stays_open(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "tb")) as writer:
        for folder in ("one", "two"):  # the same logger for two trainings
            logger = TensorBoardLogger(writer, prefix=f"{folder}/")
            with Watch(nn.Linear(4, 3), run=tmp_path / folder, loggers=[logger], profile=False) as watch:
                watch.step(loss=1.5)
        writer.add_scalar("own", 7.0, 0)
    assert scalars(tmp_path / "tb", "two/train/loss")[0] == {0: 1.5}
    assert scalars(tmp_path / "tb", "own")[0] == {0: 7.0}


def test_a_folder_of_another_type_is_refused():
    pytest.importorskip("tensorboard")
    with pytest.raises(InputError) as caught:
        TensorBoardLogger(3)
    assert str(caught.value).startswith("seen: folder of type int\nexpected: a folder, or a SummaryWriter\n")


def test_wandb_offline_has_scalars_and_findings(tmp_path):
    pytest.importorskip("wandb")
    code = """
        import glob, struct, wandb
        from wandb.proto import wandb_internal_pb2 as pb

        def records(path):  # LevelDB's log: blocks of 32 KiB, chunks with checksum, length and type
            data, place, whole = open(path, "rb").read(), 7, b""
            while place + 7 <= len(data):
                if 32768 - place % 32768 < 7:
                    place += 32768 - place % 32768
                    continue
                _, length, kind = struct.unpack_from("<IHB", data, place)
                whole += data[place + 7 : place + 7 + length]
                place += 7 + length
                if kind in (1, 4):
                    yield pb.Record.FromString(whole)
                    whole = b""

        losses = train(WandbLogger(project="digits", mode="offline", dir="."))
        history, summary, alerts, metrics = [], {}, [], []
        for record in records(glob.glob("wandb/offline-run-*/*.wandb")[0]):
            kind = record.WhichOneof("record_type")
            items = lambda of: {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in of}
            if kind == "history":
                history.append(items(record.history.item))
            if kind == "summary":
                summary |= items(record.summary.update)
            if kind == "alert":
                alerts.append([record.alert.title, record.alert.level])
            if kind == "metric":
                metrics.append([record.metric.glob_name or record.metric.name, record.metric.step_metric])
        wandb.teardown()
        print(json.dumps([losses, history, summary, alerts, metrics]))
    """
    (losses, history, summary, alerts, metrics), _ = process(tmp_path, code, WANDB_SILENT="true")
    assert [entry["train/loss"] for entry in history] == losses
    assert [entry["loopwise/step"] for entry in history] == [0, 1, 2, 3]
    assert "mean/gradient/0.weight" in history[0]
    assert ["train/*", "loopwise/step"] in metrics
    assert summary["finding/loss_input"].startswith("critical: loss_input at step 0: cross_entropy applies")
    assert ["critical: loss_input", "ERROR"] in alerts


def test_mlflow_has_metrics_and_tags_in_a_local_store(tmp_path):
    pytest.importorskip("mlflow")
    code = """
        from mlflow import MlflowClient
        logger = MLflowLogger("file:store", experiment="digits", run_name="first", prefix="watch/")
        losses = train(logger)
        train(logger)  # goes on in the same run
        client = MlflowClient("file:store")
        experiment = client.get_experiment_by_name("digits")
        runs = client.search_runs([experiment.experiment_id])
        history = client.get_metric_history(runs[0].info.run_id, "watch/train/loss")
        print(json.dumps([losses, len(runs), runs[0].info.status, runs[0].info.run_name,
            [[metric.step, metric.value] for metric in history], runs[0].data.tags, sorted(runs[0].data.metrics)]))
    """
    (losses, count, status, name, history, tags, metrics), _ = process(
        tmp_path, code, MLFLOW_ALLOW_FILE_STORE="true", MLFLOW_DISABLE_TELEMETRY="true"
    )
    assert (count, status, name) == (1, "FINISHED", "first")
    assert sorted(history) == sorted([step, loss] for step, loss in enumerate(losses) for _ in range(2))
    assert tags["watch/finding/loss_input"].startswith("critical: loss_input at step 0")
    assert "watch/std/gradient/0.weight" in metrics


def test_a_server_that_is_not_there_does_not_touch_the_training(tmp_path):
    pytest.importorskip("mlflow")
    code = """
        import warnings
        from loopwise.debug.loggers import delivery
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses = train(MLflowLogger("http://127.0.0.1:9"))
        print(json.dumps([losses, [str(w.message) for w in caught if "MLflowLogger" in str(w.message)]]))
    """
    (losses, messages), _ = process(
        tmp_path, code, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", MLFLOW_DISABLE_TELEMETRY="true", no_proxy="*"
    )
    assert len(losses) == 4
    assert len(messages) == 1
    assert "MLflowLogger is switched off: MlflowException" in messages[0]
