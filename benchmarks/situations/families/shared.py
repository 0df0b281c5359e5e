"""Situations with several steps that share parameters or gradients, and switches from the usual loop."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..parts import Batches, F, adamw, cross_entropy, mlp, rows, sgd
from ..situation import Run, situation

judged = F.binary_cross_entropy_with_logits


def adversaries(run: Run) -> tuple[nn.Module, nn.Module]:
    """Return a generator and a discriminator."""
    generator = run.model(nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 8)))
    return generator, run.model(nn.Sequential(nn.Linear(8, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1)))


@situation()
def gan(run: Run) -> None:
    """Train generator and discriminator by two steps."""
    generator, critic = adversaries(run)

    def critic_loss(model: nn.Module, batch: Any) -> torch.Tensor:
        real, fake = model(batch[0]), model(generator(batch[1]).detach())
        return judged(real, torch.ones_like(real)) + judged(fake, torch.zeros_like(fake))

    def generator_loss(model: nn.Module, batch: Any) -> torch.Tensor:
        fake = critic(model(batch[1]))
        return judged(fake, torch.ones_like(fake))

    first = run.step(critic, critic_loss, adamw(critic))
    second = run.step(generator, generator_loss, adamw(generator))
    for (x, _), (z, _) in zip(rows(), rows(seed=2), strict=True):
        first((x, z))
        second((x, z))


@situation(slow=True)
def wasserstein(run: Run) -> None:
    """Train a critic three times a generator update, its weights clamped after each of its updates."""
    generator, critic = adversaries(run)

    def critic_loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return model(generator(batch[1]).detach()).mean() - model(batch[0]).mean()

    def generator_loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return -critic(model(batch[1])).mean()

    first = run.step(critic, critic_loss, torch.optim.RMSprop(critic.parameters(), 1e-3))
    second = run.step(generator, generator_loss, torch.optim.RMSprop(generator.parameters(), 1e-3))
    for number, ((x, _), (z, _)) in enumerate(zip(rows(), rows(seed=2), strict=True)):
        first((x, z))
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.clamp_(-0.2, 0.2)
        if number % 3 == 2:
            second((x, z))


@situation(slow=True)
def actor_critic(run: Run) -> None:
    """Train an actor through the critic, and the critic towards a slowly moved target, as DDPG does."""
    actor, critic = run.model(mlp(classes=2)), run.model(mlp(inputs=10, classes=1))
    target = copy.deepcopy(critic)

    def critic_loss(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        with torch.no_grad():
            goal = y[:, None] / 5 + 0.9 * target(torch.cat([x, actor(x)], 1))
        return F.mse_loss(model(torch.cat([x, actor(x).detach()], 1)), goal)

    def actor_loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return -critic(torch.cat([batch[0], model(batch[0])], 1)).mean()

    first, second = run.step(critic, critic_loss, adamw(critic)), run.step(actor, actor_loss, adamw(actor))
    for batch in rows():
        first(batch)
        second(batch)
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), critic.parameters(), strict=True):
                slow.lerp_(fast, 0.05)


@situation(slow=True)
def shared_trunk(run: Run) -> None:
    """Train two heads on one trunk by two steps with one optimizer each."""
    trunk, heads = run.model(mlp(classes=12)), [run.model(nn.Linear(12, 5)) for _ in range(2)]
    steps = []
    for head in heads:
        both = nn.Sequential(trunk, head)
        steps.append(run.step(both, cross_entropy(), sgd(both)))
    for number, batch in enumerate(rows()):
        steps[number % 2](batch)


@situation(slow=True)
def one_model_two_optimizers(run: Run) -> None:
    """Train the halves of one model in turns by two optimizers."""
    model = run.model(mlp())
    steps = [run.step(model, cross_entropy(), sgd(half)) for half in (model[:3], model[3:])]
    for number, batch in enumerate(rows()):
        steps[number % 3 == 2](batch)


@situation(slow=True)
def distillation(run: Run) -> None:
    """Train a student towards a teacher that is trained at the same time by the usual loop."""
    teacher, student = run.model(mlp()), run.model(mlp(width=12))

    def distilled(model: nn.Module, batch: Any) -> torch.Tensor:
        goal = teacher(batch[0]).detach().softmax(-1)
        return F.cross_entropy(model(batch[0]), batch[1]) + F.cross_entropy(model(batch[0]), goal)

    first = run.usual(teacher, cross_entropy(), sgd(teacher))
    second = run.step(student, distilled, sgd(student))
    for batch in rows():
        first(batch)
        second(batch)


def switched(run: Run, turns: list[bool], data: Batches) -> None:
    """Train each batch by the run's form if its turn is true, else by the usual loop, with one optimizer."""
    model = run.model(mlp())
    optimizer = sgd(model)
    step, usual = (make(model, cross_entropy(), optimizer) for make in (run.step, run.usual))
    for turn, batch in zip(turns, data, strict=True):
        (step if turn else usual)(batch)


@situation()
def switch_in_the_middle(run: Run) -> None:
    """Train ten batches by the usual loop, whose last gradients stay, and ten by the step."""
    switched(run, [False] * 10 + [True] * 10, rows())


@situation()
def switch_to_and_fro(run: Run) -> None:
    """Alternate between the step and the usual loop."""
    switched(run, [number % 4 < 2 for number in range(20)], rows())


@situation()
def gradients_left_by_others(run: Run) -> None:
    """Run backward passes of an auxiliary loss between the steps, as gradient statistics do."""
    model = run.model(mlp())
    step = run.step(model, cross_entropy(), sgd(model))
    for batch in rows():
        model(batch[0]).square().mean().backward()
        step(batch)


@situation(slow=True)
def frozen_in_turns(run: Run) -> None:
    """Freeze the critic during the generator's step and the generator during the critic's, in each batch."""
    generator, critic = adversaries(run)

    def critic_loss(model: nn.Module, batch: Any) -> torch.Tensor:
        real, fake = model(batch[0]), model(generator(batch[1]))
        return judged(real, torch.ones_like(real)) + judged(fake, torch.zeros_like(fake))

    def generator_loss(model: nn.Module, batch: Any) -> torch.Tensor:
        fake = critic(model(batch[1]))
        return judged(fake, torch.ones_like(fake))

    first = run.step(critic, critic_loss, adamw(critic))
    second = run.step(generator, generator_loss, adamw(generator))
    for (x, _), (z, _) in zip(rows(), rows(seed=2), strict=True):
        generator.requires_grad_(False)
        first((x, z))
        generator.requires_grad_(True)
        critic.requires_grad_(False)
        second((x, z))
        critic.requires_grad_(True)
