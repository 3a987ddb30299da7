// A new run: YAML with its mistakes at their lines, or a form of the config's schema.
//
// The YAML is what is started. The form shows its values; a change in the form writes the YAML anew.

import { api, listen, paced, runPath, showLive } from "./api.js";
import { ask } from "./dialog.js";
import { all, fill, find, h } from "./dom.js";
import "./page.js";
import { dump } from "./yaml.js";

const text = find("#yaml"), gutter = find("#gutter"), problems = find("#problems");
const EMPTY = "name: my-run\nseed: 0\n\nenvironment:\n  env: CartPole-v1\n\nstop:\n  timesteps: 100_000\n";
let values = {}, fields = [], found = [], sources = new Map(), checks = 0;

listen("/events", { message: () => {} }, showLive);

// -- YAML ------------------------------------------------------------------------------------------

function drawGutter() {
  const lines = text.value.split("\n").length, wrong = new Set(found.map((p) => p.line));
  fill(gutter, Array.from({ length: lines }, (_, i) => h("div", { class: wrong.has(i + 1) && "wrong" }, String(i + 1))));
  text.rows = Math.max(22, lines + 1);
  gutter.scrollTop = text.scrollTop;
}

function drawProblems(ok) {
  fill(problems, found.length
    ? [h("ul", {}, found.map((p) => h("li", {}, p.line ? h("button", { type: "button", class: "quiet", data: { line: p.line } }, `Line ${p.line}`) : h("span", { class: "muted" }, p.key || "config"), h("span", { class: "error" }, p.key && p.line ? h("code", {}, p.key + " ") : null, p.message))))]
    : [h("p", { class: "pad muted" }, ok ? "No mistake is known. Whether the environment can be made is seen when the run starts." : "")]);
}

async function check() {
  const number = ++checks;
  let answer;
  try {
    answer = await api("/config/check", { method: "POST", body: { yaml: text.value } });
  } catch (problem) {
    answer = { problems: [{ line: null, key: "", message: problem.message }], values: null };
  }
  if (number !== checks) return;
  // Without a line, the text says where: in this text, which is no file yet.
  found = answer.problems.map((p) => ({ ...p, message: p.message.replace(/^config\.yaml: /, "") }));
  if (answer.values) values = answer.values;
  text.setAttribute("aria-invalid", found.length ? "true" : "false");
  drawGutter();
  drawProblems(true);
  find("#name").placeholder = values.name || "from the config";
}

let timer;
const later = () => {
  clearTimeout(timer);
  timer = setTimeout(check, 250);
};
text.addEventListener("input", () => (drawGutter(), later()));
text.addEventListener("scroll", () => (gutter.scrollTop = text.scrollTop));
text.addEventListener("keydown", (event) => {
  // Enter keeps the indentation. Tab leaves the field, as everywhere.
  if (event.key !== "Enter" || event.isComposing || event.ctrlKey || event.metaKey) return;
  const before = text.value.slice(0, text.selectionStart), line = before.slice(before.lastIndexOf("\n") + 1);
  const indent = /^\s*/.exec(line)[0] + (/:\s*$/.test(line) ? "  " : "");
  if (!indent) return;
  event.preventDefault();
  text.setRangeText("\n" + indent, text.selectionStart, text.selectionEnd, "end");
  text.dispatchEvent(new Event("input"));
});
problems.addEventListener("click", (event) => {
  const line = Number(event.target.dataset.line);
  if (!line) return;
  setMode("yaml");
  const start = text.value.split("\n").slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
  text.focus();
  text.setSelectionRange(start, start + text.value.split("\n")[line - 1].length);
});

// -- form ------------------------------------------------------------------------------------------

