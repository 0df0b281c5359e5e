"""Errors that say what was seen, what was expected, the likely cause and the fix."""

from __future__ import annotations


class LoopwiseError(Exception):
    """Root of every error that Loopwise raises.

    Args:
        seen: what the caller gave or what happened.
        expected: what is valid, with the valid values listed.
        cause: the likely cause, in the caller's terms.
        fix: the change that makes it work.
    """

    def __init__(self, seen: str, expected: str, cause: str, fix: str) -> None:
        super().__init__(seen, expected, cause, fix)  # the four args are what pickle hands back

    def __str__(self) -> str:
        seen, expected, cause, fix = self.args
        return f"seen: {seen}\nexpected: {expected}\nlikely cause: {cause}\nfix: {fix}"


class InputError(LoopwiseError, ValueError):
    """An argument or a batch that cannot be used."""


class StateError(LoopwiseError, RuntimeError):
    """A call that the present state (of a run, a loader, a process) does not allow."""


class MissingExtra(LoopwiseError, ImportError):
    """An optional dependency that is not installed."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingExtra:
        """The error for ``package``, needed for ``purpose``, that the extra ``extra`` brings."""
        return cls(
            f"the package {package!r} is not installed",
            f"{package!r}, which {purpose} needs",
            f"loopwise was installed without its extra {extra!r}",
            f"pip install 'loopwise[{extra}]'",
        )
