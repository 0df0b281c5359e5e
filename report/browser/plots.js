"use strict";
// Plots: their colours, axes and labels; they are drawn before they scroll into view.

const data = JSON.parse(document.getElementById("data").textContent);
const figures = new Map(Object.entries(data.plots));
const switches = new Map(); // key of a plot -> {log, smooth, frame}, what the reader chose
const probe = document.body.appendChild(document.createElement("i"));
probe.hidden = true;

function color(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

function translucent(rgb, alpha) {
  return rgb.replace(/^rgba?\(([^,]+,[^,]+,[^,)]+).*$/, `rgba($1, ${alpha})`);
}

// -- numbers ---------------------------------------------------------------------------------------

const ARRAYS = { f4: Float32Array, f8: Float64Array, i4: Int32Array };
const decoded = new WeakMap();

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const letters = atob(base64);
  const bytes = new Uint8Array(letters.length);
  for (let place = 0; place < letters.length; place++) bytes[place] = letters.charCodeAt(place);
  return bytes;
}

// Return the numbers of an array in Plotly's form; those of a matrix one row after the other.
function numbers(array) {
  if (!array?.bdata) return array ?? [];
  if (!decoded.has(array)) {
    decoded.set(array, new ARRAYS[array.dtype](bytesOf(array.bdata).buffer));
  }
  return decoded.get(array);
}

function steps(figure, trace) {
  return numbers(trace.x === "same" ? figure.data[0].x : trace.x);
}

// Return the i-th histogram of a plot with a slider.
function frame(figure, place) {
  const { values, range, y } = figure.frames;
  const count = numbers(values).length;
  const number = Math.min(place ?? count - 1, count - 1);
  const bins = numbers(y).length / count;
  const [low, high] = numbers(range).slice(2 * number, 2 * number + 2);
  const width = (high - low) / bins || 1;
  const x = Array.from({ length: bins }, (_, bin) => low + (bin + 0.5) * width);
  return { number, value: numbers(values)[number], x, y: numbers(y).slice(bins * number, bins * (number + 1)), width };
}

// -- traces and axes -------------------------------------------------------------------------------

function scale(trace) {
  if (trace.zmin === 0) return [[0, color("line")], [1, color("c0")]];
  if (trace.zmid === undefined) {
    return [[0, "#26185a"], [0.25, "#3b5b8c"], [0.5, "#2f8f88"], [0.75, "#83bf5b"], [1, "#f6e15a"]];
  }
  return [[0, color("c0")], [0.5, color("card")], [1, color("c1")]];
}

function styled(trace, number, figure, chosen) {
  const wanted = trace.meta?.color ?? number;
  const own = color(typeof wanted === "string" ? wanted : `c${wanted % 8}`);
  const result = { ...trace };
  if (trace.x === "same") result.x = figure.data[0].x;
  if (figure.frames && number === 0) {
    const { x, y, width } = frame(figure, chosen.frame);
    Object.assign(result, { x, y, width });
  }
  if (trace.type === "heatmap") {
    result.colorscale ??= scale(trace);
    result.colorbar = { thickness: 10, outlinewidth: 0, ...trace.colorbar };
    return result;
  }
  result.marker = { color: own, ...trace.marker };
  if (trace.error_x) result.error_x = { color: color("muted"), thickness: 1.2, ...trace.error_x };
  if (trace.type === "bar") return result;
  result.hoverinfo = "none"; // the cursor of the page shows the numbers
  result.line = { color: own, width: 1.6, ...trace.line };
  if (trace.fill && trace.fill !== "none") result.fillcolor = translucent(own, 0.16);
  if (trace.meta?.smooth && chosen.smooth === false) {
    if (trace.meta.smooth === "mean") result.visible = false;
    else Object.assign(result, { opacity: 1, showlegend: true, line: { color: own, width: 1.6 } });
  }
  return result;
}

function axis(settings, narrow) {
  const lines = { gridcolor: color("line"), zerolinecolor: color("line"), linecolor: color("line") };
  const standoff = 5; // the first label of the steps is not to touch the lowest one of the values
  const result = { automargin: true, ticklabelstandoff: standoff, ...lines, ...settings };
  if (narrow) result.nticks = Math.min(settings?.nticks ?? 5, 5);
  return result;
}

