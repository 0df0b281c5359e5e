"""Runs, and a browser to look at their pages."""

import shutil

import pytest
from page_kit import whole

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return whole(tmp_path_factory.mktemp("runs") / "first <b>run")


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    return whole(tmp_path_factory.mktemp("runs") / "second", seed=1)


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no browser: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture
def look(browser):
    """``look(url, **context)``: an open page; what its console, its scripts and its requests said must be as expected."""
    contexts, said = [], []

    def opened(url, **more):
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **more}
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(100_000)  # a busy machine
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request",
            lambda request: said.extend([request.url] * (not request.url.startswith((url, "data:")))),
        )
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []


@pytest.fixture
def scrolled():
    """Scrolls through a page until all its plots are drawn."""

    def scroll(page):
        for plot in page.query_selector_all(".plot"):
            plot.scroll_into_view_if_needed()
        page.wait_for_function(
            "() => [...document.querySelectorAll('.plot')].every((box) => box.querySelector('.main-svg'))"
        )

    return scroll
