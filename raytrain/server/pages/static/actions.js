// What can be done with a run: each button opens a dialog that says what it will do.

import { api, runPath } from "./api.js";
import { ask, field, tick } from "./dialog.js";
import { count, h, number, size, times } from "./dom.js";
import { toast } from "./page.js";
import { follow } from "./tasks.js";

const quote = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
const shell = (...words) => ["raytrain", ...words].map((w) => quote(String(w))).join(" ");
const settings = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
const input = (name, attributes = {}) => h("input", { name, autocomplete: "off", spellcheck: "false", ...attributes });
const setField = () => field("Other settings", h("textarea", { name: "set", rows: 3, spellcheck: "false", placeholder: "training.lr=1e-4" }), "One KEY=VALUE on each line, as with --set.");

function checkpointField(run, { name = "checkpoint", label = "Checkpoint", usable = true, value = (c) => c.full_path, empty } = {}) {
  const offered = run.checkpoints.filter((c) => !usable || (c.good !== false && c.kind !== "error")).sort((a, b) => b.iteration - a.iteration);
  const several = new Set(offered.map((c) => c.trial)).size > 1;
  return field(label, h("select", { name }, empty && h("option", { value: "" }, empty), offered.map((c) => h("option", { value: value(c) },
    `${several ? c.trial + "/" : ""}${c.path} · iteration ${count(c.iteration)}${c.score === null ? "" : " · score " + number(c.score)}`))));
}

const saved = (answer) => answer.saved.map((s) => `${s.trial} saved ${s.checkpoint} at iteration ${count(s.iteration)}, ${count(s.timesteps)} steps`).join("; ");
const startTask = async (run, verb, body) => {
  const { task } = await api(runPath(run.id, "/" + verb), { method: "POST", body });
  follow(task).catch((problem) => toast("The task is not seen any more", problem.message));
};

