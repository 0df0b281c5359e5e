"""``loopwise report``: the place of the page, and the errors if it cannot be made."""

import subprocess
from pathlib import Path

import forks
import fsspec
import pytest
from click.testing import CliRunner

from loopwise.cli import main
from loopwise.errors import InputError
from loopwise.report import report
from loopwise.report.server import Server
from loopwise.report.source import Source
from loopwise.run import Run


def loopwise(*args):
    return CliRunner().invoke(main, list(args))


def test_the_page_is_written_into_the_run_and_replaced(tmp_path):
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


def test_the_page_goes_into_another_file_and_compares_two_runs(run, other, tmp_path):
    done = loopwise("report", run, "-o", str(tmp_path / "new" / "page.html"), "--compare", other)
    assert done.exit_code == 0
    assert 'id="comparison"' in (tmp_path / "new" / "page.html").read_text()


def test_the_page_of_a_remote_run_is_in_its_folder():
    with Run("memory://pages/run") as run:
        run.append("compile", "events", {"batch": 1, "text": "far away"})
    assert report("memory://pages/run") == "memory://pages/run/report.html"
    with fsspec.open("memory://pages/run/report.html", "rt") as file:
        assert "far away" in file.read()


@pytest.mark.parametrize("kind", [Path, Run.existing])
def test_runs_are_named_by_paths_and_run_objects(run, tmp_path, kind):
    page = tmp_path / "page.html"
    assert report(kind(run), page, compare=kind(run)) == str(page)
    assert Source(kind(run), kind(run)).state()["run"]["name"] == "first <b>run"


@pytest.mark.parametrize("function", [report, Source])
def test_other_types_are_refused(function):
    with pytest.raises(InputError, match="run= of type int"):
        function(7)


def test_both_commands_explain_a_missing_run(tmp_path):
    for command in ("report", "serve"):
        done = loopwise(command, str(tmp_path))
        assert done.exit_code == 1
        assert "no run.json" in done.output
        assert "fix: check the path" in done.output


def test_an_invalid_port_is_an_error(run):
    done = loopwise("serve", run, "--port", "70000")
    assert done.exit_code == 1
    assert "70000" in done.output or "65535" in done.output


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)])
def test_serving_to_the_network_warns(run, monkeypatch, host, warned):
    def interrupted(self):
        assert self.is_named(["box.example"])
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    done = loopwise("serve", run, "--host", host, "--name", "box.example")
    assert done.exit_code == 0, done.output
    assert ("warning: everybody who reaches this machine" in done.stderr) == warned
    assert "stopped" in done.stdout


def test_a_link_in_a_run_leads_no_page_out_of_it(tmp_path):
    Run(str(tmp_path / "run")).close()
    victim = tmp_path / "victim"
    victim.write_text("whole")
    for name in ("report.html.new", "report.html"):
        (tmp_path / "run" / name).symlink_to(victim)
    report(tmp_path / "run")
    assert victim.read_text() == "whole"
    assert not (tmp_path / "run" / "report.html").is_symlink()


@pytest.mark.parametrize("package", ["plotly", "jinja2"])
def test_a_missing_package_names_the_extra(package, run, tmp_path):
    code = f"import sys; sys.modules[{package!r}] = None\nfrom loopwise.cli import main\nmain(['report', {run!r}, '-o', {str(tmp_path / 'x')!r}])"
    done = subprocess.run([forks.python(), "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'loopwise[report]'" in done.stderr
