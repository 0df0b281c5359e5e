"""Remote storage: in memory, and an S3 server on this machine behind a proxy that fails on request."""

import contextlib
import glob
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import uuid

import forks
import fsspec
import psutil
import pytest
import writing_kit
from moto.server import ThreadedMotoServer

from loopwise.debug import open_run
from loopwise.debug.capture import writer
from loopwise.debug.store import uploader
from loopwise.debug.store.segments import Segments
from loopwise.run import Run
from loopwise.warnings import LoopwiseWarning


class Proxy:
    """Proxy between clients and a server that forwards all bytes, none while it is held, or refuses connections.

    Args:
        server: the port on this machine that it stands before.
    """

    def __init__(self, server):
        self._server, self.port = server, 0
        self.open = threading.Event()
        self.open.set()
        self.cut = None
        """Number of bytes from a client after which its connection is closed, once."""
        self._sockets, self._threads, self._lock = set(), [], threading.Lock()
        self.up()

    def up(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept, self._listener)

    def down(self):
        """Refuse new connections and close existing ones."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for one in self._sockets:
                end(one)
        self.open.set()
        for thread in self._threads:
            thread.join(600)
        self._threads.clear()

    def _start(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server))
            with self._lock:
                self._sockets |= {client, server}
            self._start(self._pump, client, server, True)
            self._start(self._pump, server, client, False)

    def _pump(self, source, target, upwards):
        with contextlib.suppress(OSError):
            seen = 0
            while data := source.recv(2**16):
                self.open.wait(600)
                seen += len(data)
                if upwards and self.cut is not None and seen > self.cut:
                    target.sendall(data[: -(seen - self.cut)])
                    self.cut = None
                    break
                target.sendall(data)
        for one in (source, target):
            end(one)


def end(one):
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@pytest.fixture(scope="module")
def server():
    """Port of an S3 server."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logger, level = logging.getLogger("werkzeug"), logging.getLogger("werkzeug").level
    logger.setLevel(logging.ERROR)
    moto.start()
    yield moto.get_host_and_port()[1]
    moto.stop()
    logger.setLevel(level)


OPTIONS = {"retries": {"max_attempts": 0}, "connect_timeout": 60, "read_timeout": 60}


@pytest.fixture
def proxy(server, monkeypatch):
    proxy = Proxy(server)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setitem(fsspec.config.conf, "s3", options(proxy.port))
    monkeypatch.setattr(uploader, "RETRY", 0.02)
    yield proxy
    proxy.down()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def options(port):
    return {"endpoint_url": f"http://localhost:{port}", "config_kwargs": OPTIONS}


@pytest.fixture(params=["memory", "s3"])
def url(request):
    if request.param == "s3":
        request.getfixturevalue("proxy")
    return f"{request.param}://bucket/{uuid.uuid4()}"


@pytest.fixture
def s3(proxy):
    return f"s3://bucket/{uuid.uuid4()}"


@pytest.fixture(autouse=True)
def spool(tmp_path, monkeypatch):
    """Folder in which unsent files wait."""
    (tmp_path / "spool").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spool"))
    return tmp_path / "spool"


def segments_of(size, old=1000.0):
    class Sized(Segments):
        def __init__(self, run, **more):
            super().__init__(run, full=size, old=old, **more)

    return Sized


@pytest.fixture
def small(monkeypatch):
    """Close a segment after each step."""
    monkeypatch.setattr(writer, "Segments", segments_of(1))


class Training(writing_kit.Training):
    """Training whose 100 numbers go to remote storage."""

    def __init__(self, run):
        super().__init__(run, 100)

    @property
    def sender(self):
        return self.watch._writer._segments._uploader

    def wait_for(self, condition):
        """Wait until the uploader fulfills a condition."""
        with self.sender._changed:
            assert self.sender._changed.wait_for(lambda: condition(self.sender), 60)


def has_all(url, steps):
    saved = open_run(url)
    assert saved.verify() == []
    return saved.steps() == list(steps) and saved.torn == 0 and is_right(saved)


def is_right(saved):
    return all(bool((saved.value("weight", step) == step).all()) for step in saved.steps())


def test_steps_are_read_back(url, small, spool):
    before = set(threading.enumerate())
    training = Training(url)
    training.train(5)
    training.watch.close()
    assert +training.watch.counts == {"saved": 5}
    assert has_all(url, range(5))
    assert list(spool.iterdir()) == []
    assert [t for t in set(threading.enumerate()) - before if t.name.startswith("loopwise")] == []
    assert [file for file in psutil.Process().open_files() if str(spool) in file.path] == []


def test_several_steps_share_a_segment(url, spool):
    training = Training(url)
    training.train(5)
    training.drain()
    assert open_run(url).steps() == []
    training.watch.close()
    assert has_all(url, range(5))
    fs, path = fsspec.core.url_to_fs(url)
    names = sorted(file.rsplit("/", 1)[-1] for file in fs.ls(f"{path}/debug", detail=False))
    assert names == ["index.rank0.0.jsonl", "tensors.rank0.0.seg"]


def test_a_resumed_run_goes_on_with_new_files(url, small):
    with Run(url) as run:
        first = Training(run)
        first.train(3)
        first.watch.close()
    with Run(url, resume=True) as run:
        second = Training(run)
        second.watch.load_state_dict(first.watch.state_dict())
        second.steps = 3
        second.train(2)
        second.watch.close()
    assert has_all(url, range(5))


