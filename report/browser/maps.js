"use strict";
// Heat maps: the image of the cells, and room for the names of the rows.
//
// Plotly draws the cells one after the other, unless all columns have exactly the same width, and draws all again when
// its margins change.  A zoom into 400 rows and 400 columns took a second.  So Plotly draws a map of one cell, and the
// image of that is replaced by one that has a pixel for each cell, or for each pixel of the plot if those are fewer.

const SHADES = 1024; // colours of a scale
const LINK = "http://www.w3.org/1999/xlink";

// Return the colours of a scale as numbers that hold a pixel each.
function shades({ colorscale, reversescale }) {
  const context = Object.assign(document.createElement("canvas"), { width: SHADES, height: 1 }).getContext("2d");
  context.fillStyle = context.createLinearGradient(0, 0, SHADES, 0);
  for (const [at, value] of colorscale) context.fillStyle.addColorStop(reversescale ? 1 - at : at, value);
  context.fillRect(0, 0, SHADES, 1);
  return new Uint32Array(context.getImageData(0, 0, SHADES, 1).data.buffer);
}

// Return which cells an axis shows: their places from left to right or from top to bottom, and the pixels that they fill.
function shownCells(edges, axis) {
  const at = Array.from(edges, (edge) => axis.c2p(edge));
  const count = at.length - 1;
  const rising = at[count] > at[0];
  const order = Array.from({ length: count }, (_, place) => (rising ? place : count - 1 - place));
  const low = (place) => Math.min(at[place], at[place + 1]);
  const high = (place) => Math.max(at[place], at[place + 1]);
  const shown = order.filter((place) => high(place) > 0 && low(place) < axis._length);
  if (!shown.length) return null;
  const [from, to] = [low(shown[0]), high(shown.at(-1))];
  const size = (to - from) / shown.length;
  const even = shown.every((place, number) => Math.abs(low(place) - from - number * size) < 0.5);
  if (even && shown.length <= axis._length) return { cells: shown, from, size: to - from };
  const first = Math.max(0, Math.floor(from));
  const cells = [];
  for (let pixel = first, number = 0; pixel < Math.min(axis._length, to); pixel++) {
    while (number < shown.length - 1 && high(shown[number]) <= pixel + 0.5) number++;
    cells.push(shown[number]);
  }
  return { cells, from: first, size: cells.length };
}

// Draw the shown cells into Plotly's image, and return the luminance of their mean.
function paintCells(image, map, { xaxis, yaxis }) {
  const [columns, rows] = [shownCells(map.x, xaxis), shownCells(map.y, yaxis)];
  if (!columns || !rows) return 0.5;
  const size = { width: columns.cells.length, height: rows.cells.length };
  const canvas = Object.assign(document.createElement("canvas"), size);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(size.width, size.height);
  const words = new Uint32Array(pixels.data.buffer);
  const { zmin, zmax } = map.trace;
  const colours = shades(map.trace);
  const step = (SHADES - 1) / (zmax - zmin || 1);
  let [at, sum, count] = [0, 0, 0];
  for (const row of rows.cells) {
    const values = map.z[row];
    for (const column of columns.cells) {
      const value = values[column];
      if (Number.isFinite(value)) {
        const shade = Math.max(0, Math.min(SHADES - 1, Math.round((value - zmin) * step)));
        words[at] = colours[shade];
        sum += shade;
        count += 1;
      }
      at += 1;
    }
  }
  context.putImageData(pixels, 0, 0);
  const place = { x: columns.from, y: rows.from, width: columns.size, height: rows.size };
  for (const [name, value] of Object.entries(place)) image.setAttribute(name, value);
  image.setAttributeNS(LINK, "xlink:href", canvas.toDataURL());
  image.style.imageRendering = "pixelated";
  if (!count) return 0.5;
  const mean = colours[Math.round(sum / count)];
  const [red, green, blue] = [0, 8, 16].map((bits) => (((mean >> bits) & 255) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function isPlain({ trace, z }) {
  const { colorscale, coloraxis, zsmooth, xgap, ygap, texttemplate } = trace;
  return Array.isArray(colorscale) && !coloraxis && !zsmooth && !xgap && !ygap && !texttemplate && z?.length;
}

// Replace Plotly's drawing of heat maps, as soon as a plot has one.
function paintMaps(box) {
  const drawing = box._fullData?.find(({ type }) => type === "heatmap")?._module;
  if (typeof drawing?.plot !== "function" || drawing.painted) return;
  const plot = drawing.plot;
  drawing.painted = true;
  drawing.plot = (plotted, subplot, maps, layer) => {
    const plain = maps.map(([map]) => map).filter(isPlain);
    const values = new Map(plain.map((map) => [map, map.z]));
    for (const map of plain) map.z = [[undefined]];
    try {
      plot(plotted, subplot, maps, layer);
    } finally {
      values.forEach((z, map) => (map.z = z));
    }
    for (const image of layer.node().querySelectorAll(".hm image")) {
      const [map] = [image.__data__].flat();
      if (!values.has(map)) continue;
      // Plotly chooses the colour of the rectangle that is dragged by the luminance of what is behind it.
      Object.assign(plotted, { _hmpixcount: 1, _hmlumcount: paintCells(image, map, subplot) });
    }
  };
}

// -- names of rows ---------------------------------------------------------------------------------

const pen = document.createElement("canvas").getContext("2d");
const widths = new WeakMap(); // names -> {length: width of the widest of them in pixels}

function shortened(text, length) {
  return text.length <= length ? text : `…${text.slice(1 - length)}`;
}

function labelLength(width) {
  return width < 480 ? 12 : 24;
}

// Return the labels of a heat map's rows that have room, of the rows between two places.
function labels(names, height, width, from = -0.5, to = names.length - 0.5) {
  const first = Math.max(0, Math.ceil(Math.min(from, to)));
  const last = Math.min(names.length - 1, Math.floor(Math.max(from, to)));
  const every = Math.max(1, Math.ceil(((last - first + 1) * 15) / Math.max(height, 15)));
  const shown = [];
  for (let row = first; row <= last; row += every) shown.push(row);
  return {
    tickmode: "array",
    tickvals: shown.map((row) => names[row]),
    ticktext: shown.map((row) => shortened(names[row], labelLength(width))),
    ticklabelstandoff: 4,
  };
}

// Return the pixels that the names need: a margin that stays when other names are shown, as Plotly would draw all again.
function labelWidth(names, width, font) {
  const length = labelLength(width);
  const known = widths.get(names) ?? widths.set(names, {}).get(names);
  if (!known[length]) {
    pen.font = font;
    known[length] = Math.max(0, ...names.map((name) => pen.measureText(shortened(String(name), length)).width));
  }
  return Math.ceil(known[length]);
}

function rowsOf(figure) {
  const trace = figure.data[0];
  return trace?.type === "heatmap" && Array.isArray(trace.y) ? trace.y : null;
}
