"""Messages inside of a step: ``warning_once`` leaves the graph whole, other breaks are explained with their cure."""

import functools
import logging
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.graph.backend import Log, compile_function
from loopwise.compile.graph.diagnostics import collect_graph_breaks, recompilations

LOGGER = logging.getLogger(__name__)
CAPTURED = Plan(graph="captured", passes=("loss_head",))
LAYER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
GPT = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
UNNAMED = {
    "GPT2LMHeadModel": ("GPT2Config", GPT | {"bos_token_id": 0, "eos_token_id": 0}),
    "OpenAIGPTLMHeadModel": ("OpenAIGPTConfig", GPT),
    "BertLMHeadModel": ("BertConfig", LAYER | {"is_decoder": True}),
    "BertGenerationDecoder": ("BertGenerationConfig", LAYER | {"is_decoder": True}),
}
"""Classes whose names say no loss, so that transformers warns about it in each forward pass: configuration, its sizes."""


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.mark.parametrize("name", UNNAMED)
def test_the_loss_head_of_the_gpt2_family_is_found(name):
    transformers = pytest.importorskip("transformers")
    config, sizes = UNNAMED[name]
    model = getattr(transformers, name)(getattr(transformers, config)(vocab_size=101, **sizes)).eval()
    x = torch.randint(0, 101, (2, 8))

    def loss(x):
        return model(input_ids=x, labels=x).loss

    log, wanted = Log(), list(model.parameters())
    with collect_graph_breaks(log.breaks):
        ours = compile_function(loss, CAPTURED, log)(x)
    assert (log.breaks, log.graphs) == ([], 1)
    assert [outcome.rewritten for outcome in log.outcomes] == [True]
    theirs = loss(x)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(*(torch.autograd.grad(side, wanted) for side in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other)


class Warned(nn.Module):
    """Linear model that logs a message once, in the manner of Hugging Face."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, x):
        logits = self.layer(x)
        LOGGER.warning_once("no loss is named")
        return logits


@pytest.fixture
def _once(monkeypatch):
    log_once = functools.lru_cache(None)(lambda self, text: self.warning(text))
    monkeypatch.setattr(logging.Logger, "warning_once", log_once, raising=False)


@pytest.mark.usefixtures("_once")
def test_the_message_is_logged_as_often_as_in_eager(caplog):
    model = Warned()
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1), plan=CAPTURED)
    for _ in range(3):
        step((torch.randn(4, 3), torch.arange(4)))
    assert "graph break" not in str(step.explain())
    assert step.plan == CAPTURED
    own = [record.message for record in caplog.records if record.name == __name__]
    assert own == ["no loss is named"]


@pytest.mark.usefixtures("_once")
def test_the_users_setting_stays_as_it_is():
    setting, own = torch._dynamo.config.ignore_logging_functions, LOGGER.info

    def failing(x):
        LOGGER.warning_once("soon")
        return x @ x

    setting.add(own)
    try:
        with pytest.raises(RuntimeError):
            compile_function(failing, CAPTURED, Log())(torch.ones(2, 3))
        assert setting == {own}
    finally:
        setting.discard(own)


def printing(x):
    y = x * 2
    print("here")
    return y + 1


def warning(x):
    y = x * 2
    warnings.warn("here", stacklevel=2)
    return y + 1


def logged(x):
    y = x * 2
    LOGGER.info("here")
    return y + 1


def read(x):
    return x * 2 + x.sum().item()


def branched(x):
    return x * 2 if x.sum() > 0 else x


def drawn(x):
    return x * torch.from_numpy(np.random.rand(2))


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Buffer(torch.ones(2))

    def forward(self, x):
        self.table = self.table.to(torch.float32)
        return x * self.table


def breaks_of(function):
    texts = []
    with collect_graph_breaks(texts), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compile(function, backend="eager")(torch.ones(2))
    return texts


OUT = "take this line out of the step"
CURES = {
    printing: f"a message by print: {OUT}, or have it come after the graph: "
    "torch._dynamo.config.reorderable_logging_functions.add(print)",
    logged: f"a message by a logger: {OUT}, or have it left out: "
    "torch._dynamo.config.ignore_logging_functions.add(logger.info)",
    branched: "a branch on a tensor's value: use torch.where, or decide outside of the step",
    read: "a tensor's value is read: keep the tensor, detached, and read it after the step",
}


@pytest.mark.parametrize("function", CURES, ids=lambda f: f.__name__)
def test_a_break_is_reported_with_its_cure(function):
    (text,) = breaks_of(function)
    assert re.fullmatch(rf"{re.escape(__file__)}:\d+ \(.*\): {re.escape(CURES[function])}", text), text


@pytest.mark.parametrize("function", [printing, logged], ids=lambda f: f.__name__)
def test_the_cure_works(function):
    cure = CURES[function].split(": ")[-1]
    setting = eval(cure.partition(".add(")[0])
    before = set(setting)
    try:
        exec(cure, {"torch": torch, "logger": LOGGER})
        assert breaks_of(function) == []
    finally:
        setting.intersection_update(before)


def test_a_loss_behind_a_break_is_left_as_it_is_with_the_reason():
    model, log = nn.Linear(3, 5).requires_grad_(False), Log()

    def loss(x, y):
        logits = model(x)
        LOGGER.info("here")
        return nn.functional.cross_entropy(logits, y)

    compile_function(loss, CAPTURED, log)(torch.randn(4, 3), torch.arange(4))
    (outcome,) = log.outcomes
    assert outcome.reason == "the logits come from outside of the graph, as after a graph break"


def test_a_draw_of_numpy_is_reported_with_its_cure():
    texts = []
    with collect_graph_breaks(texts):
        compile_function(drawn, CAPTURED, Log())(torch.ones(2))
    assert texts[0].endswith(": a random draw by NumPy: draw by torch, or in the data loader")


def test_warnings_name_a_cure_if_they_break_the_graph():
    assert all("reorderable_logging_functions.add(warnings.warn)" in text for text in breaks_of(warning))


def test_another_builtin_is_not_taken_for_print():
    texts = breaks_of(lambda x: x * len(bytes(memoryview(b"ab"))))
    assert texts
    assert not any("a message by" in text for text in texts)


def test_a_guard_that_failed_is_told_without_a_cure():
    function = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
    for size in (2, 3):
        function(torch.ones(size))
    assert "size mismatch" in recompilations()[-1]
    assert OUT not in recompilations()[-1]


def test_a_break_inside_of_torch_is_placed_in_the_users_code():
    for text in breaks_of(Buffered()):
        assert "(self.table = self.table.to(torch.float32))" in text


def test_the_call_around_a_break_is_not_reported_as_another_one():
    def outer(x):
        return printing(x) * 3

    (text,) = breaks_of(outer)
    assert '(print("here"))' in text
