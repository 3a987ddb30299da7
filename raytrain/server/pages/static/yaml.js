// YAML as text with colours, and values as YAML.

import { copyButton, h } from "./dom.js";

const LINE = /^(\s*(?:- )?)([^\s:#][^:#]*)(:)(\s.*|)$/;

function line(text) {
  const comment = text.search(/(^|\s)#/);
  const body = comment < 0 ? text : text.slice(0, comment), rest = comment < 0 ? "" : text.slice(comment);
  const [, before, key, colon, value] = LINE.exec(body) ?? [];
  const shown = key === undefined ? [body] : [before, h("span", { class: "k" }, key), colon, /["']/.test(value) ? h("span", { class: "s" }, value) : value];
  return [...shown, rest && h("span", { class: "c" }, rest), "\n"];
}

export const yaml = (text) => h("pre", { class: "yaml", tabindex: 0, role: "region", "aria-label": "The config as YAML" }, text.replace(/\n$/, "").split("\n").map(line));

const PLAIN = /^[A-Za-z_/.][\w/.:\-]*$/;
const SPECIAL = /^(null|true|false|yes|no|on|off|y|n|~|\.inf|\.nan|[-+]?\.?\d.*)$/i;

function scalar(value) {
  if (value === null || value === undefined) return "null";
  if (typeof value !== "string") return Array.isArray(value) || typeof value === "object" ? flow(value) : number(value);
  return PLAIN.test(value) && !SPECIAL.test(value) && !value.endsWith(":") ? value : JSON.stringify(value);
}
const number = (value) => (value === Infinity ? ".inf" : value === -Infinity ? "-.inf" : String(value));
const flow = (value) => (Array.isArray(value) ? `[${value.map(scalar).join(", ")}]` : `{${Object.entries(value).map(([k, v]) => `${scalar(k)}: ${scalar(v)}`).join(", ")}}`);

// A nested mapping as YAML text.
export function dump(values, indent = "") {
  return Object.entries(values).map(([key, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length
      ? `${indent}${scalar(key)}:\n${dump(value, indent + "  ")}`
      : `${indent}${scalar(key)}: ${scalar(value)}\n`).join("");
}
