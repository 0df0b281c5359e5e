"""The documents tell the truth: code runs, links resolve, commands and names exist, generated pages are current."""

import re

import pytest
import torch
from docs_kit import (
    INSIDE,
    METAPHORS,
    PAGES,
    PUBLIC,
    ROOT,
    adapter_names,
    anchors,
    blocks,
    broken_links,
    commands,
    exists,
    parameters,
    public_names,
    spans,
)

from docs.generators import pages, rooms, rules
from loopwise.cli import COMMANDS
from loopwise.debug import RULES
from loopwise.debug.cli import command as debug_command

WITH_CODE = [path for path in PAGES if blocks(path.read_text(), "python")]
ONE_PROGRAM = "<!-- The python blocks of this page are one program. -->"
SCRIPT = "# train.py, started by torchrun\n"
"""First line of a block that is a script; test_torchrun.py runs these."""
DESCRIBED = [
    path
    for path in PAGES
    if path.parent.name == "how-to"
    or path.name
    in ("README.md", "sift.md", "compile.md", "debug.md", "tune.md", "feed.md", "report.md", "index.md")
]
PACKAGES = sorted(
    path.parent
    for part in ("debug", "compile", "sift", "tune", "feed")
    for path in (ROOT / part).glob("*/__init__.py")
)
FOREIGN = {"DataLoader", "CrossEntropyLoss", "GradScaler", "StatefulDataLoader", "SyncBatchNorm", "BatchNorm"}
"""Names of torch and its surroundings."""
THEIRS = {"callbacks", "reduction", "dim", "persistent_workers", "fullgraph", "backend", "accuracy"}
THEIRS |= {
    "packing",
    "use_stateful_dataloader",
    "dataloader_num_workers",
    "dispatch_batches",
    "on_step",
    "level",
}
"""Arguments of torch and of trainers."""
SET_BY_IMPORTS = {
    "KMP_DUPLICATE_LIB_OK": "True",
    "KMP_INIT_AT_FORK": "FALSE",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
"""Variables that scikit-learn and Lightning set when they are imported first."""


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec",
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:.gradient_checkpointing. is deprecated",  # TRL's own argument
    "ignore:The .grad attribute of a Tensor that is not a leaf",  # Dynamo, in a function of TRL
    "ignore:loopwise.compile. back to the eager step. slower",  # on a busy machine a step may be measured so
)
@pytest.mark.parametrize("path", WITH_CODE, ids=name_of)
def test_code_blocks_run(path, tmp_path, monkeypatch):
    for name, value in (SET_BY_IMPORTS | {"LOOPWISE_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    torch.manual_seed(0)
    text = path.read_text()
    codes = [code for code in blocks(text, "python") if not code.startswith(SCRIPT)]
    for number, code in enumerate(["".join(codes)] if ONE_PROGRAM in text else codes):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        names = {"__name__": f"block_{number}"}
        exec(compile(code, f"{path.name}, block {number}", "exec"), names)
        assert "saved" not in names or names["saved"].ended


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


@pytest.mark.parametrize("path", [p for p in [*PAGES, *INSIDE] if p.name != "CHANGELOG.md"], ids=name_of)
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
        for dotted in re.findall(r"(?<![\w.])loopwise(?:\.[a-zA-Z_]+)+", span):
            assert exists(dotted), dotted


def test_a_missing_module_would_be_seen():
    assert exists("loopwise.debug.nan.load")
    assert exists("loopwise.ranks.anywhere")
    assert not exists("loopwise.debug.trial")
    assert not exists("loopwise.run.none")


@pytest.mark.parametrize("path", DESCRIBED, ids=name_of)
def test_names_and_arguments_exist(path):
    names = public_names()
    known = parameters(names) | adapter_names()
    for span in spans(path.read_text()):
        for name in re.findall(r"(?<![\w.])([A-Z][a-z]+[A-Z]\w*)\(", span):
            assert name in names or name in known or name in FOREIGN, span
        for argument in re.findall(r"(?<![\w.\[])([a-z_]+)=(?!=)", span):
            assert argument in known or argument in THEIRS, span


def test_public_names_of_the_modules_are_known():
    assert {"Watch", "open_run", "SiftingDataLoader", "TrainStep", "preflight"} <= public_names().keys()
    assert "loopwise.debug" in PUBLIC


@pytest.mark.parametrize("path", [p for p in [*PAGES, *INSIDE] if p.name != "CHANGELOG.md"], ids=name_of)
def test_no_metaphors(path):
    assert not re.findall(METAPHORS, path.read_text())


def test_generated_pages_are_current():
    assert not [name_of(path) for path in pages.outdated()], "run python -m docs.generators"


def test_every_rule_is_described():
    headings = anchors((ROOT / "docs" / "rules.md").read_text())
    assert RULES.keys() <= headings
    assert {rule.source for rule in RULES.values()} == rules.SOURCES.keys()


@pytest.mark.parametrize("folder", PACKAGES, ids=name_of)
def test_a_readme_names_the_files_and_imports_of_its_package(folder):
    text = (folder / "README.md").read_text()
    files = [
        path
        for path in folder.glob("*.py")
        if path.stem != "__init__" and "\nRULE = " not in path.read_text()
    ]
    assert {path.name for path in files} <= set(spans(text))
    assert {name for name in re.findall(r"^- `(\w+\.py)`", text, re.M)} <= {path.name for path in files}
    part, room = folder.relative_to(ROOT).parts
    line = re.search(r"^Imports: .*?\.$", text, re.M | re.S)
    imported = {name for name in rooms.graph(part)[room] if not name.startswith("__")}
    assert set(re.findall(r"`(\w+)`", line[0])) == imported


@pytest.mark.parametrize("part", ["base", "sift", "compile", "debug", "feed", "report"])
def test_a_readme_names_what_its_part_has(part):
    text = (ROOT / part / "README.md").read_text()
    for name in rooms.graph(part):
        assert name == "__init__" or f"`{name}.py`" in text or f"]({name})" in text, name


def test_every_package_is_in_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for part in ("debug", "compile", "sift"):
        for room in rooms.graph(part):
            assert room == "__init__" or f"../{part}/{room}" in text, room
