// One run: curves, timeline, checkpoints, episodes, config, events, log, model card.

import { Problem, api, listen, paced, query, runPath, showLive } from "./api.js";
import { actions } from "./actions.js";
import { Curves, curvesKey } from "./curves.js";
import { all, badge, clock, copyButton, count, fill, find, h, icon, number, size, time, times, visible } from "./dom.js";
import { drawEpisodes } from "./episodes.js";
import { markdown } from "./markdown.js";
import { renew } from "./page.js";
import { FOUND, followAll, onEnd } from "./tasks.js";
import { drawTimeline } from "./timeline.js";
import { yaml } from "./yaml.js";

const root = find("#run"), id = root.dataset.id;
const run = { id, row: null, document: null, checkpoints: [] };
const curves = new Curves(id, find("#charts"), root.dataset.plotly);

const part = async (place, work) => {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Problem)) console.error(error);
    fill(find(place), [h("p", { class: "waiting error" }, error.message)]);
  }
};

// -- checkpoints -----------------------------------------------------------------------------------

const COPIES = { resume: "Resume", fork: "Fork", evaluate: "Evaluate", load_policy: "load_policy", export: "Export" };

// The newest verification that has read this checkpoint as it is now.
function verified({ full_path: path, weights_sha256: weights }) {
  for (const v of run.document?.verdicts ?? []) {
    if (v.kind !== "verify") continue;
    const row = v.document.checkpoints.find((c) => c.path && (path === v.target || path === `${v.target}/${c.path}`) && c.weights_sha256 === weights);
    if (row) return { good: row.good, made_at: v.made_at };
  }
  return null;
}

function verdict(checkpoint) {
  if (checkpoint.good === false) return badge("bad", icon("cross"), "damaged");
  const found = verified(checkpoint);
  if (!found) return h("span", { class: "muted", title: "Names and sizes are right. Verify reads every byte." }, "sizes right");
  const [kind, name, text] = found.good ? ["good", "check", "every byte"] : ["bad", "cross", "damaged"];
  return h("span", { class: "inline", title: `Verified ${clock(found.made_at)}` }, badge(kind, icon(name), text));
}

function drawCheckpoints() {
  const chosen = find("#kind").value, several = new Set(run.checkpoints.map((c) => c.trial)).size > 1;
  const rows = run.checkpoints.filter((c) => !chosen || c.kind === chosen).sort((a, b) => b.iteration - a.iteration || (a.path < b.path ? 1 : -1));
  const kinds = [...new Set(run.checkpoints.map((c) => c.kind))];
  fill(find("#kind"), [h("option", { value: "" }, "all"), ...kinds.map((k) => h("option", { value: k }, k))]);
  find("#checkpoint-count").textContent = times(run.checkpoints.length, "checkpoint");
  if (!rows.length) return fill(find("#checkpoints-body"), [h("p", { class: "waiting" }, "No checkpoint was saved yet.")]);
  const head = ["Checkpoint", "Kind", "Iteration", "Steps", "Score", "Size", "Weights", "Verdict", "Saved", "Copy"];
  fill(find("#checkpoints-body"), [h("table", { class: "checkpoints" },
    h("thead", {}, h("tr", {}, head.map((t) => h("th", { scope: "col", class: ["Iteration", "Steps", "Score", "Size"].includes(t) && "num" }, t)))),
    h("tbody", {}, rows.map((c) => h("tr", { id: `checkpoint-${c.trial}/${c.path}` },
      h("td", {}, h("span", { class: "name", title: c.full_path }, several ? `${c.trial}/${c.path}` : c.path), copyButton(c.full_path, icon("copy"), `Copy the path of ${c.path}`), c.problem && h("div", { class: "error" }, c.problem)),
      h("td", {}, badge({ best: "good", final: "good", error: "bad", stage: "info" }[c.kind] ?? "", c.kind), c.stage && h("span", { class: "muted" }, " " + c.stage)),
      h("td", { class: "num" }, count(c.iteration)), h("td", { class: "num" }, count(c.timesteps)),
      h("td", { class: "num" }, number(c.score)), h("td", { class: "num" }, size(c.size_bytes)),
      h("td", {}, c.weights_sha256 ? h("button", { type: "button", class: "quiet digest", data: { copy: c.weights_sha256 }, title: c.weights_sha256, "aria-label": `Copy the digest of the weights of ${c.path}` }, c.weights_sha256.slice(0, 10)) : "–"),
      h("td", {}, verdict(c)), h("td", { class: "num" }, time(c.created_at)),
      h("td", {}, h("span", { class: "copies" }, Object.entries(COPIES).map(([key, label]) => c.commands?.[key] && copyButton(c.commands[key], label, `Copy: ${label} from ${c.path}`))))))))]);
}
find("#kind").addEventListener("change", drawCheckpoints);

// -- config ----------------------------------------------------------------------------------------

const shown = (value) => (value === undefined || value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));

