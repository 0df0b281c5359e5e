"""The kill matrix: trainer, data host and launcher are asked to end, killed, or run out of memory."""

import os
import signal

import pytest
from launch_kit import PATIENCE, kill, pids, start, wait_for_end

OWNER, SCRIPT = 0, 1
HOSTS = ("dnn-0", "data-0")


@pytest.fixture
def job(tmp_path):
    """Start a job of two hosts; return the launcher and the processes of each host."""
    process = start(tmp_path)
    yield process, {host: pids(tmp_path, host) for host in HOSTS}
    kill(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
@pytest.mark.parametrize("which", [OWNER, SCRIPT], ids=["owner", "script"])
@pytest.mark.parametrize("host", HOSTS)
def test_a_host_is_ended(job, host, which, number):
    process, hosts = job
    os.kill(hosts[host][which], number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert host.replace("-", "/") in err
    assert number.name in err
    wait_for_end([pid for numbers in hosts.values() for pid in numbers])


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT], ids=["TERM", "KILL", "INT"]
)
def test_the_launcher_is_ended(job, number):
    process, hosts = job
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    wait_for_end([pid for numbers in hosts.values() for pid in numbers])


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_that_runs_out_of_memory_is_a_failure(tmp_path, host):
    """The kernel kills the largest process; here it does so itself, as nothing else may be near the limit."""
    text = f"""
    import os, resource, signal, time
    if os.environ["LOOPWISE_GROUP"] == {host.partition("-")[0]!r}:
        resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))
        try:
            hoard = [bytearray(2**24) for _ in range(1000)]
        except MemoryError:
            os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1000)
    """
    process = start(tmp_path, text=text)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 137
    assert "since memory had run out" in err


def test_training_goes_on_while_one_data_host_is_left(tmp_path):
    process = start(tmp_path, "--group", "dnn=1", "--group", "data=2")
    hosts = {host: pids(tmp_path, host) for host in ("dnn-0", "data-0", "data-1")}
    os.kill(hosts["data-0"][SCRIPT], signal.SIGKILL)
    wait_for_end(hosts["data-0"])
    (tmp_path / "end").touch()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "data/0 was ended by SIGKILL" in err
    wait_for_end([pid for numbers in hosts.values() for pid in numbers])


def test_a_script_that_ignores_the_request_to_end_is_killed(tmp_path):
    text = """
    import os, pathlib, signal, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    host = os.environ["LOOPWISE_GROUP"] + "-0"
    pathlib.Path(sys.argv[1], host).write_text(f"{os.getppid()} {os.getpid()}")
    while host != "dnn-0" or not pathlib.Path(sys.argv[1], "data-0").exists():
        time.sleep(0.05)
    """
    process = start(tmp_path, text=text)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    wait_for_end([*pids(tmp_path, "dnn-0"), *pids(tmp_path, "data-0")])
