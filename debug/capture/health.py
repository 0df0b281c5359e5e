"""The collection ``health``: facts of a saved step that rules need besides its tensors.

Updates are saved as a table, all other facts as marks of the step's record, and only if they may be a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise.torch_internals import is_compiled, version

from ..hooks.guards import Guarded
from ..model import names
from ..model.source_lines import lines
from ..signals import modules as module_signals
from ..signals.batch_outputs import HEADS, Outputs
from ..signals.learning_rate import Rates
from ..signals.loss_graph import of_loss
from ..signals.updates import UpdateSizes
from ..signals.zero_grad import Zeroing
from .collection import Collection
from .step import PendingStep

MEMORY = ("momentum", "betas", "alpha", "rho")
"""Settings of optimizers that remember earlier gradients."""
NAMED = 50
"""Largest number of names that are saved for one fact."""


class Health:
    """Inspection of the models and optimizers of one ``Watch`` in the steps that are saved.

    Args:
        models, optimizers: models and optimizers of the ``Watch``, by key.
        collection: the collection ``health``; ``None``: nothing is inspected.
        failed: function that is called with an error, and leaves the collection out of the step.

    Attributes:
        rates: learning rates, followed at every step.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        collection: Collection | None,
        failed: Callable[[Exception], None],
    ) -> None:
        self._models, self._optimizers = models, optimizers
        self._has_optimizers = bool(optimizers)  # also if the script has freed them since
        self._collection, self._failed = collection, failed
        self._zeroing, self._outputs = Zeroing(self._guarded), Outputs(self._guarded)
        active = collection is not None
        guard = Guarded(self._leave_out)
        self.rates = Rates(optimizers if active else {}, guard, self._zeroing.step_called)
        self._outputs.attach(models if active else {})
        self._modes = module_signals.ModesAtForward(models if active else {})
        self._modules: list[tuple[str, nn.Module]] = []
        self._members: tuple[int, ...] = ()
        self._types: dict[str, str] = {}
        self._saved_types: dict[str, str] = {}
        self._lines: dict[str, str] | None = None
        self._classes: dict[str, int] = {}
        self._versions: dict[int, int] = {}
        self._new_optimizers = 0
        self.begin()

    def begin(self, step: PendingStep | None = None) -> None:
        """Begin a step; ``None`` if it is not saved."""
        self._sizes = UpdateSizes()
        self._facts: dict[str, Any] = {}
        self._updated: list[Optimizer] = []
        self._parameters_by_name: dict[str, nn.Parameter] | None = None
        self.rest()
        if step is not None and self._collection in step.collections:
            self._modes.mode = step.record["mode"]
            if self._modes.mode == "train":
                self._outputs.begin()

    def rest(self) -> None:
        """Ignore inputs, outputs and modes until the next step that is saved."""
        self._outputs.rest()
        self._modes.mode = ""

    def _guarded(self) -> Guarded:
        """Return a context that leaves the collection out of the step if something fails inside."""
        return Guarded(self._leave_out)

    def _leave_out(self, error: Exception) -> None:
        self._zeroing.close()
        self._outputs.rest()
        self._failed(error)

    def joined(self, optimizer: Optimizer, replaces: bool) -> None:
        """Count an optimizer with a memory of gradients that took the place of another one."""
        memory = [key for group in optimizer.param_groups for key in MEMORY if group.get(key)]
        self._new_optimizers += replaces and bool(memory)

    def at_update(self, step: PendingStep, optimizer: Optimizer) -> None:
        """Inspect gradients, modes and owners right before an optimizer updates."""
        if self._collection in step.all:
            with self._guarded():
                self._inspect(optimizer)

    def _inspect(self, optimizer: Optimizer) -> None:
        self._updated.append(optimizer)
        names_by_id = {id(p): name for name, p in self._parameters().items()}
        held = [p for group in optimizer.param_groups for p in group["params"]]
        trained = [(names_by_id[id(p)], p) for p in held if id(p) in names_by_id and p.requires_grad]
        self._note_frozen([p for p in held if id(p) in names_by_id], names_by_id)
        without = [name for name, p in trained if p.grad is None]
        if trained and len(without) == len(trained):
            self._facts["no_gradients"] = True
        elif without:
            self._note("no_gradient", without)
        trained_ids = {id(p) for _, p in trained}
        self._note("evaluating", self._modes.take(False, trained_ids))
        self._note_owners()
        self._refresh()
        self._note("frozen_norms", module_signals.frozen_norms(self._models, self._modules))
        self._note("heavy_dropout", module_signals.heavy_dropouts(self._modules))
        if (passes := self._zeroing.passes(optimizer)) > 1:
            self._facts["passes"] = max(passes, self._facts.get("passes", 0))
        if not_zeroed := self._zeroing.end(optimizer):
            self._note("not_zeroed", [not_zeroed])
        self._sizes.add((name, p) for name, p in trained if p.grad is not None)

    def finish(self, step: PendingStep, mode: str, scalars: Mapping[str, Any]) -> None:
        """Save the facts of the step."""
        if self._collection not in step.all:
            return
        with self._guarded():
            step.record["marks"] |= self._marks(mode, scalars)
            sizes = self._sizes.table()
            if sizes is not None and self._collection is not None:
                step.add_table(
                    self._collection, sizes.names, ("size", "ratio"), sizes.values, sizes.signature
                )
            outputs = self._outputs.take()
            if mode == "train" and outputs is not None and self._collection is not None:
                step.add_table(self._collection, outputs[0], HEADS, outputs[1], ())
            self._follow_gradients()

    def _marks(self, mode: str, scalars: Mapping[str, Any]) -> dict[str, Any]:
        if mode != "train":
            self._note("training", self._modes.take(True, set()))
        else:
            self._note_still_parameters()
            self._note_losses(scalars)
            if targets := self._outputs.targets():
                self._facts["targets"] = targets
            if constant := self._outputs.constant.facts():
                self._facts["constant_inputs"] = constant
            if self._new_optimizers > 1:
                self._facts["new_optimizers"] = self._new_optimizers
            if decays := self._decays():
                self._facts["decays"] = decays
            if rates := self.rates.facts():
                self._facts["rates"] = rates
        marks: dict[str, Any] = {"facts": self._facts} if self._facts else {}
        self._refresh()
        if self._types != self._saved_types:
            self._saved_types = marks["modules"] = self._types
        if self._lines is None:
            self._lines = lines(self._modules)
            if len(self._optimizers) > 1:
                marks["optimizers"] = len(self._optimizers)
            if self._lines:
                marks["lines"] = self._lines
        return marks

    def _refresh(self) -> None:
        """Follow the modules if some came or went."""
        members = names.identities(self._models)
        if members != self._members:
            self._members, self._modules = members, list(names.modules(self._models))
            self._types = module_signals.types(self._modules)

    def _note_losses(self, scalars: Mapping[str, Any]) -> None:
        classes = {}
        for name, value in scalars.items():
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                facts = of_loss(value)
                if "classes" in facts:
                    classes[name] = facts.pop("classes")
                self._facts |= facts
        if classes and classes != self._classes:
            self._classes = self._facts["classes"] = classes

    def _follow_gradients(self) -> None:
        """Follow gradients after a saved step's updates, to see whether they are set to zero before the next ones."""
        if torch.distributed.is_initialized() or any(is_compiled(model) for model in self._models.values()):
            return  # gradients do not pass through the parameters' hooks there
        for optimizer in self._updated:
            self._zeroing.begin(optimizer, self._sizes.parameters)

    def close(self) -> None:
        self._modes.close()
        self._zeroing.close()
        self._outputs.close()
        self.rates.close()

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters by name; they are searched once a step."""
        if self._parameters_by_name is None:
            self._parameters_by_name = dict(names.parameters(self._models))
        return self._parameters_by_name

    def _note(self, fact: str, of: list[str]) -> None:
        """Add names to a fact of the step."""
        if of:
            self._facts[fact] = list(dict.fromkeys(self._facts.get(fact, []) + of))[:NAMED]

    def _note_still_parameters(self) -> None:
        """Record a mark if no parameter was written to since the previous saved step, by an optimizer or other code.

        Optimizers that write past torch's counter of changes update, which is noted as well.
        """
        versions = {id(p): version(p) for p in self._parameters().values() if p.requires_grad}
        before, self._versions = self._versions, versions
        unchanged = before and all(before.get(key) == number for key, number in versions.items())
        if unchanged and self._has_optimizers and not self._updated:
            self._facts["still"] = True

    def _decays(self) -> list[list[float]]:
        """Return weight decay, learning rate, and 1 for decoupled decay, of each group of the step's optimizers that has any."""
        groups = [(optimizer, group) for optimizer in self._updated for group in optimizer.param_groups]
        return [
            [float(group["weight_decay"]), float(group["lr"]), float("AdamW" in type(optimizer).__name__)]
            for optimizer, group in groups
            if group.get("weight_decay")
        ]

    def _note_frozen(self, held: list[nn.Parameter], names_by_id: Mapping[int, str]) -> None:
        """Note the frozen parameters that an optimizer holds, and their share of its elements."""
        if frozen := [p for p in held if not p.requires_grad]:
            self._note("frozen", [names_by_id[id(p)] for p in frozen])
            self._facts["frozen_share"] = sum(p.numel() for p in frozen) / sum(p.numel() for p in held)

    def _note_owners(self) -> None:
        """Note parameters that got a gradient and that no optimizer holds."""
        groups = [group for optimizer in self._optimizers.values() for group in optimizer.param_groups]
        held = {id(p): p for group in groups for p in group["params"]}
        named = self._parameters()
        unheld = [
            name for name, p in named.items() if p.requires_grad and p.grad is not None and id(p) not in held
        ]
        if unheld:
            self._note("unheld", unheld)
            own = {id(p) for p in named.values()}
            foreign = [p.shape for key, p in held.items() if key not in own]
            self._facts["stale"] = any(named[name].shape in foreign for name in unheld)
