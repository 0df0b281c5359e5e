"""Guards: wrappers of any policy, other guards among them, against the damage that selection does."""

from __future__ import annotations

import torch

from loopwise.errors import InputError

from .nested import Decides, Nested
from .policy import Policy, Pool


class Guard(Nested):
    """Corrects one policy, and has its share ``keep``, if that has one.

    What a guard keeps or leaves out is not made up for by the policy: the share kept changes.
    """

    def __init__(self, policy: Decides) -> None:
        super().__init__(policy)

    @property
    def policy(self) -> Policy:
        """The policy that is guarded."""
        return self.parts[0]


class ClassFloor(Guard):
    """Lifts the keep probabilities of each class so far that the expected share kept of it is ``share``.

    Selection by loss starves the classes that are easy; group-wise floors keep them, as class-wise
    quotas do in data pruning (Vysogorets et al., "DRoP: Distributionally Robust Data Pruning", ICLR
    2025).  Here p becomes p + (1 - p) * t, with one t >= 0 for each class of the pool, which is
    exact: a class that is kept enough stays as it is, and the order within a class stays, too.  It
    holds pool by pool, also for a class with a single sample there.

    Args:
        policy: the policy that is guarded.
        share: least expected share kept of each class, a fraction in (0, 1].
    """

    own = frozenset({"classes"})

    def __init__(self, policy: Decides, share: float) -> None:
        super().__init__(policy)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise InputError(
                f"share={share!r}",
                "the least share kept of each class, a number in (0, 1]",
                "a percentage or a number of samples instead of a fraction",
                "pass a fraction, for instance share=0.2",
            )
        self.share = float(share)

    def probabilities(self, pool: Pool) -> torch.Tensor:
        assert pool.classes is not None
        chances = self.policy.decide(pool).double()
        names, member = torch.unique(pool.classes, return_inverse=True)
        sums = torch.zeros(len(names), dtype=torch.float64).index_add_(0, member, chances)
        mean = sums / torch.bincount(member, minlength=len(names))
        lift = ((self.share - mean) / (1 - mean).clamp_min(1e-12)).clamp(0, 1)
        return (chances + (1 - chances) * lift[member]).float()

    def __repr__(self) -> str:
        return f"ClassFloor({self.policy!r}, share={self.share:g})"


class NoiseCap(Guard):
    """Never keeps the highest losses, and lets the policy choose among the rest.

    The highest losses are not informative, they are wrong: under label noise that is what
    selection by loss finds first.  Small-loss selection, as in Co-teaching (Han et al., NeurIPS
    2018), from the other side: only what is above the 1 - ``top`` quantile of the last losses is
    left out.  Without noise ``top`` costs the hardest samples, so keep it small there; under label
    noise set it to the share of wrong labels.  The quantile is over a history that already contains
    its own pool; of equal losses none is left out.

    Args:
        policy: the policy that is guarded; its ``keep`` is a share of the rest.
        top: share of the highest losses that is left out, a fraction in (0, 1).
        history: number of past losses in which the quantile is taken; all of a larger pool.
    """

    state = ("_past",)

    def __init__(self, policy: Decides, top: float = 0.05, history: int = 2048) -> None:
        super().__init__(policy)
        if isinstance(top, bool) or not isinstance(top, (int, float)) or not 0 < top < 1:
            raise InputError(
                f"top={top!r}",
                "the share of the highest losses that is left out, a number in (0, 1)",
                "a percentage or a number of samples instead of a fraction",
                "pass a fraction, for instance top=0.05",
            )
        _check_whole("history", history, 2, "losses")
        self.top, self.history = float(top), history
        self._past = torch.empty(0)

    def probabilities(self, pool: Pool) -> torch.Tensor:
        self._past = torch.cat([self._past, pool.losses])[-max(self.history, len(pool)) :]
        rest = pool.losses <= self._cap()
        chances = torch.zeros(len(pool))
        chances[rest] = self.policy.decide(pool.at(rest))
        return chances

    def _cap(self) -> float:
        """The loss above which the share ``top`` of the past losses lies."""
        count = len(self._past)
        return float(self._past.kthvalue(count - int(self.top * count)).values) if count else 0.0

    def __repr__(self) -> str:
        return f"NoiseCap({self.policy!r}, top={self.top:g}, history={self.history})"


class Presence(Guard):
    """Keeps every sample that was not trained on for ``epochs`` epochs.

    A sample's loss goes stale and what was learned is forgotten (Toneva et al., "An Empirical Study
    of Example Forgetting", ICLR 2019); so each sample returns now and then, whatever the policy says.
    A sample that was never trained on counts as trained on before the first epoch.

    Args:
        policy: the policy that is guarded.
        epochs: greatest number of epochs from one training step with a sample to the next, at least 1.
    """

    own = frozenset({"last_trained"})

    def __init__(self, policy: Decides, epochs: int = 5) -> None:
        super().__init__(policy)
        _check_whole("epochs", epochs, 1, "epochs")
        self.epochs = epochs

    def probabilities(self, pool: Pool) -> torch.Tensor:
        assert pool.last_trained is not None
        chances = self.policy.decide(pool)
        return chances.masked_fill(pool.epoch - pool.last_trained >= self.epochs, 1.0)

    def __repr__(self) -> str:
        return f"Presence({self.policy!r}, epochs={self.epochs})"


def _check_whole(name: str, value: object, least: int, unit: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(
            f"{name}={value!r}",
            f"a whole number of {unit}, at least {least}",
            "a fraction, a negative number or a text",
            f"pass the number as an int, for instance {name}={max(least, 5)}",
        )
