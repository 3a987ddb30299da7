// Several runs on one axis, their results and what differs in their configs.

import { api, listen, paced, query, runPath, showLive } from "./api.js";
import { CONFIG, colour, layout, lines, onTheme, plotly, smoothed, transparent } from "./charts.js";
import { AXES, SCORE, TITLES } from "./curves.js";
import { all, badge, fill, find, h, icon, number, count, seconds, size, state } from "./dom.js";
import { over } from "./iqm.js";
import "./page.js";

const root = find("#compare"), SEED = "seed";
let ids = (new URLSearchParams(location.search).get("ids") ?? "").split(",").filter(Boolean);
let answer = { runs: [], differences: [] }, series = new Map(), metrics = [];

const axis = () => Number(find("#axis input:checked").value);
const metric = () => find("#metric").value || SCORE;
const shown = (value) => (value === undefined || value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));

// Runs whose configs differ in the seed alone (and in names) are seeds of one experiment.
function groups() {
  const keys = answer.differences.map((d) => d.key).filter((key) => ![SEED, "name", "storage_path"].includes(key));
  const by = new Map();
  for (const run of answer.runs) {
    const same = JSON.stringify(keys.map((key) => answer.differences.find((d) => d.key === key).values[run.id] ?? null));
    by.set(same, [...(by.get(same) ?? []), run]);
  }
  return [...by.values()];
}

async function draw() {
  if (!answer.runs.length) return;
  const Plotly = await plotly(root.dataset.plotly), weight = Number(find("#smooth").value), seeds = find("#seeds").checked;
  const traces = [], key = [];
  const sample = (index, text) => key.push(h("span", {}, h("svg", { viewBox: "0 0 14 10", "aria-hidden": "true" }, h("rect", { y: 4, width: 14, height: 3, fill: colour(index) })), text));
  if (seeds) groups().forEach((runs, index) => {
    const all_ = runs.flatMap((run) => Object.values(series.get(run.id) ?? {}));
    const curves = all_.map((points) => {
      const y = smoothed(points.map((p) => p[3]), weight);
      return points.map((p, i) => [p[axis()], y[i]]);
    });
    const { x, middle, low, high } = over(curves), name = runs.length > 1 ? `${runs[0].name} and ${runs.length - 1} more` : runs[0].name, line = colour(index);
    traces.push({ x, y: low, mode: "lines", line: { width: 0 }, hoverinfo: "skip" }, { x, y: high, mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: transparent(line, 0.16), hoverinfo: "skip" },
      { x, y: middle, name, mode: "lines", line: { color: line, width: 2 }, hovertemplate: "%{y:.5~g}" });
    sample(index, `${name}: interquartile mean of ${curves.length}, with the quartiles`);
  });
  else answer.runs.forEach((run, index) => {
    const trials = Object.entries(series.get(run.id) ?? {});
    for (const [trial, points] of trials) traces.push(...lines(trials.length > 1 ? `${run.name} ${trial}` : run.name, points, axis(), weight, index));
    sample(index, run.name);
  });
  const safe = (text) => text.replace(/</g, "\u2039").replace(/>/g, "\u203a").replace(/&/g, "+");
  for (const trace of traces) if (trace.name) trace.name = safe(trace.name);
  await Plotly.react(find("#draw"), traces, layout({ xTitle: AXES[axis()] }), CONFIG);
  fill(find("#key"), key);
}

