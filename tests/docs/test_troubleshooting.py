"""The messages that the page about troubleshooting quotes are those of the library."""

import ast
import functools
import re

import pytest
from docs_kit import PARTS, ROOT, spans

PAGE = ROOT / "docs" / "troubleshooting.md"
ROWS = re.findall(r"^\| (`.+?`) \| [^|]+ \| [^|]+ \|$", PAGE.read_text(), re.MULTILINE)
MESSAGES = [message for row in ROWS for message in spans(row)]


@functools.cache
def texts():
    """Return all texts in the code of the library, with a NUL character for what is filled in."""
    found = []
    for part in PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n\n".join(found)


def exists(message):
    """Return whether a text of the library has all fragments of a message, in their order."""
    return bool(re.search("[^\n]*?".join(map(re.escape, message.split("..."))), texts()))


def test_the_page_has_the_usual_messages():
    assert len(MESSAGES) >= 30
    assert len(MESSAGES) == PAGE.read_text().count("\n| `")


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_exists(message):
    assert exists(message)


def test_a_message_that_has_changed_would_be_seen():
    assert exists("the package ... is not installed")
    assert not exists("the package ... was not installed")
