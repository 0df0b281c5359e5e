"""Runs, and a browser that opens their pages."""

from pathlib import Path

import pytest
from page_kit import deep_run, full_run, launched

from loopwise.report import report


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return full_run(tmp_path_factory.mktemp("runs") / "first <b>run")


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    return full_run(tmp_path_factory.mktemp("runs") / "second", seed=1)


@pytest.fixture(scope="session")
def url(run, tmp_path_factory):
    """Return the address of the page of a run, as a file."""
    return Path(report(run, str(tmp_path_factory.mktemp("pages") / "page.html"))).as_uri()


@pytest.fixture(scope="session")
def deep(tmp_path_factory):
    """Return the address of the page of a run of many layers."""
    folder = tmp_path_factory.mktemp("deep")
    return Path(report(deep_run(folder / "run"), str(folder / "page.html"))).as_uri()


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def look(browser):
    """Return a function that opens a URL; the page may log nothing and send no request to another address."""
    contexts, messages = [], []

    def opened(url, **more):
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **more}
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # a busy machine
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on(
            "request",
            lambda request: messages.extend(
                [request.url] * (not request.url.startswith((url, "data:", "blob:")))
            ),
        )
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert messages == []


@pytest.fixture
def scrolled():
    """Return a function that scrolls through a page until all plots are drawn that can be seen."""

    def scroll(page):
        for plot in page.query_selector_all(".plot"):
            if plot.is_visible():
                plot.scroll_into_view_if_needed()
        page.wait_for_function(
            "() => [...document.querySelectorAll('.plot')].every((box) => !box.clientWidth || box.dataset.drawn)"
        )

    return scroll
