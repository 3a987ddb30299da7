// The nodes of the cluster: what each carries, and which are leaving.

import { api, listen, showLive } from "./api.js";
import { badge, count, fill, find, h, size } from "./dom.js";
import "./page.js";

const of = (used, all) => (all ? `${count(used ?? 0)} of ${count(all)}` : "–");

async function load() {
  if (document.hidden) return;
  try {
    const { address, nodes } = await api("/nodes");
    find("#address").textContent = address ?? "";
    fill(find("#nodes"), nodes.length
      ? [h("table", {}, h("thead", {}, h("tr", {}, ["Node", "State", "CPUs", "GPUs", "Memory", "Carries", "Notice"].map((t) => h("th", { scope: "col" }, t)))),
        h("tbody", {}, nodes.map((n) => h("tr", { id: "node-" + n.id },
          h("td", {}, h("span", { class: "name" }, n.hostname), h("small", { class: "muted cut" }, n.address)),
          h("td", {}, badge(n.state === "alive" ? "good" : n.state === "draining" ? "warn" : "bad", n.state)),
          h("td", {}, of(n.cpus_used, n.cpus)), h("td", {}, of(n.gpus_used, n.gpus)), h("td", {}, size(n.memory_bytes)),
          h("td", {}, n.carries?.length ? h("ul", {}, n.carries.map((c) => h("li", {}, c))) : h("span", { class: "muted" }, "nothing")),
          h("td", {}, n.notice ?? h("span", { class: "muted" }, "none"))))))]
      : [h("p", { class: "waiting" }, address ? "The cluster has no nodes." : "The server was started without --address.")]);
  } catch (problem) {
    fill(find("#nodes"), [h("p", { class: "waiting error" }, problem.message)]);
  }
}

listen("/events", { message: () => {} }, showLive);
setInterval(load, 5000);
document.addEventListener("visibilitychange", load);
await load();
