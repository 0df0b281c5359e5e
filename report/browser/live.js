"use strict";
// Updates of a live page: a block that changed is replaced, and nothing else.

const FOCUSABLE = "a, button, input, select, [tabindex]";

function replace(element, block) {
  if (element.dataset.hash === block.hash) return;
  for (const [key, figure] of Object.entries(block.plots)) figures.set(key, figure);
  if (document.activeElement?.matches("select") && element.contains(document.activeElement)) {
    drawn(element).forEach(draw); // the list of options may be open: leave it
    return;
  }
  element.dataset.hash = block.hash;
  const focused = [...element.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement);
  const { scrollTop = 0, scrollLeft = 0 } = element.querySelector(".scroll, .list, ul") ?? {};
  const chosen = element.querySelector("select")?.value;
  const searched = element.querySelector("input[type=search]")?.value;
  const old = new Map(drawn(element).map((box) => [box.dataset.plot, box]));
  const fresh = document.createElement("div");
  fresh.innerHTML = block.html;
  for (const option of fresh.querySelectorAll("option")) {
    if (option.value === chosen) choose(Object.assign(option.closest("select"), { value: chosen }));
  }
  for (const box of fresh.querySelectorAll(".plot")) {
    const same = old.get(box.dataset.plot);
    same?.setAttribute("aria-label", box.getAttribute("aria-label"));
    if (same) box.replaceWith(same);
    old.delete(box.dataset.plot);
  }
  old.forEach((box) => Plotly.purge(box));
  element.replaceChildren(...fresh.childNodes);
  drawn(element).forEach(draw);
  adopt(element);
  if (searched) search(Object.assign(element.querySelector("input[type=search]"), { value: searched }));
  Object.assign(element.querySelector(".scroll, .list, ul") ?? {}, { scrollTop, scrollLeft });
  if (focused >= 0) element.querySelectorAll(FOCUSABLE)[focused]?.focus({ preventScroll: true });
}

function fill(section, blocks) {
  const old = new Map([...section.querySelectorAll(":scope > .block")].map((block) => [block.dataset.key, block]));
  let last = section.querySelector("h2");
  for (const block of blocks) {
    const element = old.get(block.key) ?? document.createElement("div");
    element.className = block.narrow ? "block narrow" : "block";
    element.id = element.dataset.key = block.key;
    if (last.nextElementSibling !== element) last.after(element);
    replace(element, block);
    old.delete(block.key);
    last = element;
  }
  for (const gone of old.values()) {
    drawn(gone).forEach((box) => Plotly.purge(box));
    gone.remove();
  }
}

// Return a function that scrolls until the blocks that the reader looks at are where they are now.
function place() {
  const root = document.documentElement;
  if (!scrollY) return () => {};
  const top = (block) => block.getBoundingClientRect().top;
  const below = [...document.querySelectorAll(".block")].filter((block) => block.getBoundingClientRect().bottom > innerHeight / 6);
  const tops = new Map(below.map((block) => [block, top(block)]));
  root.style.overflowAnchor = "none"; // a browser's own way loses its place if what it holds on to is replaced
  return () => {
    const block = below.find((block) => block.isConnected && block.clientHeight);
    if (block) scrollBy({ top: top(block) - tops.get(block), behavior: "instant" });
    requestAnimationFrame(() => setTimeout(() => root.style.removeProperty("overflow-anchor")));
  };
}

// Return whether a state has a type of trace that this page's part of Plotly cannot draw.
function beyond(state) {
  const plots = state.sections.flatMap(({ blocks }) => blocks.flatMap((block) => Object.values(block.plots)));
  return plots.some((figure) => figure.data.some(({ type }) => !data.types.includes(type ?? "scatter")));
}

function update(state) {
  if (beyond(state)) return location.reload();
  const back = place();
  replace(document.getElementById("head"), state.head);
  replace(document.getElementById("nav"), state.nav);
  const main = document.getElementById("main");
  let last = main.querySelector("noscript");
  for (const { id, title, blocks } of state.sections) {
    let section = document.getElementById(id);
    if (!section) {
      section = document.createElement("section");
      section.id = id;
      section.setAttribute("aria-labelledby", `${id}-h`);
      section.append(Object.assign(document.createElement("h2"), { id: `${id}-h`, textContent: title }));
      sectionObserver.observe(section);
    }
    if (last.nextElementSibling !== section) last.after(section);
    fill(section, blocks);
    last = section;
  }
  const ids = new Set(state.sections.map((section) => section.id));
  for (const section of main.querySelectorAll("section")) if (!ids.has(section.id)) section.remove();
  data.run = state.run;
  data.etag = state.etag;
  back();
  mark();
}

function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString();
}

function status() {
  const { state, written, quiet } = data.run;
  if (lost) return `The server does not answer; the page shows the state of ${clock(lost)}`;
  if (state === "ended") return "The run ended without a word: its process is gone";
  if (state !== "running") return `The run is ${state}`;
  if (written && Date.now() / 1000 - written > quiet) return `Live; the last write was at ${clock(written)}`;
  return "Live";
}

let lost = 0; // time of the last answer if the server is gone
let heard = Date.now() / 1000; // time of the last answer
async function ask() {
  try {
    const answer = await fetch("sections.json", { cache: "no-store", headers: { "If-None-Match": `"${data.etag}"` } });
    const fresh = answer.status === 200 ? await answer.json() : null;
    lost = fresh || answer.status === 304 ? 0 : heard;
    if (!lost) heard = Date.now() / 1000;
    return fresh;
  } catch {
    lost = heard;
    return null;
  }
}

async function poll() {
  try {
    const fresh = document.hidden ? null : await ask();
    if (fresh) update(fresh);
    const text = status();
    const live = document.getElementById("live");
    if (live.textContent !== text) live.textContent = text;
  } finally {
    setTimeout(poll, 2000);
  }
}
if (data.live) poll();
