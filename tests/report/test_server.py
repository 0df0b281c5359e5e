"""Server of a page: two paths, read-only, and a state that is made again only after the run's files changed."""

import http.client
import json
import shutil
import socket
import threading

import pytest

from loopwise.errors import InputError
from loopwise.report import server
from loopwise.report.server import Server, Source
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
    assert (answer.status, body) == (404, b"The only paths are / and /sections.json.")


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
        ("[::1]:{}", 200),
        ("evil.example:{}", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_another_host_name_is_refused(served, host, status):
    host = host.format(served.server_address[1])
    assert ask(served, "/sections.json", Host=host)[0].status == status


def test_an_ipv6_address(run):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with Server(Source(run), "::1") as ipv6:
        assert ipv6.guarded
        assert ipv6.url == f"http://[::1]:{ipv6.server_address[1]}/"


class Gone:
    """Connection that breaks after the headers."""

    def __init__(self):
        self.written = []

    def write(self, data):
        self.written.append(data)
        if len(self.written) > 1:
            raise BrokenPipeError


def test_a_client_that_closed_its_connection_gets_no_second_answer(served):
    handler = object.__new__(server.Handler)
    handler.server, handler.wfile, handler.headers = served, Gone(), {"Host": "localhost"}
    handler.path, handler.command, handler.close_connection = "/", "GET", False
    handler.request_version, handler.requestline = "HTTP/1.1", "GET / HTTP/1.1"
    handler.do_GET()
    head, piece = handler.wfile.written
    assert head.startswith(b"HTTP/1.1 200")
    assert len(piece) == server.PIECE
    assert handler.close_connection


def test_a_public_address_answers_to_any_host_name(run):
    with Server(Source(run), "0.0.0.0") as public:
        assert not public.guarded


def test_sections_are_made_only_after_files_changed(run, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(server.time, "monotonic", lambda: now[0])
    path = str(tmp_path / "run")
    with Run(path) as going:
        source = Source(path)
        first = source.state()
        assert source.state() is first
        going.append("compile", "events", {"batch": 0, "text": "something"})
        assert source.state() is first  # too early to list the files again
        now[0] += server.PAUSE
        second = source.state()
        assert [section["id"] for section in second["sections"]] == ["compile"]
        assert second["etag"] != first["etag"]
        now[0] += server.PAUSE
        assert source.state() is second
        assert source.made == 2
    now[0] += server.PAUSE
    assert source.state()["run"]["state"] == "finished"


def test_a_deleted_run_is_answered_with_an_error(served, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "PAUSE", 0.0)
    monkeypatch.setattr(server, "SHARE", 0.0)
    assert ask(served, "/sections.json")[0].status == 200
    shutil.rmtree(tmp_path / "run")
    served.source._next = 0.0
    answer, body = ask(served, "/sections.json")
    assert answer.status == 503
    assert b"no run.json" in body


def test_a_missing_run_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"no run\.json"):
        Source(str(tmp_path))
