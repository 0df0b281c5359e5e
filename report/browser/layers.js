"use strict";
// Layers: a list with a search, and one selection for all plots of layers.

let selected = null; // name of the selected layer or parameter

function layerLists() {
  return [...document.querySelectorAll(".layer-list")];
}

// Return how well the name of a plot fits the selected name: 0 not at all, 3 exactly.
function fit(name, wanted) {
  if (name === wanted) return 3;
  if (name.startsWith(`${wanted}.`)) return 2;
  return wanted.startsWith(`${name}.`) ? 1 : 0;
}

// Return the layer of the lists that a name belongs to.
function layerOf(name) {
  const known = new Set([...document.querySelectorAll(".list [data-layer]")].map((item) => item.dataset.layer));
  for (let part = name; part; part = part.slice(0, Math.max(part.lastIndexOf("."), 0))) if (known.has(part)) return part;
  return known.values().next().value ?? null;
}

function select(name) {
  selected = name;
  follow();
}

// Show the selected layer in the lists and in all plots of layers within an element.
function follow(within = document) {
  if (!layerLists().length) return;
  selected ??= document.querySelector(".finding [data-layer]")?.dataset.layer ?? layerOf("");
  const layer = layerOf(selected);
  for (const item of document.querySelectorAll(".list [data-layer]")) {
    const here = item.dataset.layer === layer;
    if (here !== (item.getAttribute("aria-pressed") === "true")) item.setAttribute("aria-pressed", here);
    if (here) intoView(item);
  }
  for (const figure of within.querySelectorAll("figure[data-layers]")) fillMenu(figure);
  for (const list of layerLists()) curves(list, layer);
  for (const box of drawn(within)) outline(box);
}

function intoView(item) {
  const list = item.closest(".list");
  const { top, bottom } = item.getBoundingClientRect();
  const around = list.getBoundingClientRect();
  if (top < around.top) list.scrollTop -= around.top - top + 8;
  else if (bottom > around.bottom) list.scrollTop += bottom - around.bottom + 8;
}

// Leave in the menu of a plot the names of the selected layer.
function fillMenu(figure) {
  const menu = figure.querySelector("select");
  menu.all ??= [...menu.options];
  const fits = menu.all.map((option) => fit(option.text, selected));
  let most = Math.max(...fits);
  let of = menu.all.filter((_, place) => fits[place] && fits[place] === most);
  if (most === 3) {
    const module = layerOf(selected); // keep the other parameters of the layer in the menu
    of = menu.all.filter((option) => option.text === selected || fit(option.text, module) === 2);
  }
  figure.classList.toggle("absent", !of.length);
  if (!of.length) return;
  const value = (most === 3 && of.find((option) => option.text === selected)?.value) || of[0].value;
  menu.replaceChildren(...of);
  menu.value = value;
  menu.closest("label").hidden = of.length < 2;
  choose(menu);
}

// Return the outlines of the selected layer's rows in a heat map.
function marks(box, figure) {
  if (!figure.data[0]?.meta?.of || selected === null) return [];
  const layer = layerOf(selected);
  const rows = figure.data[0].y.flatMap((name, row) => (name === selected || fit(name, layer) >= 2 ? [row] : []));
  const runs = []; // first and last of rows that follow each other
  for (const row of rows) runs.at(-1)?.[1] === row - 1 ? (runs.at(-1)[1] = row) : runs.push([row, row]);
  const line = { color: color("c1"), width: 2 };
  return runs.map(([first, last]) => ({ type: "rect", xref: "paper", x0: 0, x1: 1, y0: first - 0.5, y1: last + 0.5, line }));
}

function outline(box) {
  const figure = figures.get(box.dataset.plot);
  if (!figure?.data[0]?.meta?.of) return;
  if (!inWindow(box)) {
    delete box.dataset.drawn; // it is drawn again when it comes near
    near.observe(box);
    return;
  }
  Plotly.relayout(box, { shapes: laidOut(figure, box, {}).shapes });
}

// Return the numbers that the heat maps have of a layer, as curves.
function curvesOf(layer) {
  const traces = [];
  for (const figure of figures.values()) {
    if ("of" in figure) continue; // curves
    const [map] = figure.data;
    if (!map?.meta?.of || map.meta.scale !== "log") continue;
    const x = numbers(map.x);
    map.y.forEach((name, row) => {
      if (fit(name, layer) < 2) return;
      const y = Array.from(numbers(map.z).slice(row * x.length, (row + 1) * x.length), (power) => 10 ** power);
      const own = name.slice(layer.length + 1);
      const mode = x.length < 60 ? "lines+markers" : "lines";
      traces.push({ type: "scatter", mode, marker: { size: 4 }, name: own ? `${map.meta.of}, ${own}` : map.meta.of, x, y });
    });
  }
  return traces;
}

// Draw the curves of a layer.  They are made when somebody looks at them: heat maps of 200 layers take long to decode.
function curves(list, layer) {
  const box = list.querySelector(".plot");
  const key = box.dataset.plot;
  const layout = { showlegend: true, xaxis: { title: { text: "step" } }, yaxis: { type: "log" } };
  if (!switches.has(key)) switches.set(key, { log: true });
  let traces = null;
  figures.set(key, { of: layer, layout, describe: "", get data() { return (traces ??= curvesOf(layer)); } });
  list.querySelector("[data-selected]").textContent = layer;
  box.setAttribute("aria-label", `Curves of ${layer}. Root mean squares and spreads of the selected layer over steps`);
  pressed(list);
  if (box.dataset.drawn) draw(box);
}

// -- search ----------------------------------------------------------------------------------------

function search(input) {
  const wanted = input.value.trim().toLowerCase();
  const list = input.closest(".picker").querySelector(".list");
  let count = 0;
  for (const group of list.querySelectorAll(".group")) {
    let here = 0;
    for (const item of group.querySelectorAll("[data-layer]")) {
      item.hidden = !item.dataset.layer.toLowerCase().includes(wanted);
      here += !item.hidden;
    }
    group.hidden = !here;
    count += here;
  }
  const told = input.closest(".picker").querySelector("[data-count]");
  told.textContent = wanted ? `${count} of ${told.dataset.count} layers` : `${told.dataset.count} layers`;
}

document.addEventListener("input", ({ target }) => target.matches(".picker input") && search(target));
document.addEventListener("keydown", ({ key, target }) => {
  if (key !== "Enter" || !target.matches(".picker input")) return;
  const first = target.closest(".picker").querySelector(".group:not([hidden]) [data-layer]:not([hidden])");
  if (first) select(first.dataset.layer);
});
document.addEventListener("click", ({ target }) => {
  const item = target.closest("[data-layer]");
  if (item) select(item.dataset.layer);
});
