"""Read Markdown pages: their code blocks, links, headings, commands and the names that they mention."""

import ast
import importlib
import inspect
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("base", "sift", "compile", "debug", "tune", "feed", "report")
WRITTEN = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*WRITTEN, *sorted((ROOT / "docs").rglob("*.md"))]
INSIDE = sorted(path for part in (*PARTS, "tests", "benchmarks") for path in (ROOT / part).rglob("README.md"))
"""READMEs of packages."""
METAPHORS = r"\b(doors?|companions?|loans?|taps|sieves?|shadows?|outbox|lookup|in_step)\b"
"""Words of earlier versions that had to be decoded."""
PUBLIC = (
    "loopwise.run",
    "loopwise.errors",
    "loopwise.warnings",
    "loopwise.schedule",
    "loopwise.sections",
    "loopwise.sift",
    "loopwise.compile",
    "loopwise.debug",
    "loopwise.tune",
    "loopwise.feed",
    "loopwise.debug.alerts.destinations",
    "loopwise.debug.loggers",
    "loopwise.debug.nan",
    "loopwise.debug.read.compare",
    "loopwise.report",
)
"""Modules whose names the pages may use."""
ADAPTERS = [
    path
    for part in PARTS
    for name in ("lightning", "transformers")
    for path in (ROOT / part).glob(f"{name}.py")
]
"""Modules that import a framework, which takes seconds: they are read, not imported."""


def blocks(text, language):
    """Return the fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def spans(text):
    """Return the inline code of a page, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(text):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.M), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path, text):
    """Return the links of a page that lead to no file, folder or heading."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and file.is_file() and anchor not in anchors(file.read_text())):
            broken.append(target)
    return broken


def commands(text):
    """Return the command lines of a page: lines of shell blocks and inline code."""
    return [*(line for block in blocks(text, "sh") for line in block.splitlines()), *spans(text)]


def public_names():
    """Return the public names of the modules that pages may use, by name."""
    modules = [importlib.import_module(name) for name in PUBLIC]
    return {name: getattr(module, name) for module in modules for name in dir(module) if name[0] != "_"}


def adapter_names():
    """Return the names of all classes, functions and parameters of the adapters."""
    names = set()
    for path in ADAPTERS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                names.add(node.name)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
    return names


def parameters(names):
    """Return the names of all parameters of public functions, classes and their methods."""
    known = set()
    for value in names.values():
        methods = vars(value).values() if inspect.isclass(value) else ()
        for function in (value, *methods):
            try:
                known |= set(inspect.signature(function).parameters)
            except (TypeError, ValueError):
                continue
    return known


def exists(dotted):
    """Return whether a dotted name is a module of the library, or a name in one."""
    folder = ROOT / "base"
    words = dotted.split(".")[1:]
    if words and words[0] in PARTS[1:]:
        folder, words = ROOT / words[0], words[1:]
    for number, word in enumerate(words):
        if (folder / word).is_dir():
            folder = folder / word
        elif (folder / f"{word}.py").exists():
            return len(words) == number + 1 or _has_name(folder / f"{word}.py", words[number + 1])
        else:
            return _has_name(folder / "__init__.py", word)
    return True


def _has_name(path, name):
    return bool(re.search(rf"^\s*(class|def|from .* import.*|)\s*\b{name}\b", path.read_text(), re.MULTILINE))
