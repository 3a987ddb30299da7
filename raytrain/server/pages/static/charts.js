// Line charts by Plotly, in the colours of the page.
//
// Plotly writes rules into a style element of its own, which the Content-Security-Policy forbids. An
// element with the class `no-inline-styles` tells it to leave that; what it needs is in style.css.

import { h } from "./dom.js";

const COLOURS = {
  light: ["#4353c9", "#c4570e", "#17824a", "#a3308f", "#0e7c93", "#93650a", "#b3261e", "#5b6472"],
  dark: ["#99a5ff", "#ffa264", "#62cf92", "#ec8fdc", "#5fcbe0", "#efc45a", "#ff8f87", "#a9b2c0"],
};
const dark = matchMedia("(prefers-color-scheme: dark)");
export const colour = (index) => COLOURS[dark.matches ? "dark" : "light"][index % 8];
export const onTheme = (work) => dark.addEventListener("change", work);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

let loading;
// Plotly, loaded once from this server.
export function plotly(address) {
  loading ??= new Promise((done, fail) => {
    document.head.append(h("template", { id: "plotly.js-style-global", class: "no-inline-styles" }));
    const script = h("script", { src: address });
    script.onload = () => done(window.Plotly);
    script.onerror = () => fail(new Error("Plotly could not be loaded."));
    document.head.append(script);
  });
  return loading;
}

// Exponential moving average that starts without bias (Kingma and Ba 2015, section 3).
export function smoothed(values, weight) {
  if (!weight) return values;
  let mean = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    total = weight * total + (1 - weight);
    mean += ((value - mean) * (1 - weight)) / total;
    return mean;
  });
}

export const transparent = (hex, share) => hex + Math.round(share * 255).toString(16).padStart(2, "0");

export function layout({ xTitle, shapes = [], annotations = [], height, xRange, log = false }) {
  const axis = {
    gridcolor: css("--line"), linecolor: css("--line-strong"), zeroline: false, tickfont: { size: 11, color: css("--muted") },
    automargin: false, exponentformat: "SI",
  };
  return {
    autosize: true, height, margin: { l: 48, r: 12, t: 8, b: 30 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: css("--sans"), size: 12, color: css("--text") }, showlegend: false,
    hovermode: "x unified", dragmode: "zoom", uirevision: "keep",
    hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line-strong"), font: { color: css("--text"), size: 12 } },
    xaxis: { ...axis, title: xTitle ? { text: xTitle, font: { size: 11, color: css("--muted") }, standoff: 4 } : undefined,
      ...(xRange ? { range: xRange, autorange: false } : { autorange: true }), showspikes: true, spikemode: "across", spikethickness: 1, spikecolor: css("--line-strong"), spikedash: "solid", hoverformat: ",.0f" },
    yaxis: { ...axis, fixedrange: false, type: log ? "log" : "linear" },
    shapes, annotations,
  };
}

export const CONFIG = { displayModeBar: false, responsive: true, doubleClick: "reset+autosize", showTips: false };

// One trial's line: the values pale, the smoothed ones strong.
export function lines(name, points, axis, weight, index) {
  const x = points.map((p) => p[axis]), y = points.map((p) => p[3]), line = colour(index);
  const strong = { x, y: smoothed(y, weight), name, mode: "lines", line: { color: line, width: 1.8 }, hovertemplate: "%{y:.5~g}" };
  if (points.length === 1) strong.mode = "markers";
  if (!weight) return [strong];
  return [{ x, y, name: name + ", raw", mode: "lines", line: { color: transparent(line, 0.28), width: 1 }, hoverinfo: "skip" }, strong];
}

export const band = (x0, x1, fill, opacity = 1) =>
  ({ type: "rect", xref: "x", yref: "paper", x0, x1, y0: 0, y1: 1, fillcolor: fill, opacity, line: { width: 0 }, layer: "below" });
export const mark = (x, stroke, dash = "dot") =>
  ({ type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, line: { color: stroke, width: 1.2, dash } });
export { css };
