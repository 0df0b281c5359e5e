"""Serves the page of a run, and what is new of it: read-only, two paths and nothing else."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from loopwise.errors import LoopwiseError
from loopwise.run import Run

from .facts import signature
from .page import html, state

PAUSE = 2.0
"""Seconds between two looks at the run's files at least."""
SHARE = 4
"""Times as long as making the sections took is left to the training before they are made again."""
LOCAL = ("127.0.0.1", "localhost", "::1")
PIECE = 2**16
"""Bytes that are sent at a time; each has `Handler.timeout`."""


class Source:
    """What is to be served, made again when files of the run changed.

    Args:
        path: folder or fsspec URL of the run.
        other: a run beside it.

    Raises:
        InputError: there is no run, or it is of a newer version.
    """

    def __init__(self, path: str, other: str | None = None) -> None:
        self._path, self._other = path, other
        self._runs = [Run.existing(each) for each in (path, other) if each is not None]
        self._lock = threading.Lock()
        self._next = 0.0
        self._signature = ""
        self._state: dict[str, Any] = {}
        self.made = 0
        """How often the sections were made."""
        self.state()
        self._next = 0.0  # this time it was the imports that took long

    def state(self) -> dict[str, Any]:
        """The state of the page; see `loopwise.report.page`."""
        with self._lock:
            start = time.monotonic()
            if start >= self._next:
                now = "".join(map(signature, self._runs))
                if now != self._signature:
                    self._state = state(self._path, self._other)
                    self._signature, self.made = now, self.made + 1
                spent = time.monotonic() - start
                self._next = start + spent + max(PAUSE, SHARE * spent)
            return self._state

    def page(self) -> str:
        return html(self.state(), live=True)


class Server(ThreadingHTTPServer):
    """Serves ``/`` and ``/sections.json``.

    Args:
        source: what is served.
        host: address to listen at; one that is not of this machine's own also answers to any name.
        port: 0 for a free one.
    """

    daemon_threads = True

    def __init__(self, source: Source, host: str = "127.0.0.1", port: int = 0) -> None:
        self.source = source
        self.guarded = host in LOCAL
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}/" if ":" in str(host) else f"http://{host!s}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked went away: nothing to say."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Answer(NamedTuple):
    """To a request."""

    status: HTTPStatus
    kind: str
    text: str
    etag: str = ""


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        try:
            answer = self._answer(self.path.partition("?")[0])
        except (LoopwiseError, OSError) as error:  # the run is gone, or storage does not answer
            answer = Answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", str(error))
        try:
            self._send(answer)
        except OSError:
            self.close_connection = True

    do_HEAD = do_GET

    def _answer(self, path: str) -> Answer:
        if not self._is_asked_by_name():
            return Answer(HTTPStatus.FORBIDDEN, "text/plain", "Only for this machine.")
        if path == "/":
            return Answer(HTTPStatus.OK, "text/html", self.server.source.page())
        if path == "/sections.json":
            found = self.server.source.state()
            if self.headers.get("If-None-Match") == f'"{found["etag"]}"':
                return Answer(HTTPStatus.NOT_MODIFIED, "application/json", "", found["etag"])
            return Answer(HTTPStatus.OK, "application/json", json.dumps(found), found["etag"])
        return Answer(HTTPStatus.NOT_FOUND, "text/plain", "There is / and /sections.json.")

    def _is_asked_by_name(self) -> bool:
        """Whether the browser asks this machine: another site's name that leads here is refused."""
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
        """Requests are not logged."""
