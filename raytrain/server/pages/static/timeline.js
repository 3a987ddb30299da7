// Where a trial's time went: a bar for each trial over the hours since the run began.

import { all, fill, find, h, seconds } from "./dom.js";

export const KINDS = {
  training: "training", repeated: "trained again", away: "away (nothing trained)", waiting: "waiting for nodes", preempted: "preempted",
};
const LEFT = 130, ROW = 30, BAR = 16;

function hatch(id, under, stroke) {
  return h("pattern", { id, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    h("rect", { width: 6, height: 6, class: under }), h("line", { y1: 0, y2: 6, class: stroke, "stroke-width": 4 }));
}

const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400, 172800, 604800, 2592000];

export function drawTimeline(place, trials) {
  const named = Object.entries(trials).filter(([, parts]) => parts.length);
  if (!named.length) return fill(place, [h("p", { class: "waiting" }, "Nothing was trained yet.")]);
  const parts = named.flatMap(([, p]) => p);
  const begin = Math.min(...parts.map((p) => p.begin)), end = Math.max(begin + 1, ...parts.map((p) => p.end));
  const width = Math.max(320, place.clientWidth - 28), left = width < 560 ? 0 : LEFT, top = left ? 0 : 14;
  const at = (t) => left + ((t - begin) / (end - begin)) * (width - left);
  const step = STEPS.find((s) => (end - begin) / s <= width / 90) ?? 1e7, row = ROW + top, height = named.length * row + 20;
  const ticks = Array.from({ length: Math.floor((end - begin) / step) + 1 }, (_, i) => begin + i * step);
  const svg = h("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": "Timeline of the trials" },
    h("defs", {}, hatch("hatch-repeated", "hatch-under", "hatch-amber"), hatch("hatch-away", "hatch-under-red", "hatch-red")),
    ticks.map((t) => [h("line", { class: "axis", x1: at(t), x2: at(t), y1: 0, y2: height - 18 }),
      at(t) < width - 24 && h("text", { x: at(t) + (t === begin ? 0 : -8), y: height - 4 }, t === begin ? "0" : seconds(t - begin).replace(/ 0[smh]$/, ""))]),
    named.map(([name, p], index) => [
      h("text", { x: 0, y: index * row + (left ? 18 : 10) }, name.length > 19 && left ? name.slice(0, 18) + "…" : name),
      p.map((part) => h("rect", { class: "seg-" + part.kind, x: at(part.begin), y: index * row + top + 6, height: BAR, width: Math.max(1.5, at(part.end) - at(part.begin) - 0.5), rx: 1.5,
        tabindex: 0, role: "img", "aria-label": `${KINDS[part.kind]}, ${seconds(part.end - part.begin)}: ${part.text}` },
      h("title", {}, `${KINDS[part.kind]}, ${seconds(part.end - part.begin)}\n${part.text}`)))]));
  const spent = Object.keys(KINDS).map((kind) => [kind, parts.filter((p) => p.kind === kind).reduce((sum, p) => sum + p.end - p.begin, 0)]);
  fill(place, [svg, h("p", { class: "key" }, spent.filter(([, s]) => s).map(([kind, s]) =>
    h("span", {}, h("svg", { viewBox: "0 0 14 10", "aria-hidden": "true" }, h("rect", { width: 14, height: 10, class: "seg-" + kind })), `${KINDS[kind]} ${seconds(s)}`)))]);
}
