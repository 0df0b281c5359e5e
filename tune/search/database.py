"""PostgreSQL as the storage of a study, by Optuna's SQL storage and psycopg 3."""

from __future__ import annotations

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from loopwise.errors import InputError, StateError
from loopwise.extras import required

from ..job.database_url import database_url, without_password

CONNECTING = 10
"""Most seconds to wait for a server, unless the URL says connect_timeout."""


def open_database(text: str) -> BaseStorage:
    """Return the storage of a database, whose tables are made if it has none.

    Raises:
        InputError: the server does not answer, or refuses the user; the message holds no password.
        MissingExtra: psycopg is not installed.
    """
    with required("psycopg", "postgresql", "storage in PostgreSQL"):
        import psycopg  # noqa: F401
    url = database_url(text)
    arguments = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECTING}
    try:
        return RDBStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs={"pool_pre_ping": True, "connect_args": arguments},
        )
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        raise InputError(
            f"the storage {without_password(text)}: {_told(error, url)}",
            "a PostgreSQL database that can be reached, and whose owner the user is",
            "a server that does not run, a wrong host, port, user or password, or a missing database",
            "try the same with psql; the password may also come from PGPASSWORD or ~/.pgpass",
        ) from None


def failed(error: Exception, text: str) -> StateError:
    """Return the error of a database that failed while a job ran."""
    return StateError(
        f"the storage {without_password(text)} failed: {_told(error, database_url(text))}",
        "a PostgreSQL server that answers",
        "a server that was stopped, or a network that failed",
        "go on with --resume when it answers again; trials that run go on meanwhile",
    )


def _told(error: BaseException, url: URL) -> str:
    """Return the first line of the database's own error."""
    cause: BaseException = error
    while getattr(cause, "orig", None) is not None or cause.__cause__ is not None:
        cause = getattr(cause, "orig", None) or cause.__cause__ or cause
    told = (str(cause).strip().splitlines() or [repr(cause)])[0]
    return told.replace(str(url.password), "***") if url.password else told
