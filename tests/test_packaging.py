"""The wheel: it holds exactly the files of the tree, and the entry points of pyproject.toml."""

import configparser
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "": "base",
    **{part: part for part in ("sift", "compile", "debug", "tune", "feed", "report", "examples")},
}
"""Subpackage of loopwise -> folder of the tree."""


def shipped(root):
    """Return the names that the files of a tree have in a wheel."""
    return {
        "/".join(filter(None, ["loopwise", package, path.relative_to(root / folder).as_posix()]))
        for package, folder in FOLDERS.items()
        for path in (root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


def build(root, out):
    """Build the wheel of a tree without pip, whose isolated build would download setuptools."""
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(out)], cwd=root, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Copy what the build needs: it leaves files beside the sources."""
    root = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, root)
    return root


@pytest.fixture(scope="module")
def wheel(copy, tmp_path_factory):
    with build(copy, tmp_path_factory.mktemp("wheel")) as archive:
        yield archive


def test_the_wheel_holds_the_files_of_the_tree(wheel, copy):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == shipped(copy)
    assert {
        "loopwise/py.typed",
        "loopwise/report/browser/page.html",
        "loopwise/debug/statistics/native.c",
    } <= names


def test_the_entry_points_are_those_of_pyproject(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    built = configparser.ConfigParser()
    built.read_string(wheel.read(name).decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    expected = project["entry-points"] | {"console_scripts": project["scripts"]}
    assert {group: dict(built[group]) for group in built.sections()} == expected


def test_a_new_folder_ships_and_an_unknown_kind_of_file_would_be_seen(copy, tmp_path):
    tree = shutil.copytree(copy, tmp_path / "tree", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    (tree / "sift" / "new").mkdir()
    (tree / "sift" / "new" / "__init__.py").write_text("")
    (tree / "sift" / "new" / "table.bin").write_text("")
    (tmp_path / "out").mkdir()
    with build(tree, tmp_path / "out") as archive:
        assert "loopwise/sift/new/__init__.py" in archive.namelist()
        assert shipped(tree) - set(archive.namelist()) == {"loopwise/sift/new/table.bin"}
