"""CPUs and GPUs of trials on one machine."""

import json
import os
import subprocess
import sys
import tempfile
import time

import pytest
from tune_kit import PATIENCE, described, job, program, wait_for

from loopwise.errors import InputError
from loopwise.tune import Resources, run
from loopwise.tune.engine import slots
from loopwise.tune.engine.slots import Slot, Slots, machine_cpus, machine_gpus
from loopwise.tune.trials import recorded


@pytest.fixture(autouse=True)
def _own_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_cpus_are_counted():
    four = Slots(Resources(cpu=2), 5, [])
    first, second = four.take(), four.take()
    assert (first.cpus, second.cpus) == (2, 2)
    assert four.take() is None
    four.release(first)
    assert four.take() is not None


def test_gpus_are_given_out_once():
    gpus = Slots(Resources(gpu=2), 8, ["0", "1", "GPU-a/b"])
    first = gpus.take()
    assert first.gpus == ["0", "1"]
    assert gpus.take() is None
    gpus.release(first)
    assert gpus.take().gpus == ["0", "1"]


def test_gpus_are_shared():
    shared = Slots(Resources(gpu=0.3), 99, ["0", "1"])
    assert sorted(shared.take().gpus[0] for _ in range(6)) == ["0"] * 3 + ["1"] * 3
    assert shared.take() is None


def test_two_jobs_give_out_different_gpus():
    one, other = Slots(Resources(gpu=1), 8, ["0", "1"]), Slots(Resources(gpu=1), 8, ["0", "1"])
    first = one.take()
    assert other.take().gpus == ["1"]
    assert one.take() is None
    one.release(first)
    assert other.take().gpus == ["0"]
    part = Slots(Resources(gpu=0.5), 8, ["0", "1"])
    assert part.take() is None  # whole ones are not shared


def test_what_an_adopted_trial_uses_is_not_given_out():
    gpus = Slots(Resources(cpu=1, gpu=1), 2, ["0", "1"])
    gpus.adopt(Slot(1, ["0"]))
    assert gpus.take().gpus == ["1"]
    assert gpus.take() is None


def test_a_trial_that_needs_more_than_there_is():
    with pytest.raises(InputError) as raised:
        Slots(Resources(cpu=3, gpu=2), 2, ["5"])
    assert str(raised.value) == (
        "seen: resources with cpu: 3 and gpu: 2 for each trial\n"
        "expected: at most cpu: 2 and gpu: 1 (5), which this machine has\n"
        "likely cause: a job for another machine, or CUDA_VISIBLE_DEVICES or an affinity that hides a part of this one\n"
        "fix: lower resources, or use engine: ray for several machines"
    )


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"cpu": 0}, "resources.cpu: Input should be greater than or equal to 1"),
        ({"gpu": 1.5}, "resources: gpu must be a whole number or below 1, not 1.5"),
        ({"gpu": -1}, "resources.gpu: Input should be greater than or equal to 0"),
        ({"memory": 1}, "resources.memory: there is no such field; valid are cpu, gpu"),
    ],
)
def test_wrong_resources(resources, message):
    with pytest.raises(InputError, match=message):
        job("true {x}", resources=resources)


def test_fields_of_the_cluster():
    with pytest.raises(InputError, match="cluster needs engine: ray"):
        job("true {x}", cluster={"address": "auto"})
    for address, told in (
        (
            "ray://head:10001",
            "addresses of Ray's client are not supported, since its connection ends all trials when it is lost; run the tuner on "
            "a machine of the cluster, and set auto, or host:port of the head node without ray:// (ray start --head prints it; "
            "its port is 6379 by default)",
        ),
        ("head", "expected auto, or host:port of the head node of a Ray cluster"),
    ):
        with pytest.raises(InputError) as error:
            job("true {x}", engine="ray", cluster={"address": address})
        assert str(error.value) == (
            f"seen: job: cluster.address: {told} (seen: {address!r})\nexpected: the fields of a tuning job, each of its type\n"
            "likely cause: a typo, or a value of another type\nfix: correct the named places"
        )


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [("", []), ("2,0", ["2", "0"]), ("GPU-1a, 3", ["GPU-1a", "3"]), ("1,-1,2", ["1"]), ("-1", [])],
)
def test_the_visible_gpus_are_those_of_the_variable(monkeypatch, visible, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine_gpus() == gpus


@pytest.mark.parametrize(("quota", "cpus"), [("150000 100000", 2), ("max 100000", 1000), ("50000 100000", 1)])
def test_the_quota_of_a_container(monkeypatch, tmp_path, quota, cpus):
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(slots, "QUOTA", tmp_path / "cpu.max")
    assert machine_cpus() == min(cpus, len(os.sched_getaffinity(0)))


def test_each_trial_has_gpus_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    text = """
    import os, time
    gpu = os.environ["CUDA_VISIBLE_DEVICES"]
    assert os.environ["OMP_NUM_THREADS"] == "1"
    file = os.open(f"busy-{gpu}", os.O_CREAT | os.O_EXCL)  # fails if another trial uses the GPU
    time.sleep(0.3)
    os.unlink(f"busy-{gpu}")
    print(f"gpu={gpu} loss=1")
    """
    command = f"sh -c 'cd {tmp_path} && {program(tmp_path, text)}'"
    changes = {"resources": {"gpu": 1}, "limits": {"trials": 6, "parallel": 6}}
    run(job(command, **changes), str(tmp_path / "run"))
    trials = recorded(str(tmp_path / "run"))
    assert [trial.state for trial in trials] == ["finished"] * 6, trials
    logs = [path.read_text() for path in tmp_path.glob("run/tune/trials/*/0/stdout")]
    assert {log.split()[0] for log in logs} <= {"gpu=4", "gpu=2"}


TUNER = """
import json, sys
from loopwise.tune import job_of, run
run(job_of(json.load(open(sys.argv[1])), "job"), sys.argv[2], resume=True)
"""


def test_adopted_trials_keep_their_gpu_and_their_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    text = """
    import os, time
    file = os.open("busy", os.O_CREAT | os.O_EXCL)
    while not os.path.exists("go"):
        time.sleep(0.05)
    os.unlink("busy")
    print(" loss=1")
    """
    command = f"sh -c 'cd {tmp_path} && {program(tmp_path, text)}'"
    content = described(command, resources={"gpu": 1}, limits={"trials": 3, "parallel": 3})
    (tmp_path / "job.json").write_text(json.dumps(content))
    (tmp_path / "tuner.py").write_text(TUNER)
    arguments = [
        sys.executable,
        str(tmp_path / "tuner.py"),
        str(tmp_path / "job.json"),
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(arguments)
    wait_for(lambda: (tmp_path / "busy").exists())
    began = time.monotonic()
    process.kill()
    process.wait()
    other = Slots(Resources(gpu=1), 8, ["7"])
    assert other.take() is None  # the supervisor holds the lock
    process = subprocess.Popen(arguments)
    time.sleep(2)
    least = time.monotonic() - began
    (tmp_path / "go").touch()
    assert process.wait(PATIENCE) == 0
    trials = sorted(recorded(str(tmp_path / "run")), key=lambda trial: trial.number)
    assert [(trial.state, trial.attempts) for trial in trials] == [("finished", 1)] * 3
    assert trials[0].seconds >= least
    assert other.take() is not None
