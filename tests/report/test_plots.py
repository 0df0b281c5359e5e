"""Plots in a real browser: labels, switches, zoom, the shared cursor, the slider of histograms, downloads, paper."""

import csv
import re

import pytest

from loopwise.debug.page import scalars
from loopwise.report import report

OVERLAPS = """() => {
  const texts = ".xtick text, .ytick text, .legendtext, .g-xtitle text, .g-ytitle text, .cbaxis text";
  const pairs = [];
  for (const box of document.querySelectorAll(".plot[data-drawn]")) {
    const shown = [...box.querySelectorAll(texts)].map((text) => [text.textContent, text.getBoundingClientRect()]);
    shown.forEach(([one, a], place) => {
      for (const [other, b] of shown.slice(place + 1)) {
        const apart = a.right <= b.left + 1 || b.right <= a.left + 1 || a.bottom <= b.top + 2 || b.bottom <= a.top + 2;
        if (!apart && a.width && b.width) pairs.push(`${box.dataset.plot}: ${one} / ${other}`);
      }
    });
  }
  return pairs;
}"""
OUTSIDE = """() => {
  const outside = [];
  for (const box of document.querySelectorAll(".plot[data-drawn]")) {
    const { left, right } = box.getBoundingClientRect();
    for (const text of box.querySelectorAll("text")) {
      const place = text.getBoundingClientRect();
      if (place.left < left - 2 || place.right > right + 2) outside.push(`${box.dataset.plot}: ${text.textContent}`);
    }
  }
  return outside;
}"""
LOSSES = "[data-plot=metrics-plot-losses]"


def figure_of(page, plot):
    return page.locator("figure", has=page.locator(plot))


def drawn(page, plot):
    page.locator(plot).scroll_into_view_if_needed()
    page.wait_for_selector(f"{plot}[data-drawn] .main-svg", state="attached")
    return page.locator(plot)


def layout(page, plot, path):
    return page.evaluate(f"() => document.querySelector({plot!r})._fullLayout.{path}")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("which", ["url", "deep"])
def test_labels_neither_overlap_nor_leave_their_plot(look, scrolled, request, which, width):
    page = look(request.getfixturevalue(which), viewport={"width": width, "height": 800})
    scrolled(page)
    assert page.locator(".plot .ytick text").count() > 20
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(OUTSIDE) == []


def test_the_labels_follow_the_zoom(look, deep):
    page = look(deep)
    plot = "[data-plot=layers-plot-weights]"
    drawn(page, plot)
    before = page.locator(f"{plot} .ytick text").count()
    page.evaluate(f"() => Plotly.relayout(document.querySelector({plot!r}), {{'yaxis.range': [9.5, -0.5]}})")
    page.wait_for_function(f"() => document.querySelectorAll('{plot} .ytick text').length === 10")
    assert before > 10
    assert page.evaluate(OVERLAPS) == []


def test_zoom_by_dragging_and_reset_by_a_double_click(look, url):
    page = look(url)
    box = drawn(page, LOSSES).bounding_box()
    whole = layout(page, LOSSES, "xaxis.range")
    page.mouse.move(box["x"] + 150, box["y"] + 120)
    page.mouse.down()
    page.mouse.move(box["x"] + 250, box["y"] + 125, steps=4)
    page.mouse.up()
    page.wait_for_function(f"() => document.querySelector({LOSSES!r})._fullLayout.xaxis.range[0] > 1")
    low, high = layout(page, LOSSES, "xaxis.range")
    assert whole[0] < low < high < whole[1]
    page.mouse.dblclick(box["x"] + 200, box["y"] + 120)
    page.wait_for_function(f"() => document.querySelector({LOSSES!r})._fullLayout.xaxis.range[0] < 1")
    assert layout(page, LOSSES, "xaxis.range") == pytest.approx(whole)


def test_the_axis_can_be_logarithmic(look, url):
    page = look(url)
    drawn(page, LOSSES)
    button = figure_of(page, LOSSES).locator("[data-tool=log]")
    assert (button.get_attribute("aria-pressed"), layout(page, LOSSES, "yaxis.type")) == ("false", "linear")
    button.click()
    assert (button.get_attribute("aria-pressed"), layout(page, LOSSES, "yaxis.type")) == ("true", "log")
    page.click("#theme")  # draws the plot again
    assert layout(page, LOSSES, "yaxis.type") == "log"
    button.click()
    assert layout(page, LOSSES, "yaxis.type") == "linear"


def test_smoothing_can_be_switched_off(look, run, tmp_path, monkeypatch):
    monkeypatch.setattr(scalars, "SMOOTHED", 20)
    page = look("file://" + report(run, str(tmp_path / "page.html")))
    drawn(page, LOSSES)
    visible = f"() => document.querySelector({LOSSES!r})._fullData.map((line) => [line.name, line.visible, line.opacity])"
    lines = [["loss, train", True, 0.35], ["loss, train, smoothed", True, 1], ["loss, eval", True, 1]]
    assert page.evaluate(visible) == lines
    button = figure_of(page, LOSSES).locator("[data-tool=smooth]")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    shown = [name for name, is_shown, _ in page.evaluate(visible) if is_shown]
    assert shown == ["loss, train", "loss, eval"]
    assert page.locator("[data-tool=smooth]").count() == 2  # of the accuracy, and of no plot with few steps


