"""TRL's ``SFTTrainer``, which computes its loss from log-probabilities of its own forward pass, with the compiling mixin."""

import hugging_face_kit
import pytest
import torch

from loopwise.compile.transformers import CompilingTrainerMixin

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' own


class Compiling(CompilingTrainerMixin, trl.SFTTrainer):
    pass


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2, "loss_type": "dft"}], ids=str)
def test_sft_trains_and_logs_as_without_the_mixin(tmp_path, settings):
    trainers = [
        hugging_face_kit.trainer(Compiling, tmp_path, settings, compile=compile) for compile in (False, True)
    ]
    for one in trainers:
        one.train()
        one.evaluate()
    expected, found = map(hugging_face_kit.logs, trainers)
    assert [log.keys() for log in found] == [log.keys() for log in expected]
    for log, of in zip(found, expected, strict=True):
        assert log == pytest.approx(of, rel=1e-4)
    states = [one.model.state_dict() for one in trainers]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-6)
    assert "compiled without its loss" in str(trainers[1].explain())
