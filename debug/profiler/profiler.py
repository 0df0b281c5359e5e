"""Monitor of a ``Watch`` that records the phases of steps and the use of the machine, and its options."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from loopwise.errors import InputError
from loopwise.run import Run
from loopwise.schedule import Schedule
from loopwise.validate import whole_number

from ..model import names
from ..monitors.monitor import Scalars
from ..rules import Finding
from ..rules.profile.records import ProfileRules
from ..rules.thresholds import Rules, Selection, select
from . import loaders
from .cuda_events import Events
from .gpu import identities
from .phases import Phases
from .probes import Probes
from .sampler import Sampler, validate_interval
from .windows import Windows


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
        validate_interval(self.interval)
        if self.windows is not None and not isinstance(self.windows, Schedule):
            raise InputError(
                f"windows={self.windows!r}",
                "a Schedule, such as at([100, 101]), every(1000) or between(100, 105)",
                "a number of steps, or a list",
                "windows=at([100, 101, 102])",
            )
        whole_number("top", self.top, least=1, unit="operators", example=20)
        select(self.rules, "profile")


class Profiler:
    """Recorder of system metrics, of the phases of each step, and of windows of ``torch.profiler``.

    Training is bit-identical with and without it.  While it is open, methods of torch's ``DataLoader`` are replaced
    in the whole process; see ``loaders``.

    Args:
        models: root modules by name, in their outermost wrappers.
        optimizers: optimizers by name.
        run: run that the records are written into, under ``debug``.
        options: options of the profile.
        spent: returns the seconds that the ``Watch`` has taken so far.
        selected: rules if ``options.rules`` is ``"auto"``; default: all profile rules.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        run: Run,
        options: Profile,
        spent: Callable[[], float] = lambda: 0.0,
        selected: Selection | None = None,
    ) -> None:
        device = names.device(models)
        self._phases = Phases(spent, Events(device) if device.type == "cuda" else None)
        if selected is None or options.rules != "auto":
            selected = select(options.rules, "profile")
        rules = ProfileRules(selected)
        self._new_findings = new_findings = deque[Finding]()
        self._sampler = Sampler(
            run,
            options.interval,
            used=identities(models.values()),
            phases=self._phases.drain,
            look=lambda name, record: new_findings.extend(rules.add(name, record)),  # no reference to self
        )
        self._windows = Windows(run, options.windows, options.top, self._sampler.put)
        with (
            contextlib.ExitStack() as opened
        ):  # if a later step fails, all is closed, from the last to the first
            opened.callback(self._sampler.close)
            opened.callback(self._phases.close)
            opened.callback(self._windows.close)
            self._probes = Probes(self._phases, models.values(), optimizers.values())
            opened.callback(self._probes.remove)
            loaders.subscribe(self._phases)
            opened.callback(loaders.unsubscribe, self._phases)
            self._sampler.start()
            self._opened = opened.pop_all()

    def begin(self, step: int, mode: str) -> None:
        """Begin a step; steps are counted over all modes."""
        if self._sampler.error is not None:
            raise self._sampler.error
        self._probes.refresh()
        self._windows.begin(step, mode)
        self._phases.begin()

    def end(self, step: int, mode: str, scalars: Scalars) -> None:
        """End a step."""
        self._phases.end(step, mode)
        self._windows.end()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Count the time inside of the context as the phase ``name`` of the step, the user's own or ``data``.

        Raises:
            InputError: the name is that of another column in a step's record.
        """
        return self._phases.phase(name)

    def findings(self) -> list[Finding]:
        """Return the findings since the last call."""
        return [self._new_findings.popleft() for _ in range(len(self._new_findings))]

    def close(self) -> None:
        """Write the last records, remove all hooks, and put torch's methods back."""
        self._probes.remove()  # first, so that an interrupted close can be repeated
        self._opened.close()
