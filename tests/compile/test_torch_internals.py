"""Private names of torch that compile uses: a test fails if a new release of torch moves or changes one."""

import copy
import inspect
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.checkpoint import checkpoint

from loopwise.compile import linear_cross_entropy, plan
from loopwise.compile import torch_internals as internals
from loopwise.compile.graph import passes
from loopwise.compile.loss_head.op import OPERATOR
from loopwise.errors import InputError


def too_new(version, newest):
    """Return whether a version of torch is newer than the newest one whose source was read."""
    return tuple(int(number) for number in version.split(".")[:2]) > newest


def test_the_source_of_this_torch_was_read():
    oldest, newest = internals.READ_FOR
    assert not too_new(torch.__version__, newest), (
        f"torch {torch.__version__} is newer than {newest}: compare compile/torch_internals.py with its source, "
        "run tests/compile, then raise READ_FOR"
    )
    assert too_new(torch.__version__, oldest) or torch.__version__.startswith("2.11")


def test_a_newer_torch_would_be_seen():
    assert too_new("2.16.0+cpu", (2, 15))
    assert not too_new("2.15.1", (2, 15))


def test_graph_breaks_and_failed_guards():
    @torch.compile(backend="eager")
    def broken(x):
        torch._dynamo.graph_break()
        return x + 1

    torch._dynamo.reset()
    breaks, guards = len(internals.graph_breaks()), len(internals.failed_guards())
    broken(torch.ones(2))
    broken(torch.ones(3))
    seen = internals.graph_breaks()[breaks:]
    assert any(frame.name == "broken" for frame in seen[0].stack)
    assert isinstance(seen[0].reason, str)
    assert len(internals.failed_guards()) > guards


def test_calls_that_log_once_are_left_out_of_a_graph(monkeypatch):
    said = []
    monkeypatch.setattr(logging.Logger, "info_once", lambda self, text: said.append(text), raising=False)
    logger = logging.getLogger(__name__)

    def told(x):
        logger.info_once("told")
        return x + 1

    assert logging.Logger.info_once in internals.once_functions()
    assert logging.Logger.info not in internals.once_functions()
    torch._dynamo.reset()
    with internals.calls_left_out(internals.once_functions()):
        assert logging.Logger.info_once in torch._dynamo.config.ignore_logging_functions
        torch.compile(told, backend="eager", fullgraph=True)(torch.ones(2))
    assert said == []
    assert logging.Logger.info_once not in torch._dynamo.config.ignore_logging_functions


def test_settings_differ_while_dynamo_captures():
    config, seen = torch._dynamo.config, []

    def now():
        return (
            config.use_numpy_random_stream,
            config.allow_unspec_int_on_nn_module,
            len(config.ignore_logging_functions),
        )

    def backend(gm, inputs):
        seen.append(now())
        return gm.forward

    torch._dynamo.reset()
    with internals.CapturedAsEager([print]):
        assert now() == (False, False, 0)
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
        assert now() == (False, False, 0)
    torch.compile(lambda x: x + 2, backend=backend)(torch.ones(2))
    assert seen == [(True, True, 1), (False, False, 0)]


def test_dynamos_mark_on_a_buffer():
    layer = nn.BatchNorm1d(2)
    torch._dynamo.reset()
    torch.compile(layer, backend="eager")(torch.randn(3, 2))
    assert internals.DYNAMO_MARKS[0] in vars(layer.running_mean)


def test_dynamos_mark_on_a_function_that_it_does_not_capture():
    x = torch.ones(2, requires_grad=True)
    checkpoint(torch.sin, x, use_reentrant=False)
    assert internals.DYNAMO_MARKS[1] in vars(inspect.unwrap(checkpoint))