async function drawDiff() {
  const other = find("#other"), body = find("#diff-body");
  if (!other.value) return fill(body, []);
  const { differences } = await api(runPath(id, "/config-diff" + query({ with: other.value })));
  const name = other.selectedOptions[0].textContent;
  fill(body, differences.length
    ? [h("div", { class: "table" }, h("table", { class: "diff" }, h("thead", {}, h("tr", {}, ["Key", "This run", name].map((t) => h("th", { scope: "col" }, t)))),
      h("tbody", {}, differences.map((d) => h("tr", {}, h("td", {}, d.key), h("td", { class: "this" }, shown(d.this)), h("td", { class: "other" }, shown(d.other)))))))]
    : [h("p", { class: "note good" }, `The config is the same as that of ${name}.`)]);
}
find("#other").addEventListener("change", () => part("#diff-body", drawDiff));
find("#other").addEventListener("focus", async () => {
  const { runs } = await api("/runs?per_page=100");
  for (const r of runs) if (r.id !== id && !find(`#other option[value="${r.id}"]`)) find("#other").append(h("option", { value: r.id }, r.name));
}, { once: true });

// -- what there is ---------------------------------------------------------------------------------

async function document_() {
  run.document = await api(runPath(id));
  run.row = run.document.run;
  const { config, model_card: card } = run.document;
  fill(find("#config-digest"), [config?.digest?.slice(0, 12) ?? ""]);
  fill(find("#config-body"), config?.yaml ? [yaml(config.yaml)] : [h("p", { class: "waiting" }, "The config is not known.")]);
  if (card) fill(find("#card-body"), [markdown(card)]);
  drawVerdicts();
}

function drawVerdicts() {
  const audits = run.document.verdicts.filter((v) => v.kind === "audit").slice(0, 3);
  const notes = audits.map((v) => h("p", { class: `note ${v.good ? "good" : "bad"}`, id: `audit-${v.made_at}` }, h("strong", {}, v.good ? "Audit passed " : "Audit failed "), time(v.made_at), ": ", FOUND.audit(v.document)));
  all("#notes-audits").forEach((old) => old.remove());
  if (notes.length) find("#timeline").before(h("div", { id: "notes-audits" }, notes));
}

const load = {
  document: () => part("#config-body", document_),
  checkpoints: () => part("#checkpoints-body", async () => {
    run.checkpoints = (await api(runPath(id, "/checkpoints"))).checkpoints;
    drawCheckpoints();
  }),
  curves: () => part("#charts", async () => {
    await curves.update();
    fill(find("#curves-key"), curvesKey(curves.trials));
  }),
  timeline: () => part("#timeline-body", async () => drawTimeline(find("#timeline-body"), (await api(runPath(id, "/timeline"))).trials)),
  episodes: () => part("#episodes-body", async () => drawEpisodes(find("#episodes-body"), (await api(runPath(id, "/episodes"))).trials)),
};

// What a new row changes is asked for at the pace at which it is worth it: many may be watching.
const head = paced(renew, 3000);
const soon = {
  curves: paced(load.curves, 2000),
  checkpoints: paced(load.checkpoints, 6000),
  timeline: paced(load.timeline, 15_000),
  episodes: paced(load.episodes, 20_000),
};
const everything = paced(async () => {
  await Promise.all([renew(), ...Object.values(load).map((work) => work())]);
  drawCheckpoints();
  if (!root.dataset.gone) followLog();
}, 1000);
const newRow = () => [head, ...Object.values(soon)].forEach((work) => work());

// -- events and log --------------------------------------------------------------------------------

const GRAVE = { recovered: "warn", preemption: "warn", lost_node: "warn", best: "good", stage: "good", final: "good" };
const events = new Map();

function addEvent(event) {
  const key = JSON.stringify([event.trial, event.time, event.message]);
  if (events.has(key)) return;
  events.set(key, event);
  drawEvents();
}

const drawEvents = paced(() => {
  const newest = [...events.values()].sort((a, b) => b.time - a.time).slice(0, 500);
  fill(find("#events-body"), newest.map((e) => h("li", { class: /fail|error|died|diverged/i.test(e.kind) ? "bad" : GRAVE[e.kind] ?? "" },
    h("span", { class: "dot" }), h("p", {}, e.message, h("small", { class: "muted" }, ` iteration ${count(e.iteration)}, attempt ${e.attempt}${curves.trials && Object.keys(curves.trials).length > 1 ? ", " + e.trial : ""}`)),
    h("small", { class: "muted" }, time(new Date(e.time * 1000).toISOString())))));
}, 300);

const log = find("#log-body");
const logLines = [];
let logging = false;
const drawLog = paced(() => {
  log.textContent = logLines.join("\n");
  if (find("#follow").checked) log.scrollTop = log.scrollHeight;
}, 250);

// Only a server that has started the run knows its output.
function followLog() {
  if (logging) return;
  if (!run.document?.launches.length) {
    log.textContent = "No server of this user has started the run, so its output is where it was started.";
    return;
  }
  logging = true;
  logLines.length = 0;
  listen(runPath(id, "/log?tail=500"), {
    message: (line) => {
      logLines.push(visible(line));
      if (logLines.length > 2000) logLines.splice(0, logLines.length - 2000);
      drawLog();
    },
  }, (on) => on && (logLines.length = 0));
}

if (root.dataset.gone) listen("/events", { message: (changed) => changed.id === id && everything() }, showLive);
else listen(runPath(id, "/events"), {
  row: newRow,
  state: everything,
  event: (event) => (addEvent(event), head()),
}, showLive);

// -- parts of the page -----------------------------------------------------------------------------

const links = all(".sections a");
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting)
    for (const link of links) link.hash === "#" + entry.target.id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
}, { rootMargin: "-60px 0px -70% 0px" });
for (const section of all("section.part")) seen.observe(section);
addEventListener("resize", () => load.timeline());

actions(run, everything);
onEnd(everything);
followAll(id).catch(() => {});
everything();
