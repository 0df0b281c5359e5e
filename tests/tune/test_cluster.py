"""Jobs on a Ray cluster of three nodes, of which one is killed at the end."""

import json
import os
import signal
import subprocess
import sys

import pytest
from ray_kit import three_nodes
from tune_kit import PATIENCE, alive, described, program, wait_for

from loopwise.tune.trials import recorded

pytest.importorskip("ray", reason="Ray is not installed")

PROGRAM = """
import json, os, sys, time
folder, number = os.path.dirname(os.path.abspath(__file__)), os.environ["LOOPWISE_TRIAL"]
names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "GREETING")
seen = {name: os.environ.get(name) for name in names} | {"cwd": os.getcwd()}
seen["ray"] = [name for name in os.environ if name.startswith("RAY_")]
print("seen", json.dumps(seen | {"parameters": json.load(open(os.environ["LOOPWISE_PARAMETERS"]))}))
open(f"{folder}/pid-{number}-{os.getpid()}", "w").close()
print("bytes", "x" * 100_000, file=sys.stderr)
while not os.path.exists(f"{folder}/go") and not os.path.exists(f"{folder}/go-{number}"):
    time.sleep(0.05)
print(f"step 0 loss={sys.argv[1]}")
"""
TUNER = """
import json, sys
from loopwise.tune import job_of, run
from loopwise.tune.engine import cluster
cluster.GONE = 2.0
for path in sys.argv[3:]:
    try:
        run(job_of(json.load(open(path)), "job"), f"{sys.argv[2]}/run{path[-1]}", resume=sys.argv[1] == "resume")
    except Exception as error:
        print(error, "\\n--", flush=True)
"""


@pytest.fixture(scope="module")
def cluster():
    with three_nodes() as (address, remove):
        yield address, remove


