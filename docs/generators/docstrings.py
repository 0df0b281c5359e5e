"""Read docstrings from source files without importing them, and turn their markup into Markdown."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path


@functools.cache
def docstring(path: Path) -> str:
    """Return the docstring of a module file, or an empty text."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def sentence(text: str) -> str:
    """Return the first line of a docstring up to the end of its first sentence."""
    line = code(text.split("\n\n")[0].replace("\n", " "))
    return re.split(r"(?<=[^.])\.(?:\s|$)", line)[0]


def code(text: str) -> str:
    """Return text with double backticks as Markdown's single ones."""
    return re.sub(r"``(.+?)``", r"`\1`", text)


def markdown(text: str) -> str:
    """Return a docstring as Markdown: definition lists become bullets, indented code becomes a block.

    A definition is one or several lines of code in double backticks, with an indented text beneath.
    """
    blocks = [_joined(block) for block in _blocks(text.split("\n"))]
    lines: list[str] = []
    for depth, kind, body in blocks:
        margin = "    " * depth
        listed = bool(lines) and lines[-1].lstrip().startswith("- ")
        if kind == "code":
            lines += [
                "",
                f"{margin}```text",
                *(f"{margin}{line}" for line in body.split("\n")),
                f"{margin}```",
            ]
        elif kind == "term":
            lines += [f"{margin}- {body}"] if listed else ["", f"{margin}- {body}"]
        elif depth and listed and lines[-1].endswith("`"):
            lines[-1] += f": {body}"
        else:
            lines += ["", margin + body]
    return "\n".join(lines).strip() + "\n"


def _blocks(lines: list[str]) -> list[tuple[int, str, list[str]]]:
    """Cut the lines into terms, paragraphs and code, each with its depth of indentation."""
    blocks: list[tuple[int, str, list[str]]] = []
    fresh, literal = True, False
    for number, line in enumerate(lines):
        if not line.strip():
            fresh = True
            continue
        depth = _depth(line)
        if depth and literal and (fresh or blocks[-1][1] == "code"):
            if blocks[-1][1] == "code":
                blocks[-1][2].append(line)
            else:
                blocks.append((0, "code", [line]))
        elif _is_term(lines, number):
            blocks.append((depth, "term", [line.strip()]))
        elif blocks and not fresh and blocks[-1][0] == depth and blocks[-1][1] != "code":
            blocks[-1][2].append(line.strip())
        else:
            blocks.append((depth, "text", [line.strip()]))
        literal = line.rstrip().endswith("::") or (literal and bool(depth))
        fresh = False
    return blocks


def _depth(line: str) -> int:
    return (len(line) - len(line.lstrip())) // 4


def _is_term(lines: list[str], number: int) -> bool:
    """Return whether a line begins a definition: code with a colon, or code above an indented text."""
    line, following = lines[number], [*lines[number + 1 : number + 3], "", ""]
    if not line.strip().startswith("``"):
        return False
    if re.match(r"``[^`]+``: ", line):
        return True
    if line.count("``") % 2:  # the code goes on in the next line
        return following[0].rstrip().endswith("``") and _depth(following[1]) > _depth(line)
    return bool(following[0].strip()) and _depth(following[0]) > _depth(line)


def _joined(block: tuple[int, str, list[str]]) -> tuple[int, str, str]:
    depth, kind, lines = block
    return depth, kind, "\n".join(lines) if kind == "code" else code(" ".join(" ".join(lines).split()))
