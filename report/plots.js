"use strict";
// Plots, drawn in the colours of the page before they scroll into view.

const data = JSON.parse(document.getElementById("data").textContent);
const figures = new Map(Object.entries(data.plots));
const probe = document.body.appendChild(document.createElement("i"));
probe.hidden = true;

function color(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

function translucent(rgb, alpha) {
  return rgb.replace(/^rgba?\(([^,]+,[^,]+,[^,)]+).*$/, `rgba($1, ${alpha})`);
}

function scale(trace) {
  if (trace.zmin === 0) return [[0, color("line")], [1, color("c0")]];
  if (trace.zmid === undefined) {
    return [[0, "#26185a"], [0.25, "#3b5b8c"], [0.5, "#2f8f88"], [0.75, "#83bf5b"], [1, "#f6e15a"]];
  }
  return [[0, color("c0")], [0.5, color("card")], [1, color("c1")]];
}

function styled(trace, number, all) {
  const wanted = trace.meta?.color ?? number;
  const own = color(typeof wanted === "string" ? wanted : `c${wanted % 8}`);
  const result = { ...trace };
  if (trace.x === "same") result.x = all[0].x;
  if (trace.type === "heatmap") {
    result.colorscale ??= scale(trace);
    result.colorbar = { thickness: 10, outlinewidth: 0, ...trace.colorbar };
    return result;
  }
  result.marker = { color: own, ...trace.marker };
  if (trace.error_x) result.error_x = { color: color("muted"), thickness: 1.2, ...trace.error_x };
  if (trace.type === "bar") return result;
  result.line = { color: own, width: 1.6, ...trace.line };
  if (trace.fill && trace.fill !== "none") result.fillcolor = translucent(own, 0.16);
  return result;
}

function axis(settings, narrow) {
  const lines = { gridcolor: color("line"), zerolinecolor: color("line"), linecolor: color("line") };
  const result = { automargin: true, ...lines, ...settings };
  if (narrow) result.nticks = Math.min(settings?.nticks ?? 5, 5);
  const long = settings?.ticktext?.some((text) => text.length > 10);
  if (narrow && long) Object.assign(result, { showticklabels: false, ticks: "" });
  return result;
}

function laidOut(layout, box) {
  const narrow = box.clientWidth < 480;
  const result = {
    height: box.clientHeight,
    margin: { l: 48, r: 12, t: 8, b: 40 },
    hovermode: "closest",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("muted") },
    hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } },
  };
  delete result.width;
  for (const name of new Set(["xaxis", "yaxis", ...Object.keys(layout)])) {
    if (/^[xy]axis\d*$/.test(name)) result[name] = axis(layout[name], narrow);
  }
  result.shapes = (layout.shapes ?? []).map((shape) => ({
    ...shape,
    line: { width: 1, dash: "dot", ...shape.line, color: color(shape.line?.color ?? "muted") },
  }));
  return result;
}

function draw(box) {
  const figure = figures.get(box.dataset.plot);
  if (!figure) return;
  const config = { displayModeBar: false, responsive: true };
  Plotly.react(box, figure.data.map(styled), laidOut(figure.layout, box), config);
  box.dataset.drawn = box.dataset.plot;
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

// Set up the new plots of an element and its lists of plots to choose from.
function adopt(within) {
  for (const box of within.querySelectorAll(".plot:not([data-drawn])")) near.observe(box);
  for (const select of within.querySelectorAll(".choice select")) {
    select.addEventListener("change", () => choose(select));
  }
}

function choose(select) {
  const figure = select.closest("figure");
  const box = figure.querySelector(".plot");
  const describe = figures.get(select.value).describe;
  box.dataset.plot = select.value;
  box.setAttribute("aria-label", `${select.selectedOptions[0].text}. ${describe}`);
  figure.querySelector(".describe").textContent = describe;
  if (box.dataset.drawn) draw(box);
}

addEventListener("beforeprint", () => document.querySelectorAll(".plot:not([data-drawn])").forEach(draw));
