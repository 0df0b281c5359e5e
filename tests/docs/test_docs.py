"""The documents tell the truth: code runs, links resolve, commands and names exist, generated pages are current."""

import importlib
import re

import pytest
import torch
from docs_kit import (
    INSIDE,
    METAPHORS,
    PAGES,
    PUBLIC,
    ROOT,
    anchors,
    blocks,
    broken_links,
    commands,
    parameters,
    public_names,
    spans,
)

from docs.generators import docstrings, pages, rooms, rules
from loopwise.cli import COMMANDS
from loopwise.debug import RULES
from loopwise.debug.cli import command as debug_command

WITH_CODE = [path for path in PAGES if blocks(path.read_text(), "python")]
DESCRIBED = [
    path
    for path in PAGES
    if path.name in ("README.md", "sift.md", "compile.md", "debug.md", "report.md", "index.md")
]
FOREIGN = {"DataLoader", "CrossEntropyLoss", "GradScaler", "StatefulDataLoader", "SyncBatchNorm", "BatchNorm"}
"""Names of torch and its surroundings."""
THEIRS = {"callbacks", "reduction", "dim", "persistent_workers", "fullgraph", "backend"}
"""Arguments of torch and of trainers."""


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", WITH_CODE, ids=name_of)
def test_code_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.setenv("LOOPWISE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    for number, code in enumerate(blocks(path.read_text(), "python")):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        exec(compile(code, f"{path.name}, block {number}", "exec"), {"__name__": f"block_{number}"})


@pytest.mark.parametrize("path", [*PAGES, *INSIDE], ids=name_of)
def test_links_resolve(path):
    assert not broken_links(path, path.read_text())


def test_a_broken_link_would_be_seen():
    readme = ROOT / "README.md"
    assert broken_links(readme, "[a](docs/none.md) [b](docs/index.md#none) [c](#none)") == [
        "docs/none.md",
        "docs/index.md#none",
        "#none",
    ]


@pytest.mark.parametrize("path", [*PAGES, *INSIDE], ids=name_of)
def test_commands_exist(path):
    makefile = (ROOT / "Makefile").read_text()
    for line in commands(path.read_text()):
        for target in re.findall(r"^make ([a-z]+)", line):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), line
        for name, inner in re.findall(r"^loopwise ([a-z]+)(?: ([a-z]+))?", line):
            assert name in COMMANDS, line
            assert name != "debug" or not inner or inner in debug_command.commands, line
        for module in re.findall(r"^python -m ([\w.]+)", line):
            file = ROOT / module.replace(".", "/")
            runs = file.with_suffix(".py").exists() or (file / "__main__.py").exists()
            assert runs or module in ("loopwise", "pytest"), line


@pytest.mark.parametrize("path", [*PAGES, *INSIDE], ids=name_of)
def test_modules_exist(path):
    for span in spans(path.read_text()):
        for dotted in re.findall(r"\bloopwise(?:\.[a-zA-Z_]+)+", span):
            module, _, name = dotted.rpartition(".")
            try:
                importlib.import_module(dotted)
            except ModuleNotFoundError:
                assert hasattr(importlib.import_module(module), name), dotted


@pytest.mark.parametrize("path", DESCRIBED, ids=name_of)
def test_names_and_arguments_exist(path):
    names = public_names()
    known = parameters(names)
    for span in spans(path.read_text()):
        for name in re.findall(r"(?<![\w.])([A-Z][a-z]+[A-Z]\w*)\(", span):
            assert name in names or name in FOREIGN, span
        for argument in re.findall(r"(?<![\w.\[])([a-z_]+)=(?!=)", span):
            assert argument in known or argument in THEIRS, span


def test_public_names_of_the_modules_are_known():
    assert {"Watch", "open_run", "SiftingDataLoader", "TrainStep", "preflight"} <= public_names().keys()
    assert "loopwise.debug" in PUBLIC


@pytest.mark.parametrize("path", [*PAGES, *INSIDE], ids=name_of)
def test_no_metaphors(path):
    assert not re.findall(METAPHORS, path.read_text())


def test_generated_pages_are_current():
    assert not [name_of(path) for path in pages.outdated()], "run python -m docs.generators"


def test_an_outdated_part_would_be_seen():
    text = "a\n<!-- generated: x -->\nold\n<!-- end of x -->\nb"
    assert pages.filled(text, {"x": lambda: "new\n"}) == text.replace("old", "new")
    with pytest.raises(ValueError, match="the comments"):
        pages.filled("a", {"x": str})


def test_every_rule_is_described():
    headings = anchors((ROOT / "docs" / "rules.md").read_text())
    assert RULES.keys() <= headings
    assert {rule.source for rule in RULES.values()} == rules.SOURCES.keys()


def test_every_package_has_a_readme():
    for part in ("debug", "compile", "sift"):
        folders = {path.parent for path in (ROOT / part).rglob("__init__.py")} - {ROOT / part}
        top = {path for path in folders if path.parent == ROOT / part}
        assert not [name_of(path) for path in top if not (path / "README.md").exists()]


def test_every_package_is_in_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for part in ("debug", "compile", "sift"):
        for room in rooms.graph(part):
            assert room == "__init__" or f"../{part}/{room}" in text, room


def test_docstrings_become_markdown():
    text = "A format.\n\n``a.b``\n    One object\n    a line.\n``c``\n    Two.\n\nEnd of ``it``."
    assert docstrings.markdown(text) == (
        "A format.\n\n- `a.b`: One object a line.\n- `c`: Two.\n\nEnd of `it`.\n"
    )
