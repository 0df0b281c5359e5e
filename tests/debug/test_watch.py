"""Calls of a ``Watch``: steps, modes, schedules, collections, and errors inside it."""

import re

import pytest
import torch
from torch import nn
from watch_kit import network, steps, watched

from loopwise.debug import Collection, Watch, at, between, every, open_run
from loopwise.debug.capture import budget
from loopwise.errors import InputError, StateError
from loopwise.run import Run
from loopwise.warnings import LoopwiseWarning


def test_each_mode_counts_its_own_steps(tmp_path):
    net, optimizer, w = watched(tmp_path, save={"train": every(2), "eval": every(1)})
    with w:
        for _ in range(2):
            steps(net, optimizer, w, 3)
            with w.mode("eval"):
                w.step(val_loss=torch.tensor([1.0, 2.0]))
    saved = open_run(tmp_path / "run")
    assert saved.steps("train") == [0, 2, 4]
    assert saved.steps("eval") == [0, 1]
    assert saved.steps() == [0, 2, 3, 5, 7]
    assert saved.series("val_loss", mode="eval")[1].tolist() == [1.5, 1.5]


def test_collections_have_schedules_and_statistics_of_their_own(tmp_path):
    collections = [
        "losses",
        Collection("weights", save=at([1]), statistics=("mean", "max")),
        Collection("second", include=r"^2\.", save=between(2)),
        Collection("chosen", where=lambda name: name == "gradient/0.bias", save=every(3)),
        Collection("activation", modules=[], include="1.output", save=at([0])),
    ]
    net, optimizer, w = watched(tmp_path, save=every(2), collections=collections)
    with w:
        steps(net, optimizer, w, 4)
    saved = open_run(tmp_path / "run")
    assert saved.names(step=0) == ["1.output.0", "gradient/0.bias", "loss"]
    assert saved.names(step=1) == ["0.weight", "2.weight"]
    assert set(saved.names(step=2)) == {"2.weight", "2.bias", "2.output.0", "2.input.0", "loss"}
    assert saved.names(step=3)[-1] != "loss"
    assert saved.statistic("0.weight", "max", 1) > saved.statistic("0.weight", "mean", 1)


def test_an_evaluation_does_not_lose_what_waits_for_an_update(tmp_path):
    """Gradients were lost once with an update every second step and an evaluation after each step."""
    save = {"train": every(4), "eval": every(1)}
    net, optimizer, w = watched(tmp_path, save=save, collections=["gradients", "losses"])
    with w:
        for step in range(4):
            net(torch.ones(2, 4)).sum().backward()
            if step % 2:
                optimizer.step()
            w.step(loss=1.0, self=2.0)
            with w.mode("eval"):
                w.step(loss=1.0)
    saved = open_run(tmp_path / "run")
    assert [step for step in saved.steps("train") if saved.has("gradient/0.weight", step, mode="train")] == [
        1
    ]


def test_a_run_that_only_evaluates_misses_nothing(tmp_path):
    net, _, w = watched(tmp_path, save=every(1), collections=["all"], strict=True)
    with w, w.mode("predict"):
        net[0](torch.ones(2, 4))
        w.step()
    assert "0.output.0" in open_run(tmp_path / "run").names()


def test_a_schedule_that_fails_does_not_end_training(tmp_path):
    class Bad(type(every(1))):
        def __call__(self, step):
            if step:
                raise KeyError("a bug")
            return True

    net, optimizer, w = watched(tmp_path, save=Bad(1, 0))
    with pytest.warns(LoopwiseWarning, match="a step could not be saved: KeyError"):
        steps(net, optimizer, w, 3)
    w.close()
    assert open_run(tmp_path / "run").steps() == [0]


def test_outputs_of_modules(tmp_path):
    net = network()
    with Watch(
        net, run=tmp_path / "run", save=every(1), collections=[Collection("mine", modules=[net[1]])]
    ) as w:
        net(torch.ones(2, 4))
        w.step()
    assert open_run(tmp_path / "run").names() == ["1.output.0"]


