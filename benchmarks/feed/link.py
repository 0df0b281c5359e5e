"""The link to an actor carries batches of 38.5 MB at a large part of raw TCP's rate, and beats a gRPC stream."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from .. import harness
from ..record import Row
from . import ends, namespaces

CLAIM = "feed_link"
QUICK = False
BATCHES = {"loopback": 100, "10gbit": 100, "1gbit": 30}
"""Link -> batches of a run."""
PEERS = {"tcp": "raw TCP", "grpc": "gRPC, raw bytes"}


def measure(transport: str, link: str, seed: int) -> dict[str, float]:
    """Stream batches over a link."""
    batches = BATCHES[link] // (5 if QUICK else 1)
    if link == "loopback":
        return ends.receive(transport, "127.0.0.1", batches, [])
    with namespaces.two_hosts(link) as (_, there):
        return ends.receive(transport, namespaces.ADDRESSES[1], batches, ["ip", "netns", "exec", there])


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases; links between namespaces only where this machine permits them."""
    links = list(BATCHES) if namespaces.available() else ["loopback"]
    return {
        f"{link}.{transport}{'@grpc' * (transport == 'grpc')}": partial(measure, transport, link)
        for link in links
        for transport in ("ours", "tcp", "grpc", "encrypted")
        if link == "loopback" or transport in ("ours", "tcp")
    }


def rows(runs: harness.Runs) -> list[Row]:
    """Compare rates and processor times."""
    table = []
    for case in runs:
        link, _, transport = case.partition(".")
        peer = transport.partition("@")[0]
        if peer == "encrypted":
            ours, theirs = runs[case], runs[f"{link}.tcp"]
            rates = ([rate / 1e9 for rate in of["bytes a second"]] for of in (ours, theirs))
            table.append(Row(f"rate, {link}, encrypted", *rates, PEERS["tcp"], "GB/s", None))
            times = (of["ms of processor time a batch"] for of in (ours, theirs))
            table.append(Row(f"processor time, {link}, encrypted", *times, PEERS["tcp"], "ms", None))
        if peer not in PEERS:
            continue
        ours, theirs = runs[f"{link}.ours"], runs[case]
        bar = {"tcp": 0.65 if link == "loopback" else 0.9, "grpc": 2}[peer]
        rates = ([rate / 1e9 for rate in of["bytes a second"]] for of in (ours, theirs))
        table.append(Row(f"rate, {link}", *rates, PEERS[peer], "GB/s", f"ratio >= {bar}"))
        times = (of["ms of processor time a batch"] for of in (ours, theirs))
        limit = "ratio <= 0.5" if peer == "grpc" else None
        table.append(Row(f"processor time of both ends a batch, {link}", *times, PEERS[peer], "ms", limit))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