def test_a_step_is_sent_when_it_is_old_and_nothing_follows(url, monkeypatch):
    monkeypatch.setattr(writer, "Segments", segments_of(2**20, old=0.05))
    training = Training(url)
    training.train(1)
    assert open_run(url).wait_for(0, timeout=600)
    training.watch.close()
    assert has_all(url, range(1))


def test_a_server_that_is_down_for_a_while(s3, proxy, small, spool):
    training = Training(s3)
    training.train(2)
    proxy.down()
    with pytest.warns(LoopwiseWarning, match="remote storage fails.*wait in .*spool") as said:
        training.train(4)
        training.drain()
        training.wait_for(lambda sender: sender._down)
        training.train(1)
    assert len(said) == 1
    assert list(spool.iterdir()) != []
    proxy.up()
    training.wait_for(lambda sender: not sender._down)
    training.train(2)
    training.watch.close()
    assert has_all(s3, range(9))
    assert training.watch.counts["failed"] == 0
    assert list(spool.iterdir()) == []


@pytest.mark.filterwarnings("ignore:loopwise.debug.*remote storage fails")
@pytest.mark.parametrize("cut", [0, 100, 700, 900])
def test_a_connection_that_is_cut(s3, proxy, small, cut):
    training = Training(s3)
    proxy.down()  # a new connection for what comes
    proxy.up()
    proxy.cut = cut
    training.train(3)
    training.watch.close()
    assert proxy.cut is None
    assert has_all(s3, range(3))


@pytest.mark.filterwarnings("ignore:loopwise.debug.*remote storage fails")
@pytest.mark.parametrize("after", ["it goes on", "it ends"])
def test_a_server_that_does_not_answer(s3, proxy, small, after):
    training = Training(s3)
    training.train(1)
    proxy.open.clear()
    training.train(6)
    training.drain()
    if after == "it ends":
        proxy.down()
        proxy.up()
    proxy.open.set()
    training.watch.close()
    assert has_all(s3, range(7))


@pytest.mark.filterwarnings(
    "ignore:loopwise.debug.*remote storage fails"
)  # a busy machine may refuse a connection
def test_a_server_that_is_slow_is_waited_for(s3, proxy, small, monkeypatch):
    monkeypatch.setattr(uploader, "WAITING", 2)
    training = Training(s3)
    proxy.open.clear()
    thread = threading.Thread(target=training.train, args=(20,))
    thread.start()
    training.wait_for(lambda sender: len(sender._waiting) == 2)
    assert training.steps < 20
    proxy.open.set()
    thread.join()
    training.watch.close()
    assert +training.watch.counts == {"saved": 20}
    assert has_all(s3, range(20))


def test_the_oldest_segments_are_given_up_if_too_many_wait(s3, proxy, small, spool, monkeypatch):
    monkeypatch.setattr(uploader, "WAITING", 3)
    training = Training(s3)
    training.train(2)
    training.wait_for(lambda sender: not sender._waiting)
    training.drain()
    proxy.down()
    with pytest.warns(LoopwiseWarning) as said:
        training.train(1)
        training.wait_for(lambda sender: sender._down)
        training.train(9)
        training.drain()
        proxy.up()
        training.watch.close()
    texts = sorted(str(one.message) for one in said)
    assert len(texts) == 2
    assert "a step is lost: remote storage fails, and 3 segments wait" in texts[1]
    saved = open_run(s3)
    kept = saved.steps()
    assert kept[-3:] == [9, 10, 11]
    assert training.watch.counts["failed"] == 12 - len(kept) > 0
    assert is_right(saved)
    assert list(spool.iterdir()) == []


def test_segments_not_sent_by_the_end_can_be_copied_by_hand(s3, proxy, small, spool):
    training = Training(Run(s3))
    training.train(2)
    training.drain()
    training.wait_for(lambda sender: not sender._waiting)
    proxy.down()
    with pytest.warns(LoopwiseWarning) as said:
        training.train(4)
        training.watch.close()
    (folder,) = spool.iterdir()
    last = str(said[-1].message)
    assert "steps could not be sent to" in last
    assert str(folder) in last
    proxy.up()
    fs, path = fsspec.core.url_to_fs(s3)
    for file in glob.glob(f"{folder}/*"):
        fs.put_file(file, f"{path}/debug/{os.path.basename(file)}")
    assert has_all(s3, range(6))


def test_a_watch_that_nobody_closes_names_its_folder_at_exit(s3, proxy, small):
    training = Training(Run(s3))
    proxy.down()
    with pytest.warns(LoopwiseWarning) as said:
        training.train(2)
        training.watch._writer._end()
    assert re.search("2 steps could not be sent to .*; the files are in .*spool", str(said[-1].message))
    training.watch.close()


SCRIPT = """
import fsspec, sys
fsspec.config.conf["s3"] = {options!r}
sys.path[:0] = {folders!r}
from test_remote import Training
training = Training({url!r})
training.train(5)
"""


def test_a_script_that_ends_without_close_sends_everything(s3, proxy, spool):
    fresh = {"connector_args": {"keepalive_timeout": 0.001, "use_dns_cache": False}}  # as after some minutes
    there = {**options(proxy.port), "config_kwargs": {**OPTIONS, **fresh}}
    code = SCRIPT.format(options=there, folders=[os.path.dirname(__file__), *sys.path], url=s3)
    environment = {**os.environ, "TMPDIR": str(spool)}
    done = subprocess.run([forks.python(), "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert has_all(s3, range(5))
    assert list(spool.iterdir()) == []
