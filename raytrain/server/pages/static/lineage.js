// The tree of forks: a row for each trial, its checkpoints from left to right, its forks below it.

import { api, listen, paced, showLive } from "./api.js";
import { fill, find, h, visible } from "./dom.js";
import "./page.js";

const COLUMN = 148, ROW = 62, LEFT = 24, NAME = 20;
let graph = { nodes: [], edges: [] };

// The trials in the order of drawing, each with its nodes and where it was forked from.
function rows() {
  const key = (n) => JSON.stringify([n.run ?? n.name, n.trial]);
  const byRun = Map.groupBy(graph.nodes, key), byId = new Map(graph.nodes.map((n) => [n.id, n]));
  const forks = graph.edges.filter((e) => e.kind === "fork" && byId.has(e.from) && byId.has(e.to));
  const parent = new Map(forks.map((e) => [key(byId.get(e.to)), byId.get(e.from)])), children = Map.groupBy(forks, (e) => key(byId.get(e.from)));
  for (const nodes of byRun.values()) nodes.sort((a, b) => a.iteration - b.iteration);
  const trials = new Map();
  for (const [first] of byRun.values()) trials.set(first.run ?? "", (trials.get(first.run ?? "") ?? 0) + 1);
  const out = [], placed = new Map(), seen = new Set();
  const add = (run) => {
    if (seen.has(run)) return;
    seen.add(run);
    const from = parent.get(run), begin = from && placed.has(from.id) ? placed.get(from.id).column + 1 : 0, y = out.length;
    byRun.get(run).forEach((node, i) => placed.set(node.id, { column: begin + i, row: y, node }));
    out.push({ nodes: byRun.get(run), from, several: trials.get(byRun.get(run)[0].run ?? "") > 1 });
    // The fork of the last checkpoint comes first, so that curves do not cross.
    const below = (children.get(run) ?? []).toSorted((a, b) => byId.get(b.from).iteration - byId.get(a.from).iteration);
    for (const edge of below) add(key(byId.get(edge.to)));
  };
  const wanted = find("#find-node").value.toLowerCase(), lonely = find("#alone").checked;
  const linked = new Set(forks.flatMap((e) => [key(byId.get(e.from)), key(byId.get(e.to))]));
  const fits = (run) => {
    const nodes = byRun.get(run), all = nodes.map((n) => `${n.name} ${n.weights_sha256} ${n.checkpoint}`).join(" ").toLowerCase();
    return wanted ? all.includes(wanted) : lonely || linked.has(run) || nodes.some((n) => n.kind === "stage");
  };
  const root = (run) => {
    for (const met = new Set(); parent.has(run) && !met.has(run); run = key(parent.get(run))) met.add(run);
    return run;
  };
  const roots = new Set([...byRun.keys()].filter(fits).map(root));
  for (const run of roots) add(run);
  return { out, placed };
}

function draw() {
  const { out, placed } = rows();
  if (!out.length) return fill(find("#tree"), [h("p", { class: "waiting" }, graph.nodes.length ? "No run fits. Runs without forks and stages are shown if you tick the box." : "No checkpoint was saved yet.")]);
  const x = (p) => LEFT + p.column * COLUMN, y = (p) => p.row * ROW + NAME + 18;
  const width = Math.max(...[...placed.values()].map(x)) + COLUMN + 20, height = out.length * ROW + 16;
  const edges = graph.edges.filter((e) => placed.has(e.from) && placed.has(e.to)).map((e) => {
    const [a, b] = [placed.get(e.from), placed.get(e.to)], [x0, y0, x1, y1] = [x(a), y(a), x(b), y(b)];
    const d = y0 === y1 ? `M${x0} ${y0}H${x1}` : `M${x0} ${y0}V${y1 - 14}Q${x0} ${y1} ${x0 + 14} ${y1}H${x1}`;
    return h("path", { class: `edge ${e.kind}`, d });
  });
  const nodes = [...placed.values()].map((p) => h("g", { class: `node node-${p.node.kind}` },
    h("title", {}, `${p.node.name}/${p.node.checkpoint}\niteration ${p.node.iteration}\nweights ${p.node.weights_sha256}`),
    h("circle", { cx: x(p), cy: y(p), r: 5 }),
    h("text", { class: "label", x: x(p) + 10, y: y(p) - 3 }, short(p.node.checkpoint)),
    h("text", { class: "digest", x: x(p) + 10, y: y(p) + 11 }, (p.node.weights_sha256 ?? "").slice(0, 12))));
  const names = out.map((row, i) => {
    const first = placed.get(row.nodes[0].id), { run, trial, name: of } = row.nodes[0];
    const name = row.several ? `${of} ${trial}` : of;
    const said = `${name}, ${row.from ? `fork of ${row.from.name} at ${row.from.checkpoint}, ` : ""}checkpoints: ${row.nodes.map((n) => n.checkpoint).join(", ")}`;
    const text = h("text", { class: "run-name", x: x(first) - 6, y: i * ROW + 16 }, name.length > 60 ? name.slice(0, 59) + "…" : name);
    return run ? h("svg:a", { href: "/runs/" + encodeURIComponent(run), "aria-label": visible(said) }, text) : text;
  });
  fill(find("#tree"), [h("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Runs with their checkpoints" }, edges, nodes, names)]);
}

function short(path) {
  const text = path.replace(/^checkpoint_0*/, "at ").replace(/^stages\//, "stage ");
  return text.length > 19 ? text.slice(0, 18) + "…" : text;
}

async function load() {
  graph = await api("/lineage");
  draw();
}

find("#find-node").addEventListener("input", draw);
find("#alone").addEventListener("change", draw);
const again = paced(load, 10_000);
listen("/events", { message: again }, (on) => (showLive(on), on && again()));
