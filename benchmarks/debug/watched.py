"""Trainings to watch, and the watchers that ``overhead`` times: ``Watch`` and smdebug 1.0.34."""

from __future__ import annotations

import atexit
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

REDUCED = ("min", "max", "mean", "std", "l2")
"""Statistics, where they are saved instead of tensors."""


# -- models -----------------------------------------------------------------------------------------


def mlp() -> tuple[nn.Module, torch.Tensor]:
    """Return a training with 5.13 M parameters in 12 tensors."""
    sizes = [784, 1024, 1024, 1024, 1024, 1024]
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(1024, 128)), torch.randn(96, 784)


def conv() -> tuple[nn.Module, torch.Tensor]:
    """Return a training with 4.89 M parameters in 20 tensors."""
    sizes = [3, 64, 64, 128, 128, 256, 256, 512, 512]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()] + [nn.MaxPool2d(2)] * (i % 2)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 384), nn.ReLU(), nn.Linear(384, 10)]
    return nn.Sequential(*layers), torch.randn(16, 3, 16, 16)


def small() -> tuple[nn.Module, torch.Tensor]:
    """Return a training with 17 thousand parameters in 128 tensors and 193 modules."""
    parts = [nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(64)]
    return nn.Sequential(*parts), torch.randn(8, 16)


class Encoder(nn.Module):
    """Transformer of six layers over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.1, batch_first=True) for _ in range(6)]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(256, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean(1))


def transformer() -> tuple[nn.Module, torch.Tensor]:
    """Return a training with 4.77 M parameters in 74 tensors."""
    return Encoder(), torch.randn(8, 32, 256)


MODELS = {"mlp": mlp, "conv": conv, "small": small, "transformer": transformer}


class Training:
    """Model with its loss, its optimizer and a batch; a call is a training step."""

    def __init__(self, name: str, seed: int, samples: int | None = None) -> None:
        torch.manual_seed(seed)
        self.model, batch = MODELS[name]()
        self.batch = batch[:samples]
        self.forward: Callable[[torch.Tensor], torch.Tensor] = self.model
        self.criterion, self.targets = nn.CrossEntropyLoss(), torch.arange(len(self.batch)) % 10
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.taken = 0
        self.after: Callable[[torch.Tensor], None] = lambda loss: None

    def backward(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        self.outputs = self.forward(self.batch)
        loss = self.criterion(self.outputs, self.targets)
        loss.backward()
        return loss

    def __call__(self) -> None:
        loss = self.backward()
        self.optimizer.step()
        self.after(loss)
        self.taken += 1

    @property
    def saved_bytes(self) -> int:
        """Return the size of weights and gradients in bytes."""
        return 2 * sum(p.numel() * p.element_size() for p in self.model.parameters())


# -- what is watched, and by whom -------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """Tensors to save, and the blocks to time: ``steps`` after ``lead`` more, which only fill the writer's memory."""

    interval: int
    """Steps from one saved to the next; 0: none is saved."""
    steps: int
    lead: int
    blocks: int
    quick: int
    """Blocks in quick mode."""
    statistics: tuple[str, ...] = ()
    """Statistics to save in place of raw tensors."""
    of: tuple[str, ...] = ("weights", "biases", "gradients")
    compiled: bool = False


SETTINGS = {
    "idle": Setting(0, 10, 0, 20, 8),
    "n100": Setting(100, 10, 0, 30, 20),
    "rules": Setting(100, 10, 0, 30, 20, of=("health",)),
    "n10": Setting(10, 10, 0, 10, 5),
    "n1": Setting(1, 10, 4, 4, 2),
    "statistics": Setting(1, 10, 2, 10, 5, REDUCED),
    "compiled": Setting(1, 10, 2, 10, 5, REDUCED, ("outputs",), True),
}
TINY = Setting(1, 50, 10, 10, 4)


class Ours:
    """``Watch`` over a training."""

    def __init__(self, training: Training, folder: str, what: Setting) -> None:
        from loopwise.debug import Collection, Watch, every, open_run

        collections = ["losses", *(Collection(name, statistics=what.statistics) for name in what.of)]
        when = every(what.interval or 10**9, start=0 if what.interval else 10**9)
        alone = {"trap": False, "profile": False}  # nan_trap and profiler measure what they cost
        self.watch = Watch(
            training.model, training.optimizer, run=folder, save=when, collections=collections, **alone
        )
        self.saved = open_run(folder)
        training.after = lambda loss: self.watch.step(loss=loss)

    def drain(self, step: int) -> None:
        """Wait until a step is on disk."""
        while self.saved.steps()[-1:] != [step]:
            time.sleep(1e-3)

    def read(self, step: int, which: str, layer: str) -> Any:
        """Return a saved tensor, or its statistics in the order of ``REDUCED``."""
        name = {"weight": f"{layer}.weight", "gradient": f"gradient/{layer}.weight"}.get(
            which, f"{layer}.output.0"
        )
        if values := self.saved.statistics(name, step):
            return torch.tensor([values[key] for key in REDUCED])
        return self.saved.value(name, step)

    def close(self) -> list[int]:
        """End the run and return the saved steps."""
        self.watch.close()
        assert self.watch.counts.total() == self.watch.counts["saved"], self.watch.counts
        assert not self.saved.events, self.saved.events
        return self.saved.steps()


class Smdebug:
    """Hook of smdebug 1.0.34 over a training; it writes a step before the next forward pass."""

    def __init__(self, training: Training, folder: str, what: Setting) -> None:
        import smdebug.core.tfevent.util as util
        import smdebug.core.writer as writer
        import smdebug.pytorch as smd

        writer.make_tensor_proto = with_bytes(util.make_tensor_proto)
        save = smd.SaveConfig(save_interval=what.interval or 10**9, start_step=0 if what.interval else 10**9)
        reduced = smd.ReductionConfig(reductions=[*REDUCED[:4]], norms=["l2"]) if what.statistics else None
        regex = ["_output_"] if what.of == ("outputs",) else None
        of = ["losses", *([] if regex else what.of)]
        self.hook = smd.Hook(
            folder, save_config=save, reduction_config=reduced, include_collections=of, include_regex=regex
        )
        self.hook.register_module(training.model)
        self.hook.register_loss(training.criterion)
        self.folder, self.prefix = folder, f"{type(training.model).__name__}_"
        self.saved: Any = None

    def drain(self, step: int) -> None:
        self.hook._close_writers()

    def read(self, step: int, which: str, layer: str) -> Any:
        name = {"weight": f"{self.prefix}{layer}.weight", "gradient": f"gradient/{self.prefix}{layer}.weight"}
        tensor = self.saved.tensor(name.get(which, f"{layer}_output_0"))
        if values := tensor.reduction_values(step):
            return torch.tensor([float(values[key, False]) for key in REDUCED])
        return torch.from_numpy(tensor.value(step).copy())

    def close(self) -> list[int]:
        from smdebug.trials import create_trial

        self.hook.close()
        atexit.unregister(self.hook._cleanup)  # it would make the folder once more
        self.saved = create_trial(self.folder)
        return self.saved.steps()


def with_bytes(make: Callable[..., Any]) -> Callable[..., Any]:
    """Repair the function of smdebug that NumPy 2.3 broke: ``tostring`` is ``tobytes`` now."""

    class Renamed:
        def __init__(self, array: Any) -> None:
            self.dtype, self.shape, self.tostring = array.dtype, array.shape, array.tobytes

    return lambda nparray_data, tag: make(Renamed(nparray_data), tag)
