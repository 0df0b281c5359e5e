"""Both ends of a stream of batches, for three transports: raw TCP, ours, and gRPC.

A sender is a process of its own, ``python -m benchmarks.feed.ends TRANSPORT HOST BATCHES``, perhaps in another network
namespace.  It prints where it listens, sends, and prints its processor time.
"""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

BYTES = 64 * 3 * 224 * 224 * 4
"""Bytes of a batch: 64 images of 224 x 224 in float32."""


def cpu() -> float:
    """Return the processor time of this process, with that of all threads and the system's for it, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def batch() -> np.ndarray:
    """Return the bytes of a batch."""
    return np.random.default_rng(0).integers(0, 255, BYTES, dtype=np.uint8)


def receive(
    transport: str, host: str, batches: int, prefix: list[str], python: str = sys.executable
) -> dict[str, float]:
    """Receive batches from a sender.

    Args:
        transport: ``tcp``, ``ours``, ``encrypted`` (ours if Ray runs with TLS) or ``grpc``.
        host: address on which the sender listens.
        batches: number of batches; the first one is not timed.
        prefix: command in which the sender runs, such as ``ip netns exec``.
        python: Python of the sender.

    Returns:
        Bytes a second, and processor time of both ends a batch in milliseconds.
    """
    command = [*prefix, python, "-m", "benchmarks.feed.ends", transport, host, str(batches)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as sender:
        assert sender.stdout is not None
        assert sender.stdin is not None
        keys = None
        if transport in ("ours", "encrypted"):
            keys = _keys(transport == "encrypted")
            sender.stdin.write(json.dumps(_shown(keys)) + "\n")
            sender.stdin.flush()
        where = json.loads(sender.stdout.readline())
        start, spent, count = time.perf_counter(), cpu(), 0
        for count, _ in enumerate(RECEIVERS[transport](where, batches, keys), 1):
            if count == 1:
                start, spent = time.perf_counter(), cpu()
        seconds, spent = time.perf_counter() - start, cpu() - spent
        assert count == batches
        sender.stdin.close()
        theirs = json.loads(sender.stdout.readline())
    return {
        "bytes a second": BYTES * (batches - 1) / seconds,
        "ms of processor time a batch": 1e3 * (spent / (batches - 1) + theirs / batches),
    }


def receive_tcp(where: Any, batches: int, _: Any) -> Iterator[None]:
    """Receive by ``recv_into`` into a kept buffer."""
    kept = memoryview(np.zeros(BYTES, np.uint8))
    with socket.create_connection(tuple(where)) as connection:
        for _ in range(batches):
            got = 0
            while got < BYTES:
                got += connection.recv_into(kept[got:])
            yield


def send_tcp(host: str, batches: int) -> Iterator[Any]:
    """Send by ``sendall``."""
    data = memoryview(batch())
    with socket.create_server((host, 0)) as server:
        yield server.getsockname()[:2]
        connection, _ = server.accept()
        with connection:
            for _ in range(batches):
                connection.sendall(data)


def receive_grpc(where: Any, batches: int, _: Any) -> Iterator[None]:
    """Receive a stream of byte messages; a batch is a view of its message, as in the reference's client."""
    import grpc

    with grpc.insecure_channel(where, options=[("grpc.max_receive_message_length", -1)]) as channel:
        for message in channel.unary_stream("/feed/batches")(str(batches).encode()):
            assert np.frombuffer(message, np.uint8).size == BYTES
            yield


def send_grpc(host: str, batches: int) -> Iterator[Any]:
    """Send a stream of byte messages, each made by ``tobytes``, as the reference's server does."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    data = batch()

    def stream(_: bytes, context: Any) -> Iterator[bytes]:
        for _ in range(batches):
            yield data.tobytes()

    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.max_send_message_length", -1)])
    handlers = {"batches": grpc.unary_stream_rpc_method_handler(stream)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("feed", handlers)])
    port = server.add_insecure_port(f"{host}:0")
    server.start()
    yield f"{host}:{port}"
    sys.stdin.read()
    server.stop(None)


def _keys(encrypted: bool) -> Any:
    from loopwise.feed.remote.keys import new_keys

    return new_keys({"RAY_USE_TLS": str(int(encrypted))})


def _shown(keys: Any) -> list[Any]:
    secret = (keys.server_public, keys.server_secret, keys.client_public, keys.client_secret)
    return [*(key.decode() for key in secret), keys.password, keys.encrypted]


def receive_ours(where: Any, batches: int, keys: Any) -> Iterator[None]:
    """Receive frames into a kept buffer."""
    import zmq

    from loopwise.feed.remote.link import Connection, Endpoint

    kept = np.zeros(BYTES, np.uint8)
    connection = Connection(zmq.Context(), Endpoint(*where), keys)
    poller = zmq.Poller()
    for end in connection.sockets:
        poller.register(end, zmq.POLLIN)
    count = 0
    while count < batches:
        events = dict(poller.poll())
        assert not any(monitor in events for monitor in connection.monitors) or not connection.lost()
        for _ in connection.receive_frames(lambda *_: kept):
            count += 1
            yield
    connection.control.send(b"end")


def send_ours(host: str, batches: int) -> Iterator[Any]:
    """Send frames."""
    import zmq

    from loopwise.feed.remote.keys import Keys
    from loopwise.feed.remote.link import Listener

    *words, password, encrypted = json.loads(sys.stdin.readline())
    listener = Listener(zmq.Context(), host, Keys(*(word.encode() for word in words), password, encrypted))
    yield [host, listener.endpoint.control, listener.endpoint.bulk]
    data = memoryview(batch())
    for ticket in range(batches):
        listener.send(ticket, [data])
    listener.control.recv()


RECEIVERS = {"tcp": receive_tcp, "ours": receive_ours, "encrypted": receive_ours, "grpc": receive_grpc}
SENDERS = {"tcp": send_tcp, "ours": send_ours, "encrypted": send_ours, "grpc": send_grpc}


if __name__ == "__main__":
    sender = SENDERS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
    print(json.dumps(next(sender)), flush=True)
    spent = cpu()
    for _ in sender:
        pass
    print(json.dumps(cpu() - spent), flush=True)
