"""TRL's ``SFTTrainer`` with the sifting mixin: samples are scored in one pass, and TRL's metrics do not see it."""

import warnings

import hugging_face_kit
import pytest
import torch

from loopwise import batch as batches
from loopwise.sift.transformers import SiftingTrainerMixin
from loopwise.warnings import LoopwiseWarning

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' own


class Sifting(SiftingTrainerMixin, trl.SFTTrainer):
    pass


def test_sft_scores_all_samples_of_a_batch_in_one_pass(tmp_path):
    trainer = hugging_face_kit.trainer(Sifting, tmp_path, sift={"keep": 0.5})
    batch = next(iter(super(SiftingTrainerMixin, trainer).get_train_dataloader()))
    trainer.model.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", LoopwiseWarning)
        losses = trainer.sift_loss(trainer.model, batch)
        alone = [
            trainer.compute_loss(trainer.model, batches.index(batch, torch.tensor([n]), len(losses)))
            for n in range(len(losses))
        ]
    torch.testing.assert_close(losses, torch.stack(alone))


def test_sft_logs_nothing_of_the_scored_samples(tmp_path):
    trainer = hugging_face_kit.trainer(Sifting, tmp_path, sift={"keep": 0.5})
    trainer.train()
    assert trainer.state.global_step == 4
    sifted = trainer.evaluate()
    plain = hugging_face_kit.trainer(Sifting, tmp_path)
    plain.model.load_state_dict(trainer.model.state_dict())
    expected = plain.evaluate()
    for name in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy"):
        assert sifted[name] == pytest.approx(expected[name], rel=1e-5)
    report = trainer.sift_loader.loader.report()
    assert report.trained == 16