def test_the_cursor_is_shared_and_names_the_lines(look, url):
    page = look(url)
    box = drawn(page, LOSSES).bounding_box()
    drawn(page, "[data-plot=metrics-plot-accuracy]")
    page.wait_for_timeout(50)
    box = page.locator(LOSSES).bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 120)
    page.wait_for_selector("#metrics .readout:not([hidden])")
    readouts = page.locator("#metrics .readout:not([hidden])")
    page.wait_for_function("() => document.querySelectorAll('#metrics .cursor:not([hidden])').length === 2")
    first, second = readouts.all_inner_texts()
    assert re.match(r"step \d+\n", first)
    assert first.split("\n")[0] == second.split("\n")[0]
    assert "loss, train" in first
    assert "accuracy, train" in second
    assert "0.5" in second
    page.mouse.move(5, 5)
    page.wait_for_function("() => !document.querySelector('.cursor:not([hidden])')")


def test_the_slider_chooses_the_step_of_a_histogram(look, url):
    page = look(url)
    page.evaluate("() => select('4.bias')")
    figure = page.locator("#layers-choice-gradients-histogram")
    figure.scroll_into_view_if_needed()
    page.wait_for_selector("#layers-choice-gradients-histogram .plot[data-drawn]")
    bars = "() => [...document.querySelector('#layers-choice-gradients-histogram .plot')._fullData[0].x]"
    output, slider = figure.locator("output"), figure.locator("input")
    assert output.inner_text() == "step 29"
    last = page.evaluate(bars)
    assert len(last) == 64
    slider.focus()
    page.keyboard.press("Home")
    assert output.inner_text() == "step 0"
    assert slider.get_attribute("aria-valuetext") == "step 0"
    assert page.evaluate(bars) != last


def downloaded(page, button, tmp_path):
    with page.expect_download() as download:
        button.click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_every_plot_can_be_downloaded(look, url, tmp_path):
    page = look(url)
    drawn(page, LOSSES)
    path = downloaded(page, figure_of(page, LOSSES).locator("[data-tool=csv]"), tmp_path)
    assert path.name == "first-b-run-Losses.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert list(rows[0]) == ["step", "loss, train", "loss, eval"]
    assert [row["step"] for row in rows] == [str(step) for step in range(34)]
    assert rows[0]["loss, eval"] == rows[33]["loss, train"] == ""
    assert float(rows[0]["loss, train"]) > 0
    picture = downloaded(page, figure_of(page, LOSSES).locator("[data-tool=png]"), tmp_path)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    tools = page.evaluate(
        "() => [...document.querySelectorAll('.plot')].every((box) => box.closest('figure').querySelector('[data-tool=csv]'))"
    )
    assert tools


def test_a_heat_map_and_histograms_as_csv(look, url, tmp_path):
    page = look(url)
    path = downloaded(page, page.locator("#layers-plot-weights [data-tool=csv]"), tmp_path)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert list(rows[0]) == ["row", "step", "value"]
    assert len(rows) == 6 * 30
    assert {row["row"] for row in rows} == {
        f"{layer}.{name}" for layer in "024" for name in ("weight", "bias")
    }
    page.evaluate("() => select('0')")
    path = downloaded(page, page.locator("#layers-choice-gradients-histogram [data-tool=csv]"), tmp_path)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 30 * 64
    assert sum(int(row["count"]) for row in rows if row["step"] == "0") == 128


def test_text_that_a_spreadsheet_would_run_is_quoted(look, url):
    page = look(url)
    cells = ["=1+1", "-x", 'a "b", c', -1.5, None]
    assert page.evaluate("(cells) => cells.map(csvCell)", cells) == [
        "'=1+1",
        "'-x",
        '"a ""b"", c"',
        "-1.5",
        "",
    ]


def test_paper_has_light_plots_of_its_width_and_no_controls(look, url):
    page = look(url, color_scheme="dark", viewport={"width": 1280, "height": 900})
    drawn(page, LOSSES)
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(
        "() => [...document.querySelectorAll('.plot')].every((box) => !box.clientWidth || box.dataset.drawn)"
    )
    assert not page.is_visible("nav")
    assert not page.is_visible(".tools")
    assert max(page.eval_on_selector_all(".main-svg", "(all) => all.map((svg) => svg.clientWidth)")) <= 680
    assert page.evaluate("() => getComputedStyle(document.documentElement).colorScheme") == "light"
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen", color_scheme="dark")
    assert page.is_visible("nav")
    assert page.evaluate("() => document.documentElement.dataset.theme") is None
