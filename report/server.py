"""Read-only HTTP server of the page of a run, or of a list of runs and their pages, and of their later states."""

from __future__ import annotations

import io
import ipaddress
import re
import socket
import sys
import threading
import time
from collections.abc import Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from loopwise.errors import LoopwiseError

from .page import POLICY
from .source import Page

STATE = "sections.json"
"""Name of a page's state, beside the page."""
LOCAL = ("127.0.0.1", "localhost", "::1")
PIECE = 2**16
"""Bytes sent by one call."""
HEAD = 2**14
"""Largest number of bytes of a request and its headers."""
CONNECTIONS = 32
"""Connections at a time; further ones are closed at once."""
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every answer."""
HOST = re.compile(r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9_.-]+))(?::[0-9]{1,5})?", re.IGNORECASE)


class Server(ThreadingHTTPServer):
    """Server of the pages of a source.

    A request must name this machine in its ``Host`` header, as the name of another site may resolve to its address (DNS
    rebinding).  Each connection has one request, of at most ``HEAD`` bytes, and a limited time for it and for the answer.

    Args:
        source: the run or the folder of runs to serve.
        host: address to listen on.  Requests to a loopback address must name ``localhost``, ``127.0.0.1`` or ``::1``;
            requests to another address may also name any address, or this machine's name.
        port: port to listen on; 0 takes a free one.
        names: further names by which requests may name this machine, such as that of a proxy before it.
    """

    daemon_threads = True

    def __init__(
        self, source: Page, host: str = "127.0.0.1", port: int = 0, names: Iterable[str] = ()
    ) -> None:
        self.source = source
        self.guarded = host in LOCAL
        own = socket.gethostname().lower()
        self._names = {*LOCAL, *(name.lower() for name in names)}
        self._names |= set() if self.guarded else {own, own.partition(".")[0], f"{own}.local", host.lower()}
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        """Address of the page."""
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}/" if ":" in str(host) else f"http://{host!s}:{port}/"

    def is_named(self, hosts: list[str] | None) -> bool:
        """Return whether the ``Host`` headers of a request name this machine, once."""
        match = HOST.fullmatch(hosts[0]) if hosts and len(hosts) == 1 else None
        if match is None:
            return False
        name = (match["ipv6"] or match["name"]).lower()
        return name in self._names or (not self.guarded and _is_address(name))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread of its own, unless there are too many."""
        if self._free.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:
                self._free.release()
                raise
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error, unless it only says that a client closed its connection."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Answer(NamedTuple):
    """Answer to a request."""

    status: HTTPStatus
    kind: str
    data: bytes
    etag: str = ""


class Handler(BaseHTTPRequestHandler):
    """Handler of one GET or HEAD request of a connection.

    Attributes:
        patience: seconds that a request may take to arrive, and an answer besides its time at ``rate``.
        rate: least bytes a second at which a client has to read the answer.
    """

    server: Server
    protocol_version = "HTTP/1.1"
    patience = 20.0
    rate = 2.0**17

    def handle(self) -> None:
        """Read one request and answer it."""
        head = self._head()
        if head:
            self.rfile.close()
            self.rfile = io.BytesIO(head)
            self.handle_one_request()

    def _head(self) -> bytes:
        """Return the bytes of the request line and the headers; none if they are too long or take too long."""
        deadline, head = time.monotonic() + self.patience, b""
        while b"\r\n\r\n" not in head and b"\n\n" not in head:
            self.connection.settimeout(max(deadline - time.monotonic(), 1e-3))
            piece = self.connection.recv(HEAD + 1 - len(head))
            head += piece
            if not piece or len(head) > HEAD:
                return b""
        return head

    def do_GET(self) -> None:
        """Answer a request."""
        try:
            answer = self._answer(self.path.partition("?")[0])
        except (LoopwiseError, OSError) as error:  # the run was deleted, or its storage does not answer
            answer = _text(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        self._send(answer)

    do_HEAD = do_GET

    def _answer(self, path: str) -> Answer:
        if not self.server.is_named(self.headers.get_all("Host")):
            return _text(HTTPStatus.FORBIDDEN, "The request names another machine than this one.")
        folder, _, name = path.rpartition("/")
        source = self.server.source.find(f"{folder}/") if name in ("", STATE) else None
        if source is None:
            return _text(HTTPStatus.NOT_FOUND, "There is no such page.")
        if name == "":
            return Answer(HTTPStatus.OK, "text/html", source.page()[0])
        data, etag = source.sections()
        if self.headers.get("If-None-Match") == f'"{etag}"':
            return Answer(HTTPStatus.NOT_MODIFIED, "application/json", b"", etag)
        return Answer(HTTPStatus.OK, "application/json", data, etag)

    def _send(self, answer: Answer) -> None:
        deadline = time.monotonic() + self.patience + len(answer.data) / self.rate
        self.connection.settimeout(self.patience)
        self.send_response(answer.status)
        self.send_header("Content-Type", f"{answer.kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(answer.data)))
        self.send_header("Connection", "close")
        if answer.etag:
            self.send_header("ETag", f'"{answer.etag}"')
        self.end_headers()
        data = memoryview(answer.data if self.command != "HEAD" else b"")
        for start in range(0, len(data), PIECE):
            self.connection.settimeout(max(deadline - time.monotonic(), 1e-3))
            self.wfile.write(data[start : start + PIECE])

    def end_headers(self) -> None:
        """End the headers of an answer or of an error."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def version_string(self) -> str:
        """Return the name of the server, without the versions of this machine's programs."""
        return "loopwise"

    def log_message(self, format: str, *args: Any) -> None:
        """Discard the log of requests."""


def _text(status: HTTPStatus, text: str) -> Answer:
    return Answer(status, "text/plain", text.encode(errors="replace"))
