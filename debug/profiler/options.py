"""What a profiler is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from loopwise.errors import InputError
from loopwise.schedule import Schedule

from ..rules.thresholds import Rules, select
from . import sampler


@dataclass(frozen=True, slots=True)
class Profile:
    """How a ``Watch`` profiles.

    Args:
        interval: seconds between samples of the machine, from 0.1 to 60.
        windows: training steps, by their number over all modes, that ``torch.profiler`` looks at; those that follow
            each other are one window.  It slows down these steps, and those at which a window ends.
        top: operators in the record of a window, by time on the CPU and as many by time on the device.
        rules: ``"auto"``: the profile rules that the ``Watch`` selects; or ``True``, ``False``, names of profile rules, or
            thresholds by name.

    Raises:
        InputError: options that cannot be used.
    """

    interval: float = 0.5
    windows: Schedule | None = None
    top: int = 20
    rules: Rules = "auto"

    def __post_init__(self) -> None:
        sampler.check(self.interval)
        if self.windows is not None and not isinstance(self.windows, Schedule):
            raise InputError(
                f"windows={self.windows!r}",
                "a Schedule, such as at([100, 101]), every(1000) or between(100, 105)",
                "a number of steps, or a list",
                "windows=at([100, 101, 102])",
            )
        if isinstance(self.top, bool) or not isinstance(self.top, int) or self.top < 1:
            raise InputError(
                f"top={self.top!r}", "a whole number of at least 1", "a share, or a switch", "top=20"
            )
        select(self.rules, "profile")
