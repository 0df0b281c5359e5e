"""Keys of the link between a trainer and an actor, and the check of who connects.

Commands, headers and everything pickled travel over CURVE, ZeroMQ's encryption by public keys: the actor accepts no client
but the trainer's.  The bytes of tensors travel over a second socket.  CURVE would limit it to 0.7 GB/s of a core, so it only
asks for a password there, unless Ray itself runs with TLS: without TLS the keys are handed over readable, and encryption of
the batches would hide nothing from whoever listens.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from loopwise.extras import required

with required("pyzmq", "feed", "a loader with a group", module="zmq"):
    import zmq
    from zmq.auth.thread import ThreadAuthenticator

DOMAIN = "loopwise"


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of one trainer and its actors."""

    server_public: bytes
    server_secret: bytes
    client_public: bytes
    client_secret: bytes
    password: str
    encrypted: bool
    """The bytes of tensors are encrypted too."""

    def __repr__(self) -> str:
        return f"Keys(client_public={self.client_public!r}, encrypted={self.encrypted})"


def new_keys(environment: Mapping[str, str] = os.environ) -> Keys:
    """Make random keys; tensors are encrypted if ``RAY_USE_TLS`` is set."""
    encrypted = environment.get("RAY_USE_TLS", "0").lower() not in ("", "0", "false")
    return Keys(*zmq.curve_keypair(), *zmq.curve_keypair(), secrets.token_urlsafe(32), encrypted)


class _Client:
    """Check of the key of a client."""

    def __init__(self, public: bytes) -> None:
        self.public = public

    def callback(self, domain: str, key: bytes) -> bool:
        return secrets.compare_digest(self.public, key)


def admit(context: zmq.Context[zmq.Socket[bytes]], keys: Keys) -> ThreadAuthenticator:
    """Start the thread that admits no client but that of ``keys`` to the sockets of a context; the caller stops it."""
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_plain(domain=DOMAIN, passwords={DOMAIN: keys.password})
    authenticator.configure_curve_callback(domain=DOMAIN, credentials_provider=_Client(keys.client_public))
    return authenticator


def serve(socket: zmq.Socket[bytes], keys: Keys, curve: bool) -> None:
    """Make a socket the side that admits clients."""
    socket.zap_domain = DOMAIN.encode()
    if curve:
        socket.curve_server = True
        socket.curve_secretkey = keys.server_secret
    else:
        socket.plain_server = True


def present(socket: zmq.Socket[bytes], keys: Keys, curve: bool) -> None:
    """Make a socket the side that shows its key."""
    if curve:
        socket.curve_serverkey = keys.server_public
        socket.curve_publickey = keys.client_public
        socket.curve_secretkey = keys.client_secret
    else:
        socket.plain_username = DOMAIN.encode()
        socket.plain_password = keys.password.encode()
