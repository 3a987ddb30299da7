// What every page has: times that tell how long ago, copy buttons, messages, `/` for the search.

import { all, fill, find, h, icon, tellTimes } from "./dom.js";

tellTimes();
setInterval(tellTimes, 10_000);

async function copy(button) {
  const label = [...button.childNodes];
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    if (button.classList.contains("copied")) return;
    button.classList.add("copied");
    button.replaceChildren(button.querySelector("svg") ? icon("check") : "Copied");
  } catch {
    // Without https or loopback a page has no clipboard: the text is shown, to be copied by hand.
    toast("Copy this by hand", button.dataset.copy);
    return;
  }
  setTimeout(() => (button.classList.remove("copied"), button.replaceChildren(...label)), 1400);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (button) copy(button);
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest?.("input, textarea, select, [contenteditable]")) return;
  const search = find("input[type=search]");
  if (search) event.preventDefault(), search.focus(), search.select();
});

// A message at the lower right. Returns its element; the same id replaces it.
export function toast(title, text, { id, progress, keep = false, action } = {}) {
  const box = h("div", { class: "toast", id },
    h("strong", {}, title),
    h("button", { type: "button", class: "quiet", "aria-label": `Close: ${title}`, data: { close: "" } }, "✕"),
    text && h("p", {}, text), action,
    progress !== undefined && h("progress", progress === null ? { max: 1, "aria-label": title } : { max: 1, value: progress, "aria-label": title }));
  const old = id && document.getElementById(id);
  if (old) fill(old, [...box.childNodes]);
  else find("#toasts").append(box);
  const shown = old || box;
  clearTimeout(shown.timer);
  if (!keep) shown.timer = setTimeout(() => shown.remove(), 12_000);
  return shown;
}

find("#toasts").addEventListener("click", (event) => {
  if (event.target.closest("[data-close]")) event.target.closest(".toast").remove();
});

// Replaces the parts marked `data-live` by those of the page as the server renders it now.
export async function renew() {
  const address = location.href, answer = await fetch(address, { headers: { accept: "text/html" } });
  const text = await answer.text();
  // Another search may have begun meanwhile.
  if (!answer.ok || location.href !== address) return;
  const fresh = new DOMParser().parseFromString(text, "text/html");
  for (const part of all("[data-live]")) {
    const now = fresh.getElementById(part.id);
    if (now) fill(part, [...now.childNodes].map((node) => document.importNode(node, true)));
  }
  tellTimes();
}
