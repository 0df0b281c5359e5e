"""The page of a run in progress: it updates in place, and tells if the run ends or is killed or the server stops."""

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


def _restore_ctrl_c():
    """Restore the default handler: a shell makes processes in its background ignore Ctrl-C, which is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def served():
    """Return a function that starts ``loopwise serve`` in a process of its own and returns the process and its URL."""
    with contextlib.ExitStack() as stack:

        def start(path, *options):
            command = [sys.executable, "-m", "loopwise", "serve", str(path), *options]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            process = stack.enter_context(subprocess.Popen(command, preexec_fn=_restore_ctrl_c, **pipes))
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


STILL = """() => {
    const near = [...document.querySelectorAll(".plot")].filter((box) => {
        const { top, bottom } = box.getBoundingClientRect();
        return box.clientWidth && bottom > -200 && top < innerHeight + 200;
    });
    const tops = [...document.querySelectorAll(".block")].map((block) => block.getBoundingClientRect().top).join();
    const same = window.topsBefore === tops;
    window.topsBefore = tops;
    return same && near.every((box) => box.dataset.drawn && box.querySelector(".main-svg"));
}"""
"""JavaScript that returns whether all plots near the window are drawn, and no block moved since the last call."""
LOOKED_AT = """() => {
    const block = document.elementFromPoint(innerWidth / 2, 150).closest(".block");
    return [block.dataset.key, block.getBoundingClientRect().top];
}"""
"""JavaScript that returns the key of the block in the upper part of the window, and its position."""
TOP = "(key) => document.getElementById(key).getBoundingClientRect().top"


def still(page):
    page.wait_for_function(STILL, polling=250)


@pytest.fixture
def made_training():
    """Return a function that makes a training; its ``Watch`` is closed also if the test fails."""
    with contextlib.ExitStack() as stack:

        def made(run):
            training = Training(run)
            stack.callback(training.watch.close)
            return training

        yield made


def test_the_page_grows_without_a_reload(look, served, made_training, tmp_path):
    run = Run(str(tmp_path / "run"))
    process, url = served(tmp_path / "run")
    page = look(url)
    assert "There is nothing to show yet" in page.inner_text("#head")
    says(page, "Live")
    page.add_style_tag(
        content="* { overflow-anchor: none !important }"
    )  # a browser that does not keep the place
    page.evaluate("() => { window.never_reloaded = true }")
    training = made_training(run)
    training.train(12)
    shows(page, "#metrics .describe", "12 steps")
    assert "There is nothing to show yet" not in page.inner_text("#head")
    page.locator("#metrics .plot").first.scroll_into_view_if_needed()
    page.wait_for_selector("#metrics .plot[data-drawn]")
    page.evaluate("() => { document.querySelector('#metrics .plot').kept = true }")
    page.locator("#saved .scroll").first.focus()
    page.evaluate("() => select('4.bias')")
    menu = page.locator("#layers-choice-gradients-distribution select")
    chosen = menu.input_value()
    still(page)
    place, top = page.evaluate(LOOKED_AT)
    assert page.evaluate("() => scrollY") > 0
    training.train(8)
    shows(page, "#metrics .describe", "20 steps")
    assert page.evaluate("() => document.querySelector('#metrics .plot').kept")
    assert page.evaluate("() => document.activeElement.matches('#saved .scroll')")
    assert menu.input_value() == chosen
    still(page)
    assert page.evaluate(TOP, place) == pytest.approx(top, abs=2)  # although blocks were added above it
    training.watch.close()
    run.close()
    says(page, "The run is finished")
    assert page.evaluate("() => window.never_reloaded")
    page.close()  # otherwise its console would list a failed request
    process.send_signal(signal.SIGINT)
    assert process.wait(600) == 0
    assert process.stdout.read() == "stopped\n"
    assert process.stderr.read() == ""


def test_new_sections_appear_in_their_place(look, served, run, tmp_path):
    with Run(str(tmp_path / "run")) as going:
        going.append("compile", "events", {"batch": 1, "text": "first"})
        page = look(served(tmp_path / "run")[1])
        shows(page, "#compile", "first")
        counts = {"epoch": 0, "seen": 10, "kept": 5}
        going.append("sift", "epochs", counts)
        shows(page, "#sift", "5 of 10 samples")
        going.append("compile", "events", {"batch": 2, "text": "second"})
        shows(page, "#compile", "second")
    assert page.eval_on_selector_all("section", "(all) => all.map((section) => section.id)") == [
        "summary",
        "sift",
        "compile",
    ]
    assert page.eval_on_selector_all("nav a", "(all) => all.map((link) => link.hash)") == [
        "#summary",
        "#sift",
        "#compile",
    ]


def test_the_page_of_a_killed_run_tells_the_last_write(look, served, tmp_path):
    run = Run(str(tmp_path / "run"))
    run.append("compile", "events", {"batch": 1, "text": "the last"})
    long_ago = time.time() - 3600
    for folder, _, names in os.walk(tmp_path / "run"):
        for name in names:
            os.utime(os.path.join(folder, name), (long_ago, long_ago))
    page = look(served(tmp_path / "run")[1])
    says(page, "the last write was at")
    run.close()
    says(page, "The run is finished")


def test_the_page_tells_that_the_server_stopped_and_stays(browser, served, run):
    process, url = served(run)
    with browser.new_context() as context:  # not `look`: its console lists a failed request
        page = context.new_page()
        page.set_default_timeout(500_000)
        page.goto(url)
        says(page, "The run is finished")
        process.kill()
        says(page, "The server does not answer")
        assert page.is_visible("#findings")


def test_the_page_tells_that_the_run_was_deleted_and_stays(browser, served, run, tmp_path):
    path = shutil.copytree(run, tmp_path / "run")
    with browser.new_context() as context:  # not `look`: its console lists a refused request
        page = context.new_page()
        page.set_default_timeout(500_000)
        page.goto(served(path)[1])
        says(page, "The run is finished")
        shutil.rmtree(path)
        says(page, "The server does not answer")
        assert page.is_visible("#findings")


def test_the_server_of_no_run_exits_with_an_error(tmp_path):
    command = [sys.executable, "-m", "loopwise", "serve", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no run.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_page_of_a_file_sends_no_request(look, run, tmp_path):
    from loopwise.report import report

    page = look("file://" + report(run, str(tmp_path / "page.html")))
    assert page.inner_text("#live") == ""
    data = json.loads(page.evaluate("() => document.getElementById('data').textContent"))
    assert data["live"] is False
