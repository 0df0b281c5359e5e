"""The README tells the truth: its code runs, its links resolve, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from loopwise.cli import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
CODE = [text for language, text in BLOCKS if language == "python"]
SHELL = "\n".join(
    [text for language, text in BLOCKS if language == "sh"] + re.findall(r"`([^`\n]+)`", README)
)


@pytest.mark.parametrize("code", CODE, ids=range(len(CODE)))
def test_code_blocks_run(code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_links_resolve():
    targets = re.findall(r"\]\(([^)#]+)", README)
    for target in targets:
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    headings = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)", README, re.M)
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", README):
        assert anchor in headings


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)", SHELL):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for command in re.findall(r"\bloopwise ([a-z]+)\b", SHELL):
        assert command in COMMANDS
    for module in re.findall(r"python -m (benchmarks[.\w]*)", SHELL):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_every_command_is_told():
    for command in COMMANDS:
        assert f"loopwise {command}" in README