function laidOut(figure, box, chosen) {
  const { layout } = figure;
  const narrow = box.clientWidth < 480;
  const lines = figure.data.every((trace) => trace.type === "scatter");
  const result = {
    height: box.clientHeight,
    margin: { l: 48, r: 12, t: 8, b: 40 },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    uirevision: box.dataset.plot, // a later state of the page keeps what was zoomed
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    ...layout,
    hovermode: lines ? false : "closest",
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("muted") },
    hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } },
  };
  delete result.width;
  for (const name of new Set(["xaxis", "yaxis", ...Object.keys(layout)])) {
    if (/^[xy]axis\d*$/.test(name)) result[name] = axis(layout[name], narrow);
  }
  if (chosen.log !== undefined) {
    const type = chosen.log ? "log" : "linear";
    result.yaxis = { ...result.yaxis, type, uirevision: `${box.dataset.plot} ${type}` };
    if (chosen.log) ["range", "rangemode", "tickformat"].forEach((name) => delete result.yaxis[name]);
  }
  if (result.yaxis.type === "log") Object.assign(result.yaxis, { dtick: undefined, exponentformat: "power" });
  const rows = rowsOf(figure);
  if (rows) {
    Object.assign(result.yaxis, labels(rows, box.clientHeight - 60, box.clientWidth), { automargin: false });
    const font = `${result.font.size}px ${result.font.family}`;
    result.margin = { ...result.margin, l: labelWidth(rows, box.clientWidth, font) + 12 };
  }
  result.shapes = (layout.shapes ?? []).map((shape) => ({
    ...shape,
    line: { width: 1, dash: "dot", ...shape.line, color: color(shape.line?.color ?? "muted") },
  }));
  result.shapes.push(...marks(box, figure));
  return result;
}

// -- drawing ---------------------------------------------------------------------------------------

const CONFIG = { displayModeBar: false, responsive: true, doubleClick: "reset" };

function parts(box) {
  const figure = figures.get(box.dataset.plot);
  const chosen = switches.get(box.dataset.plot) ?? {};
  const traces = figure.data.map((trace, number) => styled(trace, number, figure, chosen));
  return [traces, laidOut(figure, box, chosen)];
}

function draw(box) {
  const figure = figures.get(box.dataset.plot);
  if (!figure) return;
  Plotly.react(box, ...parts(box), CONFIG);
  paintMaps(box);
  box.dataset.drawn = box.dataset.plot;
  if (!box.begun) begin(box);
}

// Listen to a plot that has been drawn for the first time.
function begin(box) {
  box.begun = true;
  box.on("plotly_relayout", (change) => {
    const figure = figures.get(box.dataset.plot);
    const rows = figure && rowsOf(figure);
    const zoomed = rows && Object.keys(change).some((key) => /^yaxis\.(range|autorange)/.test(key));
    if (!zoomed) return;
    const { range, _length } = box._fullLayout.yaxis;
    const ticks = labels(rows, _length, box.clientWidth, ...range);
    Plotly.relayout(box, Object.fromEntries(Object.entries(ticks).map(([key, value]) => [`yaxis.${key}`, value])));
  });
  box.on("plotly_click", ({ points }) => {
    if (figures.get(box.dataset.plot)?.data[0].meta?.of) select(points[0].y);
  });
}

function inWindow(box) {
  const { top, bottom } = box.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}

// Plots in the window are drawn first, those just outside it after the browser has painted.
const near = new IntersectionObserver(
  (entries) => {
    const due = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    due.forEach((box) => near.unobserve(box));
    const now = due.filter(inWindow);
    now.forEach(draw);
    const rest = due.filter((box) => !now.includes(box));
    requestAnimationFrame(() => setTimeout(() => rest.filter((box) => box.isConnected).forEach(draw)));
  },
  { rootMargin: "200px" },
);

function drawn(within = document) {
  return [...within.querySelectorAll(".plot[data-drawn]")];
}

// Draw again the plots that were drawn; those outside the window later.
function redraw(boxes = drawn()) {
  boxes.filter(inWindow).forEach(draw);
  const rest = boxes.filter((box) => !inWindow(box));
  setTimeout(() => rest.filter((box) => box.isConnected).forEach(draw));
}
