"""``preflight``: findings, healthy setups, its report, and that it changes nothing."""

import functools
import re

import pytest
import torch
from torch import nn
from watch_kit import outcome, rules

from benchmarks.zoo import FAULTS, Job
from loopwise.debug import FindingError, Watch, every, open_run, preflight
from loopwise.errors import InputError

F = nn.functional
CROSS = nn.CrossEntropyLoss()


def tried(model, *batch, loss=CROSS, lr=1e-2, **options):
    batch = batch[0] if len(batch) == 1 else batch
    return preflight(model, batch, loss, torch.optim.Adam(model.parameters(), lr), **options)


def digits(seed=0):
    torch.manual_seed(seed)
    return torch.randn(12, 6), torch.arange(12) % 3


def mlp():
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))


# -- healthy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        *(
            (kind, functools.partial(torch.optim.AdamW, lr=2e-3))
            for kind in ("mlp", "cnn", "rnn", "transformer")
        ),
        ("cnn", functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)),
    ],
)
def test_healthy_setups(kind, optimizer):
    job = Job(kind, 1, optimizer=optimizer)
    model, held = job.made()
    report = preflight(model, job.batch(0), job.criterion, held)
    assert report.findings == []
    assert {result.outcome for result in report.results} == {"passed"}
    report.raise_if("info")


def test_slow_optimizers_and_models_that_are_too_small_to_learn_by_heart_are_healthy():
    model = mlp()
    slow = tried(model, *digits(), lr=1e-4)
    assert slow.findings == []
    assert "the loss fell slowly" in outcome(slow, "one batch").text
    x, y = torch.randn(256, 6), torch.arange(256) % 2
    small = tried(nn.Linear(6, 1), x, y[:, None].float(), loss=nn.BCEWithLogitsLoss(), lr=1e-3)
    assert small.findings == []
    assert outcome(small, "one batch").text.startswith("7 parameters may be too few to learn 256 targets")


class Hugging(nn.Module):
    """A model with arguments by name that returns a dict, like models of Hugging Face."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        mask = attention_mask.unsqueeze(-1)
        logits = self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_models_that_return_their_loss():
    def loss(model, batch):
        return model(**batch)["loss"]

    batch = {"input_ids": torch.randint(20, (8, 5)), "labels": torch.arange(8) % 3}
    batch["attention_mask"] = torch.ones(8, 5, dtype=torch.long)
    report = tried(Hugging(), batch, loss=loss)
    assert report.findings == []
    assert outcome(report, "dependence").text == "other values of input input_ids change the output"
    batch["labels"] = batch["labels"] + 1
    assert rules(tried(Hugging(), batch, loss=loss)) == {"bad_targets"}


def test_without_an_optimizer():
    report = preflight(mlp(), digits(), CROSS)
    assert report.findings == []
    assert (outcome(report, "optimizer").outcome, outcome(report, "optimizer").text) == (
        "left out",
        "no optimizer was passed",
    )


@pytest.mark.parametrize("wrap", [torch.compile, lambda model: (model.compile(), model)[1]])
def test_compiled_models_run_eagerly_on_the_copy(wrap):
    model = mlp()
    assert tried(wrap(model), *digits()).findings == []


def test_a_model_in_ddp(ranks):
    code = """
    from torch import nn
    from loopwise.debug import preflight
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(6, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    found = preflight(model, (torch.randn(6, 6), torch.arange(6) % 3), nn.CrossEntropyLoss(), optimizer)
    print(json.dumps([str(each) for each in found.findings] + [found.results[5].text]))
    """
    assert ranks(code) == [
        ["the optimizer holds every parameter that gets a gradient"],
        ["rules are applied on rank 0 only, and not to optimizers that need a closure"],
    ]


def test_an_optimizer_that_needs_a_closure():
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
    report = preflight(model, digits(), CROSS, optimizer)
    assert outcome(report, "one batch").outcome == "passed"
    assert report.findings == []


def test_a_warmup_does_not_look_like_a_learning_rate_of_zero():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 1000)
    assert preflight(model, digits(), CROSS, optimizer).findings == []


# -- findings ---------------------------------------------------------------------------------------

ZOO = [
    *(
        "relus_that_never_open",
        "weights_all_alike",
        "learning_rate_zero",
        "head_replaced_after_the_optimizer",
    ),
    *("softmax_before_cross_entropy", "pixels_up_to_255", "loss_with_the_wrong_sign"),
]


@pytest.mark.parametrize("name", ZOO)
def test_faults_that_rules_name(name):
    job = Job(FAULTS[name].kind, 0)
    FAULTS[name].inject(job)
    model, optimizer = job.made()
    assert rules(preflight(model, job.batch(0), job.criterion, optimizer)) & {*FAULTS[name].named}


class Blind(nn.Linear):
    def forward(self, x):
        return super().forward(torch.ones_like(x))


def test_an_output_that_ignores_the_input():
    report = tried(Blind(6, 3), *digits())
    assert {"output_ignores_input"} <= rules(report)
    with pytest.raises(FindingError, match="output_ignores_input: the output stays the same"):
        report.raise_if()


@pytest.mark.parametrize("loss", [lambda out, y: CROSS(out, y) + 1, lambda out, y: 10 * CROSS(out, y)])
def test_losses_that_are_more_than_one_of_torchs(loss):
    """The bounds of torch's loss do not hold for them."""
    assert outcome(tried(mlp(), *digits(), loss=loss, lr=3e-3), "one batch").outcome == "passed"


def test_the_best_constant_guess_is_no_learning():
    """With nine of ten samples in one class, the loss falls by half without any use of the input."""
    x, y = torch.randn(30, 6), (torch.arange(30) % 10 == 0).long()
    report = tried(Blind(6, 30), x, y, lr=1e-2)
    finding = next(each for each in report.findings if each.rule == "cannot_overfit_one_batch")
    assert "the best constant guess has a loss of 0.3251" in finding.what
    assert len(finding.evidence["loss"]) == 100


class Attends(nn.Module):
    """A transformer layer, whose first dimension is time by default."""

    def __init__(self, **how):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, **how)

    def forward(self, tokens):
        return self.head(self.layer(self.embed(tokens)).mean(1))


