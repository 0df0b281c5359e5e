"""What a CUDA graph is to a training step, on a CPU: operations with their tensors and numbers, run again as they were."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Every operation with its arguments; results lie where they lay at the recording, which writes to nothing."""

    def __init__(self):
        super().__init__()
        self.made, self._before = [], {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_leaves(value):
                    self._before.setdefault(tensor.data_ptr(), (tensor, tensor.clone()))
        result = function(*args, **kwargs)
        self.made.append((function, args, kwargs, result))
        return result

    @torch.no_grad()
    def undo(self):
        for tensor, before in self._before.values():
            tensor.data.copy_(before)

    @torch.no_grad()
    def play(self):
        for function, args, kwargs, result in self.made:
            for place, value in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.data.copy_(value)


class TapeRecorder:
    """In the place of ``Recorder``; ``spoil`` changes a tape after it was recorded."""

    def __init__(self, spoil=None):
        self.spoil, self.tapes, self.settled = spoil, [], 0

    def warm(self, run):
        run()

    def record(self, run):
        with Tape() as tape:
            result = run()
        tape.undo()
        if self.spoil is not None:
            self.spoil(tape)
        self.tapes.append(tape)
        return tape.play, result

    def settle(self):
        self.settled += 1
