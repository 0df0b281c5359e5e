"""``loopwise report``: where the page goes, and what is said where it cannot be made."""

import subprocess
import sys

import fsspec
import pytest
from click.testing import CliRunner

from loopwise.cli import main
from loopwise.report import report
from loopwise.run import Run


def loopwise(*args):
    return CliRunner().invoke(main, list(args))


def test_into_the_run_by_default_and_anew(tmp_path):
    with Run(str(tmp_path / "run")) as run:
        run.append("compile", "events", {"batch": 1, "text": "first"})
    done = loopwise("report", str(tmp_path / "run"))
    page = tmp_path / "run" / "report.html"
    assert (done.exit_code, done.output) == (0, f"{page}\n")
    first = page.read_text()
    assert "first" in first
    assert loopwise("report", str(tmp_path / "run")).exit_code == 0
    assert page.read_text() == first
    assert not list(page.parent.glob("*.new"))


def test_into_another_file_and_beside_another_run(run, other, tmp_path):
    done = loopwise("report", run, "-o", str(tmp_path / "new" / "page.html"), "--compare", other)
    assert done.exit_code == 0
    assert 'id="comparison"' in (tmp_path / "new" / "page.html").read_text()


def test_remote_runs_have_their_page_with_them():
    with Run("memory://pages/run") as run:
        run.append("compile", "events", {"batch": 1, "text": "far away"})
    assert report("memory://pages/run") == "memory://pages/run/report.html"
    with fsspec.open("memory://pages/run/report.html", "rt") as file:
        assert "far away" in file.read()


def test_no_run(tmp_path):
    for command in ("report", "watch"):
        done = loopwise(command, str(tmp_path))
        assert done.exit_code == 1
        assert "no run.json" in done.output
        assert "fix: check the path" in done.output


def test_a_port_that_is_taken_or_none(run):
    done = loopwise("watch", run, "--port", "70000")
    assert done.exit_code == 1
    assert "70000" in done.output or "65535" in done.output


@pytest.mark.parametrize("package", ["plotly", "jinja2"])
def test_without_its_packages_the_extra_is_named(package, run, tmp_path):
    code = f"import sys; sys.modules[{package!r}] = None\nfrom loopwise.cli import main\nmain(['report', {run!r}, '-o', {str(tmp_path / 'x')!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'loopwise[report]'" in done.stderr
