"""Monitor of a ``Watch`` that records what training waits for."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from torch import nn
from torch.optim import Optimizer

from loopwise.run import Run

from ..model import names
from ..monitors.monitor import Scalars
from ..rules import Finding
from ..rules.profile.records import ProfileRules
from ..rules.thresholds import Selection, select
from . import loaders
from .cuda_events import Events
from .gpu import identities
from .options import Profile
from .phases import Phases
from .probes import Probes
from .sampler import Sampler
from .windows import Windows


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
        self._new_findings: deque[Finding] = deque()
        new_findings, phases = self._new_findings, self._phases
        self._sampler = Sampler(
            run,
            options.interval,
            used=identities(models.values()),
            phases=phases.drain,
            look=lambda name, record: new_findings.extend(rules.add(name, record)),  # no reference to self
        )
        self._windows = Windows(
            run, options.windows, options.top, lambda record: self._sampler.put("operators", record)
        )
        with contextlib.ExitStack() as undone:  # undo what was done if a later step fails
            undone.callback(self._sampler.close)
            self._probes = Probes(self._phases, models.values(), optimizers.values())
            undone.callback(self._probes.remove)
            loaders.subscribe(self._phases)
            undone.callback(loaders.unsubscribe, self._phases)
            self._sampler.start()
            undone.pop_all()
        self._closed = False

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
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as rest:  # from the last to the first, even if one of them fails
            rest.callback(self._sampler.close)
            rest.callback(self._phases.close)
            rest.callback(self._windows.close)
            rest.callback(self._probes.remove)
            rest.callback(loaders.unsubscribe, self._phases)
