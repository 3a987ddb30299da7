// The nodes of the cluster: what each carries, and which are leaving.

import { api, listen, showLive } from "./api.js";
import { badge, count, fill, find, h, size, time } from "./dom.js";
import "./page.js";

const STATES = { ALIVE: "good", DEAD: "bad" };
const notice = ({ run, name, message, time: at }) => h("li", {}, h("span", { class: "warn" }, message), " ", h("small", { class: "muted" }, time(new Date(at * 1000).toISOString()), ", told to ", h("a", { href: "/runs/" + encodeURIComponent(run) }, name)));
const actor = ({ class: kind, name }) => (name ? `${kind} ${name}` : kind);

function row(node) {
  const { CPU: cpus = 0, GPU: gpus = 0, memory } = node.resources ?? {};
  return h("tr", { id: "node-" + node.id },
    h("td", {}, h("span", { class: "name" }, node.name), node.is_head ? badge("info", "head") : null, node.address !== node.name && h("small", { class: "muted cut" }, node.address)),
    h("td", {}, badge(STATES[node.state] ?? "warn", node.state.toLowerCase())),
    h("td", { class: "num" }, count(cpus)), h("td", { class: "num" }, count(gpus)), h("td", { class: "num" }, size(memory)),
    h("td", {}, node.carries.length ? h("ul", {}, node.carries.map((each) => h("li", {}, actor(each)))) : h("span", { class: "muted" }, "nothing of raytrain")),
    h("td", {}, node.message, node.notices.length ? h("ul", {}, node.notices.map(notice)) : null, !node.message && !node.notices.length && h("span", { class: "muted" }, "none")));
}

async function load() {
  if (document.hidden) return;
  try {
    const { address, nodes } = await api("/nodes");
    find("#address").textContent = address ?? "";
    const heads = ["Node", "State", "CPUs", "GPUs", "Memory", "Carries", "Notice"];
    fill(find("#nodes"), nodes.length
      ? [h("table", {}, h("thead", {}, h("tr", {}, heads.map((t) => h("th", { scope: "col", class: /s$|y$/.test(t) && t !== "Carries" && "num" }, t)))), h("tbody", {}, nodes.map(row)))]
      : [h("p", { class: "waiting" }, address ? "The cluster has no nodes." : "The server was started without a cluster. Give one: raytrain serve --address http://HEAD:8265")]);
  } catch (problem) {
    fill(find("#nodes"), [h("p", { class: "waiting error" }, problem.message)]);
  }
}

listen("/events", { message: () => {} }, showLive);
setInterval(load, 5000);
document.addEventListener("visibilitychange", load);
await load();
