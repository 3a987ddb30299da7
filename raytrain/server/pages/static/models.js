// The policies of all runs, with the line that loads each.

import { api, listen, paced, query, showLive } from "./api.js";
import { badge, copyButton, count, fill, find, h, icon, number, time } from "./dom.js";
import "./page.js";

let models = [], most = 200;

function draw() {
  const wanted = find("#find-model").value.toLowerCase(), kind = find("#kind").value;
  const fits = models.filter((m) => (!kind || m.kind === kind) && `${m.name} ${m.path} ${m.weights_sha256}`.toLowerCase().includes(wanted));
  fill(find("#kind"), [h("option", { value: "" }, "all"), ...[...new Set(models.map((m) => m.kind))].map((k) => h("option", { value: k }, k))]);
  if (!fits.length) return fill(find("#models"), [h("p", { class: "waiting" }, models.length ? "No model fits." : "No run has saved a best or final policy yet.")]);
  fill(find("#models"), [h("table", { class: "checkpoints" },
    h("thead", {}, h("tr", {}, ["Run", "Kind", "Iteration", "Score", "Weights", "Saved", "Copy"].map((t) => h("th", { scope: "col", class: ["Iteration", "Score"].includes(t) && "num" }, t)))),
    h("tbody", {}, fits.slice(0, most).map((m) => h("tr", { id: "model-" + m.path },
      h("td", { class: "title" }, h("a", { class: "name cut", href: "/runs/" + encodeURIComponent(m.run), title: m.path }, m.name), h("small", { class: "muted cut" }, m.path)),
      h("td", {}, badge({ best: "good", final: "good", stage: "info" }[m.kind] ?? "", m.kind)), h("td", { class: "num" }, count(m.iteration)), h("td", { class: "num" }, number(m.score)),
      h("td", {}, m.weights_sha256 ? h("button", { type: "button", class: "quiet digest", data: { copy: m.weights_sha256 }, title: m.weights_sha256, "aria-label": `Copy the digest of ${m.path}` }, m.weights_sha256.slice(0, 12)) : "–"),
      h("td", {}, time(m.created_at)),
      h("td", {}, h("span", { class: "copies" }, copyButton(m.load, "load_policy", `Copy: load_policy of ${m.path}`), copyButton(m.path, icon("copy"), `Copy the path ${m.path}`), m.latest_checkpoint && copyButton(m.latest_checkpoint, "latest", "Copy the path of the run's latest checkpoint"), document.body.dataset.readOnly === "no" && m.kind !== "export" && h("a", { class: "button", href: "/new" + query({ run: m.run, from: m.path }), "aria-label": `A new run from ${m.path}` }, "New run"))))))),
    fits.length > most && h("p", { class: "waiting" }, `${count(fits.length - most)} more. `, h("button", { type: "button", id: "more" }, "Show more"))].filter(Boolean));
}

async function load() {
  models = (await api("/models")).models;
  draw();
}

find("#find-model").addEventListener("input", draw);
find("#kind").addEventListener("change", draw);
find("#models").addEventListener("click", (event) => event.target.id === "more" && ((most += 500), draw()));
const again = paced(load, 10_000);
listen("/events", { message: again }, (on) => (showLive(on), on && again()));
