"""Errors of wrong arguments: each names the mistake, the valid values and the fix."""

import copy
import functools

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep, fit
from loopwise.errors import InputError

CRITERION = nn.CrossEntropyLoss()
F = nn.functional
NET = nn.Linear(6, 3)
SGD = torch.optim.SGD(NET.parameters(), lr=0.1)
BATCH = torch.randn(4, 6), torch.arange(4) % 3


def text(seen, expected, cause, fix):
    return f"seen: {seen}\nexpected: {expected}\nlikely cause: {cause}\nfix: {fix}"


NO_LOSS = text(
    "an optimizer (SGD) in the place of the loss",
    "TrainStep(model, loss, optimizer)",
    "the loss was left out, or loss and optimizer changed places",
    "pass the loss second: TrainStep(model, nn.CrossEntropyLoss(), optimizer)",
)
A_LOSS = (
    "a criterion of (output, target), or a function of (model, batch) whose first parameter is named model"
)
A_MODEL = (
    "an nn.Module, or DDP's wrapper of one",
    "the model's parameters or another argument was passed in the place of the model",
    "pass the model itself: TrainStep(model, loss, optimizer)",
)
COMPILED = (
    "a model as it was built",
    "torch.compile, Module.compile or optimize was called before, and the parts would be compiled twice",
    "build the model anew and let the training step compile it, or keep the usual loop",
)
COMPILED_LOSS = (
    "the loss itself",
    "the step compiles model and loss together, and compares with both as they run without a compiler",
    "pass the loss that was passed to torch.compile",
)
FOREIGN = (
    "an optimizer of parameters that the loss depends on",
    "the optimizer was made for another model, or before the model was copied or its layers were replaced",
    "make the optimizer of this model's parameters, after the model is complete",
)


def in_place(net):
    net = copy.deepcopy(net)
    net.compile(backend="eager")
    return net


def unpacked(model, x, y):
    return F.cross_entropy(model(x), y)


class OfTheModel(nn.Module):
    def forward(self, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])