def test_the_losses_of_loss_modules_come_by_themselves(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.criterion = nn.Linear(4, 3), nn.CrossEntropyLoss()

        def forward(self, x, y):
            return self.criterion(self.fc(x), y)

    net = Net()
    with Watch(net, run=tmp_path / "run", save=every(1), collections=["losses", "metrics"]) as w:
        loss = net(torch.ones(2, 4), torch.tensor([0, 1]))
        w.step()
    saved = open_run(tmp_path / "run")
    assert saved.names() == ["criterion.output.0"]
    assert saved.value("criterion.output.0", 0) == loss


def test_tensors_of_the_users(tmp_path):
    net, optimizer, w = watched(
        tmp_path, save=every(2), collections=["losses", Collection("mine", include="^attention")]
    )
    with w:
        for step in range(3):
            assert w.saves == (step % 2 == 0)
            w.save("attention/probabilities", torch.full((2, 2), float(step)))
            w.save("other", 3.0, collection="mine")
            w.save("nobody's", torch.ones(1))
            steps(net, optimizer, w, 1)
    saved = open_run(tmp_path / "run")
    assert saved.value("attention/probabilities", 2).tolist() == [[2.0, 2.0]] * 2
    assert saved.value("other", 0) == 3.0
    assert saved.value("nobody's", 2) == 1.0
    assert "nobody's" in saved.names(collection="saved")


def test_tensors_of_the_users_are_saved_whatever_their_names_are(tmp_path):
    net, optimizer, w = watched(tmp_path, save=every(1), collections=["losses", "weights", "health"])
    name = next(name for name, _ in net.named_parameters())
    with w, pytest.warns(LoopwiseWarning, match="names of parameters are saved under 'saved/'") as warned:
        for step in range(2):
            w.save(name, torch.full((3,), 7.0 + step))
            w.save("twice", torch.ones(1))
            w.save("twice", torch.zeros(2))
            steps(net, optimizer, w, 1)
    assert len(warned) == 1
    saved = open_run(tmp_path / "run")
    assert saved.value(f"saved/{name}", 1).tolist() == [8.0] * 3
    assert saved.value(name, 1).shape == net.get_parameter(name).shape
    assert (saved.value("twice", 1).tolist(), saved.value("twice#1", 1).tolist()) == ([1.0], [0.0, 0.0])


def test_without_an_optimizer_weights_are_those_at_the_end_of_the_step(tmp_path):
    net = network()
    with Watch(net, run=tmp_path / "run", save=every(1), collections=["weights", "gradients"]) as w:
        net(torch.ones(2, 4)).sum().backward()
        w.step()
    saved = open_run(tmp_path / "run")
    assert torch.equal(saved.value("0.weight", 0), net[0].weight)
    assert torch.equal(saved.value("gradient/2.bias", 0), net[2].bias.grad)


def test_counters_go_on_after_a_checkpoint(tmp_path):
    net, optimizer, w = watched(tmp_path, save=every(2))
    with w:
        steps(net, optimizer, w, 3)
        state = w.state_dict()
    with Run(tmp_path / "run", resume=True) as run:
        again = Watch(net, optimizer, run=run, save=every(2))
        again.load_state_dict(state)
        steps(net, optimizer, again, 2)
        again.close()
    assert open_run(tmp_path / "run").steps() == [0, 2, 4]


def test_tensors_that_never_come_are_named(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.used(x)

    def run(name, **options):
        net = Net()
        optimizer = torch.optim.SGD(net.used.parameters(), lr=0.1)
        w = Watch(
            net,
            optimizer,
            run=tmp_path / name,
            save=every(1),
            collections=["outputs", "weights", "gradients"],
            **options,
        )
        net(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        return w

    w = run("warned")
    with pytest.warns(LoopwiseWarning, match="never|got nothing") as warned:
        w.step()
    w.close()
    texts = [str(one.message) for one in warned]
    assert any("'outputs' got nothing from unused.output" in t and "does not call" in t for t in texts)
    assert any("'weights' got nothing from unused.weight" in t and "no optimizer" in t for t in texts)
    assert any("'gradients' got nothing from gradient/unused.weight" in t for t in texts)
    w = run("strict", strict=True)
    with pytest.warns(LoopwiseWarning), pytest.raises(StateError, match="got nothing from"):
        w.step()
    w.close()


def test_a_failure_switches_its_collection_off_and_training_goes_on(tmp_path):
    def bad(name):
        if not w:
            return True
        raise KeyError("a bug")

    w = None
    net, optimizer, w = watched(tmp_path, save=every(1), collections=["losses", Collection("bad", where=bad)])
    with pytest.warns(
        LoopwiseWarning,
        match=r"step 0: the collection 'bad' failed in a step: KeyError\('a bug'\) at .*test_watch.py",
    ):
        steps(net, optimizer, w, 2)
    with pytest.warns(LoopwiseWarning, match="the collection 'bad' is switched off: it failed in 3 steps"):
        steps(net, optimizer, w, 3)
    w.close()
    saved = open_run(tmp_path / "run")
    assert saved.steps() == [0, 1, 2, 3, 4]
    assert w.counts["failed"] == 3
    assert [event["step"] for event in saved.events] == [0, 2]


def test_a_budget_of_overhead_thins_what_is_saved(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(budget.time, "perf_counter", lambda: clock[0])
    net, optimizer, w = watched(tmp_path, save=every(1), collections=["losses", "weights"], max_overhead=0.1)

    def slow(*given):
        clock[0] += 1.0  # seconds that a saved step takes
        return real(*given)

    groups = w._capture._groups
    real, groups.of = groups.of, slow
    with w, pytest.warns(LoopwiseWarning, match="more than max_overhead=10.0%: fewer steps are saved"):
        for _ in range(40):
            clock[0] += 1.0
            steps(net, optimizer, w, 1)
    saved = open_run(tmp_path / "run")
    raw = [step for step in saved.steps() if saved.has("0.weight", step)]
    assert len(saved.steps()) == 40  # losses cost nothing
    assert 2 <= len(raw) <= 6
    assert w.counts["thinned"] == 40 - len(raw)


def test_an_exception_in_training_ends_the_run_as_failed(tmp_path):
    net, optimizer, w = watched(tmp_path, save=every(1))
    with pytest.raises(ZeroDivisionError), w:
        steps(net, optimizer, w, 1)
        raise ZeroDivisionError
    saved = open_run(tmp_path / "run")
    assert saved.info["state"] == "failed"
    assert saved.steps() == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"collections": ["weight"]}, "a built-in name: losses, metrics, weights"),
        ({"collections": ["weights", Collection("weights")]}, "different names"),
        ({"save": 100}, "a schedule such as every(100)"),
        ({"save": {"training": every(1)}}, "train, eval, predict"),
        ({"on_backlog": "wait"}, "one of block, drop, reduce"),
        ({"max_overhead": 5}, "a share of the training time, a number in (0, 1)"),
        ({"model": "net"}, "model='net'"),
        ({"optimizer": [1]}, "optimizer="),
        ({"run": None}, "a folder, an fsspec URL such as s3://bucket/run, or a Run"),
        ({"resume": "run"}, "resume='run'"),
        ({"on_finding": [print, 3]}, "a function of one Finding, or several functions"),
        ({"stop_on": "error"}, "one of info, warning, critical"),
        ({"scaler": 65536.0}, "a torch.amp.GradScaler, or None"),
        ({"trap": None}, "one of False, True"),
        ({"profile": {"interval": 1}}, "pass profile=Profile(interval=...)"),
        ({"rules": ["loss_spikes"]}, "the rule 'loss_spikes'"),
        ({"rules": ()}, "rules=False for none"),
    ],
)
def test_arguments_that_cannot_be_used(tmp_path, options, message):
    net = network()
    given = {"model": net, "optimizer": torch.optim.SGD(net.parameters(), lr=0.1), "run": tmp_path / "run"}
    with pytest.raises(InputError, match=re.escape(message)):
        Watch(**(given | options))
    assert not (tmp_path / "run").exists()


