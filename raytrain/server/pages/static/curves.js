// The curves of a run: a panel for each metric, all with one horizontal axis that zooms together.
// New points are asked for with the cursor of the last answer.

import { api, query, runPath } from "./api.js";
import { CONFIG, band, colour, css, layout, lines, mark, onTheme, plotly, transparent } from "./charts.js";
import { all, fill, find, h, number } from "./dom.js";

const LEARNER = "learners/default_policy/";
const RATE = "num_env_steps_sampled_lifetime_throughput/throughput_since_last_reduce";
export const SCORE = "checkpoint/score";
const PANELS = [
  [SCORE, "Score"], [LEARNER + "policy_loss", "Policy loss"], [LEARNER + "vf_loss", "Value loss"],
  [LEARNER + "mean_kl_loss", "KL divergence"], [LEARNER + "entropy", "Entropy"], ["env_runners/" + RATE, "Steps per second"],
  [LEARNER + "vf_explained_var", "Explained variance of the value"],
];
export const TITLES = Object.fromEntries(PANELS);
export const AXES = ["iteration", "steps", "seconds of training"];

export class Curves {
  constructor(id, place, address) {
    Object.assign(this, { id, place, address, trials: {}, cursor: "", shown: PANELS.map(([m]) => m), known: null, range: null, charts: new WeakSet() });
    for (const control of all("#axis input, #smooth, #trial")) control.addEventListener("input", () => this.draw(control.name === "axis"));
    find("#add").addEventListener("change", (event) => this.add(event.target));
    onTheme(() => this.draw());
  }

  // One update after the other: each goes on from the cursor of the one before.
  update() {
    this.last = (this.last ?? Promise.resolve()).catch(() => {}).then(() => this.next());
    return this.last;
  }

  async next() {
    const metrics = this.shown.filter((m) => !this.known || this.known.includes(m));
    const wanted = new URLSearchParams(metrics.map((m) => ["metric", m]));
    if (this.cursor) wanted.set("since", this.cursor);
    const answer = await api(runPath(this.id, "/curves?" + wanted));
    this.known = answer.metrics;
    this.cursor = answer.cursor;
    for (const [name, fresh] of Object.entries(answer.trials)) {
      const old = fresh.reset ? null : this.trials[name];
      const series = {};
      for (const metric of metrics) series[metric] = [...(old?.series[metric] ?? []), ...(fresh.series[metric] ?? [])];
      this.trials[name] = { ...fresh, series };
    }
    this.offer();
    await this.draw();
  }

  async add(choice) {
    if (!choice.value) return;
    this.shown.push(choice.value);
    await this.last?.catch(() => {});
    (this.cursor = ""), (this.trials = {});
    await this.update();
    find(`[data-metric="${CSS.escape(this.shown.at(-1))}"]`, this.place)?.scrollIntoView({ block: "nearest" });
  }

  // The metrics that can be added, and the trials.
  offer() {
    const rest = this.known.filter((m) => !this.shown.includes(m));
    fill(find("#add"), [h("option", { value: "" }, "a metric…"), ...rest.map((m) => h("option", { value: m }, m))]);
    const names = Object.keys(this.trials);
    find("#trial-choice").hidden = names.length < 2;
    fill(find("#trial"), [h("option", { value: "" }, "all"), ...names.map((n) => h("option", { value: n }, n))]);
  }

  get axis() { return Number(find("#axis input:checked").value); }

  chosen() {
    const only = find("#trial").value;
    return Object.entries(this.trials).map(([name, trial], index) => [name, trial, index]).filter(([name]) => !only || name === only);
  }

  // One drawing after the other: Plotly does not take a chart that it is still drawing. What is asked
  // for meanwhile is drawn once, at the end.
  draw(newAxis = false) {
    if (newAxis) this.range = null;
    this.waiting ??= (this.drawing ?? Promise.resolve()).catch(() => {}).then(() => {
      this.waiting = null;
      this.drawing = this.drawNow();
      return this.drawing;
    });
    return this.waiting;
  }

