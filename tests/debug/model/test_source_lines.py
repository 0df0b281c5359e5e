"""The line of the user's code in which a module is made."""

import inspect
import os

import pytest
import torch
from torch import nn

from loopwise.debug import Watch, every, open_run
from loopwise.debug.model import names
from loopwise.debug.model.source_lines import lines, of_tensor


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)


class Net(Block):
    def __init__(self):
        super().__init__()
        self.noted: nn.Linear = nn.Linear(2, 2)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.body = nn.Sequential(
            nn.Linear(4, 8),
            nn.ReLU(),
            nn.Sequential(nn.Linear(8, 8), nn.ReLU()),
        )
        self.pair = nn.ModuleList(
            [
                nn.Linear(4, 3),
                nn.Linear(4, 3),
            ]
        )

    def forward(self, x):
        return self.body(x).square()


def line_of(text):
    """Return the first line of this file that contains a text."""
    with open(__file__) as file:
        number = next(i for i, line in enumerate(file, 1) if text in line)
    shown = os.path.relpath(__file__) if os.path.realpath(__file__).startswith(os.getcwd()) else __file__
    return f"{shown}:{number}"


def found(model):
    return lines(names.modules({"": model}))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("inner", "self.inner, self.norm ="),
        ("norm", "self.inner, self.norm ="),
        ("noted", "self.noted: nn.Linear ="),
        ("blocks", "self.blocks ="),
        ("blocks.1", "self.blocks ="),
        ("blocks.1.inner", "self.inner, self.norm ="),
        ("body", "self.body ="),
        ("body.0", "            nn.Linear(4, 8),"),
        ("body.2.0", "nn.Sequential(nn.Linear(8, 8)"),
        ("pair.0", "                nn.Linear(4, 3)"),
    ],
)
def test_a_module_of_a_class_of_the_users(path, text):
    assert found(Net())[path] == line_of(text)


def test_a_working_directory_that_was_deleted(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert found(Net())["inner"].startswith(f"{os.path.realpath(__file__)}:")


def test_models_by_name():
    both = lines(names.modules({"net": Net(), "plain": nn.Sequential(nn.Linear(1, 1))}))
    assert both["net.body"] == line_of("self.body =")
    assert not [path for path in both if path.startswith("plain")]


def test_without_source():
    space = {"nn": nn}
    exec(inspect.getsource(Block).replace("Block", "Gone"), space)
    assert found(space["Gone"]()) == {}
    assert found(nn.TransformerEncoderLayer(4, 2)) == {}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("gradient body.0.weight", "a.py:2"),
        ("body.0.weight", "a.py:2"),
        ("output body.1#3", "a.py:1"),
        ("loss", ""),
        ("output", ""),
    ],
)
def test_line_of_a_tensor(name, line):
    assert of_tensor(name, {"body": "a.py:1", "body.0": "a.py:2"}) == line


def test_findings_have_it_now_and_afterwards(tmp_path):
    net = Net()
    nn.init.constant_(net.body[0].bias, -100.0)
    optimizer = torch.optim.SGD(net.body.parameters(), lr=0.1)
    rules = ["dead_relu", "all_zero"]
    with Watch(net, optimizer, run=tmp_path / "run", save=every(1), rules=rules) as watch:
        for _ in range(4):
            optimizer.zero_grad()
            net(torch.randn(6, 4)).sum().backward()
            optimizer.step()
            watch.step()
    by_rule = {finding.rule: finding for finding in watch.findings}
    assert by_rule["dead_relu"].line == line_of("            nn.ReLU(),")
    saved = open_run(tmp_path / "run")
    assert saved.findings() == watch.findings == saved.judge(rules)
    assert "lines" in saved.record(0)["marks"]
    assert "lines" not in saved.record(1)["marks"]
