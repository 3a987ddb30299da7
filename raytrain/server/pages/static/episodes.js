// How returns and lengths of episodes are distributed.

import { colour, css } from "./charts.js";
import { count, fill, h, number } from "./dom.js";

const WIDTH = 520, HEIGHT = 130, FOOT = 18;

// A histogram {edges: n + 1 numbers, counts: n} as SVG.
function bars(name, { edges, counts }) {
  const most = Math.max(1, ...counts), each = WIDTH / counts.length, total = counts.reduce((a, b) => a + b, 0);
  const label = (x, edge, anchor) => h("text", { x, y: HEIGHT + 14, "text-anchor": anchor }, number(edge));
  return h("figure", { class: "panel pad timeline" },
    h("h3", {}, name, h("span", { class: "muted" }, ` of ${count(total)} episodes`)),
    h("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + FOOT}`, role: "img", "aria-label": `${name}: from ${number(edges[0])} to ${number(edges.at(-1))}, ${count(total)} episodes` },
      counts.map((n, i) => n > 0 && h("rect", { class: "seg-training", x: i * each + 0.5, width: Math.max(1, each - 1), y: HEIGHT - (n / most) * (HEIGHT - 8), height: (n / most) * (HEIGHT - 8), rx: 1 },
        h("title", {}, `${number(edges[i])} to ${number(edges[i + 1])}: ${count(n)} episodes`))),
      h("line", { class: "axis", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }),
      label(0, edges[0], "start"), label(WIDTH / 2, edges[Math.floor(counts.length / 2)], "middle"), label(WIDTH, edges.at(-1), "end")));
}

export function drawEpisodes(place, trials) {
  const named = Object.entries(trials).filter(([, t]) => t.returns?.counts?.length), several = named.length > 1;
  fill(place, named.length
    ? named.flatMap(([name, t]) => [bars(several ? `Returns, ${name}` : "Returns", t.returns), bars(several ? `Lengths, ${name}` : "Lengths", t.lengths)])
    : [h("p", { class: "waiting" }, "No episode has ended yet.")]);
}