A_CLASS = "the class was passed, not an instance"
MESSAGES = {
    "an optimizer as the loss": (lambda: TrainStep(NET, SGD), NO_LOSS),
    "loss and optimizer swapped": (lambda: TrainStep(NET, SGD, CRITERION), NO_LOSS),
    "a tensor as the loss": (
        lambda: TrainStep(NET, loss=torch.zeros(()), optimizer=SGD),
        text(
            "loss of type Tensor",
            A_LOSS,
            "a value was passed in place of a function, or arguments changed places",
            "pass loss=nn.CrossEntropyLoss()",
        ),
    ),
    "the loss's class": (
        lambda: TrainStep(NET, nn.CrossEntropyLoss, SGD),
        text(
            "loss=CrossEntropyLoss, a class",
            A_LOSS,
            A_CLASS,
            "pass loss=nn.CrossEntropyLoss()",
        ),
    ),
    "parameters as the model": (
        lambda: TrainStep(list(NET.parameters()), CRITERION),
        text("model of type list", *A_MODEL),
    ),
    "the model's class": (
        lambda: TrainStep(nn.Linear, CRITERION),
        text("model=Linear, a class", A_MODEL[0], A_CLASS, A_MODEL[2]),
    ),
    "the optimizer's class": (
        lambda: TrainStep(NET, CRITERION, torch.optim.SGD),
        text(
            "optimizer=SGD, a class",
            "a torch.optim.Optimizer",
            A_CLASS,
            "pass for instance torch.optim.AdamW(model.parameters(), lr=1e-3)",
        ),
    ),
    "a scaler of another type": (
        lambda: TrainStep(NET, CRITERION, SGD, scaler=True),
        text(
            "scaler of type bool",
            "a torch.amp.GradScaler, or None",
            "True or a dtype was passed",
            "pass scaler=torch.amp.GradScaler()",
        ),
    ),
    "a plan as text": (
        lambda: TrainStep(NET, CRITERION, SGD, plan="eager"),
        text(
            "plan of type str",
            "a Plan",
            "the plan's JSON text, or a dict of its fields, was passed",
            "pass Plan.from_json(text)",
        ),
    ),
    "no clipping": (
        lambda: TrainStep(NET, CRITERION, SGD, clip=0),
        text(
            "clip=0",
            "a largest norm of the gradients above 0",
            "zero or None for 'none', a negative number or a text",
            "pass for instance clip=1",
        ),
    ),
    "no accumulation": (
        lambda: TrainStep(NET, CRITERION, SGD, accumulate=0),
        text(
            "accumulate=0",
            "a whole number of batches, at least 1",
            "a fraction, a negative number or a text",
            "pass for instance accumulate=4",
        ),
    ),
    "an unknown precision": (
        lambda: TrainStep(NET, CRITERION, SGD, precision="fast"),
        text("precision='fast'", "one of exact, mixed", "a typo", "pass for instance precision='exact'"),
    ),
    "an unknown autotune": (
        lambda: TrainStep(NET, CRITERION, SGD, autotune="fast"),
        text("autotune='fast'", "one of off, default, max", "a typo", "pass for instance autotune='off'"),
    ),
    "an unknown unit": (
        lambda: TrainStep(NET, CRITERION, SGD, memory="6 barrels"),
        text(
            "memory='6 barrels'",
            "bytes, a text such as '6GiB' or '800MB', or a fraction of the device's memory in (0, 1]",
            "an unknown unit, or 0",
            "pass for instance memory='6GiB'",
        ),
    ),
    "lazy layers": (
        lambda: TrainStep(nn.Sequential(nn.LazyLinear(3)), CRITERION),
        text(
            "a model with lazy layers whose weights have no shape yet",
            "a model whose weights have their shapes",
            "the model has not seen an input",
            "call model(inputs) once, before the optimizer and the training step are made",
        ),
    ),
    "a compiled model": (
        lambda: TrainStep(torch.compile(NET), CRITERION, SGD),
        text(
            "a model that torch.compile wrapped",
            "the model itself",
            "the model would be compiled twice",
            "pass the model that was passed to torch.compile",
        ),
    ),
    "a model compiled in place": (
        lambda: TrainStep(in_place(NET), CRITERION, SGD),
        text("a model that is compiled already, in place", *COMPILED),
    ),
    "a compiled module": (
        lambda: TrainStep(nn.Sequential(in_place(NET)), CRITERION, SGD),
        text("a model that is compiled already, in its module 0", *COMPILED),
    ),
    "a wrapped module": (
        lambda: TrainStep(nn.Sequential(torch.compile(NET)), CRITERION, SGD),
        text("a model that is compiled already, in its module 0", *COMPILED),
    ),
    "a compiled loss": (
        lambda: TrainStep(NET, torch.compile(CRITERION), SGD),
        text("a loss that torch.compile wrapped", *COMPILED_LOSS),
    ),
    "a compiled function": (
        lambda: TrainStep(NET, torch.compile(lambda model, batch: 0.0), SGD),
        text("a loss that torch.compile wrapped", *COMPILED_LOSS),
    ),
    "an unpacked batch": (
        lambda: TrainStep(NET, unpacked, SGD),
        text(
            "loss=unpacked with the parameters (model, x, y)",
            A_LOSS,
            "the batch was unpacked into several parameters, or one is missing",
            "take the batch apart inside, as in def loss(model, batch): x, y = batch",
        ),
    ),
    "no model": (
        lambda: TrainStep(NET, functools.partial(unpacked, NET, y=1), SGD),
        text(
            "loss=unpacked with the parameters (x, *, y=1)",
            A_LOSS,
            "the batch was unpacked into several parameters, or one is missing",
            "take the model, too: def loss(model, batch)",
        ),
    ),
    "a loss module of the model": (
        lambda: TrainStep(NET, OfTheModel(), SGD),
        text(
            "a loss module whose forward takes (model, batch)",
            A_LOSS,
            "modules are called with (output, target)",
            "pass loss=lambda model, batch: module(model, batch)",
        ),
    ),
    "another model's optimizer": (
        lambda: TrainStep(copy.deepcopy(NET), CRITERION, SGD),
        text("an optimizer that has none of the model's parameters", *FOREIGN),
    ),
    "another model's optimizer, and a function": (
        lambda: TrainStep(
            copy.deepcopy(NET), lambda model, b: F.cross_entropy(model(b[0]), b[1]), SGD, plan=Plan()
        )(BATCH),
        text("an optimizer that has none of the model's parameters", *FOREIGN),
    ),
    "a model on two devices": (
        lambda: TrainStep(nn.Sequential(NET, nn.Linear(3, 3, device="meta")), CRITERION, SGD),
        text(
            "parameters on cpu, meta",
            "all parameters on one device",
            "a part of the model was not moved, or the model is split over devices",
            "model.to(device); a split model trains by its own loop",
        ),
    ),
    "no optimizer": (
        lambda: TrainStep(NET, CRITERION)(BATCH),
        text(
            "a training step without an optimizer",
            "TrainStep(model, loss, optimizer)",
            "the step was made for a framework that updates the weights itself",
            "pass the optimizer, or call forward(batch) and let the framework do the rest",
        ),
    ),
    "a pass without a tuple": (
        lambda: Plan(passes="loss_head"),
        text(
            "passes='loss_head'",
            "a tuple of names out of loss_head, loss_kernel, attention, short_attention",
            "one name without a tuple around it",
            "pass passes=('loss_head',)",
        ),
    ),
    "fit without a step": (
        lambda: fit(NET, BATCH),
        text("step of type Linear", "a TrainStep", "the model was passed", "pass TrainStep(model, loss)"),
    ),
}


