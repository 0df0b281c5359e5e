"use strict";
// List of runs: those that are checked can be compared.

const checked = new Set(); // addresses of the checked runs, in the order of checking

// Show what is checked in a list that was replaced.
function recheck(within) {
  const boxes = [...within.querySelectorAll(".runs input")];
  const known = new Set(boxes.map((box) => box.value));
  if (!boxes.length) return;
  for (const place of checked) if (!known.has(place)) checked.delete(place);
  for (const box of boxes) box.checked = checked.has(box.value);
  const compare = document.getElementById("compare");
  compare.disabled = checked.size < 2;
  compare.textContent = checked.size < 2 ? "Compare" : `Compare ${checked.size} runs`;
}

document.addEventListener("change", ({ target }) => {
  if (!target.matches(".runs input")) return;
  checked[target.checked ? "add" : "delete"](target.value);
  recheck(document);
});
document.addEventListener("click", ({ target }) => {
  if (target.id === "compare") location.href = [...checked].join("");
});
