"""List of the runs in a folder: a row for each, their pages, comparisons, and no path that leads elsewhere."""

import shutil
import threading
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from loopwise.cli import main
from loopwise.report import listing
from loopwise.report.command import source
from loopwise.report.listing import Folder, overview
from loopwise.report.server import Server
from loopwise.report.source import Source
from loopwise.run import Run


@pytest.fixture(scope="module")
def runs(run, other, tmp_path_factory):
    """Return a folder of four runs: two of all parts, an empty one, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("listed")
    shutil.copytree(run, folder / "first <b>run")
    shutil.copytree(other, folder / "second")
    Run(str(folder / "empty")).close()
    (folder / "torn").mkdir()
    (folder / "torn" / "run.json").write_text("{")
    (folder / "no run").mkdir()
    return folder


@pytest.fixture
def site(runs):
    """Return the address of a server of the folder."""
    with Server(Folder(str(runs))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


def html(page):
    return page.state()["sections"][0]["blocks"][0]["html"]


def test_a_row_tells_state_last_loss_and_findings(runs):
    row = overview(str(runs / "second"))
    assert list(row) == ["state", "start", "duration", "step", "last loss", "findings"]
    assert (row["state"], row["step"]) == ("finished", 33)
    assert 0 < row["last loss"] < 10
    assert "warning" in row["findings"]
    assert overview(str(runs / "empty"))["state"] == "finished"
    assert "run.json" in overview(str(runs / "torn"))["note"]


def test_a_provider_that_raises_leaves_a_note(runs, monkeypatch):
    def fails(path):
        raise ValueError("no")

    monkeypatch.setattr(
        listing, "_providers", lambda: iter([fails, lambda path: {"mine": 3, "other": object()}])
    )
    row = overview(str(runs / "empty"))
    assert row["note"] == "ValueError: no"
    assert row["mine"] == 3
    assert "other" not in row


def test_only_runs_of_the_folder_have_pages(runs):
    folder = Folder(str(runs))
    assert folder.names() == ["empty", "first <b>run", "second", "torn"]
    assert folder.find("/") is folder
    assert isinstance(folder.find("/second/"), Source)
    assert folder.find("/second/") is folder.find("/second/")
    assert folder.find("/first%20%3Cb%3Erun/second/").state()["run"]["name"] == "first <b>run"
    for path in (
        "/no%20run/",
        "/../",
        "/second/../",
        "/second/second/",
        "/%2e%2e/",
        "//",
        "/second%2Fdebug/",
        "/*/",
    ):
        assert folder.find(path) is None, path


def test_a_run_that_starts_later_appears_and_unchanged_ones_are_not_read_again(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        listing, "overview", lambda path: read.append(path.rsplit("/", 1)[-1]) or {"state": "x"}
    )
    folder = Folder(str(tmp_path))
    assert "There is no run here yet" in html(folder)
    for name in ("a", "b"):
        Run(str(tmp_path / name)).close()
        folder._next = 0.0
        assert f">{name}</a>" in html(folder)
    assert read == ["a", "b"]


def test_a_list_that_takes_long_is_shown_in_part(runs, monkeypatch):
    times = iter(range(0, 1000, 2))
    monkeypatch.setattr(listing, "time", SimpleNamespace(monotonic=lambda: next(times)))
    folder = Folder(str(runs))
    assert "are being read" in folder.state()["head"]["html"]
    for _ in range(4):
        folder._next = 0.0
        folder.state()
    assert "are being read" not in folder.state()["head"]["html"]


def test_the_command_tells_a_run_from_a_folder_of_runs(runs, tmp_path):
    assert isinstance(source(str(runs)), Folder)
    assert isinstance(source(str(runs / "second")), Source)
    done = CliRunner().invoke(main, ["serve", str(tmp_path)])
    assert done.exit_code == 1
    assert "no run.json" in done.output


def test_the_list_in_a_browser_leads_to_runs_and_comparisons(look, site):
    page = look(site, viewport={"width": 360, "height": 800})
    page.wait_for_function("() => document.getElementById('live').textContent === 'Live'")
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    assert page.evaluate("() => typeof Plotly") == "undefined"  # a list is small
    assert page.locator(".runs tbody tr").count() == 4
    assert page.query_selector("b") is None
    assert page.locator(".runs .unreadable").count() == 1
    assert page.is_disabled("#compare")
    for name in ("second", "first <b>run"):
        page.get_by_label(f"Compare {name}").check()
    assert page.inner_text("#compare") == "Compare 2 runs"
    page.click("#compare")
    page.wait_for_selector("#comparison")
    assert page.inner_text("h1") == "second compared with first <b>run"
    assert page.url == site + "second/first%20%3Cb%3Erun/"
    page.click(".back a")
    page.wait_for_selector(".runs")
    assert page.url == site
