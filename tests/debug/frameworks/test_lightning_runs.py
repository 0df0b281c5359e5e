"""Runs of the Lightning callback: resumed, ended early, failed, on several ranks."""

import copy
import json

import lightning_kit
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning_kit import (
    Act,
    Again,
    Module,
    assert_saved,
    contents,
    fail,
    fit,
    same_weights,
    save,
    trainer,
    truth,
    watching,
)

from loopwise.debug import Collection, open_run
from loopwise.errors import InputError
from loopwise.warnings import LoopwiseWarning

pytestmark = pytest.mark.filterwarnings("ignore", "error:loopwise")  # all but ours, not those of Lightning


@pytest.mark.parametrize("first", [True, False], ids=["checkpoint first", "watch first"])
@pytest.mark.parametrize("at", [5, 6, 7, "epoch"])
def test_a_resumed_fit_leaves_the_records_of_a_whole_one(tmp_path, at, first):
    options = {"max_epochs": 3, "limit_val_batches": 1.0}
    fit(tmp_path / "whole", watching(tmp_path / "whole"), module=Again(), **options)
    part = tmp_path / "part"
    act = Act(8, save, epoch=True) if at == "epoch" else Act(at, save)
    with pytest.raises(ZeroDivisionError):
        fit(part, *[act, watching(part)][:: 1 if first else -1], Act(9, fail), module=Again(), **options)
    assert open_run(part / "run").info["state"] == "failed"
    fit(part, watching(part), module=Again(), checkpoint=str(part / "saved.ckpt"), **options)
    assert contents(part) == contents(tmp_path / "whole")
    assert open_run(part / "run").info["state"] == "finished"


def test_run_and_findings_are_at_hand_after_the_fit(tmp_path):
    class Diverging(Module):
        def training_step(self, batch, index):
            return super().training_step(batch, index) / (index < 2)

    callback = watching(tmp_path)
    assert callback.run is None
    assert callback.findings == []
    fit(tmp_path, callback, module=Diverging(), max_epochs=1)
    assert callback.watch is None
    assert callback.run.url == str(tmp_path / "run")
    found = [finding.rule for finding in callback.findings]
    assert found == [finding.rule for finding in open_run(callback.run.url).findings()]
    assert "non_finite" in found


def test_resuming_from_a_checkpoint_of_lightning_amid_an_epoch(tmp_path):
    steps = {"every_n_train_steps": 3, "save_top_k": -1, "filename": "{step}"}
    fit(tmp_path, watching(tmp_path), ModelCheckpoint(tmp_path, **steps), max_epochs=1)
    first = contents(tmp_path)
    saved = torch.load(tmp_path / "step=3.ckpt", weights_only=False)
    assert saved["callbacks"]["WatchCallback"] == {"step": 3, "steps": {"train": 3}}
    fit(tmp_path, watching(tmp_path), checkpoint=str(tmp_path / "step=3.ckpt"), max_epochs=2)
    again = contents(tmp_path)
    assert list(again) == [("train", step) for step in range(8)]
    assert [again[key] for key in list(first)[:3]] == [first[key] for key in list(first)[:3]]


def test_a_checkpoint_without_counters_begins_a_new_run_at_its_batch(tmp_path):
    fit(tmp_path, ModelCheckpoint(tmp_path, save_last=True), max_epochs=1)
    fit(tmp_path, watching(tmp_path), checkpoint=str(tmp_path / "last.ckpt"), max_epochs=2)
    assert open_run(tmp_path / "run").steps("train") == [4, 5, 6, 7]


def test_fitting_once_more_goes_on(tmp_path):
    again, module = trainer(tmp_path, watching(tmp_path), max_epochs=1), Module()
    again.fit(module)
    again.fit_loop.max_epochs = 2
    again.fit(module)
    saved = open_run(tmp_path / "run")
    assert saved.steps("train") == list(range(8))
    assert_saved(saved, truth()[0][:4], exactly=False)


@pytest.mark.parametrize("how", ["should_stop", "max_steps"])
def test_ending_early_is_an_end(tmp_path, how):
    options = {"max_steps": 3} if how == "max_steps" else {}
    stop = Act(3, lambda trainer: setattr(trainer, "should_stop", how == "should_stop"))
    fit(tmp_path, stop, watching(tmp_path), **options)
    saved = open_run(tmp_path / "run")
    assert saved.info["state"] == "finished"
    assert_saved(saved, truth()[0][:3])


