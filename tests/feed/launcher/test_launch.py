"""Groups, their environments and logs, and the errors of wrong arguments."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import forks
import pytest
from launch_kit import finished

from loopwise.errors import InputError, StateError
from loopwise.feed.launcher import torchrun
from loopwise.feed.launcher.environment import current_group, hosts_here, resources
from loopwise.feed.launcher.group import Group, parse, validated
from loopwise.feed.launcher.output import LONGEST, Prefixed
from loopwise.feed.launcher.start import launch


def test_groups_know_their_hosts(tmp_path):
    text = """
    import json, os
    from loopwise.feed.launcher.environment import current_group
    names = ["GROUP", "GROUP_NODE", "GROUPS", "TRAINING_GROUP", "HOST"]
    print(json.dumps([current_group(), *(os.environ["LOOPWISE_" + name] for name in names)]))
    """
    status, out, _ = finished(tmp_path, "--group", "data=1", "--group", "dnn=1", "--train", "dnn", text=text)
    assert status == 0
    groups = '{"data":["127.0.0.1"],"dnn":["127.0.0.2"]}'
    lines = dict(line.split(" ", 1) for line in out.splitlines())
    assert json.loads(lines["[dnn/0]"]) == ["dnn", "dnn", "0", groups, "dnn", "127.0.0.2"]
    assert lines.keys() <= {"[dnn/0]", "[data/0]"}  # training may end before the other group has printed


def test_the_reference_says_the_right_group(tmp_path):
    """The real ``sagemaker-training`` reads the files, and makes of them the variables that we set."""
    pytest.importorskip("sagemaker_training", reason="sagemaker-training is not installed")
    text = """
    import json, os, pathlib, sys, time, warnings
    warnings.simplefilter("ignore")
    from sagemaker_training import environment
    found = environment.Environment()
    theirs = {k: v for k, v in found.to_env_vars().items() if k in os.environ}
    said = [found.current_instance_group, found.current_instance_group_hosts, found.is_hetero]
    own = pathlib.Path(sys.argv[1], os.environ["LOOPWISE_GROUP"] + os.environ["LOOPWISE_GROUP_NODE"])
    own.with_suffix(".new").write_text(json.dumps([said, theirs, {k: os.environ[k] for k in theirs}]))
    own.with_suffix(".new").rename(own)
    while len(list(pathlib.Path(sys.argv[1]).glob("d*[0-9]"))) < 3:
        time.sleep(0.05)
    """
    status, _, err = finished(tmp_path, "--group", "dnn=1", "--group", "data=2", text=text)
    assert status == 0, err
    data = ["127.0.0.2", "127.0.0.3"]
    for name, expected in {
        "dnn0": ["dnn", ["127.0.0.1"]],
        "data0": ["data", data],
        "data1": ["data", data],
    }.items():
        said, theirs, ours = json.loads((tmp_path / name).read_text())
        assert said == [*expected, True]
        own = {
            "SM_USER_ARGS",
            "SM_USER_ENTRY_POINT",
            "SM_MODULE_NAME",
            "SM_NUM_GPUS",
        }  # of their own launcher
        assert {k: v for k, v in theirs.items() if k not in own} == {
            k: v for k, v in ours.items() if k not in own
        }
        assert {
            "SM_INSTANCE_GROUPS_DICT",
            "SM_RESOURCE_CONFIG",
            "SM_CURRENT_INSTANCE_GROUP_HOSTS",
        } <= theirs.keys()


def test_resources_have_the_keys_of_the_reference():
    hosts = hosts_here([Group("dnn"), Group("data", 2)])
    assert resources(hosts[2], hosts) == {
        "current_host": "127.0.0.3",
        "hosts": ["127.0.0.1", "127.0.0.2", "127.0.0.3"],
        "current_group_name": "data",
        "current_instance_type": "local",
        "network_interface_name": "lo",
        "instance_groups": [
            {"instance_group_name": "dnn", "instance_type": "local", "hosts": ["127.0.0.1"]},
            {"instance_group_name": "data", "instance_type": "local", "hosts": ["127.0.0.2", "127.0.0.3"]},
        ],
    }


def test_several_processes_train_by_torchrun(tmp_path, monkeypatch):
    """The hosts of training find each other; a process that is killed is a failure, which ends the others."""
    text = """
    import os, sys, time
    import torch.distributed as dist
    if os.environ["LOOPWISE_GROUP"] == "data":
        time.sleep(1000)
    dist.init_process_group("gloo")
    dist.barrier()
    print("rank", dist.get_rank(), "of", dist.get_world_size(), sys.argv[1:])
    os.kill(os.getpid(), 9) if dist.get_rank() == 1 else time.sleep(1000)
    """
    monkeypatch.setenv("PYTHON_EXEC", forks.python())
    given = ["--group", "dnn=2", "--group", "data=1"]
    status, out, err = finished(tmp_path, *given, text=text, arguments=["--lr", "0.1"])
    assert status == 137, err
    assert "[dnn/1:0] rank 1 of 2 ['--lr', '0.1']" in out.splitlines()
    assert "loopwise feed: dnn/1 was ended by SIGKILL" in err


def test_each_host_has_its_processes():
    assert torchrun.arguments(1, 2, 8, "127.0.0.2", "127.0.0.1", 29500, ["train.py", "--nnodes"]) == [
        "--nnodes=2", "--node-rank=1", "--nproc-per-node=8", "--master-addr=127.0.0.1", "--master-port=29500",
        "--local-addr=127.0.0.2", "--tee=3", "train.py", "--nnodes",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "status"), [("sys.exit(3)", 3), ("1 / 0", 1), ("pass", 0), ("os._exit(255)", 255)]
)
def test_the_status_is_that_of_training(tmp_path, code, status):
    path = tmp_path / "script.py"
    path.write_text(f"import os, sys\n{code}")
    assert launch([Group("dnn")], str(path), folder=tmp_path) == status


def test_training_starts_when_the_others_listen(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = f"""
    import os, socket, time
    host = os.environ["LOOPWISE_HOST"]
    if os.environ["LOOPWISE_GROUP"] == "data":
        time.sleep(0.5)
        server = socket.create_server((host, {port}))
        time.sleep(1000)
    for other in ("127.0.0.2", "127.0.0.3"):
        socket.create_connection((other, {port}))
    """
    given = ["--group", "dnn=1", "--group", "data=2", "--ready", str(port)]
    status, _, err = finished(tmp_path, *given, text=text)
    assert status == 0, err


def test_hosts_that_never_listen_are_named(tmp_path):
    text = "import time; time.sleep(1000)"
    status, _, err = finished(tmp_path, "--ready", "1", "--ready-seconds", "0.1", text=text)
    assert (status, err) == (1, "loopwise feed: data/0 at 127.0.0.2 does not listen on port 1 after 0.1 s\n")


def test_a_reader_that_goes_away_ends_the_job(tmp_path):
    (tmp_path / "script.py").write_text("while True: print('line')")
    command = f"{sys.executable} -m loopwise feed launch --group dnn=1 script.py | head -1"
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGPIPE, b"[dnn/0] line\n", b"")


def written(tmp_path, *parts):
    with open(tmp_path / "out", "wb") as file:
        writer = Prefixed("data/1", file)
        for part in parts:
            writer.feed(part)
        writer.end()
    return (tmp_path / "out").read_bytes()


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([b"a\nb", b"c\n"], b"[data/1] a\n[data/1] bc\n"),
        ([b"no end"], b"[data/1] no end\n"),
        ([b"\r10 %\r", b"20 %\n"], b"[data/1] 20 %\n"),
        ([b"windows\r\n"], b"[data/1] windows\n"),
        ([b"\xff\n\n"], b"[data/1] \xff\n[data/1] \n"),
        ([b"[data/1:3] of torchrun\n"], b"[data/1:3] of torchrun\n"),
        ([b"x" * LONGEST, b"y"], b"[data/1] " + b"x" * LONGEST + b"y\n"),
    ],
)
def test_lines_are_whole_and_have_their_host(tmp_path, parts, expected):
    assert written(tmp_path, *parts) == expected


def test_a_script_without_a_launcher_has_no_group():
    assert current_group({}) is None
    assert current_group({"LOOPWISE_GROUP": "data"}) == "data"


def message(error):
    return str(error.value)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda: validated([], None),
            "seen: groups=[]\nexpected: at least one group\nlikely cause: the list was not filled\n"
            "fix: pass for instance groups=[Group('dnn'), Group('data', nodes=2)]",
        ),
        (
            lambda: validated([Group("dnn"), Group("data")], "gpu"),
            "seen: train='gpu'\nexpected: one of the groups: dnn, data\nlikely cause: a typo\n"
            "fix: pass for instance train='dnn'",
        ),
        (
            lambda: validated([Group("data"), Group("data")], None),
            "seen: the group 'data', given twice\nexpected: different names\n"
            "likely cause: two hosts of one group were given as two groups\nfix: give their number: --group data=2",
        ),
        (
            lambda: validated([Group("dnn"), Group("data", 1, 2)], None),
            "seen: processes=2 of the group 'data'\n"
            "expected: one process on each host of a group that does not train; 'dnn' trains\n"
            "likely cause: the first group trains unless another is named\n"
            "fix: pass train='data', or let the script start its own processes",
        ),
        (
            lambda: validated([Group("data", 2, loads=True)], None),
            "seen: the group 'data', which trains and loads\n"
            "expected: a group that trains, and another one that loads for it\n"
            "likely cause: the first group trains unless another is named, and hosts that load do not run the script\n"
            "fix: write for instance --group dnn=1 --group data=2 --load data",
        ),
        (
            lambda: validated([Group("ray"), Group("data", loads=True)], None),
            "seen: the group 'ray' beside a group that loads\nexpected: another name\n"
            "likely cause: the launcher starts a host ray/0, by which training finds the hosts that load\n"
            "fix: rename the group",
        ),
        (
            lambda: Group("data", 0),
            "seen: nodes of the group 'data': nodes=0\nexpected: a whole number of hosts, at least 1\n"
            "likely cause: a fraction, a negative number or a text\n"
            "fix: pass for instance nodes of the group 'data': nodes=1",
        ),
        (
            lambda: Group("2"),
            "seen: the group '2'\nexpected: a name of letters, digits, '-' and '_' that begins with a letter\n"
            "likely cause: the name and the number of nodes changed places\n"
            "fix: write for instance --group data=2, or Group('data', nodes=2)",
        ),
        (
            lambda: parse("data"),
            "seen: --group data\nexpected: NAME=NODES, a name and a number of hosts\n"
            "likely cause: a group without its number of nodes\nfix: write for instance --group data=1",
        ),
        (
            lambda: parse("data=two"),
            "seen: --group data=two\nexpected: NAME=NODES, a name and a number of hosts\n"
            "likely cause: a typo\nfix: write for instance --group data=1",
        ),
        (
            lambda: launch([Group("dnn")], "none.py"),
            "seen: the script 'none.py'\nexpected: the path of a Python script\n"
            "likely cause: a typo, or another working folder\n"
            f"fix: check the path; the working folder is {os.getcwd()}",
        ),
        (
            lambda: launch([Group("dnn")], __file__, port=10**6),
            "seen: port=1000000 on 127.0.0.1: bind(): port must be 0-65535.\n"
            "expected: a free port, from 1024 to 65535\n"
            "likely cause: another program listens on it, such as another training\n"
            "fix: pass another port, or none, to use any free one",
        ),
    ],
)
def test_wrong_arguments_are_explained(call, expected):
    with pytest.raises(InputError) as error:
        call()
    assert message(error) == expected


def test_a_taken_port_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError) as error:
            launch([Group("dnn")], __file__, port=port)
    assert f"port={port} on 127.0.0.1: Address already in use" in message(error)


def test_a_folder_has_one_job_at_a_time(tmp_path):
    (tmp_path / "feed").mkdir()
    with open(tmp_path / "feed/launcher.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StateError) as error:
            launch([Group("dnn")], __file__, folder=tmp_path)
    assert message(error) == (
        f"seen: the folder {str(tmp_path)!r}, in which another job runs\nexpected: a folder for each job\n"
        "likely cause: the same script was started twice\nfix: wait for the other job, or pass another folder"
    )


def test_errors_of_the_command_have_no_traceback(tmp_path):
    status, out, err = finished(tmp_path, "--group", "dnn=0")
    assert (status, out) == (1, "")
    assert err.startswith("Error: \nseen: nodes of the group 'dnn': nodes=0\n")


def test_a_group_that_loads_is_one_of_the_groups(tmp_path):
    status, out, err = finished(tmp_path, "--group", "dnn=1", "--load", "data")
    assert (status, out) == (1, "")
    assert err == (
        "Error: \nseen: --load='data'\nexpected: one of dnn\nlikely cause: a typo\n"
        "fix: add --group data=1, or correct the name\n"
    )
