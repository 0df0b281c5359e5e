"""Every combination of the parts in a plain loop, with and without autocast, alone and on ranks: 20 steps as without them.

Nothing is left out (``keep=1.0``), so that the batches are the plain loader's.  The step computes by the captured graph.
"""

import pytest
import torch
from all_parts_kit import STEPS, SUBSETS, trained

from loopwise.debug import open_run


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return {mixed: trained((), tmp_path_factory.mktemp("plain"), mixed) for mixed in (False, True)}


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("parts", SUBSETS, ids="+".join)
def test_the_parts_train_as_the_plain_loop_does(plain, tmp_path, parts, autocast):
    weights, losses, random = trained(parts, tmp_path, autocast)
    expected, losses_of_plain, random_of_plain = plain[autocast]
    exact = {"rtol": 0, "atol": 0} if "compile" not in parts else {"rtol": 1e-2, "atol": 1e-4}
    torch.testing.assert_close(weights, expected, **exact)
    assert losses == pytest.approx(losses_of_plain, rel=1e-12 if "compile" not in parts else 1e-2)
    assert torch.equal(random, random_of_plain)
    if "debug" in parts:
        saved = open_run(tmp_path / "run")
        assert saved.steps() == list(range(0, STEPS, 4))
        assert saved.series("loss")[1].tolist() == pytest.approx(losses[::4], rel=1e-6)


RANKS = """
from pathlib import Path
from all_parts_kit import SUBSETS, trained
expected, losses, _ = trained((), Path({folder!r}), {autocast})
found = {{}}
for number, parts in enumerate(SUBSETS):
    weights, own, _ = trained(parts, Path({folder!r}) / str(number), {autocast})
    error = max(float((weights[name].double() - expected[name].double()).abs().max()) for name in expected)
    found["+".join(parts)] = [error, max(abs(a - b) for a, b in zip(own, losses, strict=True))]
print(json.dumps(found))
"""


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_the_parts_train_as_the_plain_loop_does_under_ddp(ranks, tmp_path, autocast):
    found = ranks(RANKS.format(folder=str(tmp_path), autocast=autocast))
    off = 1e-2 if autocast else 1e-4
    for of_rank in found:
        assert list(of_rank) == ["+".join(parts) for parts in SUBSETS]
        for parts, errors in of_rank.items():
            assert max(errors) <= (off if "compile" in parts else 0), parts
