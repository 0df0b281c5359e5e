"""Guards: wrappers of any policy, including other guards, that limit the damage of selecting by loss."""

from __future__ import annotations

import torch

from loopwise import validate

from .nested import Nested, PolicyLike
from .past import PastLosses
from .policy import Policy, Pool


class Guard(Nested):
    """Wrapper that corrects one policy, and has its share ``keep`` if the policy has one.

    The policy does not compensate for samples that a guard keeps or leaves out: the share of kept samples changes.
    """

    @property
    def policy(self) -> Policy:
        """The guarded policy."""
        return self.parts[0]

    def _shown_parts(self) -> list[str]:
        return [repr(self.policy)]


class ClassFloor(Guard):
    """Raise the keep probabilities of each class until its expected share of kept samples is ``share``.

    Selection by loss keeps few samples of easy classes.  A floor for each class prevents this, as class-wise quotas do in
    data pruning (Vysogorets et al., "DRoP: Distributionally Robust Data Pruning", ICLR 2025).  Changed here: the keep
    probability p of each sample becomes p + (1 - p) * t, with one t >= 0 for each class of the pool.  Classes above
    their share are not changed.  The order of samples within a class stays.  A class may have one sample in a pool.

    Args:
        policy: the guarded policy.
        share: least expected share of each class to keep, a fraction in (0, 1].
    """

    own, settings = frozenset({"classes"}), ("share",)

    def __init__(self, policy: PolicyLike, share: float) -> None:
        super().__init__(policy)
        self.share = validate.fraction("share", share, "the least share of each class to keep", 0.2, one=True)

    def probabilities(self, pool: Pool) -> torch.Tensor:
        assert pool.classes is not None
        probabilities = self.policy.decide(pool).double()
        classes, member = torch.unique(pool.classes, return_inverse=True)
        sums = torch.zeros(len(classes), dtype=torch.float64).index_add_(0, member, probabilities)
        mean = sums / torch.bincount(member, minlength=len(classes))
        lift = ((self.share - mean) / (1 - mean).clamp_min(1e-12)).clamp(0, 1)
        return (probabilities + (1 - probabilities) * lift[member]).float()


class NoiseCap(Guard):
    """Leave out the highest losses, and let the policy choose among the rest.

    Under label noise the highest losses are wrong labels, and selection by loss picks them first.  Co-teaching (Han et
    al., NeurIPS 2018) keeps samples with small losses; this guard leaves out only losses above the 1 - ``top`` quantile
    of the last losses.  If labels are right, these are the hardest samples: choose a small ``top``.  If labels are
    wrong, set ``top`` to their share.  The quantile is taken over a history that already contains the pool.  Losses
    equal to the quantile stay.

    Args:
        policy: the guarded policy; its ``keep`` is a share of the rest.
        top: share of the highest losses that is left out, a fraction in (0, 1).
        history: number of past losses over which the quantile is taken; a larger pool counts in full.
    """

    reaches_all = False
    state, settings = ("_past",), ("top", "history")

    def __init__(self, policy: PolicyLike, top: float = 0.05, history: int = 2048) -> None:
        super().__init__(policy)
        self.top = validate.fraction("top", top, "the share of the highest losses that is left out", 0.05)
        self.history = validate.whole_number("history", history, 2, "losses", example=2048)
        self._past = PastLosses(self.history)

    def probabilities(self, pool: Pool) -> torch.Tensor:
        rest = pool.losses <= self._cap(self._past.compared_with(pool))
        probabilities = torch.zeros(len(pool))
        probabilities[rest] = self.policy.decide(pool.at(rest))
        return probabilities

    def _cap(self, losses: torch.Tensor) -> float:
        """Return the loss above which the share ``top`` of ``losses`` lies."""
        count = len(losses)
        return float(losses.kthvalue(count - int(self.top * count)).values) if count else 0.0


class Presence(Guard):
    """Keep every sample that was not trained on for ``epochs`` epochs.

    The remembered loss of a sample becomes outdated, and a model forgets what it has learned (Toneva et al., "An
    Empirical Study of Example Forgetting", ICLR 2019).  So each sample returns from time to time, whatever the policy
    decides.  A sample that was never trained on counts as trained on before the first epoch.

    Args:
        policy: the guarded policy.
        epochs: greatest number of epochs between two training steps with a sample, at least 1.
    """

    own, settings = frozenset({"last_trained"}), ("epochs",)

    def __init__(self, policy: PolicyLike, epochs: int = 5) -> None:
        super().__init__(policy)
        self.epochs = validate.whole_number("epochs", epochs, 1, "epochs", example=5)

    def probabilities(self, pool: Pool) -> torch.Tensor:
        assert pool.last_trained is not None
        probabilities = self.policy.decide(pool)
        return probabilities.masked_fill(pool.epoch - pool.last_trained >= self.epochs, 1.0)
