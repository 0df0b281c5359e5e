"""Options of the profiler."""

from __future__ import annotations

from dataclasses import dataclass

from loopwise.errors import InputError
from loopwise.schedule import Schedule
from loopwise.validate import whole_number

from ..rules.thresholds import Rules, select
from . import sampler


@dataclass(frozen=True, slots=True)
class Profile:
    """Options of the profile of a ``Watch``.

    Args:
        interval: seconds between samples of the machine, from 0.1 to 60.
        windows: training steps, by their number over all modes, that ``torch.profiler`` records; consecutive steps
            form one window.  Recording slows down these steps, and the step at which a window ends.
        top: number of operators in the record of a window, by time on the CPU, and as many by time on the device.
        rules: ``"auto"`` for the profile rules that the ``Watch`` selects; or ``True``, ``False``, names of profile
            rules, or thresholds by name.

    Raises:
        InputError: an option has an invalid value.
    """

    interval: float = 0.5
    windows: Schedule | None = None
    top: int = 20
    rules: Rules = "auto"

    def __post_init__(self) -> None:
        sampler.validate_interval(self.interval)
        if self.windows is not None and not isinstance(self.windows, Schedule):
            raise InputError(
                f"windows={self.windows!r}",
                "a Schedule, such as at([100, 101]), every(1000) or between(100, 105)",
                "a number of steps, or a list",
                "windows=at([100, 101, 102])",
            )
        whole_number("top", self.top, least=1, unit="operators", example=20)
        select(self.rules, "profile")