@pytest.mark.parametrize("mistake", MESSAGES)
def test_the_whole_message(mistake):
    call, expected = MESSAGES[mistake]
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value) == expected


def test_the_loss_is_positional_or_a_keyword():
    for step in (TrainStep(NET, CRITERION, SGD), TrainStep(NET, loss=CRITERION, optimizer=SGD)):
        assert step.spec.loss is CRITERION


@pytest.mark.parametrize(
    ("call", "seen"),
    [
        (lambda: Plan(graph="triton"), "graph='triton'"),
        (lambda: Plan(passes=("loss_tail",)), "passes='loss_tail'"),
        (lambda: Plan(budget=30), "budget=30"),
        (lambda: Plan.from_json('{"level": "exact"}'), "a plan with level"),
        (lambda: TrainStep(NET, CRITERION, SGD, verify="often"), "verify='often'"),
        (lambda: TrainStep(NET, CRITERION, SGD, accumulate=True), "accumulate=True"),
        (lambda: TrainStep(NET, CRITERION, SGD, memory="1.2.3"), "memory='1.2.3'"),
        (lambda: TrainStep(NET, lambda a, b: a * 2, SGD, plan=Plan())(BATCH), "a loss of shape (4, 3)"),
        (lambda: TrainStep(NET, CRITERION, SGD, plan=Plan())(BATCH[0]), "a batch that is no pair"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_mistake_is_named(call, seen):
    with pytest.raises(InputError, match="seen: ") as error:
        call()
    assert str(error.value).startswith(f"seen: {seen}")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("call", [TrainStep.__call__, TrainStep.forward])
def test_a_step_without_gradients_is_refused(mode, call):
    step = TrainStep(NET, CRITERION, SGD, plan=Plan())
    with mode(), pytest.raises(InputError) as error:
        call(step, BATCH)
    assert error.value.args[0] == f"a training step under torch.{mode.__name__}()"
    assert step.forward(BATCH).isfinite()


COMPILE_ERRORS = {
    "a mode": ({"mode": "max-autotune"}, "mode='max-autotune' with backend='loopwise'"),
    "an option": ({"options": {"budgett": 1}}, "the options budgett"),
    "a value": ({"options": {"precision": "exakt"}}, "options={'precision': 'exakt'}: precision='exakt'"),
    "a percentage": ({"options": {"budget": 50}}, "options={'budget': 50}: budget=50"),
}


@pytest.mark.parametrize("kind", COMPILE_ERRORS)
def test_errors_of_torch_compile_come_unwrapped(kind):
    arguments, seen = COMPILE_ERRORS[kind]
    compiled = torch.compile(copy.deepcopy(NET), backend="loopwise", **arguments)
    with pytest.raises(InputError) as error:
        compiled(BATCH[0])
    assert str(error.value).startswith(f"seen: {seen}\nexpected: ")
    assert "TORCHDYNAMO_VERBOSE" not in str(error.value)


def test_a_frozen_model_is_refused():
    frozen = copy.deepcopy(NET).requires_grad_(False)
    with pytest.raises(InputError, match="seen: a loss that needs no gradient"):
        optimizer = torch.optim.SGD(frozen.parameters(), lr=0.1)
        TrainStep(frozen, CRITERION, optimizer, plan=Plan(), verify=False)(BATCH)


def test_every_pass_has_a_name_and_a_function():
    from loopwise.compile.graph import passes
    from loopwise.compile.plan import PASSES

    assert list(passes.PASSES) == list(PASSES)


def test_a_sharded_model_is_refused(ranks):
    code = """
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from loopwise.compile import TrainStep
    net = nn.Linear(6, 4)
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    try:
        TrainStep(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1))
    except ValueError as error:
        print(json.dumps(str(error)))
    """
    for said in ranks(code):
        assert said.startswith(
            "seen: a model sharded by fully_shard\nexpected: a model that each rank holds whole"
        )
