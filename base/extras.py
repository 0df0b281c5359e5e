"""Import optional packages, with an error that names the extra that installs the package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from loopwise.errors import MissingExtra


@contextlib.contextmanager
def required(package: str, extra: str, purpose: str, module: str | None = None) -> Iterator[None]:
    """Raise ``MissingExtra`` if a package that is imported inside the ``with`` block is not installed.

    An installed package that fails to import raises its own error, which shows that the installation is broken.

    Args:
        package: name of the package on PyPI, for instance ``plotly``.
        extra: the extra of Loopwise that installs it.
        purpose: the feature that needs it, as a noun phrase: ``the page of a run``.
        module: name of the package in ``import`` statements; default: ``package`` with underscores.

    Raises:
        MissingExtra: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != (module or package.replace("-", "_")).partition(".")[0]:
            raise
        raise MissingExtra.of(package, extra, purpose) from None
