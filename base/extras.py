"""Import optional packages, with an error that names the extra that brings them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from loopwise.errors import MissingExtra


@contextlib.contextmanager
def required(package: str, extra: str, purpose: str) -> Iterator[None]:
    """Turn the absence of a package that is imported inside the ``with`` block into a ``MissingExtra``.

    An installed package that fails to import raises its own error: hiding it would hide a broken installation.

    Args:
        package: name of the package on the package index, for instance ``plotly``.
        extra: the extra of Loopwise that installs it.
        purpose: what needs it, as a noun phrase: ``the report page``.

    Raises:
        MissingExtra: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package.partition(".")[0].replace("-", "_"):
            raise
        raise MissingExtra.of(package, extra, purpose) from None
