"""Generator and critic that train against each other, and faults of such trainings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .fault import LOST, fault
from .job import digits

F = nn.functional


class Generator(nn.Module):
    """Generator that makes images of 64 pixels from noise."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.body(noise)


class Critic(nn.Module):
    """Critic that tells real images from generated ones."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).squeeze(1)


class Adversarial:
    """Training of both models; faults replace its parts."""

    def __init__(self, seed: int, steps: int = 80) -> None:
        torch.manual_seed(seed)
        self.steps = steps
        self.models: dict[str, Any] = {"generator": Generator(), "critic": Critic()}
        self.optimizer: Callable[[Any], Any] = functools.partial(
            torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999)
        )
        self.criterion: Callable[..., torch.Tensor] = F.binary_cross_entropy_with_logits
        self.draws = torch.Generator().manual_seed(seed)

    # what faults replace

    def real(self, step: int) -> torch.Tensor:
        (x, _), _ = digits()
        return x[torch.randint(len(x), (32,), generator=self.draws)].flatten(1)

    def noise(self, step: int) -> torch.Tensor:
        return torch.randn(32, 16, generator=self.draws)

    def optimizers(self) -> dict[str, Any]:
        return {key: self.optimizer(model.parameters()) for key, model in self.models.items()}

    def fake_for_critic(self, fake: torch.Tensor) -> torch.Tensor:
        return fake.detach()

    def fake_for_generator(self, fake: torch.Tensor) -> torch.Tensor:
        return fake

    def zero(self, optimizer: Any) -> None:
        optimizer.zero_grad()

    # the loop

    def run(self, folder: str) -> Any:
        """Train under a ``Watch`` with all rules, and return the closed ``Watch``."""
        from loopwise.debug import Watch, every

        optimizers = self.optimizers()
        plain = {"trap": False, "profile": False, "on_finding": lambda _: None}
        watch = Watch(self.models, optimizers, run=folder, save=every(1), **plain)
        with watch:
            for step in range(self.steps):
                losses = {
                    f"{turn}_loss": getattr(self, turn)(optimizers, step) for turn in ("critic", "generator")
                }
                watch.step(**losses)
        assert not watch.counts["failed"], watch.counts
        return watch

    def critic(self, optimizers: Any, step: int) -> torch.Tensor:
        fake = self.models["generator"](self.noise(step))
        self.zero(optimizers["critic"])
        real, made = self.models["critic"](self.real(step)), self.models["critic"](self.fake_for_critic(fake))
        loss = self.criterion(real, torch.ones(32)) + self.criterion(made, torch.zeros(32))
        loss.backward()
        optimizers["critic"].step()
        return loss

    def generator(self, optimizers: Any, step: int) -> torch.Tensor:
        fake = self.fake_for_generator(self.models["generator"](self.noise(step)))
        self.zero(optimizers["generator"])
        loss = self.criterion(self.models["critic"](fake), torch.ones(32))
        loss.backward()
        optimizers["generator"].step()
        return loss


@fault("gan", "missing_gradient", "detached_loss")
def generator_is_detached(job: Adversarial) -> None:
    job.fake_for_generator = lambda fake: fake.detach()


@fault("gan", "unheld_parameter", "unchanged_tensor")
def critics_optimizer_has_the_generators_parameters(job: Adversarial) -> None:
    def optimizers() -> dict[str, Any]:
        generator = job.models["generator"]
        return {key: job.optimizer(generator.parameters()) for key in job.models}

    job.optimizers = optimizers


@fault("gan", "gradient_not_zeroed")
def gradients_of_the_critic_are_never_zeroed(job: Adversarial) -> None:
    calls = iter(range(10**6))
    job.zero = lambda optimizer: None if next(calls) % 2 == 0 else optimizer.zero_grad()


@fault("gan", "vanishing_gradient", "saturated_activation")
def critic_saturates(job: Adversarial) -> None:
    """Saturate the critic: sigmoids near their limits leave the generator next to no gradient."""
    first = job.models["critic"].body
    job.models["critic"].body = nn.Sequential(first[0], nn.Sigmoid(), *first[2:])
    nn.init.normal_(first[0].weight, std=20.0)


@fault("gan", "loss_not_depending_on_input", "missing_gradient", also=LOST)
def generator_without_noise(job: Adversarial) -> None:
    bias = nn.Parameter(torch.randn(64))
    generator = job.models["generator"]
    generator.bias = bias
    generator.forward = lambda noise: generator.bias.expand(len(noise), 64)


@fault("gan", "loss_input")
def sigmoid_in_the_critic(job: Adversarial) -> None:
    job.models["critic"].body.append(nn.Sigmoid())


@fault("gan", "weight_update_ratio", also=("loss_spike", "exploding_tensor", "dead_relu", *LOST))
def learning_rate_too_large_for_both(job: Adversarial) -> None:
    job.optimizer = functools.partial(torch.optim.Adam, lr=0.5)


@fault("gan", "wrong_mode")
def generator_stays_in_evaluation_mode(job: Adversarial) -> None:
    job.models["generator"].eval()
