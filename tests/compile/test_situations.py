"""Training situations, each trained by our step as by the usual loop, or refused, or eagerly with a message."""

import pytest

from benchmarks.situations import SITUATIONS, judge, judge_on_ranks

pytestmark = [  # what the usual loop of a situation warns of, too
    pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar"),
]
QUICK = [name for name, case in SITUATIONS.items() if not case.slow and case.ranks == 1]
ON_RANKS = [name for name, case in SITUATIONS.items() if not case.slow and case.ranks > 1]


@pytest.mark.parametrize("name", QUICK)
def test_a_situation_is_trained_as_by_the_usual_loop(name):
    verdict = judge(name)
    assert verdict.good, verdict


@pytest.mark.usefixtures("forked")
def test_two_ranks_train_as_by_the_usual_loop():
    assert [verdict for verdict in judge_on_ranks(ON_RANKS) if not verdict.good] == []
