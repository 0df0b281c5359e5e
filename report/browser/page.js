"use strict";
// The page: its theme, the highlighted link of the navigation, and printing.

const root = document.documentElement;
const button = document.getElementById("theme");
const prefers = matchMedia("(prefers-color-scheme: dark)");

function storedTheme(value) {
  try {
    if (value) localStorage.setItem("loopwise-theme", value);
    return localStorage.getItem("loopwise-theme");
  } catch {
    return value; // the browser has storage switched off
  }
}

function theme() {
  return root.dataset.theme ?? (prefers.matches ? "dark" : "light");
}

function paint() {
  const other = theme() === "dark" ? "light" : "dark";
  button.textContent = other === "dark" ? "Dark" : "Light";
  button.setAttribute("aria-label", `Use the ${other} colours`);
  redraw();
}

if (storedTheme()) root.dataset.theme = storedTheme();
button.addEventListener("click", () => {
  root.dataset.theme = theme() === "dark" ? "light" : "dark";
  storedTheme(root.dataset.theme);
  paint();
});
prefers.addEventListener("change", paint);
paint();
adopt(document);

// -- navigation ------------------------------------------------------------------------------------

const visible = new Set();
const sectionObserver = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) visible[isIntersecting ? "add" : "delete"](target.id);
    mark();
  },
  { rootMargin: "-10% 0px -60% 0px" },
);

function mark() {
  for (const link of document.querySelectorAll("nav a")) {
    const here = visible.has(link.hash.slice(1));
    here ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
  }
}
document.querySelectorAll("section").forEach((section) => sectionObserver.observe(section));


// -- printing --------------------------------------------------------------------------------------

const PRINTED = 680; // pixels of a page's width
let before; // theme before printing

// Draw all plots in light colours and at the width of paper, before the browser prints.
function prepare() {
  before = root.dataset.theme;
  root.dataset.theme = "light";
  document.body.classList.add("printing");
  document.body.style.width = `${PRINTED}px`;
  document.querySelectorAll(".plot").forEach((box) => box.clientWidth && draw(box));
}

function restore() {
  if (before) root.dataset.theme = before;
  else delete root.dataset.theme;
  document.body.classList.remove("printing");
  document.body.style.width = "";
  drawn().forEach(draw);
}
addEventListener("beforeprint", prepare);
addEventListener("afterprint", restore);