def test_fake_tensors_inside_a_backend():
    seen = {}

    def backend(gm, inputs):
        values = [node.meta["example_value"] for node in gm.graph.nodes if node.op == "call_function"]
        seen["value"] = internals.fake_mode_of(values[0])
        mode = internals.tracing_fake_mode(inputs)
        with internals.fresh_tracing(mode):
            seen["inside"] = internals.tracing_fake_mode([])
        seen["mode"], seen["buckets"] = mode, internals.compiles_for_buckets()
        return gm.forward

    torch._dynamo.reset()
    torch.compile(lambda x: x * 2, backend=backend)(torch.ones(2))
    assert type(seen["value"]).__name__ == "FakeTensorMode"
    assert seen["inside"] is seen["mode"] is not None
    assert seen["buckets"] is False
    assert internals.fake_mode_of(torch.ones(2)) is None


def test_ddp_still_marks_the_graphs_of_its_buckets():
    from torch._guards import TracingContext

    assert TracingContext(None).fakify_first_call is False


@pytest.mark.parametrize("budget", [1.0, 0.0])
def test_inductor_compiles_a_graph_under_a_budget(budget):
    import torch._functorch.config as functorch

    before = functorch.activation_memory_budget

    def backend(gm, inputs):
        return internals.compile_by_inductor(gm, inputs, {"fallback_random": True}, budget)

    torch._dynamo.reset()
    x = torch.ones(3, requires_grad=True)
    torch.compile(lambda x: x.sin().exp().sum(), backend=backend)(x).backward()
    torch.testing.assert_close(x.grad, (x.sin().exp() * x.cos()).detach())
    assert functorch.activation_memory_budget == before


def test_inductors_setting_of_vector_instructions():
    from torch._inductor import config

    if (torch.__version__ >= "2.15") and config.cpp.vec_isa_ok is None:
        assert internals.known_vector_instructions() in ({}, {"cpp.vec_isa_ok": True})
    with config.patch({"cpp.vec_isa_ok": False}):
        assert internals.known_vector_instructions() == {}  # the user's choice


def test_a_linear_layer_in_a_captured_graph():
    targets = []

    def backend(gm, inputs):
        targets.extend(node.target for node in gm.graph.nodes if node.op == "call_function")
        return gm.forward

    torch._dynamo.reset()
    layer = nn.Linear(2, 2)
    torch.compile(lambda x: layer(x) + F.linear(x, layer.weight), backend=backend)(torch.ones(1, 2))
    assert sum(target in internals.linear_functions() for target in targets) == 2


def test_autocast_in_a_captured_graph():
    targets = []

    def backend(gm, inputs):
        targets.extend(node.target for node in gm.graph.nodes)
        return gm.forward

    def low(x):
        with torch.autocast("cpu", torch.bfloat16):
            return x @ x

    torch._dynamo.reset()
    torch.compile(low, backend=backend)(torch.ones(2, 2))
    assert [target for target in targets if target in internals.autocast_calls()] == [
        *internals.autocast_calls()
    ]


def test_the_position_of_an_operators_argument():
    names = ["x", "weight", "target", "bias", "class_weight"]
    assert [internals.argument_position(OPERATOR, name) for name in names] == [0, 1, 2, 3, 4]


def test_a_dispatch_mode_is_seen():
    from torch.utils.flop_counter import FlopCounterMode

    assert internals.dispatches_plainly()
    with FlopCounterMode(display=False):
        assert not internals.dispatches_plainly()


def test_leaves_of_nested_containers():
    assert internals.tree_leaves({"a": [1, (2,)], "b": 3}) == [1, 2, 3]


