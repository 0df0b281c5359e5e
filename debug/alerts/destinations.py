"""Destinations of findings: functions for ``on_finding`` that neither delay nor end the training.

Example::

    Watch(model, optimizer, run=..., on_finding=[log, webhook("https://hooks.slack.com/services/...")])
"""

from __future__ import annotations

import contextlib
import smtplib
import ssl
import urllib.request
from collections.abc import Iterable, Sequence
from email.message import EmailMessage
from urllib.parse import urlsplit

from loopwise.errors import InputError
from loopwise.run import encode

from ..rules import SEVERITIES, Finding
from .delivery_queue import DeliveryQueue
from .notices import log as log

TLS = ("starttls", "ssl", "none")


def webhook(
    url: str, *, timeout: float = 5.0, severity: str = "warning", per_hour: int = 20
) -> DeliveryQueue:
    """Return a function that posts findings as JSON: ``text``, which Slack shows, and ``findings``, their records.

    Args:
        url: URL with the scheme ``http`` or ``https``.
        timeout: seconds that a post may take.
        severity: least severity that is sent.
        per_hour: largest number of messages in an hour; further findings are joined into the next allowed message, or
            into one at the end.

    Raises:
        InputError: an argument is not valid.
    """
    host = _host(url)

    def post(findings: Sequence[Finding], text: str) -> None:
        data = encode({"text": text, "findings": [finding.record() for finding in findings]})
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=timeout):
            pass

    return DeliveryQueue(f"the webhook at {host}", post, timeout, severity, per_hour)


def _host(url: str) -> str:
    """Return the host of a webhook's URL.

    Raises:
        InputError: the URL is not valid; the message has no part of it, as who knows it may post.
    """
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        parts = urlsplit(url)
        in_ascii = all(
            "!" <= character <= "~" for character in url
        )  # others would be told by the error of a post
        if parts.scheme in ("http", "https") and parts.hostname and in_ascii and parts.port != 0:
            return str(parts.hostname)
    raise InputError(
        "a url= that is not shown here, since it is a secret",
        "a URL that begins with http:// or https:// and has no spaces",
        "a name without its scheme, a path, or characters that were copied with it",
        "webhook('https://hooks.slack.com/services/...')",
    )


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
) -> DeliveryQueue:
    """Return a function that sends findings by e-mail, through your SMTP server.

    Args:
        to: one address or several.
        host: name or address of the server.
        port: port of the server.
        sender: address of the sender.
        user: name, if the server asks for one.
        password: password of ``user``.
        tls: ``starttls`` (often port 587), ``ssl`` (465) or ``none``, which allows no password.
        timeout: seconds that each answer of the server may take.
        severity: least severity that is sent.
        per_hour: largest number of messages in an hour; further findings are joined into the next allowed message, or
            into one at the end.

    Raises:
        InputError: an argument is not valid.
    """
    addresses = [to] if isinstance(to, str) else list(to)
    if not addresses or any("@" not in a or "\n" in a or "\r" in a for a in (*addresses, sender)):
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
            "a password would be sent unencrypted",
            "tls='starttls' for port 587, tls='ssl' for port 465",
        )

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

    return DeliveryQueue(f"the mail server {host}", send, timeout, severity, per_hour)
