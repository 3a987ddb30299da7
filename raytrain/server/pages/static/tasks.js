// Long tasks of the server, with their progress, at the lower right of every page.

import { api } from "./api.js";
import { h } from "./dom.js";
import { toast } from "./page.js";

const NAMES = { verify: "Verifying", audit: "Auditing", prune: "Clearing up", export: "Exporting", evaluate: "Evaluating" };
const followed = new Set();
const ended = [];
export const onEnd = (work) => ended.push(work);

function show(task) {
  const active = task.state === "queued" || task.state === "running", name = NAMES[task.kind] ?? task.kind;
  const cancel = active && h("button", { type: "button", class: "quiet" }, "Cancel");
  const box = toast(task.state === "failed" ? `${name} failed` : task.state === "cancelled" ? `${name}: cancelled` : task.state === "done" ? `${name}: done` : name, task.message ?? "", {
    id: "task-" + task.id, keep: active || task.state === "failed", action: cancel,
    progress: active ? (task.total ? task.done / task.total : null) : undefined,
  });
  if (cancel) box.onclick = (event) => event.target.textContent === "Cancel" && api("/tasks/" + encodeURIComponent(task.id), { method: "DELETE" }).catch((p) => toast("Not cancelled", p.message));
  return active;
}

// Shows the task until it has ended.
export async function follow(task) {
  const id = typeof task === "string" ? task : task.id;
  if (followed.has(id)) return;
  followed.add(id);
  for (let now = await api("/tasks/" + encodeURIComponent(id)); ; now = await api("/tasks/" + encodeURIComponent(id))) {
    if (!show(now)) {
      for (const work of ended) work(now);
      break;
    }
    await new Promise((done) => setTimeout(done, 1000));
  }
  followed.delete(id);
}

// Those of a run that are going on, as after the page was loaded again.
export async function followAll(run) {
  const { tasks } = await api("/tasks");
  for (const task of tasks) if (task.run === run && ["queued", "running"].includes(task.state)) follow(task);
}