const path = (key) => key.split(".");
const get = (key) => path(key).reduce((v, k) => v?.[k], values);
function put(key, value) {
  const keys = path(key), last = keys.pop(), chain = [values];
  for (const k of keys) {
    const inner = chain.at(-1)[k];
    chain.push((chain.at(-1)[k] = inner && typeof inner === "object" ? inner : {}));
  }
  if (value === undefined) delete chain.at(-1)[last];
  else chain.at(-1)[last] = value;
  for (let i = keys.length - 1; i >= 0; i--) if (!Object.keys(chain[i + 1]).length) delete chain[i][keys[i]];
}

const asText = (value) => (value === undefined || value === null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value));
function asValue(field, typed) {
  if (typed === "") return undefined;
  if (/^(true|false)$/.test(typed) && field.type.includes("bool")) return typed === "true";
  if (/int|float/.test(field.type) && /^[-+]?[\d_.]+(e[-+]?\d+)?$/i.test(typed)) return Number(typed.replaceAll("_", ""));
  if (/^[[{]/.test(typed)) {
    try {
      return JSON.parse(typed);
    } catch {
      return typed;
    }
  }
  return typed;
}

function control(field) {
  const id = "key-" + field.key, now = asText(get(field.key)), placeholder = asText(field.default);
  const choices = field.choices ?? (field.type === "bool" ? ["true", "false"] : null), help = field.help ? id + "-help" : null;
  const input = choices
    ? h("select", { id, data: { key: field.key }, "aria-describedby": help }, h("option", { value: "" }, placeholder === "" ? "not set" : `default: ${placeholder}`), choices.map((c) => h("option", { value: c, selected: String(c) === now }, c)))
    : h("input", { id, data: { key: field.key }, "aria-describedby": help, value: now, placeholder, autocomplete: "off", spellcheck: "false", inputmode: /^(int|float)/.test(field.type) ? "decimal" : null });
  const label = field.key.slice(field.key.lastIndexOf(".") + 1);
  return h("div", { class: now === "" ? "field" : "field changed" }, h("label", { for: id }, label, field.required ? h("span", { class: "muted" }, " required") : null), input, help && h("small", { id: help }, field.help));
}

function drawForm() {
  const wanted = find("#find-key").value.toLowerCase(), only = find("#only-set").checked, sections = new Map();
  for (const field of fields) {
    if (wanted && !`${field.key} ${field.help}`.toLowerCase().includes(wanted)) continue;
    if (only && get(field.key) === undefined) continue;
    const dot = field.key.lastIndexOf("."), section = dot < 0 ? "" : field.key.slice(0, dot);
    sections.set(section, [...(sections.get(section) ?? []), field]);
  }
  find("#keys").replaceChildren(...[...sections].map(([section, inside]) => {
    const set = inside.filter((f) => get(f.key) !== undefined).length;
    return h("details", { open: Boolean(set || wanted || section === "") },
      h("summary", {}, section || "run", set ? h("span", { class: "set" }, `${set} set`) : null),
      h("div", { class: "grid" }, inside.map(control)));
  }));
}

find("#keys").addEventListener("change", (event) => {
  const field = fields.find((f) => f.key === event.target.dataset.key);
  put(field.key, asValue(field, event.target.value.trim()));
  event.target.closest(".field").classList.toggle("changed", get(field.key) !== undefined);
  text.value = dump(values);
  drawGutter();
  check();
});
find("#find-key").addEventListener("input", drawForm);
find("#only-set").addEventListener("change", drawForm);

async function setMode(mode) {
  find(`#mode [value=${mode}]`).checked = true;
  find("#as-yaml").hidden = mode !== "yaml";
  find("#as-form").hidden = mode !== "form";
  if (mode !== "form") return;
  clearTimeout(timer);
  await check();
  if (!fields.length) {
    const every = (await api("/schema")).fields, lists = every.filter((f) => f.type === "list").map((f) => f.key + ".");
    // Keys of a list's items, as those of stages, have no place of their own: they are written in YAML.
    fields = every.filter((f) => !lists.some((list) => f.key.startsWith(list)));
  }
  drawForm();
}
find("#mode").addEventListener("change", (event) => setMode(event.target.value));

// -- where it begins -------------------------------------------------------------------------------

async function begin(key, mayReplace = () => true) {
  if (key.startsWith("run:")) {
    const { config, run } = await api(runPath(key.slice(4)));
    if (!mayReplace()) return;
    text.value = config.yaml;
    find("#name").value = `${run.name}-2`;
    const { checkpoints } = await api(runPath(run.id, "/checkpoints"));
    fill(find("#checkpoints"), checkpoints.filter((c) => c.good !== false && c.kind !== "error").map((c) => h("option", { value: c.full_path }, `iteration ${c.iteration}`)));
  } else if (mayReplace()) text.value = sources.get(key) ?? EMPTY;
  drawGutter();
  await check();
  if (!find("#as-form").hidden) drawForm();
}
find("#source").addEventListener("change", (event) => begin(event.target.value));

// -- start -----------------------------------------------------------------------------------------

const word = (value) => (/^[\w@%+=:,./-]+$/.test(value) ? value : `'${value.replaceAll("'", "'\\''")}'`);

find("#new").addEventListener("submit", async (event) => {
  event.preventDefault();
  clearTimeout(timer);
  await check();
  find("#start-error").textContent = found.length ? "The config has mistakes. They are listed below it." : "";
  if (found.length) return;
  const value = (id) => find(id).value.trim(), on = (id) => Boolean(find(id)?.checked);
  const set = value("#set").split("\n").map((l) => l.trim()).filter(Boolean);
  const body = { config: text.value, set, fresh: on("#fresh"), weights_only: on("#weights-only") };
  if (value("#name")) body.name = value("#name");
  if (value("#storage")) body.storage = value("#storage");
  if (value("#from")) body.from = value("#from");
  if (on("#as-job")) body.address = find("#as-job").value;
  const name = body.name ?? values.name ?? "the run";
  ask({
    title: `Start ${name}?`,
    what: [
      on("#as-job") ? "The config is handed to the cluster as a job." : "A process of its own begins to train on the server's machine. It goes on if this page or the server is closed.",
      body.from ? `It begins from ${body.from}${body.weights_only ? ", with the weights only" : ""}.` : "It begins from scratch.",
      body.fresh ? "If there is a run of this name, its directory is renamed, and kept." : "If there is a run of this name with the same config, that run continues.",
      "The config's code (its environment, callbacks, networks) is run.",
    ],
    command: ["raytrain train", word(`${name}.yaml`), ...(body.name ? ["--name", word(body.name)] : []), ...(body.from ? ["--from", word(body.from)] : []), ...(body.weights_only ? ["--weights-only"] : []), ...(body.fresh ? ["--fresh"] : []), ...set.flatMap((s) => ["--set", word(s)])].join(" "),
    confirm: "Start",
    work: async () => {
      try {
        const answer = await api("/runs", { method: "POST", body });
        location.assign("/runs/" + encodeURIComponent(answer.run.id));
      } catch (problem) {
        if (problem.errors?.length) {
          found = problem.errors;
          drawGutter();
          drawProblems(false);
        }
        throw problem;
      }
    },
  });
});

const chosen = new URLSearchParams(location.search);
const [{ configs }, { runs }] = await Promise.all([api("/configs"), api("/runs?per_page=100")]);
sources = new Map(configs.map((c) => [c.path, c.yaml]));
find("#source").append(
  configs.length ? h("optgroup", { label: "Files" }, configs.map((c) => h("option", { value: c.path }, c.path))) : "",
  runs.length ? h("optgroup", { label: "Runs" }, runs.map((r) => h("option", { value: "run:" + r.id }, r.name))) : "");
if (chosen.get("from")) find("#from").value = chosen.get("from");
const first = chosen.get("run") ? "run:" + chosen.get("run") : chosen.get("config") ?? "";
find("#source").value = first;
// What somebody has typed while this page was loading stays.
await begin(first, () => text.value === "");