def test_collections_that_cannot_be_used():
    with pytest.raises(InputError, match="a regular expression"):
        Collection("mine", include="(")
    with pytest.raises(InputError, match="mean"):
        Collection("weights", statistics=("average",))
    with pytest.raises(InputError, match="raw=False and no statistics"):
        Collection("weights", raw=False)
    with pytest.raises(InputError, match="one of train, eval, predict"), Watch.mode(None, "test"):
        pass


def test_a_second_run_has_a_folder_of_its_own(tmp_path):
    watched(tmp_path)[2].close()
    second = watched(tmp_path)[2]
    second.close()
    assert second.run.path == f"{tmp_path}/run-2"


def test_a_run_is_gone_on_with(tmp_path):
    watched(tmp_path)[2].close()
    net, optimizer, w = watched(tmp_path, resume=True, save=every(1))
    with w:
        steps(net, optimizer, w, 1)
    assert open_run(tmp_path / "run").steps() == [0]
    net, optimizer, w = watched(tmp_path, resume=True, save=every(1))
    with w:
        steps(net, optimizer, w, 2)
    assert open_run(tmp_path / "run").steps() == [0, 1, 2]
    with pytest.raises(InputError, match="resume=True together with a Run"):
        Watch(net, run=Run(str(tmp_path / "other")), resume=True)


@pytest.mark.parametrize(
    "rules",
    [
        True,
        False,
        "auto",
        ["replicas_differ", "same_batch_on_ranks", "stalled_training", "non_finite", "dataloader"],
    ],
)
def test_rules_of_every_source_are_selected_by_name(tmp_path, rules):
    watched(tmp_path, rules=rules)[2].close()


def test_raw_tensors_are_the_default_without_statistics():
    assert Collection("weights").raw
    assert not Collection("weights", statistics="mean").raw
    assert Collection("weights", statistics="mean", raw=True).raw
    assert not Collection("health").raw


def test_a_collection_of_save_has_to_be_known(tmp_path):
    _, _, w = watched(tmp_path, collections=["losses", Collection("mine", include="^x$")])
    with w:
        w.save("x", 1.0, collection="mine")
        with pytest.raises(InputError, match="collection='ours'"):
            w.save("x", 1.0, collection="ours")