@pytest.mark.parametrize("how", [{}, {"batch_first": True}])
def test_samples_that_interact(how):
    torch.manual_seed(0)
    report = tried(Attends(**how), torch.randint(20, (8, 5)), torch.arange(8) % 3)
    assert rules(report) == (set() if how else {"samples_mixed"})


class Drops(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x):
        return F.dropout(self.inner(x), 0.1)


class AlwaysOn(nn.Dropout):
    def eval(self):
        return self

    def train(self, mode=True):
        return self


def test_dropout_in_evaluation_mode():
    report = tried(nn.Sequential(nn.Linear(6, 6), Drops()), *digits())
    assert rules(report) == {"output_not_repeatable"}
    assert "because of 1, which draws random numbers" in report.findings[0].what
    report = tried(nn.Sequential(nn.Linear(6, 3), AlwaysOn(0.1)), *digits())
    assert "because of 1, which stays in training mode" in report.findings[0].what


def test_nan_in_the_batch():
    x, y = digits()
    x[3, 2] = float("nan")
    assert "input_not_finite" in rules(tried(mlp(), x, y))


class Remembers(nn.Module):
    """A model that keeps its state and the graph of the step before."""

    def __init__(self):
        super().__init__()
        self.inner, self.state = nn.Linear(6, 3), 0.0

    def forward(self, x):
        self.state = self.inner(x) + 0.1 * self.state
        return self.state


def test_steps_that_fail():
    report = tried(nn.Linear(5, 3), *digits())
    assert rules(report) == {"step_fails"}
    assert "the forward pass or the loss raises RuntimeError" in report.findings[0].what
    report = tried(Remembers(), *digits())
    assert "step_fails" in rules(report)
    assert "backward of step 1 on the same batch raises" in str(report)


def test_a_loss_that_depends_on_no_parameter():
    report = tried(mlp(), *digits(), loss=lambda out, y: (out.argmax(1) != y).float().mean())
    assert rules(report) == {"detached_loss"}


# -- the report and arguments -----------------------------------------------------------------------


def test_the_report():
    report = tried(mlp().append(nn.Softmax(1)), *digits())
    text = str(report)
    assert text.startswith("1 finding, 11 passed, 0 left out, in ")
    assert "  critical  loss         cross_entropy applies softmax itself" in text
    assert "fix: pass logits to cross_entropy" in text
    assert max(map(len, text.splitlines())) <= 110
    with pytest.raises(FindingError) as error:
        report.raise_if("critical")
    assert "seen: loss_input: cross_entropy applies softmax itself" in str(error.value)
    with pytest.raises(InputError, match="severity='bad'"):
        report.raise_if("bad")


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (
            lambda: preflight(CROSS(*[torch.zeros(1, 2), torch.zeros(1).long()]), digits(), CROSS),
            "type Tensor",
        ),
        (lambda: preflight(mlp(), digits(), CROSS, torch.optim.Adam), "optimizer=Adam, a class"),
        (lambda: preflight(mlp(), digits(), CROSS, steps=5), "steps=5"),
        (lambda: preflight(mlp(), digits(), CROSS, frozen="head"), "frozen='head'"),
        (lambda: preflight(mlp(), digits(), CROSS, batch_dim="0"), "batch_dim='0'"),
        (lambda: preflight(mlp(), digits(), CROSS, output_shape=3), "output_shape=3"),
        (lambda: preflight(mlp(), digits(), CROSS, output_range=(1, 0)), "output_range=(1, 0)"),
        (lambda: preflight(mlp(), digits(), CROSS, suppress="sample_mixed"), "suppress='sample_mixed'"),
        (lambda: preflight(mlp(), digits(), CROSS, baseline="/nowhere/b.json"), "baseline='/nowhere/b.json'"),
        (lambda: preflight(mlp(), digits()[0], CROSS), "a batch that is no pair"),
        (lambda: preflight(mlp(), digits(), lambda out, y: {"loss": 1}), "a loss of type dict"),
    ],
)
def test_invalid_arguments_are_refused(given, seen):
    with pytest.raises(InputError, match=re.escape(seen)):
        given()


def test_a_watched_model(tmp_path):
    """Its copies are not watched, and nothing of them is saved in its run."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    with Watch(model, optimizer, run=tmp_path / "run", save=every(1)) as watch:
        assert preflight(model, digits(), CROSS, optimizer).findings == []
        assert watch.findings == []
    assert open_run(tmp_path / "run").steps() == []


def test_a_sharded_model(ranks):
    code = """
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from loopwise.debug import preflight
    model = fully_shard(nn.Linear(6, 3))
    try:
        preflight(model, (torch.randn(6, 6), torch.arange(6) % 3), nn.CrossEntropyLoss())
    except ValueError as error:
        print(json.dumps(str(error).splitlines()[0]))
    """
    assert ranks(code, 1) == ["seen: a model sharded by fully_shard"]
