"""The page in a real browser: all sections are present, drawn and reachable, and no request leaves the machine."""

import json
import re
from pathlib import Path

import pytest

from loopwise.report import report

SECTIONS = ("findings", "metrics", "job", "layers", "phases", "sift", "compile", "saved")
WIDTHS = {"phone": 360, "desktop": 1280}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_every_section_is_there_and_every_plot_is_drawn(look, scrolled, url, width, scheme):
    page = look(url, viewport={"width": width, "height": 800}, color_scheme=scheme)
    for section in SECTIONS:
        assert page.is_visible(f"#{section} h2"), section
        assert page.is_visible(f"nav a[href='#{section}']"), section
    scrolled(page)
    assert page.evaluate("() => document.querySelectorAll('.plot').length") > 10
    assert page.evaluate("() => document.documentElement.scrollWidth") == width


def test_plots_have_lines_and_cells(look, scrolled, url):
    page = look(url)
    scrolled(page)
    for within, mark in {"#findings": ".scatterlayer path", "#metrics": ".scatterlayer path"}.items():
        assert page.eval_on_selector(f"{within} .plot {mark}", "(e) => e.getBBox().width") > 100
    assert page.eval_on_selector("#layers .heatmaplayer image", "(e) => e.getBBox().width") > 100


def test_names_are_escaped(look, url):
    page = look(url)
    assert page.title() == "first <b>run - Loopwise"
    assert page.inner_text("h1") == "first <b>run"
    assert page.query_selector("b") is None
    finding = page.inner_text(".finding")
    assert re.search(r"(?i)^(critical|warning|info)\s+\w", finding)
    assert page.inner_text("nav .badge.warning").startswith(str(page.locator(".finding.warning").count()))


def test_findings_are_sorted_by_severity(look, url):
    page = look(url)
    order = [label.inner_text().lower() for label in page.query_selector_all(".finding .severity")]
    assert order == sorted(order, key=["critical", "warning", "info"].index)
    assert "dead relu" in page.inner_text("#findings")


def test_the_colours_can_be_switched(look, scrolled, url):
    page = look(url, color_scheme="light")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    text = "() => getComputedStyle(document.querySelector('#metrics .xtick text')).fill"
    page.wait_for_selector(".plot[data-drawn]")
    scrolled(page)
    before = page.evaluate(ground), page.evaluate(text)
    assert page.inner_text("#theme") == "Dark"
    page.click("#theme")
    after = page.evaluate(ground), page.evaluate(text)
    assert page.inner_text("#theme") == "Light"
    assert all(one != two for one, two in zip(before, after, strict=True))
    page.reload()
    assert page.evaluate(ground) == after[0]


def test_everything_is_reached_by_keyboard(look, url):
    page = look(url)
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "main"
    page.reload()
    reached = set()
    wanted = {"theme", "#findings", "#saved", "DIV", "INPUT", "BUTTON"}
    for _ in range(200):
        if wanted <= reached:
            break
        page.keyboard.press("Tab")
        name = page.evaluate(
            "() => document.activeElement.id || document.activeElement.getAttribute('href') || document.activeElement.tagName"
        )
        reached.add(name)
        shown = "() => getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(shown) != "none" or name == "BODY", name
    assert wanted <= reached


def test_plots_and_tables_are_described_in_words(look, url):
    page = look(url)
    for plot in page.query_selector_all(".plot"):
        assert plot.get_attribute("role") == "img"
        assert len(plot.get_attribute("aria-label")) > 20
    for table in page.query_selector_all("table"):
        assert table.query_selector("caption").inner_text()


def test_two_runs_side_by_side(look, scrolled, run, other, tmp_path):
    page = look(Path(report(run, str(tmp_path / "two.html"), compare=other)).as_uri())
    assert "differ first at step 0 in" in page.inner_text("#comparison")
    assert page.inner_text("#comparison table").count("second") > 1
    scrolled(page)
    assert "loss, train of second" in page.text_content("#metrics .legend")


def test_the_page_is_one_file_without_links_to_others(run, tmp_path):
    text = Path(report(run, str(tmp_path / "page.html"))).read_text()
    beside_plotly = re.sub(r"<script>/\*\*.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|@import|url\(""", beside_plotly)
    data = json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    )
    assert data["plots"]
    assert not data["live"]