  async drawNow() {
    const filled = this.shown.filter((m) => this.chosen().some(([, t]) => t.series[m]?.length));
    if (!filled.length) {
      fill(this.place, [h("p", { class: "waiting" }, "No iteration has ended yet. The curves begin with the first.")]);
      return;
    }
    const Plotly = await plotly(this.address);
    fill(this.place, filled.map((metric, index) => this.frame(metric, index === 0)));
    const marks = this.marks();
    for (const metric of filled) {
      const place = find(`[data-metric="${CSS.escape(metric)}"] .draw`, this.place);
      const traces = this.chosen().flatMap(([name, t, i]) => lines(name, t.series[metric] ?? [], this.axis, Number(find("#smooth").value), i));
      const form = layout({ xTitle: AXES[this.axis], ...marks, xRange: this.range });
      await Plotly.react(place, traces, form, CONFIG);
      if (!this.charts.has(place)) {
        this.charts.add(place);
        place.on("plotly_relayout", (change) => this.zoomed(change));
      }
    }
  }

  frame(metric, wide) {
    const last = this.chosen().map(([, t]) => t.series[metric]?.at(-1)?.[3]).filter((v) => v !== undefined);
    const title = TITLES[metric] ?? metric;
    return h("figure", { class: wide ? "chart wide" : "chart", id: "chart-" + metric, data: { metric } },
      h("figcaption", {}, title, h("span", { class: "now" }, last.length > 3 ? `${number(Math.min(...last))} to ${number(Math.max(...last))}` : last.map(number).join(", "))),
      h("div", { class: "draw", role: "img", "aria-label": `${title} over ${AXES[this.axis]}`, data: { keep: "" } }));
  }

  // One zoom for all panels.
  zoomed(change) {
    if ("xaxis.range[0]" in change) this.range = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
    else if (change["xaxis.autorange"]) this.range = null;
    else return;
    this.draw();
  }

  // Attempts shaded in turn, failures and preemptions as lines, stages as bands with their names.
  marks() {
    const shapes = [], annotations = [], trials = this.chosen();
    if (trials.length !== 1) return { shapes, annotations };
    const trial = trials[0][1], at = (point) => point && [point.iteration, point.timesteps, point.time_s][this.axis];
    const end = Math.max(...Object.values(trial.series).map((s) => s.at(-1)?.[this.axis] ?? 0));
    trial.stages.forEach((stage, index) => {
      const x0 = at(stage.begin), x1 = at(stage.end) ?? end;
      shapes.push(band(x0, x1, transparent(colour(index + 1), 0.07)), mark(x1, css("--line-strong"), "solid"));
      annotations.push({ x: x0, y: 1, xref: "x", yref: "paper", text: stage.name.replace(/[<&]/g, " "), showarrow: false, xanchor: "left", yanchor: "top", font: { size: 10, color: css("--muted") } });
    });
    trial.attempts.forEach((attempt, index) => {
      const next = trial.attempts[index + 1];
      if (index % 2) shapes.push(band(at(attempt), at(next) ?? end, css("--text"), 0.045));
    });
    for (const failure of trial.failures)
      shapes.push(mark(at(failure), css(failure.kind === "recovered" ? "--red" : "--amber"), failure.kind === "recovered" ? "dot" : "dash"));
    return { shapes, annotations };
  }
}

// What the marks mean, in words.
export function curvesKey(trials) {
  const line = (name, dash) => h("svg", { viewBox: "0 0 14 10", "aria-hidden": "true" }, h("line", { x1: 7, x2: 7, y1: 0, y2: 10, stroke: css(name), "stroke-width": 2, "stroke-dasharray": dash }));
  const any = (key, test = () => true) => Object.values(trials).some((t) => t[key].some(test));
  const alone = Object.keys(trials).length === 1;
  return [
    alone && any("failures", (f) => f.kind === "recovered") && h("span", {}, line("--red", "2 2"), "failure"),
    alone && any("failures", (f) => f.kind !== "recovered") && h("span", {}, line("--amber", "4 2"), "preemption"),
    alone && Object.values(trials).some((t) => t.attempts.length > 1) && h("span", {}, h("svg", { viewBox: "0 0 14 10", "aria-hidden": "true" }, h("rect", { width: 14, height: 10, fill: css("--text"), "fill-opacity": 0.12 })), "every second attempt is shaded"),
    ...(alone ? [] : Object.keys(trials).map((name, i) => h("span", {}, h("svg", { viewBox: "0 0 14 10", "aria-hidden": "true" }, h("rect", { y: 4, width: 14, height: 3, fill: colour(i) })), name))),
    h("span", {}, "Drag to zoom, double click to see all."),
  ].filter(Boolean);
}
