// Runs: live rows, search while typing, and the selection to compare.

import { all, find, times } from "./dom.js";
import { renew } from "./page.js";
import "./live.js";

const form = find("#find"), search = find("input", form);
let timer;

async function goTo(address) {
  history.replaceState(null, "", address);
  await renew();
  showPicked();
}

search.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => goTo("/?" + new URLSearchParams(new FormData(form))), 180);
});

// The selection outlives paging, sorting and filtering.
const picked = new Map(JSON.parse(sessionStorage.getItem("picked") || "[]").map((id) => [id, true]));

function showPicked() {
  for (const box of all(".pick input")) box.checked = picked.has(box.value);
  const bar = find("#picked");
  bar.hidden = picked.size === 0;
  find("#picked-count").textContent = picked.size === 1 ? "1 run: select another to compare" : times(picked.size, "run");
  find("#picked-ids").value = [...picked.keys()].join(",");
  find(".primary", bar).disabled = picked.size < 2;
  sessionStorage.setItem("picked", JSON.stringify([...picked.keys()]));
}

find("#table").addEventListener("change", (event) => {
  const box = event.target;
  if (box.checked) picked.set(box.value, true);
  else picked.delete(box.value);
  showPicked();
});
find("#unpick").addEventListener("click", () => (picked.clear(), showPicked()));

// Arrow keys go from row to row.
find("#table").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const row = step && event.target.closest("tr");
  if (!row) return;
  const selector = event.target.matches("input") ? ".pick input" : "a.name";
  const next = find(selector, (step > 0 ? row.nextElementSibling : row.previousElementSibling) ?? row);
  event.preventDefault();
  next?.focus();
});
showPicked();
