"""The link between a trainer and an actor: buffers arrive whole, strangers do not, and a lost peer is noticed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import zmq

from loopwise.feed.remote.keys import Keys, new_keys
from loopwise.feed.remote.link import CLOSED, FRAME, REFUSED, Connection, Endpoint, Listener, layout

SIZES = [1, FRAME - 1, FRAME, FRAME + 1, 20 * FRAME + 7, 3]
PATIENCE = 60


@pytest.fixture
def context():
    with zmq.Context() as context:
        yield context


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.01)
    return value


def content(size):
    return np.random.default_rng(size).integers(0, 255, size, dtype=np.uint8)


def exchange(context, keys):
    """Send buffers of all sizes; return what arrived, and how many frames were received without a copy of our own."""
    listener = Listener(zmq.Context.shadow(context), "127.0.0.1", keys)
    connection = Connection(context, listener.endpoint, keys)
    buffers, places, complete = [content(size) for size in SIZES], {}, []
    sender = threading.Thread(
        target=lambda: [listener.send(n, [memoryview(b)]) for n, b in enumerate(buffers)]
    )
    sender.start()

    def place(ticket, total):
        assert ticket not in places
        places[ticket] = np.zeros(total, np.uint8)
        return places[ticket]

    def arrived():
        assert not connection.lost()
        complete.extend(connection.receive_frames(place))
        return len(complete) == len(SIZES)

    wait_for(arrived)
    sender.join()
    assert complete == list(range(len(SIZES)))
    for number, buffer in enumerate(buffers):
        assert np.array_equal(places[number], buffer)
    connection.control.send_multipart([b"to", b"actor"])
    assert listener.control.recv_multipart() == [b"to", b"actor"]
    listener.control.send(b"to trainer")
    assert connection.control.recv() == b"to trainer"
    connection.close()
    wait_for(listener.lost)
    listener.close()


@pytest.mark.parametrize("tls", ["0", "1"])
def test_buffers_of_all_sizes_arrive(context, tls):
    keys = new_keys({"RAY_USE_TLS": tls})
    assert keys.encrypted is (tls == "1")
    exchange(context, keys)


def test_several_buffers_arrive_in_one_place(context):
    keys = new_keys({})
    listener = Listener(zmq.Context.shadow(context), "127.0.0.1", keys)
    connection = Connection(context, listener.endpoint, keys)
    buffers = [content(size) for size in (5, FRAME + 3, 0, 64)]
    starts, total = layout([len(buffer) for buffer in buffers])
    assert (starts, total) == ([0, 64, FRAME + 128, FRAME + 128], FRAME + 192)
    tracker = listener.send(7, [memoryview(buffer) for buffer in buffers])
    place = np.zeros(total, np.uint8)
    wait_for(lambda: connection.receive_frames(lambda *_: place) == [7])
    for start, buffer in zip(starts, buffers, strict=True):
        assert np.array_equal(place[start : start + len(buffer)], buffer)
    tracker.wait(PATIENCE)
    connection.close()
    listener.close()


def test_keys_do_not_show_their_secrets():
    keys = new_keys({})
    assert keys.client_secret.decode() not in repr(keys)
    assert keys.password not in repr(keys)


@pytest.mark.parametrize("wrong", ["client", "server"])
def test_a_stranger_is_refused_and_the_trainer_is_not_disturbed(context, wrong):
    keys, other = new_keys({}), new_keys({})
    shown = {
        "client": Keys(*_server(keys), *_client(other), other.password, False),
        "server": Keys(*_server(other), *_client(keys), other.password, False),
    }[wrong]
    listener = Listener(zmq.Context.shadow(context), "127.0.0.1", keys)
    stranger = Connection(context, listener.endpoint, shown)
    assert wait_for(stranger.lost) == REFUSED
    connection = Connection(context, listener.endpoint, keys)
    connection.control.send(b"hello")
    assert listener.control.recv() == b"hello"
    listener.send(0, [memoryview(b"batch")])
    place = bytearray(5)
    assert wait_for(lambda: connection.receive_frames(lambda *_: place)) == [0]
    assert place == b"batch"
    assert not listener.lost()
    assert not listener.control.poll(100)
    for end in (stranger, connection, listener):
        end.close()


def test_a_wrong_password_gets_no_batches(context):
    keys = new_keys({})
    wrong = Keys(*_server(keys), *_client(keys), "guess", False)
    listener = Listener(zmq.Context.shadow(context), "127.0.0.1", keys)
    stranger = Connection(context, listener.endpoint, wrong)
    assert wait_for(stranger.lost) == REFUSED
    with pytest.raises(zmq.Again):
        listener.bulk.send(b"batch", zmq.NOBLOCK)
    stranger.close()
    listener.close()


def _server(keys):
    return keys.server_public, keys.server_secret


def _client(keys):
    return keys.client_public, keys.client_secret


ACTOR = """
import dataclasses, json, sys, zmq
from loopwise.feed.remote.keys import Keys
from loopwise.feed.remote.link import Listener
*words, encrypted = json.loads(sys.argv[1])
keys = Keys(*(word.encode() for word in words[:4]), words[4], encrypted)
listener = Listener(zmq.Context(), "127.0.0.1", keys)
print(json.dumps(dataclasses.asdict(listener.endpoint)), flush=True)
while not listener.lost():
    listener.control.poll(50)
print("lost", flush=True)
"""


@pytest.mark.parametrize("event", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_and_a_frozen_actor_are_noticed(context, event):
    keys = new_keys({})
    shown = [
        k.decode() for k in (keys.server_public, keys.server_secret, keys.client_public, keys.client_secret)
    ]
    command = [sys.executable, "-c", ACTOR, json.dumps([*shown, keys.password, False])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as actor:
        try:
            connection = Connection(context, Endpoint(**json.loads(actor.stdout.readline())), keys)
            wait_for(lambda: connection.lost() or connection.handshakes == 2)
            assert not connection.lost()
            os.kill(actor.pid, event)
            start = time.monotonic()
            assert wait_for(connection.lost) == CLOSED
            print(f"noticed after {time.monotonic() - start:.2f} s")
            connection.close()
        finally:
            actor.kill()


def test_an_actor_notices_that_its_trainer_is_gone(context):
    keys = new_keys({})
    listener = Listener(zmq.Context.shadow(context), "127.0.0.1", keys)
    connection = Connection(context, listener.endpoint, keys)
    wait_for(lambda: connection.lost() or connection.handshakes == 2)
    assert not listener.lost()
    connection.close()
    assert wait_for(listener.lost) == CLOSED
    listener.close()
