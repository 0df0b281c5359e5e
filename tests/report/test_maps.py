"""Heat maps in a real browser: the image that the page draws in place of Plotly's."""

import pytest

PLOT = "[data-plot=layers-plot-weights]"
MAP = """async ([x, range]) => {
    const box = document.querySelector("[data-plot=layers-plot-weights]");
    const colorscale = [[0, "rgb(0, 0, 0)"], [1, "rgb(250, 250, 250)"]];
    const z = [[0, 1, 2, 3], [4, 5, 6, null]];
    const map = { type: "heatmap", x, y: ["above", "below"], z, zmin: 0, zmax: 6, colorscale, showscale: false };
    const rows = { type: "category", autorange: "reversed", showgrid: false };
    const columns = { range, showgrid: false, zeroline: false };
    const layout = { width: 600, height: 300, plot_bgcolor: "rgb(9, 9, 200)", xaxis: columns, yaxis: rows };
    await Plotly.newPlot(box, [map], layout);
    const { xaxis, yaxis, _size } = box._fullLayout;
    const shown = new Image();
    shown.src = await Plotly.toImage(box, { format: "png", scale: 1, width: 600, height: 300 });
    await shown.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width: 600, height: 300 });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(shown, 0, 0);
    const colour = (column, row) => {
        const at = [_size.l + xaxis.l2p(x[column]), _size.t + yaxis.l2p(row)];
        return [...context.getImageData(...at.map(Math.round), 1, 1).data];
    };
    return z.map((values, row) => values.map((_, column) => colour(column, row)));
}"""
"""JavaScript that draws a heat map, as a picture too, and returns the colour in the middle of each cell."""


@pytest.mark.parametrize(
    ("x", "span"),
    [
        ([0, 10, 20, 30], [-5, 35]),
        ([0, 1, 5, 30], [-1, 40]),
        ([0, 10, 20, 30], [35, -5]),
        ([30, 20, 10, 0], [-5, 35]),
    ],
)
def test_each_cell_has_the_colour_of_its_value(look, url, x, span):
    page = look(url)
    page.locator(PLOT).scroll_into_view_if_needed()
    page.wait_for_selector(f"{PLOT}[data-drawn] .main-svg", state="attached")
    colours = page.evaluate(MAP, [x, span])
    for row, values in enumerate([[0, 1, 2, 3], [4, 5, 6, None]]):
        for column, value in enumerate(values):
            behind = [9, 9, 200]
            expected = behind if value is None else [250 * value / 6] * 3
            assert colours[row][column][:3] == pytest.approx(expected, abs=2)
    assert page.evaluate("(plot) => document.querySelector(plot)._fullData[0]._module.painted", PLOT)
