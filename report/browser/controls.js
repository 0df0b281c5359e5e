"use strict";
// Controls of a plot: logarithmic axis, smoothing, a slider of histograms, downloads as PNG and CSV.

function boxOf(element) {
  return element.closest("figure").querySelector(".plot");
}

function isLog(key) {
  return switches.get(key)?.log ?? figures.get(key)?.layout.yaxis?.type === "log";
}

// Show in the buttons within an element what is switched on.
function pressed(within) {
  for (const button of within.querySelectorAll("[data-tool=log], [data-tool=smooth]")) {
    const key = boxOf(button).dataset.plot;
    const on = button.dataset.tool === "log" ? isLog(key) : switches.get(key)?.smooth ?? true;
    button.setAttribute("aria-pressed", on);
  }
}

const TOOLS = {
  log: (key) => ({ log: !isLog(key) }),
  smooth: (key) => ({ smooth: !(switches.get(key)?.smooth ?? true) }),
};

document.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-tool]");
  if (!button) return;
  const box = boxOf(button);
  const key = box.dataset.plot;
  const { tool } = button.dataset;
  if (tool === "png") return void picture(box);
  if (tool === "csv") return void save(new Blob([csv(figures.get(key))], { type: "text/csv" }), `${fileName(box)}.csv`);
  switches.set(key, { ...switches.get(key), ...TOOLS[tool](key) });
  pressed(button.parentElement);
  draw(box);
});

// -- choice and slider -----------------------------------------------------------------------------

function choose(menu) {
  const figure = menu.closest("figure");
  const box = figure.querySelector(".plot");
  const describe = figures.get(menu.value).describe;
  box.dataset.plot = menu.value;
  box.setAttribute("aria-label", `${menu.selectedOptions[0].text}. ${describe}`);
  figure.querySelector(".describe").textContent = describe;
  slider(box);
  pressed(figure);
  if (box.dataset.drawn) draw(box);
}

// Add, set or remove the slider of a plot.
function slider(box) {
  const frames = figures.get(box.dataset.plot)?.frames;
  const parent = box.closest(".frame");
  let control = parent.querySelector(".slider");
  if (!frames) return void control?.remove();
  if (!control) {
    control = document.createElement("label");
    control.className = "slider";
    control.innerHTML = '<input type="range" min="0"><output></output>';
    parent.append(control);
    control.firstChild.addEventListener("input", ({ target }) => {
      const key = box.dataset.plot;
      switches.set(key, { ...switches.get(key), frame: Number(target.value) });
      show(Number(target.value));
      if (box.dataset.drawn) draw(box);
    });
  }
  const [input, output] = control.children;
  const show = (number) => {
    const { label, values } = figures.get(box.dataset.plot).frames;
    output.textContent = `${label} ${numbers(values)[number].toLocaleString("en")}`;
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.max = numbers(frames.values).length - 1;
  input.value = switches.get(box.dataset.plot)?.frame ?? input.max;
  input.setAttribute("aria-label", frames.label);
  show(Number(input.value));
}

// -- downloads -------------------------------------------------------------------------------------

function titleOf(box) {
  const figure = box.closest("figure");
  const title = figure.querySelector("h3")?.textContent ?? box.closest(".finding")?.querySelector("h3").textContent ?? "";
  const chosen = figure.querySelector("select")?.selectedOptions[0].text;
  return (chosen ? `${title}, ${chosen}` : title).replace(/\s+/g, " ").trim();
}

function fileName(box) {
  return `${data.run.name} ${titleOf(box)}`.replace(/[^\p{L}\p{N}._-]+/gu, "-").replace(/^[-.]+|-+$/g, "").slice(0, 100) || "plot";
}

function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function picture(box) {
  if (!box.dataset.drawn) draw(box);
  const [traces, layout] = parts(box);
  const title = { text: titleOf(box).replace(/[<>&]/g, " "), x: 0.02, xanchor: "left", y: 0.98, yanchor: "top" };
  const space = layout.showlegend && layout.legend.orientation === "h" ? 70 : 36;
  const shown = { xaxis: "range", yaxis: "range" };
  for (const [name, key] of Object.entries(shown)) layout[name] = { ...layout[name], [key]: box._fullLayout[name].range, autorange: false };
  Object.assign(layout, { title, paper_bgcolor: color("card"), margin: { ...layout.margin, t: space } });
  const size = { format: "png", width: Math.max(box.clientWidth, 640), height: box.clientHeight + space, scale: 2 };
  const url = await Plotly.toImage({ data: traces, layout, config: CONFIG }, size);
  save(new Blob([bytesOf(url.split(",")[1])], { type: "image/png" }), `${fileName(box)}.png`);
}

function csvCell(value) {
  if (typeof value === "number") return Number.isFinite(value) ? String(value) : "";
  const text = String(value ?? "");
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text; // a spreadsheet would run it
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

// Return the numbers of a figure as CSV: a column for each line, or lines for each cell of a heat map or each bin.
function csv(figure) {
  const axis = figure.layout.xaxis?.title?.text || "x";
  const [first] = figure.data;
  let rows;
  if (figure.frames) {
    rows = [[figure.frames.label, "value", "count"]];
    numbers(figure.frames.values).forEach((value, place) => {
      const { x, y } = frame(figure, place);
      x.forEach((middle, bin) => rows.push([value, middle, y[bin]]));
    });
  } else if (first?.type === "heatmap") {
    const x = steps(figure, first);
    const z = numbers(first.z);
    rows = [["row", axis, "value"]];
    Array.from(first.y).forEach((name, row) => x.forEach((step, column) => rows.push([name, step, z[row * x.length + column]])));
  } else {
    const lines = figure.data.map((trace) => ({ name: trace.name ?? "value", x: steps(figure, trace), y: numbers(trace.y) }));
    const at = new Map();
    lines.forEach(({ x, y }, line) =>
      Array.from(x).forEach((step, place) => at.set(step, Object.assign(at.get(step) ?? [], { [line]: y[place] }))),
    );
    const order = [...at.keys()].sort((a, b) => (typeof a === "number" ? a - b : 0));
    rows = [[axis, ...lines.map(({ name }) => name)], ...order.map((step) => [step, ...lines.map((_, line) => at.get(step)[line])])];
  }
  return rows.map((row) => row.map(csvCell).join(",")).join("\r\n") + "\r\n";
}

// Set up the new plots of an element, with their menus and controls.
function adopt(within) {
  for (const box of within.querySelectorAll(".plot")) {
    slider(box);
    if (!box.dataset.drawn) near.observe(box);
  }
  for (const menu of within.querySelectorAll(".choice select")) {
    if (menu.adopted) continue;
    menu.adopted = true;
    menu.addEventListener("change", () => {
      const layered = menu.closest("[data-layers]");
      layered ? select(menu.selectedOptions[0].text) : choose(menu);
    });
  }
  pressed(within);
  follow(within);
  recheck(within);
}
