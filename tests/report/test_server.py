"""Server of a page: two paths, read-only, and a state that is made again only after the run's files changed."""

import contextlib
import http.client
import json
import select
import shutil
import socket
import threading
import time

import pytest

from loopwise.errors import InputError
from loopwise.report import server, source
from loopwise.report.server import Server
from loopwise.report.source import Source
from loopwise.run import Run


@pytest.fixture
def served(run, tmp_path):
    """Start a server of a copy of a run."""
    with Server(Source(str(shutil.copytree(run, tmp_path / "run")))) as server_of_copy:
        thread = threading.Thread(target=server_of_copy.serve_forever, args=(0.01,))
        thread.start()
        yield server_of_copy
        server_of_copy.shutdown()
        thread.join()


def ask(of, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", of.server_address[1], timeout=600)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers={"Connection": "close", **headers})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_the_page_and_its_sections(served):
    answer, body = ask(served, "/")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert b"<h1>" in body
    answer, body = ask(served, "/sections.json?now")
    assert "findings" in [section["id"] for section in json.loads(body)["sections"]]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_an_unchanged_state_is_not_sent_again(served):
    answer, _ = ask(served, "/sections.json")
    again, body = ask(served, "/sections.json", If_None_Match=answer.headers["ETag"])
    assert (again.status, body) == (304, b"")
    assert ask(served, "/sections.json", If_None_Match='"other"')[0].status == 200


@pytest.mark.parametrize(
    "path", ["/run.json", "/../run.json", "/%2e%2e/etc/passwd", "//etc/passwd", "/debug/", "/index.html"]
)
def test_nothing_else_is_served(served, path):
    answer, body = ask(served, path)
    assert (answer.status, body) == (404, b"There is no such page.")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_the_server_is_read_only(served, method):
    assert ask(served, "/", method)[0].status == 501


def test_head_has_no_body(served):
    answer, body = ask(served, "/", "HEAD")
    assert (answer.status, body) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 1e6


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:{}", 200),
        ("127.0.0.1:{}", 200),
        ("localhost", 200),
        ("LocalHost:8080", 200),  # a port forwarded over SSH
        ("[::1]:{}", 200),
        ("evil.example:{}", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil@localhost", 403),
        ("localhost/evil", 403),
        ("localhost, evil.example", 403),
        ("localhost:123456", 403),
        ("localhost:", 403),
        ("10.0.0.1", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_another_host_name_is_refused(served, host, status):
    host = host.format(served.server_address[1])
    assert ask(served, "/sections.json", Host=host)[0].status == status


def raw(of, data):
    """Send bytes to a server, and return what it answers until it closes the connection."""
    with socket.create_connection(of.server_address[:2], timeout=600) as connection:
        connection.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(2**16):
                answer += piece
    return answer


def test_a_request_names_its_host_once(served):
    for hosts in (
        b"",
        b"Host: localhost\r\nHost: localhost\r\n",
        b"Host: localhost\r\nhost: evil.example\r\n",
    ):
        answer = raw(served, b"GET /sections.json HTTP/1.1\r\n" + hosts + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 403"), answer


@pytest.mark.parametrize(
    ("path", "method", "headers"),
    [("/", "GET", {}), ("/x", "GET", {}), ("/", "POST", {}), ("/", "GET", {"Host": "evil.example"})],
)
def test_every_answer_has_headers_that_protect_it(served, path, method, headers):
    answer, _ = ask(served, path, method, **headers)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Python" not in answer.headers["Server"]


@pytest.mark.parametrize(
    "request_of",
    [
        b"GET /" + b"x" * server.HEAD + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * server.HEAD + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * (server.HEAD // 6) + b"\r\n",
        b"x" * 2**20,
    ],
)
def test_a_request_that_is_too_long_gets_no_page(served, request_of):
    assert b"200 OK" not in raw(served, request_of)
    assert ask(served, "/sections.json")[0].status == 200


def idle(of):
    """Wait until no connection is open."""
    for _ in range(server.CONNECTIONS):
        assert of._free.acquire(timeout=600)
    for _ in range(server.CONNECTIONS):
        of._free.release()


def test_a_request_that_drips_is_closed(served, monkeypatch):
    """Each byte may come soon; the whole request has a limit."""
    monkeypatch.setattr(server.Handler, "patience", 0.2)
    with socket.create_connection(served.server_address[:2], timeout=600) as connection:
        with contextlib.suppress(OSError):
            while not select.select([connection], [], [], 0.01)[0]:
                connection.sendall(b"G")
        idle(served)


def test_a_client_that_does_not_read_is_closed(served, monkeypatch):
    monkeypatch.setattr(server.Handler, "patience", 0.2)
    monkeypatch.setattr(server.Handler, "rate", 2.0**40)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
        connection.connect(served.server_address[:2])
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        idle(served)


def test_connections_share_the_bytes_of_a_page(served):
    """Clients that read slowly would otherwise hold megabytes each."""
    assert served.source.page()[0] is served.source.page()[0]
    assert served.source.sections()[0] is served.source.sections()[0]


def test_connections_are_limited(served, monkeypatch):
    held = [
        socket.create_connection(served.server_address[:2], timeout=600) for _ in range(server.CONNECTIONS)
    ]
    deadline = time.monotonic() + 600
    while served._free._value and time.monotonic() < deadline:
        time.sleep(0.01)
    assert raw(served, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
    for connection in held:
        connection.close()
    idle(served)
    assert ask(served, "/sections.json")[0].status == 200


def test_an_ipv6_address(run):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with Server(Source(run), "::1") as ipv6:
        assert ipv6.guarded
        assert ipv6.url == f"http://[::1]:{ipv6.server_address[1]}/"


def test_a_public_address_answers_to_addresses_and_names_of_this_machine(run):
    with Server(Source(run), "0.0.0.0", names=["Box.example"]) as public:
        assert not public.guarded
        own = socket.gethostname()
        for host in (
            "10.0.0.1:80",
            "[fe80::1]",
            "localhost",
            own,
            f"{own.upper()}.local:80",
            "box.example:8080",
        ):
            assert public.is_named([host]), host
        for host in ("evil.example", "box.example.evil.example", "", "a b", "[x]"):
            assert not public.is_named([host]), host


def test_sections_are_made_only_after_files_changed(run, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(source.time, "monotonic", lambda: now[0])
    path = str(tmp_path / "run")
    with Run(path) as going:
        of_run = Source(path)
        first = of_run.state()
        assert of_run.state() is first
        going.append("compile", "events", {"batch": 0, "text": "something"})
        assert of_run.state() is first  # too early to list the files again
        now[0] += source.PAUSE
        second = of_run.state()
        assert [section["id"] for section in second["sections"]] == ["compile"]
        assert second["etag"] != first["etag"]
        now[0] += source.PAUSE
        assert of_run.state() is second
        assert of_run.made == 2
    now[0] += source.PAUSE
    assert of_run.state()["run"]["state"] == "finished"


def test_a_deleted_run_is_answered_with_an_error(served, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "PAUSE", 0.0)
    monkeypatch.setattr(source, "SHARE", 0.0)
    assert ask(served, "/sections.json")[0].status == 200
    shutil.rmtree(tmp_path / "run")
    served.source._next = 0.0
    answer, body = ask(served, "/sections.json")
    assert answer.status == 503
    assert b"no run.json" in body


def test_a_missing_run_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"no run\.json"):
        Source(str(tmp_path))
