"""Errors with four parts: the value seen, the value expected, the likely cause, and the fix."""

from __future__ import annotations


class LoopwiseError(Exception):
    """Base class of all errors that Loopwise raises.

    Args:
        seen: the caller's argument, or the event.
        expected: the valid values.
        cause: the likely cause, in the caller's terms.
        fix: the change that solves the problem.
    """

    def __init__(self, seen: str, expected: str, cause: str, fix: str) -> None:
        super().__init__(seen, expected, cause, fix)  # pickle calls the class with these four

    def __str__(self) -> str:
        seen, expected, cause, fix = self.args
        return f"seen: {seen}\nexpected: {expected}\nlikely cause: {cause}\nfix: {fix}"


class InputError(LoopwiseError, ValueError):
    """An argument or a batch that cannot be used."""


class StateError(LoopwiseError, RuntimeError):
    """A call that is not valid in the present state of a run, a loader or a process."""


class MissingExtra(LoopwiseError, ImportError):
    """A missing optional dependency."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingExtra:
        """Make the error for a package that ``purpose`` needs and that the extra ``extra`` installs."""
        return cls(
            f"the package {package!r} is not installed",
            f"{package!r}, which {purpose} needs",
            f"loopwise was installed without its extra {extra!r}",
            f"pip install 'loopwise[{extra}]'",
        )
