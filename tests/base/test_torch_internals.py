"""Private names of torch that the base uses: a test fails if a new release of torch moves or changes one."""

import subprocess
import sys

import torch
from torch import nn

from loopwise import torch_internals


def test_dictionaries_are_the_module_s_own():
    norm = nn.BatchNorm1d(2)
    torch_internals.buffers(norm)["running_mean"] = torch.ones(2)
    assert torch.equal(norm.running_mean, torch.ones(2))
    assert torch_internals.parameters(norm)["weight"] is norm.weight


def test_version_counts_changes_in_place():
    tensor = torch.zeros(2)
    before = torch_internals.version(tensor)
    tensor.add_(1)
    assert torch_internals.version(tensor) == before + 1


def test_compiled_models_are_known():
    model = nn.Sequential(nn.Linear(2, 2))
    assert not torch_internals.is_compiled(model)
    wrapped = torch.compile(model, backend="eager")
    assert torch_internals.original(wrapped) is model
    assert torch_internals.is_compiled(wrapped)
    model[0].compile(backend="eager")
    assert torch_internals.is_compiled(model)
    torch_internals.set_compiled_call(model[0], None)
    assert torch_internals.compiled_call(model[0]) is None
    assert not torch_internals.is_compiled(model)


def test_the_call_of_a_compiled_module_without_the_compiler_has_its_hooks():
    model, seen = nn.Linear(2, 2), []
    model.register_forward_hook(lambda *_: seen.append(1))
    model.compile(backend=None)  # calling it raises
    torch_internals.uncompiled_call(model)(torch.zeros(1, 2))
    assert seen == [1]


def test_hooks_of_saved_tensors_are_noticed():
    assert not torch_internals.saved_tensor_hooks_are_on()
    with torch.autograd.graph.save_on_cpu():
        assert torch_internals.saved_tensor_hooks_are_on()


def test_plain_tensors_and_models_are_returned_as_they_are():
    tensor, model = torch.zeros(2), nn.Linear(2, 2)
    assert torch_internals.local_tensor(tensor) is tensor
    assert torch_internals.original(model) is model
    assert not torch_internals.is_shard(tensor)


def test_shards_and_the_store_of_real_ranks(ranks):
    code = """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from loopwise import torch_internals
    whole = torch.arange(4.0)
    shard = distribute_tensor(whole, init_device_mesh("cpu", (2,)), [Shard(0)])
    local = torch_internals.local_tensor(shard)
    store = torch_internals.default_store()
    store.set(f"loopwise/test/{dist.get_rank()}", "here")
    store.wait(["loopwise/test/0", "loopwise/test/1"])
    print(json.dumps([torch_internals.is_shard(shard), local.tolist()]))
    """
    assert ranks(code) == [[True, [0.0, 1.0]], [True, [2.0, 3.0]]]


def test_functions_at_exit_run_while_threads_live():
    code = "from loopwise import torch_internals as t; t.call_before_executors_end(lambda: print('end', flush=True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "end\n"
