"""The README is short and tells of every command and part; tests/docs looks at its code, links and names."""

from pathlib import Path

from loopwise.cli import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_it_is_short():
    assert README.count("\n") <= 150


def test_every_command_is_told():
    for command in COMMANDS:
        assert f"loopwise {command}" in README, command


def test_every_part_is_told():
    for part in ("sift", "compile", "debug", "report"):
        assert f"`loopwise.{part}`" in README
        assert f"docs/{part}.md" in README


def test_every_page_is_linked_from_the_index():
    docs = ROOT / "docs"
    index = (docs / "index.md").read_text()
    for page in docs.rglob("*.md"):
        assert page.name == "index.md" or f"({page.relative_to(docs)})" in index, page
