"""Checks of the source tree; each takes the text of a file, so that a test can show that the check can fail."""

import ast
import re
from collections import Counter
from pathlib import Path

from docs.generators.rooms import imported

ROOT = Path(__file__).parents[2]
PARTS = ("sift", "compile", "debug", "tune", "feed", "report")
LIBRARY = [d for d in ("base", *PARTS) if (ROOT / d).is_dir()]
SHIPPED = [p for d in [*LIBRARY, "examples"] for p in sorted((ROOT / d).rglob("*.py"))]
SOURCES = [*SHIPPED, *(p for d in ("benchmarks", "docs") for p in sorted((ROOT / d).rglob("*.py")))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))

CODE = {".py", ".c", ".html", ".css", ".js"}
ADAPTER = "torch_internals.py"
"""The only files that may use private names of torch."""
METAPHORS = set(
    [
        "door",
        "company",
        "companions",
        "loan",
        "ear",
        "taps",
        "sieve",
        "shadow",
        "pace",
        "outbox",
        "lookup",
        "pieces",
        "forms",
        "reuse",
        "in_step",
        "choose",
        "judge",
        "trial",
        "trap",
        "growing",
        "walk",
        "lines",
        "local",
        "checked",
    ]
)
"""Names of files that had to be decoded."""
RELATIVES = re.compile(
    r"(what|which|whether|where|who|whose|that|those|how|when|of|as|it|its|it's|there|here|so)\b",
    re.IGNORECASE,
)
PRIVATE = set(
    [
        "_local_tensor",
        "_compiled_call_impl",
        "_orig_mod",
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_post_accumulate_grad_hooks",
        "_input_metadata",
        "_version",
        "_register_atexit",
        "_parameters",
        "_buffers",
        "_modules",
        "_saved_tensors",
        "_current_graph_task_id",
        "_foreach_copy_",
        "_num_workers",
    ]
)
"""Private attributes of torch's and Python's objects that Loopwise uses."""
HOOK = re.compile(
    r"^(register_(module_)?(full_)?(forward|backward|step|state_dict|load_state_dict|post_accumulate|hook)|_register_)"
)


def parsed(path):
    return ast.parse(path.read_text())


def foreign(path, source):
    """Return the other parts that a file at ``path`` imports, absolutely or relatively."""
    names = {name.split(".")[1] for name in imported(path, source) if name.startswith("loopwise.")}
    return (names & set(PARTS)) - {path.relative_to(ROOT).parts[0]}


def crowded(paths, most=20):
    """Return the folders with more than ``most`` files of code, rules and policies aside."""
    counts = Counter(path.parent for path in paths if path.suffix in CODE)
    return {
        folder: count
        for folder, count in counts.items()
        if count > most and folder.name not in ("rules", "policies", "results")
    }


def long_functions(source, most=70):
    """Return the names of functions with more than ``most`` lines."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno + 1 > most
    ]


def inverted(source):
    """Return the docstrings that begin with a relative or a pronoun instead of a verb or a noun."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [text.split("\n")[0] for text in texts if RELATIVES.match(text)]


def registers_hooks(source):
    """Return the calls that register a hook on a module, a tensor or an optimizer."""
    return [
        node.func.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and HOOK.match(node.func.attr)
    ]


def private_names(source):
    """Return the private names of torch that a file uses: imports, attributes, and names given to ``getattr``."""
    used = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names if _is_private(alias.name)}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            used |= {name for alias in node.names if _is_private(name := f"{node.module}.{alias.name}")}
        elif isinstance(node, ast.Attribute):
            if _is_private(ast.unparse(node)) or node.attr in PRIVATE:
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                used |= set() if own else {ast.unparse(node)}
        elif isinstance(node, ast.Constant) and node.value in PRIVATE:
            used.add(node.value)
    return used


def _is_private(dotted):
    first, *rest = dotted.split(".")
    return first == "torch" and any(part.startswith("_") and not part.startswith("__") for part in rest)
