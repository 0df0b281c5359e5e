"""The house rules: import directions, packaging, length of files and functions."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = {"sift", "compile", "debug", "tune", "feed", "report"}
SOURCES = [
    p
    for d in ("base", "sift", "compile", "debug", "report", "examples", "benchmarks")
    for p in (ROOT / d).rglob("*.py")
]


def imports(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def foreign(part: str, source: str) -> set[str]:
    """Other parts that a file of ``part`` (or of the base) imports."""
    found = {name.split(".")[1] for name in imports(source) if name.startswith("loopwise.")}
    return (found & PARTS) - {part}


def test_no_part_imports_another():
    for path in SOURCES:
        part = path.relative_to(ROOT).parts[0]
        if part in PARTS | {"base"}:
            assert not foreign(part, path.read_text()), path


def test_a_foreign_import_would_be_seen():
    assert foreign("debug", "def f():\n    from loopwise.sift import TopLoss") == {"sift"}


def test_every_package_ships():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {d for d in ("base", "examples", *PARTS) if (ROOT / d).is_dir()}
    packages = {path.parent.relative_to(ROOT) for d in folders for path in (ROOT / d).rglob("*.py")}
    roots = {Path(folder): name for name, folder in setup["package-dir"].items()}
    names = {".".join([roots[Path(p.parts[0])], *p.parts[1:]]) for p in packages}
    assert names == set(setup["packages"])


def test_files_and_functions_stay_short():
    for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]:
        text = path.read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno + 1 <= 70, (path, node.name)


def test_the_base_stays_small():
    assert sum(path.read_text().count("\n") for path in (ROOT / "base").glob("*.py")) <= 1020


def test_importing_loopwise_imports_nothing_else():
    code = "import sys, loopwise; assert not {'torch', 'click', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    for part in ("sift", "compile", "debug", "report"):
        code = f"import sys, loopwise.{part}; assert not {{'click', 'rich', 'sklearn', 'torchvision', 'transformers', 'tensorboard', 'safetensors', 'plotly', 'jinja2'}} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)
