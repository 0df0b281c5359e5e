"use strict";
// Plots: drawn when they come near the window, in the colours of the page.

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

function dressed(trace, number, all) {
  const wanted = trace.meta?.color ?? number;
  const own = color(typeof wanted === "string" ? wanted : `c${wanted % 8}`);
  const found = { ...trace };
  if (trace.x === "same") found.x = all[0].x;
  if (trace.type === "heatmap") {
    found.colorscale ??= scale(trace);
    found.colorbar = { thickness: 10, outlinewidth: 0, ...trace.colorbar };
    return found;
  }
  found.marker = { color: own, ...trace.marker };
  if (trace.error_x) found.error_x = { color: color("muted"), thickness: 1.2, ...trace.error_x };
  if (trace.type === "bar") return found;
  found.line = { color: own, width: 1.6, ...trace.line };
  if (trace.fill && trace.fill !== "none") found.fillcolor = translucent(own, 0.16);
  return found;
}

function axis(given, narrow) {
  const lines = { gridcolor: color("line"), zerolinecolor: color("line"), linecolor: color("line") };
  const found = { automargin: true, ...lines, ...given };
  if (narrow) found.nticks = Math.min(given?.nticks ?? 5, 5);
  const long = given?.ticktext?.some((text) => text.length > 10);
  if (narrow && long) Object.assign(found, { showticklabels: false, ticks: "" });
  return found;
}

function arranged(given, box) {
  const narrow = box.clientWidth < 480;
  const found = {
    height: box.clientHeight,
    margin: { l: 48, r: 12, t: 8, b: 40 },
    hovermode: "closest",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    ...given,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("muted") },
    hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } },
  };
  delete found.width;
  for (const name of new Set(["xaxis", "yaxis", ...Object.keys(given)])) {
    if (/^[xy]axis\d*$/.test(name)) found[name] = axis(given[name], narrow);
  }
  found.shapes = (given.shapes ?? []).map((shape) => ({
    ...shape,
    line: { width: 1, dash: "dot", ...shape.line, color: color(shape.line?.color ?? "muted") },
  }));
  return found;
}

function draw(box) {
  const figure = figures.get(box.dataset.plot);
  if (!figure) return;
  const config = { displayModeBar: false, responsive: true };
  Plotly.react(box, figure.data.map(dressed), arranged(figure.layout, box), config);
  box.dataset.drawn = box.dataset.plot;
}

function seen(box) {
  const { top, bottom } = box.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}

// What is in the window is drawn first, what is a little beyond once that is on the screen.
const near = new IntersectionObserver(
  (entries) => {
    const due = entries.filter((each) => each.isIntersecting).map((each) => each.target);
    due.forEach((box) => near.unobserve(box));
    const now = due.filter(seen);
    now.forEach(draw);
    const rest = due.filter((box) => !now.includes(box));
    requestAnimationFrame(() => setTimeout(() => rest.filter((box) => box.isConnected).forEach(draw)));
  },
  { rootMargin: "200px" },
);

function drawn(within = document) {
  return [...within.querySelectorAll(".plot[data-drawn]")];
}

// Make what is new within an element work: its plots, and its choice among them.
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
