// A dialog that says what will be done before it is done.

import { command, fill, find, h } from "./dom.js";

// title, what: sentences, fields: elements, command: text or a function of the form's values,
// confirm: the button's text, danger, work(values): does it; a Problem is shown, and the dialog stays.
export function ask({ title, what, fields = [], command: line, confirm, danger = false, work }) {
  const error = h("p", { class: "error", role: "alert" }), shown = h("div", {});
  const yes = confirm && h("button", { type: "submit", class: `primary${danger ? " danger" : ""}` }, confirm);
  const list = h("ul", { class: "what" }, what.map((w) => h("li", {}, w)));
  const form = h("form", { method: "dialog" },
    h("h2", { id: "dialog-title" }, title),
    h("div", { class: "body" }, list, fields, shown, error),
    h("footer", {}, h("button", { type: "button", data: { cancel: "" } }, confirm ? "Cancel" : "Close"), yes));
  const box = h("dialog", { "aria-labelledby": "dialog-title" }, form);
  const values = () => Object.fromEntries([...form.elements].filter((e) => e.name).map((e) => [e.name, e.type === "checkbox" ? e.checked : e.value.trim()]));
  const tell = () => fill(shown, line ? [h("p", { class: "muted" }, "The same on the command line:"), command(typeof line === "function" ? line(values()) : line)] : []);
  form.addEventListener("input", tell);
  find("[data-cancel]", form).addEventListener("click", () => box.close());
  box.addEventListener("close", () => box.remove());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!yes) return box.close();
    yes.disabled = true;
    error.textContent = "";
    try {
      await work(values());
      box.close();
    } catch (problem) {
      error.textContent = [problem.message, ...(problem.errors ?? []).map((e) => (e.line ? `Line ${e.line}: ${e.message}` : e.message))].join("\n");
    } finally {
      yes.disabled = false;
    }
  });
  tell();
  document.body.append(box);
  box.showModal();
  (find("input, select, textarea", form) ?? yes ?? form).focus();
  return box;
}

let counter = 0;
export function field(label, input, help) {
  input.id ||= `field-${++counter}`;
  return h("div", { class: "field" }, h("label", { for: input.id }, label), input, help && h("small", {}, help));
}
export const tick = (name, label, help) =>
  h("div", { class: "field" }, h("label", { class: "inline" }, h("input", { type: "checkbox", name }), label), help && h("small", {}, help));
