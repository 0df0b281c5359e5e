"""Destinations: findings reach a real HTTP server and a real SMTP server, and training does not wait for them."""

import datetime
import ipaddress
import json
import logging
import queue
import socket
import ssl
import threading
from email import message_from_bytes
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from torch import nn

from loopwise.debug import Finding, Watch, every
from loopwise.debug.alerts.destinations import email, log, webhook
from loopwise.debug.alerts.notices import Findings
from loopwise.errors import InputError


def finding(number=0, severity="critical", **more):
    evidence = {"loss": [(0, 1.0), (3, float("nan"))]}
    return Finding("exploding_tensor", severity, 3, "train", "loss is not finite", (f"loss{number}",), evidence, "lower it", **more)  # fmt: skip


@pytest.fixture
def server(monkeypatch):
    """Web server with its address, the posted messages, and the status of its answers."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            web.posted.put((self.path, self.headers["Content-Type"], body))
            web.gate.wait(600)
            self.send_response(web.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.posted, web.status, web.gate = queue.Queue(), 200, threading.Event()
    web.gate.set()
    web.url = f"http://127.0.0.1:{web.server_port}/hook/secret"
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    yield web
    web.gate.set()
    web.shutdown()
    thread.join()
    web.server_close()


def test_a_webhook_gets_text_and_record(server):
    tell = webhook(server.url)
    tell(finding())
    tell.close()
    path, kind, body = server.posted.get(timeout=600)
    assert (path, kind) == ("/hook/secret", "application/json")
    assert body["text"] == str(finding())
    assert body["findings"][0]["rule"] == "exploding_tensor"
    assert body["findings"][0]["evidence"] == {"loss": [[0, 1.0], [3, "NaN"]]}
    assert server.posted.empty()


def test_minor_and_repeated_findings_are_not_sent(server):
    tell = webhook(server.url)
    tell(finding(0))
    tell(finding(0))
    tell(finding(1, severity="info"))
    tell.close()
    assert server.posted.qsize() == 1


def test_many_findings_come_in_few_messages(server):
    tell = webhook(server.url, per_hour=2)
    for number in range(6):
        tell(finding(number))
    tell.close()
    counts = [len(server.posted.get(timeout=600)[2]["findings"]) for _ in range(3)]
    assert counts == [1, 1, 4]
    assert server.posted.empty()


def test_training_does_not_wait(server):
    server.gate.clear()  # it answers nothing
    tell = webhook(server.url, timeout=30)
    for number in range(500):
        tell(finding(number))
    first = server.posted.get(timeout=600)[2]  # it may have the others in it, too
    server.gate.set()
    tell.close()
    bodies = [first, *(server.posted.get(timeout=600)[2] for _ in range(server.posted.qsize()))]
    assert 200 <= sum(len(body["findings"]) for body in bodies) <= 202
    assert any(body["text"].endswith(" more") for body in bodies)


def test_a_failing_server_is_logged_once(server, caplog):
    server.status = 500
    tell = webhook(server.url)
    with caplog.at_level(logging.INFO, "loopwise.debug"):
        for number in range(3):
            tell(finding(number))
        tell.close()
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "findings could not be sent to the webhook at 127.0.0.1: <HTTPError 500: 'Internal Server Error'>",
        "findings not sent to the webhook at 127.0.0.1: 3",
    ]
    assert "secret" not in "".join(said)


def test_a_failed_message_goes_with_the_next_one(server):
    server.status = 503
    tell = webhook(server.url)
    tell(finding(0))
    server.posted.get(timeout=600)
    server.status = 200
    tell(finding(1))
    tell.close()
    bodies = [server.posted.get(timeout=600)[2] for _ in range(server.posted.qsize())]
    told = [tuple(each["tensors"]) for body in bodies for each in body["findings"]]
    assert {("loss0",), ("loss1",)} == set(told)


def test_a_server_that_does_not_answer(caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        tell = webhook(f"http://127.0.0.1:{taken.getsockname()[1]}/")
        tell(finding())
        tell.close()
    assert "findings not sent to the webhook at 127.0.0.1: 1" in caplog.text


def test_a_queue_can_be_used_again(server):
    tell = webhook(server.url)
    for number in range(2):
        tell(finding(number))
        tell.close()
        tell.close()
    assert server.posted.qsize() == 2


# -- e-mail -----------------------------------------------------------------------------------------


class Mailbox:
    def __init__(self):
        self.got = queue.Queue()

    async def handle_DATA(self, server, session, envelope):
        self.got.put(
            (envelope.mail_from, envelope.rcpt_tos, message_from_bytes(envelope.content, policy=default))
        )
        return "250 OK"


@pytest.fixture
def serve():
    """Function ``serve(**options)`` that returns a mailbox and its port."""
    running = []

    def start(**options):
        box = Mailbox()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        running.append(Controller(box, hostname="127.0.0.1", port=port, **options))
        running[-1].start()
        return box, port

    yield start
    for each in running:
        each.stop()


@pytest.fixture
def certified(tmp_path, monkeypatch):
    """TLS context of the server, with a certificate that clients of this test trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = made.add_extension(address, False).sign(key, hashes.SHA256())
    path = tmp_path / "server.pem"
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def test_an_email(serve):
    box, port = serve()
    to = ["me@example.org", "you@example.org"]
    tell = email(to, host="127.0.0.1", port=port, sender="training@example.org", tls="none")
    tell(finding())
    tell.close()
    sender, recipients, message = box.got.get(timeout=600)
    assert (sender, recipients) == ("training@example.org", to)
    assert message["Subject"] == "[loopwise] critical: exploding_tensor"
    assert message.get_content().strip() == str(finding())


