"""What a saved step tells beside its tensors: updates, and how the training is set up.

Rules read it from the saved step: updates as a table, the rest as marks of its record.  Nothing is noted of
what is as it should be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from ..model import names
from ..model.source_lines import lines
from ..signals.batch_outputs import HEADS, Outputs
from ..signals.learning_rate import Rates
from ..signals.loss_graph import of_loss
from ..signals.zero_grad import Zeroing
from ..statistics.pieces import uploaded
from ..statistics.sample import sample
from .collection import Collection
from .step import Saving

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
TYPED = (*NORMS, nn.ReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules whose class rules want to know."""
NAMED = 50
"""Names noted of one kind of trouble at most."""


class Health:
    """Looks at the models and optimizers of one ``Watch`` in the steps that are saved.

    Args:
        models, optimizers: by key, as the ``Watch`` has them.
        collection: ``health``; ``None``: it does nothing.
        failed: called with what went wrong; then it does nothing more, and the step is saved without it.

    Attributes:
        rates: of the optimizers at every step.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        collection: Collection | None,
        failed: Callable[[Exception], None],
    ) -> None:
        self._models, self._optimizers = models, optimizers
        self._collection, self._failed = collection, failed
        self._zeroing, self._outputs = Zeroing(self._tried), Outputs(self._tried)
        used = collection is not None
        self.rates = Rates(optimizers if used else {}, self._tried, self._zeroing.updating)
        self._outputs.attach(models if used else {})
        self._modules: list[tuple[str, nn.Module]] = []
        self._members: tuple[int, ...] = ()
        self._types: dict[str, str] = {}
        self._noted: dict[str, str] = {}
        self._lines: dict[str, str] | None = None
        self._classes: dict[str, int] = {}
        self._versions: dict[int, int] = {}
        self.begin()

    def begin(self, saving: Saving | None = None) -> None:
        """A step begins; what of it is saved."""
        self._before: list[tuple[str, nn.Parameter, torch.Tensor]] = []
        self._facts: dict[str, Any] = {}
        self._updated: list[Optimizer] = []
        self._known: dict[str, nn.Parameter] | None = None
        if saving is not None and self._collection in saving.collections and saving.record["mode"] == "train":
            self._outputs.begin()
        else:
            self.rest()

    def rest(self) -> None:
        """Of what comes now nothing is saved."""
        self._outputs.rest()

    @contextlib.contextmanager
    def _tried(self) -> Iterator[None]:
        """What fails in here ends no step and no backward pass."""
        try:
            with torch.no_grad():
                yield
        except Exception as error:
            collection, self._collection = self._collection, None
            self._zeroing.close()
            self._outputs.rest()
            if collection is not None:
                self._failed(error)

    def at_update(self, saving: Saving, optimizer: Optimizer) -> None:
        """Right before an optimizer updates in a step that is saved."""
        if self._collection in saving.all:
            with self._tried():
                self._look(optimizer)

    def _look(self, optimizer: Optimizer) -> None:
        self._updated.append(optimizer)
        named = {id(p): name for name, p in self._parameters().items()}
        held = [p for group in optimizer.param_groups for p in group["params"]]
        trained = [(named[id(p)], p) for p in held if id(p) in named and p.requires_grad]
        without = [name for name, p in trained if p.grad is None]
        if trained and len(without) == len(trained):
            self._facts["no_gradients"] = True
        elif without:
            self._note("no_gradient", without)
        self._note("evaluating", self._switched(False, {id(p) for _, p in trained}))
        self._look_for_owners()
        self._refresh()
        self._look_at_norms()
        if (passes := self._zeroing.passes(optimizer)) > 1:
            self._facts["passes"] = max(passes, self._facts.get("passes", 0))
        if not_zeroed := self._zeroing.ended(optimizer):
            self._note("not_zeroed", [not_zeroed])
        for name, parameter in trained:
            if parameter.grad is not None:
                self._before.append((name, parameter, sample(parameter).clone()))

    def finish(self, saving: Saving, mode: str, scalars: Mapping[str, Any]) -> None:
        """A saved step ends: what it tells goes into it."""
        if self._collection not in saving.all:
            return
        with self._tried():
            saving.record["marks"] |= self._marks(mode, scalars)
            found = self._changes()
            if found is not None and self._collection is not None:
                names, values, of = found
                rows = tuple(f"update/{name}" for name in names)
                saving.add_table(self._collection, rows, ("size", "ratio"), values, of)
            outputs = self._outputs.taken()
            if mode == "train" and outputs is not None and self._collection is not None:
                saving.add_table(self._collection, outputs[0], HEADS, outputs[1], ())
            self._follow()

    def _marks(self, mode: str, scalars: Mapping[str, Any]) -> dict[str, Any]:
        if mode != "train":
            self._note("training", self._switched(True, set()))
        else:
            self._look_for_writes()
            self._look_at_losses(scalars)
            if rates := self.rates.facts():
                self._facts["rates"] = rates
        marks: dict[str, Any] = {"facts": self._facts} if self._facts else {}
        self._refresh()
        if self._types != self._noted:
            self._noted = marks["modules"] = self._types
        if self._lines is None:
            self._lines = lines(self._modules)
            if len(self._optimizers) > 1:
                marks["optimizers"] = len(self._optimizers)
            if self._lines:
                marks["lines"] = self._lines
        return marks

    def _refresh(self) -> None:
        """Modules may have come and gone."""
        members = names.identities(self._models)
        if members != self._members:
            self._members, self._modules = members, list(names.modules(self._models))
            typed = [(prefix, module) for prefix, module in self._modules if isinstance(module, TYPED)]
            self._types = {prefix.removesuffix("."): type(module).__name__ for prefix, module in typed}

    def _look_at_norms(self) -> None:
        """BatchNorm whose statistics are as they were made, and stay so, while its scale learns."""
        inside = [model.modules() for model in self._models.values() if model.training]
        training = {id(module) for modules in inside for module in modules}
        norms = [(p, m) for p, m in self._modules if isinstance(m, _BatchNorm) and id(m) in training]
        found = [prefix.removesuffix(".") for prefix, m in norms if _is_frozen(m) and _is_as_made(m)]
        self._note("frozen_norms", found)

    def _look_at_losses(self, scalars: Mapping[str, Any]) -> None:
        classes = {}
        for name, value in scalars.items():
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                found = of_loss(value)
                if "classes" in found:
                    classes[name] = found.pop("classes")
                self._facts |= found
        if classes and classes != self._classes:
            self._classes = self._facts["classes"] = classes

    def _changes(self) -> tuple[Sequence[str], torch.Tensor, tuple[Any, ...]] | None:
        """Names, root mean square of weights and relative size of their updates, and dtypes and shapes.

        The numbers are float64 of shape (weights, 2), on the device of the weights.
        """
        if not self._before:
            return None
        before = [old.double() for _, _, old in self._before]
        after = [sample(parameter).double() for _, parameter, _ in self._before]
        device = before[0].device
        change = torch.stack([n.to(device) for n in torch._foreach_norm(torch._foreach_sub(after, before))])
        size = torch.stack([n.to(device) for n in torch._foreach_norm(before)])
        count = uploaded([len(old) for old in before], torch.float64, device)
        values = torch.stack([size / count.sqrt(), torch.where(size > 0, change / size, change)], dim=1)
        found = [name for name, _, _ in self._before]
        return found, values, tuple((p.dtype, p.shape) for _, p, _ in self._before)

    def _follow(self) -> None:
        """After a saved step's updates: see whether gradients are set to zero before the next ones."""
        if torch.distributed.is_initialized() or any(_is_compiled(model) for model in self._models.values()):
            return  # gradients come by other ways there
        for optimizer in self._updated:
            self._zeroing.begin(optimizer, ((name, parameter) for name, parameter, _ in self._before))

    def close(self) -> None:
        self._zeroing.close()
        self._outputs.close()
        self.rates.close()

    def _parameters(self) -> dict[str, nn.Parameter]:
        """By name; looked for once a step."""
        if self._known is None:
            self._known = dict(names.parameters(self._models))
        return self._known

    def _note(self, fact: str, found: list[str]) -> None:
        if found:
            self._facts[fact] = list(dict.fromkeys(self._facts.get(fact, []) + found))[:NAMED]

    def _switched(self, training: bool, trained: Set[int]) -> list[str]:
        """Dropout and BatchNorm in that mode.

        In evaluation mode only those of models that are in it as a whole and of which something is ``trained``.
        """
        found = []
        for key, model in self._models.items():
            if not training and (model.training or trained.isdisjoint(map(id, model.parameters()))):
                continue
            prefix = f"{key}." if key else ""
            for name, module in model.named_modules():
                if module.training is training and _matters(module):
                    found.append(prefix + names.plain(name))
        return found

    def _look_for_writes(self) -> None:
        """Was any parameter written to since the saved step before?  Some optimizers write past the counter."""
        versions = {id(p): p._version for p in self._parameters().values() if p.requires_grad}
        before, self._versions = self._versions, versions
        if (
            before
            and self._optimizers
            and not self._updated
            and all(before.get(key) == n for key, n in versions.items())
        ):
            self._facts["still"] = True

    def _look_for_owners(self) -> None:
        """Who holds the parameters that got a gradient?"""
        groups = [group for optimizer in self._optimizers.values() for group in optimizer.param_groups]
        held = {id(p): p for group in groups for p in group["params"]}
        named = self._parameters()
        unheld = [
            name for name, p in named.items() if p.requires_grad and p.grad is not None and id(p) not in held
        ]
        if unheld:
            self._note("unheld", unheld)
            ours = {id(p) for p in named.values()}
            foreign = [p.shape for key, p in held.items() if key not in ours]
            self._facts["stale"] = any(named[name].shape in foreign for name in unheld)


def _matters(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return isinstance(module, _BatchNorm) and module.track_running_stats


def _is_frozen(norm: _BatchNorm) -> bool:
    learns = norm.weight is None or norm.weight.grad is not None
    return norm.track_running_stats and learns and (not norm.training or norm.momentum == 0)


def _is_as_made(norm: _BatchNorm) -> bool:
    """Waits for the device."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        return False
    return not mean.count_nonzero().item() and bool((variance == 1).all())


def _is_compiled(model: nn.Module) -> bool:
    return hasattr(model, "_orig_mod") or any(m._compiled_call_impl is not None for m in model.modules())
