"""Private names of torch that debug uses: a test fails if a new release of torch moves or changes one."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from loopwise.debug import torch_internals as internals


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_classes_of_modules():
    assert isinstance(nn.SyncBatchNorm(2), internals.BATCH_NORMS)
    assert not isinstance(nn.InstanceNorm1d(2), internals.BATCH_NORMS)
    assert isinstance(nn.InstanceNorm1d(2), internals.RUNNING_NORMS)
    assert isinstance(nn.ConvTranspose2d(1, 1, 1), internals.CONVOLUTIONS)
    assert isinstance(nn.Dropout2d(), internals.DROPOUTS)
    assert isinstance(nn.CrossEntropyLoss(), internals.LOSSES)


def test_backward_is_known_inside_a_hook():
    seen = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda _: seen.append(internals.in_backward_or_transform()))
    x.sum().backward()
    assert seen == [True]
    assert not internals.in_backward_or_transform()


def test_operations_over_several_tensors():
    ones, twos = [torch.ones(2), torch.ones(3)], [torch.full((2,), 2.0), torch.full((3,), 2.0)]
    assert [float(norm) for norm in internals.norms(ones)] == pytest.approx([2**0.5, 3**0.5])
    assert all(torch.equal(d, o) for d, o in zip(internals.differences(twos, ones), ones, strict=True))
    internals.copy_all(ones, twos)
    assert torch.equal(ones[1], twos[1])
    internals.zero_all(ones)
    assert not ones[0].any()


def test_shape_of_a_node_s_result():
    logits = torch.zeros(4, 3, requires_grad=True).log_softmax(1)
    assert internals.result_shape(logits.grad_fn) == (4, 3)
    assert internals.result_shape(object()) is None


def test_storages_and_sparse_values():
    x = torch.ones(4)
    assert internals.storage_key(x) == internals.storage_key(x[1:])
    assert internals.storage_key(x) != internals.storage_key(x.clone())
    assert internals.sparse_values(torch.ones(2).to_sparse()).tolist() == [1, 1]


def test_members_of_a_module():
    children, parameters = internals.module_members(nn.Sequential(nn.Linear(1, 1)))
    assert list(children) == ["0"]
    assert not parameters


def test_the_profiler_of_torch_is_seen():
    assert not internals.is_torch_profiler_on()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert internals.is_torch_profiler_on()


def test_iterators_of_loaders():
    iterator = iter(torch.utils.data.DataLoader([1, 2]))
    assert isinstance(iterator, internals.loader_iterator())
    assert internals.loader_workers(iterator) == 0


def test_code_is_dropped_of_the_named_functions_only(fresh_dynamo):
    counter = CompileCounter()
    functions = [lambda x: x + 1, lambda x: x + 2]
    compiled = [torch.compile(function, backend=counter) for function in functions]
    for _ in range(2):
        for function in compiled:
            function(torch.ones(2))
    assert counter.frame_count == 2
    internals.drop_compiled_code(functions[:1])
    for function in compiled:
        function(torch.ones(2))
    assert counter.frame_count == 3


def test_code_after_a_graph_break_is_dropped_as_well(fresh_dynamo):
    counter = CompileCounter()

    def function(x):
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2

    compiled = torch.compile(function, backend=counter)
    compiled(torch.ones(2))
    assert counter.frame_count == 2
    internals.drop_compiled_code([function])
    compiled(torch.ones(2))
    assert counter.frame_count == 4


def test_graphs_depend_on_hooks_inside_only(fresh_dynamo):
    counter = CompileCounter()
    net = nn.Sequential(nn.Linear(2, 2))
    before = torch._dynamo.config.skip_nnmodule_hook_guards
    with internals.guard_on_hooks():
        compiled = torch.compile(net, backend=counter)
        compiled(torch.ones(2))
        handle = net[0].register_forward_hook(lambda module, args, output: output + 1)
        assert torch.equal(compiled(torch.ones(2)), net(torch.ones(2)))
        handle.remove()
    assert counter.frame_count == 2
    assert torch._dynamo.config.skip_nnmodule_hook_guards is before


def test_functions_can_be_left_to_python(fresh_dynamo):
    counter = CompileCounter()

    def inner(x):
        return x + 1

    def hook(x):
        return inner(x)

    internals.run_eagerly_outside_graphs(hook)
    torch.compile(hook, backend=counter)(torch.ones(2))
    assert counter.frame_count == 0


def test_shards_and_their_places(ranks):
    code = """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor
        from loopwise.debug import torch_internals
        mesh = init_device_mesh("cpu", (2,))
        tensor = distribute_tensor(torch.arange(5.0), mesh, [Shard(0)])
        shape, start = torch_internals.local_shape_and_offset(tensor.shape, mesh, tensor.placements)
        print(json.dumps([list(shape), list(start)]))
    """
    assert ranks(code) == [[[3], [0]], [[2], [3]]]


def test_importing_debug_loads_nothing_slow():
    slow = ("torch._dynamo", "torch._inductor", "triton", "torch.distributed.tensor", "plotly")
    code = f"""
import sys, torch
before = set(sys.modules)
import loopwise.debug
print([name for name in {slow} if name in set(sys.modules) - before])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