HOOKS = {
    "forward": lambda m, o: m.register_forward_hook(lambda *_: None),
    "forward pre": lambda m, o: m.register_forward_pre_hook(lambda *_: None),
    "backward": lambda m, o: m.register_full_backward_hook(lambda *_: None),
    "backward pre": lambda m, o: m.register_full_backward_pre_hook(lambda *_: None),
    "tensor": lambda m, o: m.weight.register_hook(lambda _: None),
    "accumulated": lambda m, o: m.weight.register_post_accumulate_grad_hook(lambda _: None),
    "all modules": lambda m, o: nn.modules.module.register_module_forward_hook(lambda *_: None),
    "step": lambda m, o: o.register_step_post_hook(lambda *_: None),
    "step pre": lambda m, o: o.register_step_pre_hook(lambda *_: None),
    "all steps": lambda m, o: register_optimizer_step_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_every_kind_of_hook_is_seen(kind):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert not internals.has_hooks([model], model.parameters(), optimizer)
    handle = HOOKS[kind](model, optimizer)
    try:
        assert internals.has_hooks([model], model.parameters(), optimizer)
        assert not internals.has_hooks([], [], copy.deepcopy(optimizer)) or kind.startswith("all")
    finally:
        handle.remove()
    assert not internals.has_hooks([model], model.parameters(), optimizer)


def test_hooks_of_all_modules_are_found():
    def hook(*_):
        return None

    handles = [nn.modules.module.register_module_forward_hook(hook)]
    handles.append(nn.modules.module.register_module_full_backward_hook(hook))
    keys = internals.hook_keys([nn.Linear(1, 1)])
    try:
        assert internals.hooks_of_all_modules() == [hook, hook]
        assert len(keys) == 2
    finally:
        for handle in handles:
            handle.remove()
    assert internals.hooks_of_all_modules() == []
    assert internals.hook_keys([nn.Linear(1, 1)]) == ()


def test_tensors_are_copied_into_others():
    targets = [torch.zeros(2), torch.zeros(3, dtype=torch.int64)]
    internals.copy_all(targets, [torch.ones(2), torch.arange(3)])
    assert [target.tolist() for target in targets] == [[1, 1], [0, 1, 2]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("profile", [torch.profiler.profile, torch.autograd.profiler.profile])
def test_allocations_inside_of_the_users_profile(profile):
    """torch raised an error: a thread has one profiler."""
    with profile() as own:
        assert internals.allocations(lambda: torch.ones(1024)) == [4096, -4096]
        torch.ones(1)
    assert {event.key: event.count for event in own.key_averages()}["aten::ones"] == 1


def test_allocations_of_a_function():
    changes = internals.allocations(lambda: torch.ones(1024))
    assert max(changes) >= 4096
    assert sum(changes) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_pool_that_nothing_allocates_to():
    internals.stop_allocating_to(torch.cuda.graph_pool_handle(), 0)


def test_the_pools_function_exists():
    assert not torch.cuda.is_available() or hasattr(torch._C, "_cuda_endAllocateToPool")


def test_the_passes_are_those_of_the_plan():
    assert list(passes.PASSES) == list(plan.PASSES)
    assert set(passes.USUAL) < set(passes.PASSES)


def test_the_loss_head_is_registered_by_the_import():
    assert torch.ops.loopwise.linear_cross_entropy.default is OPERATOR
    assert callable(linear_cross_entropy)


def test_compiled_functions_are_told_from_others():
    def function(x):
        return x

    assert internals.is_compiled_function(torch.compile(function))
    assert not internals.is_compiled_function(function)
    assert not internals.is_compiled_function(torch.compiler.disable(function))


def test_dynamo_passes_an_error_of_a_backend_on():
    error = InputError("one", "two", "three", "four")

    def backend(gm, inputs):
        raise internals.passed_by_dynamo(error)

    with pytest.raises(InputError) as raised:
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert raised.value.args == error.args
    assert str(raised.value) == str(error)


@pytest.mark.parametrize("dtypes", [[torch.float32], [torch.float32, torch.float16, torch.complex64]])
def test_tensors_are_multiplied_in_place(dtypes):
    dense = [torch.full((3,), 2.0, dtype=dtype) for dtype in dtypes]
    sparse = torch.eye(3).to_sparse()
    internals.multiply([*dense, sparse], 1.5)
    assert all(torch.equal(tensor, torch.full((3,), 3.0, dtype=tensor.dtype)) for tensor in dense)
    assert torch.equal(sparse.to_dense(), 1.5 * torch.eye(3))
    internals.multiply([sparse], 2.0)