def test_an_exception_leaves_a_failed_run_with_all_its_steps(tmp_path):
    module = Module()
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, watching(tmp_path), Act(3, fail), module=module)
    saved = open_run(tmp_path / "run")
    assert saved.info["state"] == "failed"
    assert_saved(saved, truth()[0][:3])
    assert saved.verify() == []
    assert not any(part._forward_hooks for part in module.modules())


def test_another_run_is_not_written_over(tmp_path):
    fit(tmp_path, watching(tmp_path))
    before = contents(tmp_path)
    fit(tmp_path, watching(tmp_path))
    assert {path: data for path, data in contents(tmp_path).items() if "run-2" not in str(path)} == before
    for name in ("run", "run-2"):
        assert json.loads((tmp_path / name / "run.json").read_text())["state"] == "finished"


def test_wrong_options_are_refused_when_the_callback_is_made(tmp_path):
    with pytest.raises(InputError, match="on_backlog='wait'"):
        watching(tmp_path, on_backlog="wait")
    with pytest.raises(InputError, match="argument='polcy'"):
        watching(tmp_path, polcy="block")
    assert not (tmp_path / "run").exists()


def test_errors_in_reading_metrics_are_warned_of_and_training_goes_on(tmp_path):
    class Odd(Module):
        def training_step(self, batch, index):
            return {"loss": super().training_step(batch, index), 3: torch.ones(()), "text": "x", "many": [1]}

    class Put(Callback):
        def __init__(self, value):
            self.value = value

        def on_train_batch_end(self, trainer, *_):
            trainer.accumulate_grad_batches = self.value

    module = fit(tmp_path, watching(tmp_path), module=Odd())
    assert same_weights(module, truth()[1])
    assert open_run(tmp_path / "run").names(step=0, collection="metrics") == ["3"]
    (tmp_path / "other").mkdir()
    with pytest.warns(LoopwiseWarning, match="loopwise.debug: TypeError"):
        module = fit(tmp_path / "other", Put(None), watching(tmp_path / "other"), Put(1))
    assert same_weights(module, truth()[1])


def test_tensors_of_ones_own(tmp_path):
    watch = watching(tmp_path, collections=[Collection("mine", include="mine")])
    fit(tmp_path, Act(2, lambda _: watch.watch.save("mine", torch.arange(3))), watch)
    saved = open_run(tmp_path / "run")
    assert saved.steps() == [1]
    assert saved.value("mine", 1).tolist() == [0, 1, 2]
    assert watch.watch is None


def test_under_ddp_rank_0_writes_averaged_gradients(ranks, tmp_path):
    code = f"""
    import importlib.util, pathlib, warnings
    warnings.simplefilter("ignore")
    os.environ |= {{"TORCHELASTIC_RUN_ID": "test", "LOCAL_RANK": os.environ["RANK"], "GROUP_RANK": "0"}}
    os.environ |= {{"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}}  # the group exists
    spec = importlib.util.spec_from_file_location("t", {lightning_kit.__file__!r})
    t = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(t)
    folder = pathlib.Path({str(tmp_path)!r})
    module = t.fit(folder, t.watching(folder), strategy="ddp", devices=2, max_epochs=1, use_distributed_sampler=False)
    print(json.dumps([float(p.sum()) for p in module.parameters()]))
    """
    first, second = ranks(code)
    saved = open_run(tmp_path / "run")
    assert first == second
    assert saved.ranks == [0]
    assert_saved(saved, copy.deepcopy(truth(epochs=1)[0]))


def test_one_callback_in_two_fits_and_in_two_trainers(tmp_path):
    """A fit that goes on has one history; a training from the beginning has a folder of its own, and says so."""
    callback = watching(tmp_path)
    first = trainer(tmp_path, callback)
    module = Module()
    first.fit(module)
    first.fit_loop.max_epochs = 3
    first.fit(module)
    saved = open_run(tmp_path / "run")
    assert saved.steps("train") == list(range(12))
    assert saved.info["state"] == "finished"
    trainer(tmp_path, callback, max_epochs=1).fit(Module())
    assert open_run(tmp_path / "run").steps("train") == list(range(12))
    assert open_run(tmp_path / "run-2").steps("train") == list(range(4))