function drawTables() {
  const best = (key, better) => {
    const values = answer.runs.map((r) => r.score[key]).filter((v) => v !== null);
    return values.length > 1 ? better(...values) : null;
  };
  const order = answer.runs[0]?.score.order === "min" ? Math.min : Math.max, top = best("best", order);
  fill(find("#table-body"), [h("table", {}, h("thead", {}, h("tr", {}, ["Run", "State", "Best", "Last", "Steps", "Iteration", "Exact", "Survived", "Time lost", "Size"].map((t, i) => h("th", { scope: "col", class: i > 1 && i !== 6 && "num" }, t)))),
    h("tbody", {}, answer.runs.map((r, i) => h("tr", {}, h("td", {}, swatch(i), h("a", { class: "name", href: "/runs/" + r.id }, r.name)), h("td", {}, state(r.gone_at ? "gone" : r.state)),
      h("td", { class: "num" }, r.score.best === top && top !== null ? h("strong", {}, number(r.score.best), h("span", { class: "visually-hidden" }, " the best")) : number(r.score.best)), h("td", { class: "num" }, number(r.score.last)), h("td", { class: "num" }, count(r.timesteps)), h("td", { class: "num" }, count(r.iteration)),
      h("td", {}, r.exact === null ? "–" : r.exact ? badge("good", icon("check"), "exact") : badge("bad", icon("cross"), "not exact")), h("td", { class: "num" }, count(r.failures_survived)), h("td", { class: "num" }, seconds(r.redone_s + r.away_s)), h("td", { class: "num" }, size(r.size_bytes))))))]);
  fill(find("#config-body"), answer.differences.length
    ? [h("table", { class: "diff" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Key"), answer.runs.map((r, i) => h("th", { scope: "col" }, swatch(i), r.name)))),
      h("tbody", {}, answer.differences.map((d) => h("tr", {}, h("th", { scope: "row" }, d.key), answer.runs.map((r) => h("td", {}, shown(d.values[r.id])))))))]
    : [h("p", { class: "waiting" }, "The configs are the same.")]);
}

const swatch = (index) => h("svg", { class: "swatch", viewBox: "0 0 10 10", "aria-hidden": "true" }, h("rect", { width: 10, height: 10, rx: 3, fill: colour(index) }));

async function load() {
  for (const part of all("section.part")) part.hidden = !ids.length;
  find("#nothing").hidden = ids.length > 0;
  history.replaceState(null, "", "/compare" + (ids.length ? "?ids=" + ids.join(",") : ""));
  if (!ids.length) return fill(find("#chips"), []);
  answer = ids.length > 1 ? await api("/compare" + query({ ids: ids.join(",") })) : { runs: [(await api(runPath(ids[0]))).run], differences: [] };
  ids = answer.runs.map((r) => r.id);
  fill(find("#chips"), answer.runs.map((r, i) => h("li", { id: "chip-" + r.id }, swatch(i), h("a", { href: "/runs/" + r.id }, r.name), h("button", { type: "button", class: "quiet", data: { drop: r.id }, "aria-label": `Remove ${r.name}` }, "✕"))));
  await loadCurves();
  drawTables();
}

async function loadCurves() {
  const found = await Promise.all(ids.map((id) => api(runPath(id, "/curves" + query({ metric: metric(), points: 1000 }))).catch(() => ({ trials: {}, metrics: [] }))));
  series = new Map(found.map((f, i) => [ids[i], Object.fromEntries(Object.entries(f.trials).map(([name, t]) => [name, t.series[metric()] ?? []]))]));
  metrics = [...new Set(found.flatMap((f) => f.metrics))];
  const now = metric();
  fill(find("#metric"), metrics.map((m) => h("option", { value: m, selected: m === now }, TITLES[m] ?? m)));
  await draw();
}

find("#metric").addEventListener("change", loadCurves);
for (const control of all("#axis input, #smooth, #seeds")) control.addEventListener("input", draw);
onTheme(() => (draw(), drawTables()));
find("#chips").addEventListener("click", (event) => {
  const drop = event.target.closest("[data-drop]")?.dataset.drop;
  if (drop) (ids = ids.filter((id) => id !== drop)), load();
});

// Runs are added by name.
const adding = find("#add-run");
let offered = [];
adding.addEventListener("input", async () => {
  const hit = offered.find((r) => r.name === adding.value);
  if (hit) {
    adding.value = "";
    if (!ids.includes(hit.id)) ids.push(hit.id), await load();
    return;
  }
  offered = (await api("/runs" + query({ q: adding.value, per_page: 30 }))).runs;
  fill(find("#runs"), offered.map((r) => h("option", { value: r.name }, r.path)));
});

const again = paced(load, 5000);
listen("/events", { message: ({ id }) => ids.includes(id) && again() }, (on) => (showLive(on), on && again()));
await load();
