"""The page of a run that goes on: it grows in place, and says when the run ends, dies, or its server goes away."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from page_kit import Training

from loopwise.run import Run


def _heeds_ctrl_c():
    """A shell starts what runs in its background deaf to it, and a test's process would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def watched():
    """``watched(path)``: ``loopwise watch`` on a run in a process of its own, and its URL."""
    with contextlib.ExitStack() as stack:

        def start(path, *options):
            command = [sys.executable, "-m", "loopwise", "watch", str(path), *options]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            process = stack.enter_context(subprocess.Popen(command, preexec_fn=_heeds_ctrl_c, **pipes))
            stack.callback(process.kill)
            return process, process.stdout.readline().split()[0]

        yield start


def says(page, text):
    page.wait_for_function("(text) => document.getElementById('live').textContent.includes(text)", arg=text)


def shows(page, selector, text):
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.textContent.includes(text)",
        arg=[selector, text],
    )


LOOKED_AT = """() => {
    const block = document.elementFromPoint(innerWidth / 2, 150).closest(".block");
    return [block.dataset.key, block.getBoundingClientRect().top];
}"""
"""The block in the upper part of the window, and where it begins."""


def test_it_grows_without_a_reload(look, watched, tmp_path):
    run = Run(str(tmp_path / "run"))
    process, url = watched(tmp_path / "run")
    page = look(url)
    assert "Nothing can be shown yet" in page.inner_text("#head")
    says(page, "Live")
    page.evaluate("() => { window.never_reloaded = true }")
    training = Training(run)
    training.train(12)
    shows(page, "#metrics .describe", "12 steps")
    assert "Nothing can be shown yet" not in page.inner_text("#head")
    page.locator("#metrics .plot").first.scroll_into_view_if_needed()
    page.wait_for_selector("#metrics .plot[data-drawn]")
    page.evaluate("() => { document.querySelector('#metrics .plot').kept = true }")
    page.locator("#saved .scroll").first.focus()
    page.locator("#distributions select").first.select_option(index=2)
    chosen = page.locator("#distributions select").first.input_value()
    place, top = page.evaluate(LOOKED_AT)
    assert page.evaluate("() => scrollY") > 0
    training.train(8)
    shows(page, "#metrics .describe", "20 steps")
    assert page.evaluate("() => document.querySelector('#metrics .plot').kept")
    assert page.evaluate("() => document.activeElement.matches('#saved .scroll')")
    assert page.locator("#distributions select").first.input_value() == chosen
    after, its_top = page.evaluate(LOOKED_AT)
    assert after == place  # whatever came in above it
    assert abs(its_top - top) < 200
    training.watch.close()
    run.close()
    says(page, "The run is finished")
    assert page.evaluate("() => window.never_reloaded")
    page.close()  # a request that fails would be in its console
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert process.stdout.read() == "ended\n"
    assert process.stderr.read() == ""


def test_new_sections_appear_in_their_place(look, watched, run, tmp_path):
    with Run(str(tmp_path / "run")) as going:
        going.append("compile", "events", {"batch": 1, "text": "first"})
        page = look(watched(tmp_path / "run")[1])
        shows(page, "#compile", "first")
        counts = {"epoch": 0, "seen": 10, "kept": 5}
        going.append("sift", "epochs", counts)
        shows(page, "#sift", "5 of 10 samples")
        going.append("compile", "events", {"batch": 2, "text": "second"})
        shows(page, "#compile", "second")
    assert page.eval_on_selector_all("section", "(all) => all.map((each) => each.id)") == ["sift", "compile"]
    assert page.eval_on_selector_all("nav a", "(all) => all.map((each) => each.hash)") == [
        "#sift",
        "#compile",
    ]


def test_a_killed_run_says_since_when_nothing_was_written(look, watched, tmp_path):
    run = Run(str(tmp_path / "run"))
    run.append("compile", "events", {"batch": 1, "text": "the last"})
    long_ago = time.time() - 3600
    for folder, _, names in os.walk(tmp_path / "run"):
        for name in names:
            os.utime(os.path.join(folder, name), (long_ago, long_ago))
    page = look(watched(tmp_path / "run")[1])
    says(page, "nothing was written since")
    run.close()
    says(page, "The run is finished")


def test_a_server_that_goes_away_is_said_and_the_page_stays(browser, watched, run):
    process, url = watched(run)
    with browser.new_context() as context:  # not `look`: a failed request is in its console
        page = context.new_page()
        page.set_default_timeout(100_000)
        page.goto(url)
        says(page, "The run is finished")
        process.kill()
        says(page, "The server does not answer")
        assert page.is_visible("#findings")


def test_a_run_that_goes_away_is_said_and_the_page_stays(browser, watched, run, tmp_path):
    path = shutil.copytree(run, tmp_path / "run")
    with browser.new_context() as context:  # not `look`: a refused request is in its console
        page = context.new_page()
        page.set_default_timeout(100_000)
        page.goto(watched(path)[1])
        says(page, "The run is finished")
        shutil.rmtree(path)
        says(page, "The server does not answer")
        assert page.is_visible("#findings")


def test_it_ends_by_itself_where_there_is_no_run(tmp_path):
    command = [sys.executable, "-m", "loopwise", "watch", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "no run.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_page_of_a_file_asks_nobody(look, run, tmp_path):
    from loopwise.report import report

    page = look("file://" + report(run, str(tmp_path / "page.html")))
    assert page.inner_text("#live") == ""
    data = json.loads(page.evaluate("() => document.getElementById('data').textContent"))
    assert data["live"] is False
