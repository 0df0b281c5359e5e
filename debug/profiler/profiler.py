"""Goes along with a ``Watch`` and records what training waits for."""

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
    """A monitor of a ``Watch``: system metrics, the phases of each step, and windows of ``torch.profiler``.

    Training is the same to the bit with and without it.

    Args:
        models: root modules by name, in their outermost wrappers.
        optimizers: by name.
        run: where records go, under ``debug``.
        options: what to do.
        spent: seconds that the ``Watch`` has taken so far.
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
        self._found: deque[Finding] = deque()
        found, phases = self._found, self._phases
        self._sampler = Sampler(
            run,
            options.interval,
            used=identities(models.values()),
            phases=phases.drain,
            look=lambda name, record: found.extend(rules.add(name, record)),  # the thread has no hold of us
        )
        self._windows = Windows(
            run, options.windows, options.top, lambda record: self._sampler.put("operators", record)
        )
        with contextlib.ExitStack() as undone:  # where something fails on the way
            undone.callback(self._sampler.close)
            self._probes = Probes(self._phases, models.values(), optimizers.values())
            undone.callback(self._probes.remove)
            loaders.listen(self._phases)
            undone.callback(loaders.leave, self._phases)
            self._sampler.start()
            undone.pop_all()
        self._closed = False

    def begin(self, step: int, mode: str) -> None:
        """A step begins; steps are counted over all modes."""
        if self._sampler.error is not None:
            raise self._sampler.error
        self._probes.fit()
        self._windows.begin(step, mode)
        self._phases.begin()

    def end(self, step: int, mode: str, scalars: Scalars) -> None:
        """A step ended."""
        self._phases.end(step, mode)
        self._windows.end()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """The time inside belongs to the phase ``name`` of the step, a word of the user's or ``data``.

        Raises:
            InputError: the name of something else in a step's record.
        """
        return self._phases.phase(name)

    def findings(self) -> list[Finding]:
        """What was found since the last call."""
        return [self._found.popleft() for _ in range(len(self._found))]

    def close(self) -> None:
        """Write what is left, and take every hook off."""
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as rest:  # from the last to the first, whatever fails
            rest.callback(self._sampler.close)
            rest.callback(self._phases.close)
            rest.callback(self._windows.close)
            rest.callback(self._probes.remove)
            rest.callback(loaders.leave, self._phases)
