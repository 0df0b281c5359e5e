"""The model of a step, the reference's two published tables, and the order of the verdicts."""

import pytest

from loopwise.feed.diagnosis.advice import Setting, advise
from loopwise.feed.diagnosis.model import Costs, cost

P4D, C5_18, P3, C5_9 = 37.688, 3.672, 3.825, 1.836
"""Prices of the reference's machines for an hour, in dollars."""


@pytest.mark.parametrize(
    ("before", "after", "machines", "published"),
    [
        (192, 86, [(P4D,), (P4D, C5_18, C5_18)], ("0.201", "0.108", "2.23", "46.5 %")),  # TensorFlow
        (1193, 184, [(P3,), (P3, C5_9)], ("0.127", "0.029", "6.48", "77.2 %")),  # PyTorch
    ],
)
def test_the_tables_of_the_reference(before, after, machines, published):
    """Milliseconds of a step, machines -> dollars for 100 steps, speed-up, saving."""
    costs = [100 * cost(ms / 1e3, *prices) for ms, prices in zip((before, after), machines, strict=True)]
    saving = f"{100 * (1 - costs[1] / costs[0]):.1f} %"
    assert (f"{costs[0]:.3f}", f"{costs[1]:.3f}", f"{before / after:.2f}", saving) == published


def test_the_processors_of_the_reference():
    """Its text has 210 for the first; 30 for each of the 8 GPUs is right."""
    assert (96 + 2 * 72, (96 + 2 * 72) / 8) == (240, 30)
    assert 8 + 36 == 44


def test_workers_of_equal_speed_do_not_explain_the_reference():
    """8 -> 32 workers make 298 ms of 1193, 36 + 8 processors 217; 184 ms need 1.62 times the work of each worker."""
    batch = Costs(cpu=8 * 1.193, waiting=0.0, slowest=8 * 1.193, step=0.01)
    assert batch.predicted(8, 8) == pytest.approx(1.193)
    assert batch.predicted(32, 32) == pytest.approx(0.298, abs=0.001)
    assert batch.predicted(44, 44) == pytest.approx(0.217, abs=0.001)
    faster = Costs(cpu=8 * 1.193 / 1.62, waiting=0.0, slowest=0.0, step=0.01)
    assert faster.predicted(32, 32) == pytest.approx(0.184, abs=0.001)


def test_steps_by_number_of_workers():
    costs = Costs(cpu=0.08, waiting=0.04, slowest=0.15, step=0.05, handover=0.001)
    assert costs.predicted(0, 4) == pytest.approx(0.171)
    assert costs.predicted(1, 4) == pytest.approx(0.121)
    assert costs.predicted(8, 4) == pytest.approx(0.051)
    assert costs.predicted(8, 1) == pytest.approx(0.081)  # workers share the processor
    assert (costs.needed(), costs.processors()) == (4, 2)


def batch(cpu, waiting=0.0, step=0.1, nbytes=0):
    return Costs(cpu=cpu, waiting=waiting, slowest=cpu + waiting, step=step, nbytes=nbytes)


@pytest.mark.parametrize(
    ("costs", "setting", "name", "workers"),
    [
        (batch(0.4), Setting(8, 8), "nothing", 8),
        (batch(0.4), Setting(2, 8), "local workers", 5),
        (batch(0.1, waiting=2.0), Setting(8, 8), "more readers", 24),
        (batch(4.0), Setting(8, 8, 1.0, larger=(64, 2.0)), "larger machine", 45),
        (batch(4.0), Setting(8, 8, larger=(16, 2.0), accelerator=True, decoding=0.7), "gpu decoding", 45),
        (batch(4.0, nbytes=10**9), Setting(8, 8), "link", 45),
        (batch(4.0), Setting(8, 8, decoding=0.7), "data group", 45),
        (batch(0.1, step=0.001), Setting(0, 1), "data group", 112),
    ],
)
def test_the_cheapest_remedy_comes_first(costs, setting, name, workers):
    verdict = advise(costs, setting)
    assert (verdict.name, verdict.workers) == (name, workers)


def test_a_data_group_is_priced():
    verdict = advise(batch(9.5, step=0.16), Setting(8, 8, price=P3, host=(36, C5_9)))
    assert verdict.hosts == 2
    assert verdict.text == (
        "The step waits for batches: 87% of 1188 ms. 66 workers would fill it. They keep 66 processors busy, and this machine "
        "has 8. A data group of 2 machines with 36 processors takes the step to 160 ms, 7.42 times as fast: pass group='data' "
        "and num_workers=66 to RemoteDataLoader. 100 steps cost 0.033 in place of 0.126, which saves 73.6%."
    )


def test_a_data_group_that_does_not_pay_says_so():
    verdict = advise(batch(1.0), Setting(8, 8, price=1.0, host=(36, 10.0)))
    assert "costs " in verdict.text
    assert "more." in verdict.text
