"use strict";
// Cursor: a line at the same step in all plots, with the names and values of each plot's lines.

const SHOWN = 10; // lines of a plot whose values are shown
let pointer = null; // last position of the pointer: {box, clientX, clientY}
let waiting = false;

function horizontal(box) {
  const layout = box._fullLayout;
  return layout?.xaxis?._length && layout.xaxis.type === "linear" ? layout.xaxis : null;
}

function quantity(box) {
  return figures.get(box.dataset.plot)?.layout.xaxis?.title?.text ?? null;
}

// Return the place of the number nearest to x in an ascending array.
function nearest(array, x) {
  let [low, high] = [0, array.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    array[middle] < x ? (low = middle) : (high = middle);
  }
  return Math.abs(array[low] - x) <= Math.abs(array[high] - x) ? low : high;
}

function valuesAt(box, x) {
  const values = [];
  for (const trace of box._fullData) {
    const line = trace.type === "scatter" && trace.visible === true && trace.x?.length && trace.line?.width > 0;
    if (!line || (trace.meta?.smooth === "raw" && trace.opacity < 1)) continue;
    const place = nearest(trace.x, x);
    values.push({ name: trace.name, step: trace.x[place], value: trace.y[place], color: trace.line.color });
  }
  return values;
}

function told(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "not finite";
  return Number(value.toPrecision(5)).toLocaleString("en", { maximumSignificantDigits: 5, notation: Math.abs(value) < 1e-4 && value ? "scientific" : "standard" });
}

function overlay(box, name) {
  const parent = box.parentElement;
  let element = parent.querySelector(`.${name}`);
  if (!element) {
    element = document.createElement("div");
    element.className = name;
    element.setAttribute("aria-hidden", "true");
    parent.append(element);
  }
  return element;
}

function point(box, x) {
  const axis = horizontal(box);
  const values = valuesAt(box, x);
  const at = values.length ? values[nearest(values.map(({ step }) => step), x)].step : x;
  const left = axis._offset + axis.l2p(at);
  const { t, h } = box._fullLayout._size;
  const inside = left >= axis._offset - 1 && left <= axis._offset + axis._length + 1;
  const line = overlay(box, "cursor");
  line.hidden = !inside;
  Object.assign(line.style, { left: `${left}px`, top: `${t}px`, height: `${h}px` });
  const readout = overlay(box, "readout");
  readout.hidden = !inside || !values.length;
  if (readout.hidden) return;
  const rows = values.slice(0, SHOWN).map(({ name, value, color: own }) => {
    const row = document.createElement("div");
    const swatch = Object.assign(document.createElement("i"), { style: `background: ${own}` });
    const label = Object.assign(document.createElement("span"), { textContent: name });
    row.append(swatch, label, Object.assign(document.createElement("b"), { textContent: told(value) }));
    return row;
  });
  const head = document.createElement("p");
  const more = values.length > SHOWN ? `, ${values.length - SHOWN} more lines` : "";
  head.textContent = `${quantity(box) ?? ""} ${told(at)}${more}`.trim();
  readout.replaceChildren(head, ...rows);
  const right = left > box.clientWidth / 2;
  Object.assign(readout.style, { top: `${t + 4}px`, left: right ? "auto" : `${left + 8}px`, right: right ? `${box.clientWidth - left + 8}px` : "auto" });
}

function unpoint(boxes = drawn()) {
  for (const box of boxes) {
    for (const element of box.parentElement.querySelectorAll(".cursor, .readout")) element.hidden = true;
  }
}

function move() {
  waiting = false;
  const box = pointer?.box;
  const axis = box?.isConnected && box.dataset.drawn && horizontal(box);
  if (!axis) return unpoint();
  const x = axis.p2l(pointer.clientX - box.getBoundingClientRect().left - axis._offset);
  if (x < Math.min(...axis.range) || x > Math.max(...axis.range)) return unpoint();
  const of = quantity(box);
  for (const other of drawn()) {
    const shared = other === box || (of !== null && quantity(other) === of && inWindow(other));
    shared && horizontal(other) ? point(other, x) : unpoint([other]);
  }
}

function moved(event) {
  const box = event.target.closest?.(".frame")?.querySelector(".plot") ?? null;
  if (!box && !pointer) return;
  pointer = box && { box, clientX: event.clientX, clientY: event.clientY };
  if (!waiting) requestAnimationFrame(move);
  waiting = true;
}

document.addEventListener("pointermove", moved, { passive: true });
document.addEventListener("pointerdown", moved, { passive: true });
document.documentElement.addEventListener("pointerleave", () => ((pointer = null), unpoint()));
