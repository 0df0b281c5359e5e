"""The part of Plotly's script that a page has."""

import pytest

from loopwise.report import bundle, report

offline = pytest.importorskip("plotly.offline.offline")

OTHERS = ("box", "violin", "histogram", "contour", "pie", "parcoords", "scatter3d")
DRAWN = """(types) => types.map((type) => {
    const box = document.body.appendChild(document.createElement("div"));
    const trace = { x: [1, 2, 3], y: [3, 1, 2], z: [[1, 2], [3, 4]], labels: ["a"], values: [1] };
    Object.assign(trace, { type, dimensions: [{ values: [1, 2] }] });
    Plotly.newPlot(box, [type.endsWith("3d") ? { ...trace, z: [1, 2, 3] } : trace]);
    return box._fullData[0].type;
})"""


def test_the_part_is_small_and_keeps_the_licences():
    whole = offline.get_plotlyjs()
    tried = bundle.version(whole) in bundle.TRIED
    part = bundle.plotly([])
    assert len(part) < (0.4 if tried else 1.0) * len(whole)
    assert part.startswith("/**\n* plotly.js v")
    assert "Licensed under the MIT license" in part[:300]
    assert part.rstrip().endswith("window.Plotly = Plotly;")


@pytest.mark.parametrize("script", ["", "var Plotly = {}", "x" * 9000])
def test_a_script_of_another_form_is_used_whole(script):
    assert bundle.part(script, bundle.TYPES) == script
    assert bundle.unwrapped(script) == script


def test_a_version_that_was_not_tried_is_used_whole(monkeypatch):
    monkeypatch.setattr(bundle, "TRIED", frozenset())
    whole = bundle.plotly(["no-other-test-asks-for-this-type"])
    assert whole == bundle.unwrapped(offline.get_plotlyjs())


def test_a_trace_of_an_unknown_type_needs_all_of_plotly():
    whole = offline.get_plotlyjs()
    assert bundle.part(whole, bundle.TYPES | {"no-such-type"}) == whole


@pytest.mark.parametrize("other", OTHERS)
def test_the_part_draws_the_types_of_the_page(browser, other):
    with browser.new_context() as context:
        page = context.new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_content("<!doctype html><body></body>")
        page.add_script_tag(content=bundle.plotly([other]))
        types = [*sorted(bundle.TYPES), other]
        assert page.evaluate(DRAWN, types) == types
        page.wait_for_timeout(100)
        assert errors == []


def test_the_types_of_a_page_are_those_of_its_plots(look, run, tmp_path):
    page = look("file://" + report(run, str(tmp_path / "page.html")))
    assert page.evaluate("() => data.types") == ["bar", "heatmap", "scatter"]
    beyond = "(type) => beyond({ sections: [{ blocks: [{ plots: { key: { data: [{ type }] } } }] }] })"
    assert page.evaluate(beyond, "pie")
    assert not page.evaluate(beyond, "bar")
