"""Tests beyond the developer's environment: versions of Python and torch, without each extra, from the wheel and the sdist.

    pip install nox
    nox -l
    nox -s "versions(torch='2.11.0', python='3.12')"

Each session makes an environment of its own, of some gigabytes, in ``.nox``.  What follows ``--`` is passed to pytest.
"""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import nox

nox.options.sessions = ["versions", "without_extras", "packages"]
nox.options.error_on_missing_interpreters = False
OLDEST, NEWEST = "2.11.0", "newest"
PYTHONS = ("3.11", "3.12", "3.13")
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "expecttest", "playwright", "setuptools")
QUICK = (
    *("tests/base", "tests/together", "tests/report/test_summary.py", "tests/report/test_sections.py"),
    *("tests/sift/policies", "tests/sift/step_losses", "tests/compile/graph", "tests/compile/test_step.py"),
    *("tests/compile/test_frameworks.py", "tests/debug/rules/test_engine.py", "tests/debug/test_watch.py"),
    *("tests/debug/hooks", "tests/tune/log", "tests/feed/iterator"),
)
"""Tests that touch what differs between versions, in minutes; all of them with ``nox -s versions -- tests``."""
EXTRAS = "demo,lightning,transformers,export,report,tune,feed"


@nox.session(python=PYTHONS)
@nox.parametrize("torch", [OLDEST, NEWEST])
def versions(session: nox.Session, torch: str) -> None:
    """Run tests with a version of Python and of torch."""
    wanted = "torch" if torch == NEWEST else f"torch=={torch}"
    session.install(f".[{EXTRAS}]", *TOOLS, wanted)
    session.run("python", "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *(session.posargs or QUICK))


@nox.session(python=PYTHONS[0])
def without_extras(session: nox.Session) -> None:
    """Run a small training without the packages of each extra in turn, and see the errors that name the extra."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    session.install(".", "pytest")
    script = Path("tests/base/without_extras.py").resolve()
    session.chdir(session.create_tmp())
    session.run("python", str(script))
    for extra, packages in project["optional-dependencies"].items():
        if extra not in ("all", "bench", "dev"):
            session.install(*[one for one in packages if not one.startswith("loopwise")])
    session.run("python", str(script), "--all")
    for extra, packages in project["optional-dependencies"].items():
        own = [one.partition("[")[0] for one in packages if not one.startswith("loopwise")]
        if extra in ("all", "bench", "dev"):
            continue
        session.run("python", "-m", "pip", "uninstall", "-q", "-y", *own)
        session.run("python", str(script), extra)
        session.install(*own)


@nox.session(python=PYTHONS[0])
def packages(session: nox.Session) -> None:
    """Build the wheel and the sdist, and run quick tests on what each of them installs."""
    session.install("build", *TOOLS)
    built = Path(session.create_tmp()).resolve()
    session.run("python", "-m", "build", "-q", "--outdir", str(built / "dist"), ".")
    for pattern in ("*.whl", "*.tar.gz"):
        (archive,) = (built / "dist").glob(pattern)
        session.install("--force-reinstall", "--no-deps", str(archive))
        session.install(f"loopwise[{EXTRAS}] @ {archive.as_uri()}")
        tests = built / pattern.strip("*.")
        shutil.copytree("tests", tests / "tests", dirs_exist_ok=True)
        shutil.copy("pyproject.toml", tests)
        with session.chdir(tests):  # the working tree is not importable from there
            session.run(
                "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/base", "tests/sift/policies"
            )
