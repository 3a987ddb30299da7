// Elements from values. Everything that a run, a config or a message holds is set as text or as an
// attribute of a fixed name, never parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";
const SHAPES = new Set(["svg", "svg:a", "g", "path", "rect", "line", "circle", "text", "title", "use", "defs", "pattern"]);
// Control characters and those that change the direction of writing are shown as escapes.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

export const visible = (text) =>
  String(text).replace(UNSEEN, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

// h("a", {href: "/", class: "x"}, "text", h("b", {}, "more"), null)
// `data` holds data-... attributes; a value of false, null or undefined leaves an attribute out.
export function h(tag, attributes = {}, ...children) {
  const element = SHAPES.has(tag) ? document.createElementNS(SVG, tag.replace("svg:", "")) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "data") for (const [key, text] of Object.entries(value)) element.setAttribute("data-" + key, text);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((c) => c !== null && c !== undefined && c !== false)
    .map((c) => (c instanceof Node ? c : visible(c))));
  return element;
}

export const find = (selector, root = document) => root.querySelector(selector);
export const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Makes `old` equal to `fresh` and keeps the nodes that are there: focus, scrolling, what is typed,
// open details and ticked boxes stay. Elements with an id are matched by it.
export function morph(old, fresh) {
  if (old.isEqualNode(fresh) || old.hasAttribute?.("data-keep")) return old;
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    return fresh;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.nodeValue = fresh.nodeValue;
    return old;
  }
  for (const { name } of [...old.attributes])
    if (!fresh.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  for (const { name, value } of [...fresh.attributes])
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  fill(old, [...fresh.childNodes]);
  return old;
}

// Replaces the children of `parent` by `children`, by `morph`.
export function fill(parent, given) {
  const children = given.map((c) => (c instanceof Node ? c : document.createTextNode(visible(c))));
  const byId = new Map([...parent.children].filter((c) => c.id).map((c) => [c.id, c]));
  const wanted = new Set(children.map((c) => c.id));
  for (const [id, gone] of byId) if (!wanted.has(id)) gone.remove();
  let place = parent.firstChild;
  for (const child of children) {
    const same = child.id ? byId.get(child.id) : place && !place.id ? place : null;
    if (!same) {
      parent.insertBefore(child, place);
      continue;
    }
    // `moveBefore` keeps the focus in what it moves; older browsers lose it.
    if (same !== place) (parent.moveBefore ?? parent.insertBefore).call(parent, same, place);
    const now = morph(same, child);
    place = now.nextSibling;
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

export const icon = (name) => h("svg", { class: "icon", "aria-hidden": "true" }, h("use", { href: "#i-" + name }));

// Values as text: the same as in shown.py.
export const NOTHING = "–";
const missing = (value) => value === null || value === undefined || !Number.isFinite(Number(value));
export const count = (value) => (missing(value) ? NOTHING : Math.round(value).toLocaleString("en-US"));
export function number(value) {
  if (missing(value)) return NOTHING;
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e7)) return Number(value).toExponential(2);
  const digits = Math.max(0, 3 - (size ? Math.floor(Math.log10(size)) : 0));
  return Number(value).toLocaleString("en-US", { maximumFractionDigits: Math.min(digits, 6) });
}
export function size(value) {
  if (missing(value)) return NOTHING;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < 4) (value /= 1000), unit++;
  return unit ? `${value.toFixed(1)} ${units[unit]}` : `${value} B`;
}
export function seconds(value) {
  if (missing(value)) return NOTHING;
  if (value < 60) return `${Math.round(value)}s`;
  const whole = Math.floor(value), minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}m ${whole % 60}s`;
  if (minutes < 1440) return `${Math.floor(minutes / 60)}h ${minutes % 60}m`;
  return `${Math.floor(minutes / 1440)}d ${Math.floor((minutes % 1440) / 60)}h`;
}
export const times = (n, one, many) => `${count(n)} ${n === 1 ? one : many ?? one + "s"}`;
export const clock = (when) =>
  when ? new Date(when).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }) : NOTHING;

function ago(when) {
  const passed = (Date.now() - when) / 1000;
  if (passed < 5) return "now";
  if (passed < 60) return `${Math.floor(passed)}s ago`;
  if (passed < 3600) return `${Math.floor(passed / 60)}m ago`;
  if (passed < 86400) return `${Math.floor(passed / 3600)}h ago`;
  if (passed < 86400 * 30) return `${Math.floor(passed / 86400)}d ago`;
  return new Date(when).toISOString().slice(0, 10);
}

export const time = (when) => (when ? h("time", { datetime: when, title: clock(when) }, ago(Date.parse(when))) : NOTHING);

// Every <time> says how long ago it is.
export function tellTimes(root = document) {
  for (const element of all("time[datetime]", root)) {
    const when = Date.parse(element.dateTime);
    if (Number.isNaN(when)) continue;
    const text = ago(when);
    if (element.textContent !== text) element.textContent = text;
    element.title = clock(when);
  }
}

export const state = (name) => h("span", { class: `state state-${name}` }, name);
export const badge = (kind, ...children) => h("span", { class: `badge ${kind}` }, ...children);
export const copyButton = (text, label, what) =>
  h("button", { type: "button", class: "quiet", data: { copy: text }, title: text, "aria-label": what ?? `Copy: ${label}` }, label);
export const command = (text) =>
  h("div", { class: "command" }, h("code", {}, text), copyButton(text, "Copy", "Copy the command"));