@pytest.mark.parametrize("tls", ["starttls", "ssl"])
def test_an_email_with_a_password_over_tls(serve, certified, tls):
    asked = []

    def authenticate(server, session, envelope, mechanism, data):
        asked.append((data.login, data.password, session.ssl is not None or tls == "ssl"))
        return AuthResult(success=True)

    by = {"ssl_context": certified, "auth_require_tls": False} if tls == "ssl" else {"tls_context": certified}
    box, port = serve(authenticator=authenticate, **by)
    tell = email(
        "me@example.org", host="127.0.0.1", port=port, sender="t@example.org", user="u", password="p", tls=tls
    )
    tell(finding())
    tell.close()
    assert box.got.get(timeout=600)[2]["To"] == "me@example.org"
    assert asked == [(b"u", b"p", True)]


def test_a_server_without_tls_gets_no_password(serve, caplog):
    box, port = serve()
    tell = email(
        "me@example.org", host="127.0.0.1", port=port, sender="t@example.org", user="u", password="hidden"
    )
    tell(finding())
    tell.close()
    assert box.got.empty()
    assert "could not be sent to the mail server 127.0.0.1: SMTPNotSupportedError" in caplog.text
    assert "hidden" not in caplog.text


# -- arguments, several, in a Watch -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda: webhook("hooks.slack.com/services/SECRET"), "not shown here"),
        (lambda: webhook("file:///etc/passwd"), "not shown here"),
        (lambda: webhook("http://x/", severity="bad"), "severity='bad'"),
        (lambda: webhook("http://x/", per_hour=0), "per_hour=0"),
        (lambda: email("me", host="x", port=25, sender="a@b"), "to='me'"),
        (lambda: email("a@b\nBcc: c@d", host="x", port=25, sender="a@b"), "to='a@b"),
        (lambda: email([], host="x", port=25, sender="a@b"), r"to=\[\]"),
        (lambda: email("a@b", host="x", port=25, sender="a@b", tls="on"), "tls='on'"),
        (lambda: email("a@b", host="x", port=25, sender="a@b", tls="none", password="p"), "tls='none' with a password"),
        (lambda: email("a@b", host="x", port=25, sender="a@b", timeout=0), "timeout=0"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused(make, seen):
    with pytest.raises(InputError, match=seen):
        make()


@pytest.mark.parametrize(
    "url",
    [
        "hooks.slack.com/services/SECRET",
        "SECRET://hooks.slack.com/",
        "https:/hooks.slack.com/services/SECRET",
        "https://[hooks/SECRET",
        "https://hooks.slack.com:SECRET/",
        "https://hooks.slack.com/services/SECRET\n",
        "https://hooks.slack.com/services/SECRET x",
        "https://hooks.slack.com/services/SECRET\u2026",
        b"https://hooks.slack.com/services/SECRET",
        ["SECRET"],
    ],
)
def test_no_part_of_a_webhooks_url_is_told(url):
    with pytest.raises(InputError) as error:
        webhook(url)
    assert "secret" not in str(error.value).lower().replace("since it is a secret", "")
    assert "SECRET" not in repr(error.value)


def test_several_functions_are_told_in_order(server, caplog):
    told = []
    findings = Findings([log, webhook(server.url), told.append])
    findings.add([finding()])
    with caplog.at_level(logging.INFO, "loopwise.debug"):
        findings.tell()
    findings.close()
    assert str(told) == str(findings.all) == str([finding()])  # NaN is not NaN
    assert server.posted.get(timeout=600)[2]["text"] == caplog.records[0].getMessage()


def test_in_a_watch(tmp_path, server):
    tell = webhook(server.url)
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, run=tmp_path / "run", save=every(1), on_finding=tell) as watch:
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.full((3, 2), float("nan"))).sum().backward()
            optimizer.step()
            watch.step()
    tell.close()
    assert server.posted.get(timeout=600)[2]["text"] == str(watch.findings[0])
