"""Layers in a real browser: grouped, searched, selected once for all plots, and linked from findings."""

PRESSED = ".list [aria-pressed=true]"


def texts(page, selector):
    return page.eval_on_selector_all(
        selector, "(all) => all.filter((e) => e.offsetParent).map((e) => e.textContent)"
    )


def test_layers_are_grouped_by_the_module_around_them(look, deep):
    page = look(deep)
    groups = texts(page, ".group > p")
    assert groups[:2] == ["encoder_of_the_model.0", "encoder_of_the_model.1"]
    assert len(groups) == 30
    assert texts(page, ".group:first-child button") == ["attention_output", "feed_forward"]
    assert page.inner_text(".picker [data-count]") == "60 layers"


def test_layers_are_found_by_a_part_of_their_name(look, deep):
    page = look(deep)
    page.fill(".picker input", "17.FEED")
    assert texts(page, ".list button") == ["feed_forward"]
    assert texts(page, ".group > p") == ["encoder_of_the_model.17"]
    assert page.inner_text(".picker [data-count]") == "1 of 60 layers"
    page.keyboard.press("Enter")
    assert page.inner_text("[data-selected]") == "encoder_of_the_model.17.feed_forward"
    page.fill(".picker input", "no such layer")
    assert texts(page, ".list button") == []
    assert page.inner_text(".picker [data-count]") == "0 of 60 layers"
    page.fill(".picker input", "")
    assert len(texts(page, ".list button")) == 60


def test_one_selection_holds_for_all_plots_of_layers(look, deep):
    page = look(deep)
    name = "encoder_of_the_model.5.feed_forward"
    page.click(f".list [data-layer='{name}']")
    assert page.eval_on_selector_all(PRESSED, "(all) => all.map((e) => e.dataset.layer)") == [name]
    shown = page.eval_on_selector_all(
        ".choice:not(.absent) select", "(all) => all.map((e) => e.selectedOptions[0].text)"
    )
    assert set(shown) == {f"{name}.weight", name}
    menu = page.locator("#layers-choice-weights-distribution select")
    assert menu.locator("option").all_text_contents() == [f"{name}.weight", f"{name}.bias"]
    menu.select_option(index=1)
    shown = page.eval_on_selector_all(
        ".choice:not(.absent) select", "(all) => all.map((e) => e.selectedOptions[0].text)"
    )
    assert f"{name}.bias" in shown
    assert f"{name}.weight" not in shown
    assert page.eval_on_selector_all(PRESSED, "(all) => all.map((e) => e.dataset.layer)") == [name]


def test_a_row_of_a_heat_map_is_outlined_and_can_be_selected(look, deep):
    page = look(deep)
    name, plot = "encoder_of_the_model.5.feed_forward", "[data-plot=layers-plot-weights]"
    page.locator(plot).scroll_into_view_if_needed()
    page.wait_for_selector(f"{plot}[data-drawn]")
    page.evaluate("(name) => select(name)", name)
    outline = f"() => document.querySelector({plot!r}).layout.shapes.map((shape) => [shape.y0, shape.y1])"
    rows = page.evaluate("() => [...figures.get('layers-plot-weights').data[0].y]")
    places = [rows.index(f"{name}.{parameter}") for parameter in ("weight", "bias")]
    assert page.evaluate(outline) == [[place - 0.5, place + 0.5] for place in places]
    box = page.locator(f"{plot} .nsewdrag").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] * 40.5 / len(rows))
    page.wait_for_function("(name) => selected === name", arg=rows[40])
    assert page.inner_text("[data-selected]") == rows[40].removesuffix(".weight")


def test_the_curves_are_those_of_the_heat_maps(look, deep):
    page = look(deep)
    page.click(".list [data-layer='encoder_of_the_model.5.feed_forward']")
    page.wait_for_selector(".layer-list .plot[data-drawn]")
    lines = "() => document.querySelector('.layer-list .plot')._fullData.map(({ name, y }) => [name, y[3]])"
    curves = dict(page.evaluate(lines))
    assert {"Weights, weight", "Weights, bias", "Gradients, weight", "Outputs: spread"} <= set(curves)
    power = page.evaluate(
        "() => { const [map] = figures.get('layers-plot-weights').data; return numbers(map.z).slice(map.y.indexOf('encoder_of_the_model.5.feed_forward.weight') * 8)[3]; }"
    )
    assert abs(curves["Weights, weight"] - 10**power) < 1e-6 * 10**power


def test_a_finding_leads_to_its_layer_and_its_plot(look, url):
    page = look(url)
    finding = page.locator(".finding", has_text="dead relu")
    finding.locator("a[data-layer='3']").click()
    assert page.inner_text("[data-selected]") == "3"
    assert page.evaluate("() => location.hash") == "#layers"
    assert page.evaluate(
        "() => Math.abs(document.getElementById('layers').getBoundingClientRect().top) < 200"
    )
    gradient = page.locator(".finding", has_text="the gradient of 0.weight")
    assert gradient.locator("a").all_text_contents() == ["0.weight", "2.weight", "4.weight"]
    for link in page.query_selector_all(".links a"):
        assert page.query_selector(f"[id='{link.get_attribute('href')[1:]}']")
