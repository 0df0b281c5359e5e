"""Read-only HTTP server of the page of a run and of its later states."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from loopwise.errors import LoopwiseError
from loopwise.run import Run, location

from .facts import signature
from .page import html, state

PAUSE = 2.0
"""Least number of seconds between two listings of the run's files."""
SHARE = 4
"""Pause before the sections are made again, in multiples of the time that making them took.

The training on the same machine has the processor to itself in the pause."""
LOCAL = ("127.0.0.1", "localhost", "::1")
PIECE = 2**16
"""Bytes sent by one call, which may take as long as ``Handler.timeout``."""


class Source:
    """State of a run's page, which is made again after files of the run changed.

    Args:
        run: folder or fsspec URL of the run, or a ``Run``.
        compare: another run to compare with.

    Raises:
        InputError: the folder holds no run, or one that a newer version wrote.
    """

    def __init__(
        self, run: str | os.PathLike[str] | Run, compare: str | os.PathLike[str] | Run | None = None
    ) -> None:
        self._path, self._other = location(run), None if compare is None else location(compare)
        self._runs = [Run.existing(path) for path in (self._path, self._other) if path is not None]
        self._lock = threading.Lock()
        self._next = 0.0
        self._signature = ""
        self._state: dict[str, Any] = {}
        self.made = 0
        """Number of times that the sections were made."""
        self.state()
        self._next = 0.0  # the first state took long because of imports

    def state(self) -> dict[str, Any]:
        """Return the state of the page, as ``loopwise.report.page`` defines it."""
        with self._lock:
            start = time.monotonic()
            if start >= self._next:
                now = "".join(f"{signature(run)} {run.state()} " for run in self._runs)
                if now != self._signature:
                    self._state = state(self._path, self._other)
                    self._signature, self.made = now, self.made + 1
                spent = time.monotonic() - start
                self._next = start + spent + max(PAUSE, SHARE * spent)
            return self._state

    def page(self) -> str:
        """Return the page as HTML."""
        return html(self.state(), live=True)


class Server(ThreadingHTTPServer):
    """Server of the paths ``/`` and ``/sections.json``.

    Args:
        source: the state to serve.
        host: address to listen on.  Requests to a loopback address must name this machine; requests to another
            address may name any host.
        port: port to listen on; 0 takes a free one.
    """

    daemon_threads = True

    def __init__(self, source: Source, host: str = "127.0.0.1", port: int = 0) -> None:
        self.source = source
        self.guarded = host in LOCAL
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        """Address of the page."""
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}/" if ":" in str(host) else f"http://{host!s}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error, unless it only says that a client closed its connection."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Answer(NamedTuple):
    """Answer to a request."""

    status: HTTPStatus
    kind: str
    text: str
    etag: str = ""


class Handler(BaseHTTPRequestHandler):
    """Handler of GET and HEAD requests."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        """Answer a request."""
        try:
            answer = self._answer(self.path.partition("?")[0])
        except (LoopwiseError, OSError) as error:  # the run was deleted, or its storage does not answer
            answer = Answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", str(error))
        try:
            self._send(answer)
        except OSError:
            self.close_connection = True

    do_HEAD = do_GET

    def _answer(self, path: str) -> Answer:
        if not self._names_this_machine():
            return Answer(HTTPStatus.FORBIDDEN, "text/plain", "Only this machine may ask.")
        if path == "/":
            return Answer(HTTPStatus.OK, "text/html", self.server.source.page())
        if path == "/sections.json":
            state = self.server.source.state()
            if self.headers.get("If-None-Match") == f'"{state["etag"]}"':
                return Answer(HTTPStatus.NOT_MODIFIED, "application/json", "", state["etag"])
            return Answer(HTTPStatus.OK, "application/json", json.dumps(state), state["etag"])
        return Answer(HTTPStatus.NOT_FOUND, "text/plain", "The only paths are / and /sections.json.")

    def _names_this_machine(self) -> bool:
        """Return whether the request names this machine: another site's name may resolve to it (DNS rebinding)."""
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            name = None
        return not self.server.guarded or name in LOCAL

    def _send(self, answer: Answer) -> None:
        data = answer.text.encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", f"{answer.kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        if answer.etag:
            self.send_header("ETag", f'"{answer.etag}"')
        self.end_headers()
        if self.command != "HEAD":
            for start in range(0, len(data), PIECE):
                self.wfile.write(data[start : start + PIECE])

    def log_message(self, format: str, *args: Any) -> None:
        """Discard the log of requests."""
