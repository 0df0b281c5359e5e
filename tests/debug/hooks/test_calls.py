"""Subscribers to the calls of a module, guards, and single hooks."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from loopwise.debug.hooks import calls, forward, tensors
from loopwise.debug.hooks.guards import is_capturing, is_extra_pass, is_observable
from loopwise.preserve import preserve


class Noting(calls.CallSubscriber):
    def __init__(self):
        self.calls = []

    def called(self, module, args, kwargs):
        self.calls.append(("called", len(args), sorted(kwargs)))

    def returned(self, module, output):
        self.calls.append(("returned", tuple(output.shape)))


def test_subscribers_share_hooks_and_leave_none_behind():
    net, subscribers = nn.Linear(2, 3), [Noting(), Noting()]
    for subscriber in subscribers:
        calls.subscribe(net, subscriber)
    assert (len(net._forward_pre_hooks), len(net._forward_hooks)) == (1, 1)
    net(torch.ones(4, 2))
    calls.unsubscribe(net, subscribers[0])
    net(input=torch.ones(4, 2))
    calls.unsubscribe(net, subscribers[1])
    calls.unsubscribe(net, subscribers[1])
    net(torch.ones(4, 2))
    assert subscribers[0].calls == [("called", 1, []), ("returned", (4, 3))]
    assert subscribers[1].calls[2:] == [("called", 0, ["input"]), ("returned", (4, 3))]
    assert not net._forward_pre_hooks
    assert not net._forward_hooks


def test_recomputations_and_measurements_are_extra_passes():
    seen = []

    class Net(nn.Module):
        def forward(self, x):
            seen.append((is_extra_pass(), is_observable()))
            return x.exp()

    net, x = Net(), torch.ones(2, requires_grad=True)
    checkpoint(net, x, use_reentrant=False).sum().backward()
    assert seen == [(False, True), (True, False)]
    with preserve(net):
        net(x)
    assert seen[2] == (True, False)
    assert not is_capturing()


def test_single_hooks_can_be_removed():
    seen = []
    net, x = nn.Linear(2, 1), torch.ones(3, 2)
    handles = [
        forward.on_call(net, lambda module, args, kwargs: seen.append("call")),
        forward.on_return(net, lambda module, args, output: seen.append("return")),
        tensors.on_accumulated(
            net.weight, lambda parameter: seen.append(f"grad {parameter.grad is not None}")
        ),
    ]
    output = net(x)
    handles.append(tensors.on_gradient(output, lambda gradient: seen.append(tuple(gradient.shape))))
    handles.append(tensors.on_node(output.grad_fn, lambda inputs, outputs: seen.append("node")))
    output.sum().backward()
    assert seen == ["call", "return", (3, 1), "node", "grad True"]
    for handle in handles:
        handle.remove()
    net(x).sum().backward()
    assert len(seen) == 5
