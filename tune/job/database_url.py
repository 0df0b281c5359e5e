"""URLs of PostgreSQL databases."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

DRIVER = "postgresql+psycopg"
KINDS = frozenset(["postgresql", "postgres", DRIVER])


def database_url(text: str) -> URL:
    """Return the URL of a PostgreSQL database, with psycopg 3 as its driver.

    Raises:
        ValueError: another URL; the message holds no password.
    """
    from sqlalchemy.engine import make_url  # here, since few jobs need it, and it takes long to import
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError("storage is no URL such as postgresql://user@host:5432/database") from None
    if url.drivername not in KINDS:
        raise ValueError(f"storage begins with {url.drivername}://, and only postgresql:// is supported")
    if not url.database:
        raise ValueError("storage names no database; write for instance postgresql://user@host:5432/database")
    return url.set(drivername=DRIVER)


def without_password(text: str) -> str:
    """Return the URL of a database without its password."""
    from sqlalchemy.util import immutabledict

    return database_url(text)._replace(password=None, query=immutabledict()).render_as_string()
