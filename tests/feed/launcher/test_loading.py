"""Hosts that load: one job whose data hosts are nodes of a Ray cluster, of which one dies, and then training."""

import os
import signal
import time
from pathlib import Path

from launch_kit import kill, start, wait_for_end

from loopwise.programs.processes import descendants

PATIENCE = 300
TRAINING = """
import os, pathlib, sys, time, torch
from loopwise.feed import RemoteDataLoader, current_group

class Hosts(torch.utils.data.Dataset):
    def __len__(self):
        return 10**9
    def __getitem__(self, index):
        time.sleep(0.01)
        return int(os.environ["LOOPWISE_GROUP_NODE"]) if current_group() == "data" else -1

if __name__ == "__main__":
    print(os.environ["LOOPWISE_GROUP"], os.environ["SM_CURRENT_INSTANCE_GROUP"], sys.argv[1:], flush=True)
    loader = RemoteDataLoader(Hosts(), batch_size=1, num_workers=2, group="data")
    seen = []
    for batch in loader:
        seen.append(int(batch))
        if set(seen) == {0, 1}:
            pathlib.Path("both").touch()
        if pathlib.Path("dead").exists() and loader.report()["workers_lost"] and seen[-20:] == [0] * 20:
            break
    print("one host loads for both", flush=True)
    os.kill(os.getpid(), 15)
    time.sleep(1000)
"""


def arguments(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


def parent(pid):
    """Return the parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_training_gets_its_batches_from_the_hosts_that_load(tmp_path):
    """The script runs on the training host only; a node that is killed and the end of training leave nothing."""
    job = start(
        tmp_path, "--group", "dnn=1", "--group", "data=2", "--load", "data", text=TRAINING, arguments=["-x"]
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not (tmp_path / "both").exists():
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        processes = descendants([job.pid])
        raylets = {pid: arguments(pid) for pid in processes if arguments(pid)[0].endswith("/raylet")}
        folders = [
            word.partition("=")[2]
            for words in raylets.values()
            for word in words
            if "temp_dir=" in word or "temp-dir=" in word
        ]
        assert len(raylets) == 3
        (second,) = [pid for pid, words in raylets.items() if "--node_ip_address=127.0.0.3" in words]
        owner = parent(parent(second))  # of the host's program
        os.kill(second, signal.SIGKILL)
        while Path(f"/proc/{owner}").exists():  # until the launcher has seen its end
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (tmp_path / "dead").touch()
        out, err = job.communicate(timeout=PATIENCE)
    finally:
        kill(job)
    assert job.returncode == 143
    assert out.splitlines()[0] == "[dnn/0] dnn dnn ['-x']"
    assert "[dnn/0] one host loads for both" in out.splitlines()
    assert out.count("dnn dnn") == 1
    assert "data/1 was ended by SIGKILL" in err
    assert "dnn/0 was ended by SIGTERM" in err
    wait_for_end(processes)
    assert folders
    assert not [folder for folder in folders if os.path.exists(folder)]
