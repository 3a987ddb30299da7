// Long tasks of the server, with their progress, at the lower right of every page.

import { api, query } from "./api.js";
import { count, h, number, size, times } from "./dom.js";
import { toast } from "./page.js";

const NAMES = { verify: "Verifying", audit: "Auditing", prune: "Clearing up", export: "Exporting", evaluate: "Evaluating" };
// What a task found, in a sentence.
export const FOUND = {
  verify: ({ checkpoints, good }) => {
    const bad = checkpoints.filter((c) => !c.good);
    return good ? `Every byte of ${times(checkpoints.length, "checkpoint")} is right.` : `Damaged: ${bad.map((c) => `${c.path} (${c.problem})`).join(", ")}.`;
  },
  audit: ({ trials }) => trials.map((t) => `${t.trial}: iterations ${count(t.start + 1)} to ${count(t.end)} were trained again, and ${t.difference ? `differ: ${Object.keys(t.difference.what ?? {}).slice(0, 3).join(", ")}` : `are equal, bit for bit (weights ${t.weights_sha256.slice(0, 12)})`}.`).join(" "),
  prune: ({ delete: gone, frees_bytes: bytes }) => `${times(gone.length, "checkpoint")} deleted, ${size(bytes)}.`,
  export: ({ path }) => `Written to ${path}.`,
  evaluate: (found) => `Return ${number(found.episode_return_mean)} over ${times(found.episodes, "episode")} (from ${number(found.episode_return_min)} to ${number(found.episode_return_max)}).`,
};

const followed = new Set();
const ended = [];
export const onEnd = (work) => ended.push(work);

function show(task) {
  const active = task.state === "queued" || task.state === "running", name = NAMES[task.kind] ?? task.kind;
  const cancel = active && h("button", { type: "button", class: "quiet" }, "Cancel");
  const box = toast(task.state === "failed" ? `${name} failed` : task.state === "done" ? `${name}: done` : name, task.message ?? (task.result ? FOUND[task.kind]?.(task.result) : task.state === "queued" ? "Waits for its turn." : task.total ? `${count(task.done)} of ${count(task.total)}` : ""), {
    id: "task-" + task.id, keep: true, action: cancel,
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
  const { tasks } = await api("/tasks" + query({ run }));
  for (const task of tasks) if (["queued", "running"].includes(task.state)) follow(task);
}