const DO = {
  stop: (run, again) => ({
    title: `Stop ${run.row.name}?`,
    what: [
      `The process that trains (${run.row.writer ?? "it is found by the directory's lock"}) gets SIGTERM: it ends this iteration, saves a checkpoint and exits.`,
      "Nothing that was trained is lost. Resume continues as the same run, bit for bit.",
    ],
    confirm: "Stop and save", danger: true,
    work: async () => {
      const note = toast("Stopping", "Waiting until the run has saved…", { id: "stopping", progress: null, keep: true });
      try {
        const answer = await api(runPath(run.id, "/stop"), { method: "POST", body: {} });
        if (answer.state === "stopping") toast("Still stopping", "It takes minutes. The page shows when it has ended.", { id: "stopping" });
        else toast("Stopped", saved(answer) || "The run had nothing to save.", { id: "stopping" });
      } catch (problem) {
        note.remove();
        throw problem;
      }
      again();
    },
  }),

  resume: (run, again) => ({
    title: `Resume ${run.row.name}?`,
    what: [
      `Training continues from the newest good checkpoint (iteration ${count(newest(run)?.iteration ?? 0)}) in a process of its own. It does not depend on this server.`,
      run.row.iteration > (newest(run)?.iteration ?? 0) ? `Iterations ${count((newest(run)?.iteration ?? 0) + 1)} to ${count(run.row.iteration)} are trained again, with the same result.` : "Nothing has to be trained again.",
    ],
    command: run.row.resume, confirm: "Resume",
    work: async () => (await api(runPath(run.id, "/resume"), { method: "POST", body: {} }), toast("Resumed", "The run continues."), again()),
  }),

  extend: (run, again) => {
    const stop = run.document?.config?.values?.stop ?? {}, known = Object.entries(stop).filter(([, v]) => typeof v === "number");
    const keys = known.length ? known : [["iterations", null]];
    const set = (values) => keys.map(([key, before]) => [key, before, values[key]]).filter(([, before, now]) => now && Number(now) !== before).map(([key, , now]) => `stop.${key}=${now}`);
    return {
      title: `Train ${run.row.name} for longer`,
      what: ["Only `stop` changes, so it stays the same run: its iterations so far are those that a run with this stop would have had.",
        run.row.state === "running" ? "The run is training. Stop it first: a run reads its config when it starts." : "Training begins again at once."],
      fields: keys.map(([key, before]) => field(`stop.${key}`, input(key, { type: "number", step: "any", value: before }), `now ${number(before)}`)),
      command: (values) => shell("resume", run.row.path, ...set(values).flatMap((s) => ["--set", s])),
      confirm: run.row.state === "running" ? null : "Raise and resume",
      work: async (values) => {
        if (!set(values).length) throw new Error("Nothing is changed. Raise one of the values.");
        await api(runPath(run.id, "/resume"), { method: "POST", body: { set: set(values) } });
        toast("Resumed", set(values).join(", "));
        again();
      },
    };
  },

  fork: (run) => ({
    title: `Fork ${run.row.name}`,
    what: ["A new run begins from the checkpoint, with a name and a directory of its own. This run does not change.",
      "The fork keeps a copy of the checkpoint, so this run may be pruned or deleted later."],
    fields: [checkpointField(run), field("Name of the new run", input("name", { required: true, value: `${run.row.name}-fork`, pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]{0,99}" })), setField(),
      tick("weights_only", "Only the weights", "The optimizer, the running episodes and the counters begin anew.")],
    command: (v) => shell("fork", v.checkpoint, "--name", v.name, ...settings(v.set).flatMap((s) => ["--set", s]), ...(v.weights_only ? ["--weights-only"] : [])),
    confirm: "Fork and train",
    work: async (v) => {
      const answer = await api(runPath(run.id, "/fork"), { method: "POST", body: { checkpoint: v.checkpoint, name: v.name, set: settings(v.set), weights_only: v.weights_only } });
      location.assign("/runs/" + encodeURIComponent(answer.run.id));
    },
  }),

  verify: (run) => ({
    title: "Verify all checkpoints?",
    what: [`Every byte of ${times(run.checkpoints.length, "checkpoint")} (${size(run.row.size_bytes)}) is read and compared with its SHA-256.`, "Nothing is changed. The verdict is kept with its date."],
    command: shell("verify", run.row.path), confirm: "Verify", work: () => startTask(run, "verify", {}),
  }),

  audit: (run) => {
    const offered = run.checkpoints.filter((c) => c.good !== false && c.kind !== "error");
    const iterations = [...new Set(offered.map((c) => c.iteration))].sort((a, b) => b - a);
    const choose = (name, label) => field(label, h("select", { name }, h("option", { value: "" }, "the newest two"), iterations.map((i) => h("option", { value: i }, `iteration ${count(i)}`))));
    return {
      title: "Audit this run?",
      what: ["The part between two checkpoints is trained again, in a process of its own on the server's machine, and the weights are compared bit for bit.",
        iterations.length < 2 ? "This needs two checkpoints of one trial, and there are fewer." : "It takes as long as that part took. The run's files are not changed."],
      fields: [choose("from", "From"), choose("to", "To")],
      command: (v) => shell("audit", run.row.path, ...(v.from ? ["--from", v.from] : []), ...(v.to ? ["--to", v.to] : [])),
      confirm: iterations.length < 2 ? null : "Audit",
      work: (v) => startTask(run, "audit", { from: v.from ? Number(v.from) : null, to: v.to ? Number(v.to) : null }),
    };
  },

  evaluate: (run) => ({
    title: "Evaluate a checkpoint",
    what: ["The policy plays whole episodes in the environment of evaluation and takes the likeliest actions. Nothing is changed."],
    fields: [checkpointField(run), field("Episodes", input("episodes", { type: "number", min: 1, value: 20 })), field("Seed", input("seed", { type: "number", value: 0 }))],
    command: (v) => shell("evaluate", v.checkpoint, "--episodes", v.episodes, "--seed", v.seed), confirm: "Evaluate",
    work: (v) => startTask(run, "evaluate", { checkpoint: v.checkpoint, episodes: Number(v.episodes), seed: Number(v.seed) }),
  }),

  export: (run) => ({
    title: "Export a policy",
    what: ["Writes a directory with weights, network and a model card: a policy that acts without Ray."],
    fields: [checkpointField(run), field("Directory", input("directory", { placeholder: "a new one among the server's exports" }), "A name among the server's exports, or a path below a storage."), tick("onnx", "Also as ONNX")],
    command: (v) => shell("export", v.checkpoint, v.directory || `${run.row.name}-policy`, ...(v.onnx ? ["--onnx"] : [])), confirm: "Export",
    work: (v) => startTask(run, "export", { checkpoint: v.checkpoint, directory: v.directory || null, onnx: v.onnx }),
  }),

  prune: (run) => ({
    title: "Clear up checkpoints",
    what: ["First a plan is made, and shown here. Nothing is deleted before you have seen it.", "Best, final, every stage and the newest good checkpoints are never deleted."],
    fields: [field("Keep the newest", input("keep", { type: "number", min: 1, value: 1 })), tick("quarantine", "Also what was set aside as damaged"), tick("errors", "Also the states after a divergence")],
    command: (v) => shell("prune", run.row.path, "--keep", v.keep, ...(v.quarantine ? ["--quarantine"] : []), ...(v.errors ? ["--errors"] : [])),
    confirm: "Make the plan",
    work: async (v) => {
      const body = { keep: Number(v.keep), quarantine: v.quarantine, errors: v.errors };
      showPlan(run, body, await api(runPath(run.id, "/prune"), { method: "POST", body }));
    },
  }),
};

const newest = (run) => run.checkpoints.filter((c) => c.good !== false && c.kind !== "error").sort((a, b) => b.iteration - a.iteration)[0];

function showPlan(run, body, plan) {
  const gone = plan.delete, cell = (value, kind) => h("td", { class: kind }, value);
  ask({
    title: gone.length ? `Delete ${times(gone.length, "checkpoint")}, ${size(plan.frees_bytes)}?` : "There is nothing to delete",
    what: gone.length ? ["What is deleted cannot be brought back.", `Kept: ${plan.keep.join(", ")}.`] : ["Everything that is there is kept."],
    fields: gone.length ? [h("div", { class: "table" }, h("table", {}, h("thead", {}, h("tr", {}, ["Checkpoint", "Kind", "Iteration", "Size"].map((t) => h("th", { scope: "col" }, t)))),
      h("tbody", {}, gone.map((c) => h("tr", {}, cell(c.path), cell(c.kind), cell(count(c.iteration), "num"), cell(size(c.size_bytes), "num"))))))] : [],
    confirm: gone.length ? "Delete" : null, danger: true,
    work: () => startTask(run, "prune", { ...body, yes: true }),
  });
}

// Opens the dialogs of the buttons in #actions. `again` is called when the run has changed.
export function actions(run, again) {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button && run.row) ask(DO[button.dataset.do](run, again));
  });
}