def tuner(folder, *jobs, resume=False):
    """Start a tuner of jobs, one after the other."""
    (folder / "tuner.py").write_text(TUNER)
    for number, content in enumerate(jobs):
        (folder / f"job{number}").write_text(json.dumps(content))
    arguments = [
        "resume" if resume else "new",
        str(folder),
        *(str(folder / f"job{n}") for n in range(len(jobs))),
    ]
    return subprocess.Popen(
        [sys.executable, str(folder / "tuner.py"), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
    )


def on_cluster(address, command, **changes):
    return described(
        command, engine="ray", cluster={"address": address} | changes.pop("cluster", {}), **changes
    )


def attempt(folder, trial, number):
    """Return where an attempt runs once it has printed its first line."""
    wait_for(lambda: has_begun(folder, trial, number))
    return json.loads((folder / f"run0/tune/trials/{trial:05d}/{number}/place.json").read_text())


def has_begun(folder, trial, number):
    path = folder / f"run0/tune/trials/{trial:05d}/{number}/stdout"
    return path.exists() and bool(path.read_text())


def pids(folder, trial="*"):
    return [int(path.name.split("-")[2]) for path in folder.glob(f"pid-{trial}-*")]


def test_trials_run_on_nodes_that_have_what_they_need(cluster, tmp_path):
    command = program(tmp_path, PROGRAM) + " {x}"
    changes = {"resources": {"cpu": 2, "gpu": 1}, "environment": {"GREETING": "x is {x}"}}
    limits = {"trials": 3, "parallel": 3}
    process = tuner(tmp_path, on_cluster(cluster[0], command, limits=limits, **changes))
    places = [attempt(tmp_path, trial, 0) for trial in (0, 1)]
    assert places[0]["node"] != places[1]["node"]
    assert not (tmp_path / "run0/tune/trials/00002").exists()  # there is room for two
    (tmp_path / "go").touch()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    trials = sorted(recorded(str(tmp_path / "run0")), key=lambda trial: trial.number)
    assert [(trial.state, trial.attempts) for trial in trials] == [("finished", 1)] * 3
    for trial in trials:
        folder = tmp_path / f"run0/tune/trials/{trial.number:05d}/0"
        assert trial.objective == pytest.approx(trial.values["x"])
        assert trial.seconds == json.loads((folder / "exit").read_text())["seconds"]
        assert (folder / "stderr").read_text() == "bytes " + "x" * 100_000 + "\n"
        seen = json.loads((folder / "stdout").read_text().splitlines()[0].removeprefix("seen "))
        assert seen == {
            "CUDA_VISIBLE_DEVICES": "0",
            "OMP_NUM_THREADS": "2",
            "GREETING": f"x is {trial.values['x']}",
            "cwd": str(tmp_path),
            "ray": [],
            "parameters": trial.values,
        }
    assert not any(map(alive, pids(tmp_path)))
    assert not any(os.path.exists(place["folder"]) for place in places)


def test_jobs_that_the_cluster_cannot_run_are_refused_before_the_start(cluster, tmp_path):
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied/own.sh").write_text("#!/bin/sh\necho ' loss=1'\n")
    (tmp_path / "copied/own.sh").chmod(0o755)
    limits = {"trials": 1}
    process = tuner(
        tmp_path,
        on_cluster(cluster[0], "true {x}", resources={"cpu": 2, "gpu": 2}),
        on_cluster(cluster[0], "no-such-program {x}"),
        on_cluster("127.0.0.1:1", "true {x}"),
        on_cluster(
            cluster[0], "./own.sh {x}", cluster={"working_dir": str(tmp_path / "copied")}, limits=limits
        ),
        on_cluster(cluster[0], "true {x}", cluster={"working_dir": "nowhere"}),
    )
    output, _ = process.communicate(timeout=PATIENCE)
    resources, missing, address, folder = output.split("\n--")[:4]
    assert resources.startswith(
        "seen: resources with cpu: 2 and gpu: 2 for each trial\nexpected: at most what one node"
    )
    assert resources.count("with cpu: 2, gpu: 1") == 2
    assert "without what a trial needs" in missing
    assert "no program 'no-such-program'" in missing
    assert "set cluster.working_dir to a folder that Ray copies" in missing
    assert "no connection to a Ray cluster at '127.0.0.1:1'" in address
    assert "cluster.working_dir 'nowhere', which does not exist" in folder
    assert not (tmp_path / "run1/tune/trials").exists()
    assert [trial.state for trial in recorded(str(tmp_path / "run3"))] == ["finished"]


def test_the_code_that_is_shipped_to_nodes_needs_no_loopwise():
    import ray

    from loopwise.tune.engine import node

    def loaded(data):
        code = "import pickle, sys; sys.modules['loopwise'] = None; print(pickle.load(sys.stdin.buffer)[0]('/', 'sh', None))"
        return subprocess.run([sys.executable, "-c", code], input=data, capture_output=True)

    code = (node.missing, node.Node, node.end_left)
    by_name = loaded(ray.cloudpickle.dumps(code))
    assert b"ModuleNotFoundError" in by_name.stderr
    ray.cloudpickle.register_pickle_by_value(node)
    try:
        by_value = loaded(ray.cloudpickle.dumps(code))
    finally:
        ray.cloudpickle.unregister_pickle_by_value(node)
    assert by_value.stdout == b"\n", by_value.stderr


def test_tuner_actor_node_and_head_are_killed(cluster, tmp_path):
    command = program(tmp_path, PROGRAM) + " {x}"
    content = on_cluster(cluster[0], command, resources={"gpu": 1}, limits={"trials": 3, "parallel": 2})
    process = tuner(tmp_path, content)
    first, second = attempt(tmp_path, 0, 0), attempt(tmp_path, 1, 0)
    process.kill()
    process.communicate()
    os.kill(first["actor"], signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids(tmp_path, 0))))  # by the lifeline: no tuner runs
    assert all(map(alive, pids(tmp_path, 1)))
    process = tuner(tmp_path, content, resume=True)
    attempt(tmp_path, 0, 1)
    cluster[1](second["node"])
    wait_for(lambda: not any(map(alive, pids(tmp_path, 1))))
    wait_for(lambda: not os.path.exists(second["folder"]))
    (
        tmp_path / "go-0"
    ).touch()  # makes room on the node that is left, before or after the tuner knows of the death
    wait_for(lambda: has_begun(tmp_path, 1, 1) or has_begun(tmp_path, 2, 0))
    (next_trial, number), (last, of_last) = sorted(
        ((1, 1), (2, 0)), key=lambda one: not has_begun(tmp_path, *one)
    )
    (tmp_path / f"go-{next_trial}").touch()
    attempt(tmp_path, last, of_last)
    assert attempt(tmp_path, 1, 1)["node"] != second["node"]
    cluster[1]("head")
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert output.endswith(
        f"seen: the Ray cluster with the head node {cluster[0]!r} is lost: Connection refused; trials that ran: {last}\n"
        "expected: a head node that runs for as long as the job\n"
        "likely cause: ray stop, a head node that failed, or a network that failed\n"
        "fix: ended trials are kept; start the cluster again, set cluster.address if it is another one, and go on with --resume "
        "(resume=True), which repeats the trials that ended with the cluster \n--\n"
    )
    trials = sorted(recorded(str(tmp_path / "run0")), key=lambda trial: trial.number)
    ended = [(t.number, t.state, t.attempts) for t in trials]
    assert ended == [(0, "finished", 2), (next_trial, "finished", number + 1)]
    wait_for(lambda: not any(map(alive, pids(tmp_path))))
