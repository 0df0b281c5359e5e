"""Where findings go: functions for ``on_finding``, that never hold training up and never end it.

Watch(model, optimizer, run=..., on_finding=[log, webhook("https://hooks.slack.com/services/...")])
"""

from __future__ import annotations

import smtplib
import ssl
import urllib.request
from collections.abc import Iterable, Sequence
from email.message import EmailMessage
from urllib.parse import urlsplit

from loopwise.errors import InputError
from loopwise.run import encode

from ..rules import SEVERITIES, Finding
from .notices import log as log
from .outbox import Outbox

TLS = ("starttls", "ssl", "none")


def webhook(url: str, *, timeout: float = 5.0, severity: str = "warning", per_hour: int = 20) -> Outbox:
    """Findings as JSON, posted to a URL: ``text``, which Slack and its like show, and ``findings``, their records.

    Args:
        url: ``http`` or ``https``.
        timeout: seconds that a post may take.
        severity: the least one that is told.
        per_hour: messages at most; what is more comes in one message as soon as there may be another, or at the end.

    Raises:
        InputError: arguments that cannot be used.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"url={url!r}",
            "a URL that begins with http:// or https://",
            "a name without its scheme, or a path",
            "webhook('https://hooks.slack.com/services/...')",
        )
    _check(timeout, severity, per_hour)

    def post(findings: Sequence[Finding], text: str) -> None:
        data = encode({"text": text, "findings": [finding.record() for finding in findings]})
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=timeout):
            pass

    return Outbox(f"the webhook at {parts.hostname}", post, timeout, severity, per_hour)


def email(
    to: str | Iterable[str],
    *,
    host: str,
    port: int,
    sender: str,
    user: str | None = None,
    password: str | None = None,
    tls: str = "starttls",
    timeout: float = 10.0,
    severity: str = "warning",
    per_hour: int = 6,
) -> Outbox:
    """Findings by e-mail, through your SMTP server.

    Args:
        to: one address or several.
        host, port: of the server.
        sender: address that it is from.
        user, password: where the server asks for them.
        tls: ``starttls`` (often port 587), ``ssl`` (465) or ``none``, without a password then.
        timeout: seconds that each answer of the server may take.
        severity: the least one that is told.
        per_hour: messages at most; what is more comes in one message as soon as there may be another, or at the end.

    Raises:
        InputError: arguments that cannot be used.
    """
    addresses = [to] if isinstance(to, str) else list(to)
    if not addresses or any("@" not in each or "\n" in each or "\r" in each for each in (*addresses, sender)):
        raise InputError(
            f"to={to!r}, sender={sender!r}",
            "addresses such as name@example.org",
            "a name without its domain",
            "email('me@example.org', host=..., port=587, sender='training@example.org')",
        )
    if tls not in TLS or (tls == "none" and password is not None):
        raise InputError(
            f"tls={tls!r}" + (" with a password" if password is not None else ""),
            f"one of {', '.join(TLS)}, the last without a password",
            "a password would be readable on its way",
            "tls='starttls' for port 587, tls='ssl' for port 465",
        )
    _check(timeout, severity, per_hour)

    def send(findings: Sequence[Finding], text: str) -> None:
        message = EmailMessage()
        worst = max((finding.severity for finding in findings), key=SEVERITIES.index)
        rules = ", ".join(dict.fromkeys(finding.rule for finding in findings))
        message["Subject"] = f"[loopwise] {worst}: {rules}"[:200]
        message["From"], message["To"] = sender, ", ".join(addresses)
        message.set_content(text)
        context = None if tls == "none" else ssl.create_default_context()
        with (
            smtplib.SMTP_SSL(host, port, timeout=timeout, context=context)
            if tls == "ssl"
            else smtplib.SMTP(host, port, timeout=timeout)
        ) as server:
            if tls == "starttls":
                server.starttls(context=context)
            if user is not None and password is not None:
                server.login(user, password)
            server.send_message(message)

    return Outbox(f"the mail server {host}", send, timeout, severity, per_hour)


def _check(timeout: float, severity: str, per_hour: int) -> None:
    if severity not in SEVERITIES or not timeout > 0 or isinstance(per_hour, bool) or per_hour < 1:
        raise InputError(
            f"timeout={timeout!r}, severity={severity!r}, per_hour={per_hour!r}",
            f"seconds above 0, one of {', '.join(SEVERITIES)}, and at least one message an hour",
            "a typing error",
            "leave them out for the defaults",
        )
