"""``CompilingCallback`` beside other callbacks, in loops that end early, and what it refuses."""

import copy
import io

import lightning.pytorch as lightning
import pytest
import torch
from compiling_kit import CAPTURED, QUIET, Module, data, fit, metrics
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from loopwise.compile import Plan, TrainStep, optimize
from loopwise.compile.graph.passes import PASSES, Outcome
from loopwise.compile.lightning import CompilingCallback
from loopwise.errors import InputError
from loopwise.warnings import LoopwiseWarning

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:(lightning|torch)", "ignore::FutureWarning")


def test_two_fits_with_one_callback():
    def twice(*callbacks):
        _, module = fit(*callbacks)
        step = callbacks[0].step if callbacks else None
        trainer, _ = fit(*callbacks, module=module)
        assert not callbacks or callbacks[0].step is step
        assert "training_step" not in vars(trainer.strategy)
        return module

    module, expected = twice(CompilingCallback(plan=CAPTURED)), twice()
    torch.testing.assert_close(module.state_dict(), expected.state_dict())
    assert module.seen == expected.seen


class Usual(lightning.LightningModule):
    """Module whose ``training_step`` takes the index of the batch, as the usual signature has it, and does not use it."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = nn.Linear(6, 3), 0

    def training_step(self, batch, index):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Counting(Usual):
    def training_step(self, batch, index):
        return super().training_step(batch, index) + index


@pytest.mark.parametrize(("make", "times"), [(Usual, 0), (Counting, 1)])
def test_an_index_that_the_step_does_not_use_compiles_nothing_anew(make, times):
    callback = CompilingCallback(plan=CAPTURED)
    fit(callback, module=make())
    assert str(callback.explain()).count("recompiled: ") == times


def test_an_exception_leaves_nothing_behind():
    class Failing(Module):
        def training_step(self, batch, index):
            if index == 1:
                raise ZeroDivisionError
            return super().training_step(batch, index)

    module, expected = Failing(), Failing()
    trainers = []
    for one, callbacks in ((module, [CompilingCallback(plan=CAPTURED)]), (expected, [])):
        trainers.append(
            lightning.Trainer(**QUIET, max_epochs=1, enable_checkpointing=False, callbacks=callbacks)
        )
        with pytest.raises(ZeroDivisionError):
            trainers[-1].fit(one, data())
    assert vars(module).keys() == vars(expected).keys()
    assert vars(trainers[0].strategy).keys() == vars(trainers[1].strategy).keys()
    assert module.seen == expected.seen == 16


def test_loggers_get_nothing_from_trials(tmp_path):
    class Logger(lightning.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            self.calls = [*getattr(self, "calls", []), metrics]

    class Writing(Module):
        def training_step(self, batch, index):
            if self.global_step % 2:
                self.logger.log_metrics({"mine": self.global_step})
            assert isinstance(self.logger, Logger)
            assert self.logger.root_dir
            return super().training_step(batch, index)

    logger = Logger(tmp_path)
    trainer, _ = fit(CompilingCallback(plan=CAPTURED), module=Writing(), logger=logger)
    assert [call["mine"] for call in logger.calls if "mine" in call] == [1, 3, 5]
    assert trainer.logger is logger


def test_a_wrong_form_never_trains(monkeypatch):
    def wrong(gm):
        for node in gm.graph.nodes:
            if node.target is torch.nn.functional.gelu:
                node.target = torch.nn.functional.silu
        gm.recompile()
        return [Outcome(True, "gelu", "")]

    monkeypatch.setitem(PASSES, "attention", wrong)
    _, expected = fit()
    callback = CompilingCallback(plan=Plan(graph="captured", passes=("attention",)))
    _, module = fit(callback)
    assert callback.step.plan.graph == "eager"
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_watching_goes_on_beside_it(tmp_path):
    from lightning_kit import contents

    from loopwise.debug import every
    from loopwise.debug.lightning import WatchCallback

    saved = []
    for number, callbacks in enumerate(([], [CompilingCallback(plan=CAPTURED)])):
        folder = tmp_path / str(number)
        watching = WatchCallback(
            run=folder / "run", save=every(2), collections=["losses", "gradients", "outputs"]
        )
        fit(*callbacks, watching)
        saved.append(contents(folder))
    assert saved[0].keys() == saved[1].keys()
    for step, values in saved[0].items():
        assert values.keys() == saved[1][step].keys()
        for name, value in values.items():
            torch.testing.assert_close(torch.tensor(saved[1][step][name]), torch.tensor(value), msg=name)


@pytest.mark.parametrize("options", [{"score_every": 1}, {}])
def test_sifting_goes_on_beside_it(recwarn, options):
    from loopwise.sift.lightning import SiftingCallback

    def sifting():
        loss = nn.CrossEntropyLoss(reduction="none")
        return SiftingCallback(loss, model=lambda module: module.net, keep=0.5, **options)

    _, expected = fit(sifting())
    _, module = fit(sifting(), CompilingCallback(plan=CAPTURED))
    torch.testing.assert_close(module.state_dict(), expected.state_dict())
    assert module.seen == expected.seen
    assert not [warning for warning in recwarn if issubclass(warning.category, LoopwiseWarning)]


def test_a_run_folder_gets_the_plans_of_each_fit(tmp_path):
    callback = CompilingCallback(plan=CAPTURED, run=tmp_path / "run")
    _, module = fit(callback)
    fit(callback, module=module)
    assert len(list((tmp_path / "run" / "compile").glob("plans.*.jsonl"))) == 2


def test_what_cannot_be_compiled_is_refused():
    class Manual(Module):
        automatic_optimization = False

    class Iterating(Module):
        def training_step(self, dataloader_iter):
            pass

    class Compiled(Module):
        def __init__(self):
            super().__init__()
            self.net.compile()

    cases = {Manual: "manual optimization", Iterating: "dataloader_iter", Compiled: "compiled already"}
    for make, text in cases.items():
        with pytest.raises(InputError, match=text):
            fit(CompilingCallback(plan=CAPTURED), module=make())
    with pytest.raises(InputError, match="compiled already"):
        fit(CompilingCallback(plan=CAPTURED), module=torch.compile(Module()))


def test_a_step_of_the_user_s_own_whose_loss_logs():
    class Own(Module):
        def setup(self, stage):
            self.step = TrainStep(
                self, lambda model, batch: Module.training_step(model, batch, 0), plan=CAPTURED
            )

        def training_step(self, batch, index):
            return self.step.forward(batch)

    class Plain(Module):
        def training_step(self, batch, index):
            return super().training_step(batch, 0)

    (trainer, module), (plain, expected) = (fit(module=make(), max_steps=2) for make in (Own, Plain))
    assert module.step.plan == CAPTURED
    assert metrics(trainer) == pytest.approx(metrics(plain), rel=1e-5)
    assert module.seen == expected.seen


class Averaged(Module):
    """Module with a callback of its own."""

    def configure_callbacks(self):
        return EMAWeightAveraging()


@pytest.mark.parametrize("way", ["a class", "an instance"])
def test_optimize_of_a_lightning_module(way):
    class Own(Averaged):
        pass

    module = optimize(Own, plan=CAPTURED)() if way == "a class" else optimize(Averaged(), plan=CAPTURED)
    trainer, _ = fit(module=module)
    _, expected = fit(module=Averaged())
    (callback,) = [one for one in trainer.callbacks if isinstance(one, CompilingCallback)]
    assert callback.step.plan == CAPTURED
    assert any(isinstance(one, EMAWeightAveraging) for one in trainer.callbacks)
    torch.testing.assert_close(module.state_dict(), expected.state_dict())
    assert module.seen == expected.seen


def test_copies_of_an_optimized_lightning_module_are_ordinary():
    module = optimize(Averaged(), plan=CAPTURED)
    assert isinstance(copy.deepcopy(module).configure_callbacks(), EMAWeightAveraging)
    torch.save(module, io.BytesIO())


def test_optimize_beside_a_callback_of_the_user_s():
    module, callback = optimize(Module(), plan=CAPTURED), CompilingCallback(plan=Plan())
    trainer, module = fit(callback, module=module)
    assert [one for one in trainer.callbacks if isinstance(one, CompilingCallback)] == [callback]
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, data())  # the same trainer again
    assert module.seen == 144
    with pytest.raises(InputError, match="a model that is compiled already"):
        optimize(module)


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"clip": 1.0}, "CompilingCallback(clip=1.0)"),
        ({"autotune": "slow"}, "CompilingCallback(autotune='slow'): autotune='slow'"),
        ({"plan": "eager"}, "CompilingCallback(plan='eager'): plan of type str"),
        ({"verify": 3}, "CompilingCallback(verify=3): verify=3"),
    ],
)
def test_options_are_validated_when_the_callback_is_made(options, seen):
    with pytest.raises(InputError) as error:
        CompilingCallback(**options)
    assert str(error.value).startswith(f"seen: {seen}")


def test_two_ranks(ranks, tmp_path):
    """Preparing runs backward passes, which Lightning's own DDP wrapper must not count."""
    code = """
    import warnings
    warnings.simplefilter("ignore")
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "LOCAL_RANK": os.environ["RANK"], "GROUP_RANK": "0"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # the group exists
    from compiling_kit import CAPTURED, CompilingCallback, fit, metrics
    results = []
    for callbacks in ([], [CompilingCallback(plan=CAPTURED)]):
        trainer, module = fit(*callbacks, strategy="ddp", devices=2, accumulate_grad_batches=2)
        results.append((module.state_dict(), metrics(trainer), module.seen))
    assert callbacks[0].step.plan == CAPTURED, callbacks[0].explain()
    torch.testing.assert_close(results[0], results[1])
    print(json.dumps([results[1][2], *(v.double().sum().item() for k, v in results[1][0].items() if "running" not in k)]))
    """
    first, second = ranks(code)
    assert first == second
