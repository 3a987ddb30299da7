// The server's API, and what says that something changed.

import { find } from "./dom.js";

export class Problem extends Error {
  constructor(document) {
    super(document.detail || document.title || "The server did not answer.");
    this.status = document.status;
    this.errors = document.errors || [];
  }
}

// The JSON of an answer. Throws a Problem: what the server says, or that it does not answer.
export async function api(path, { method = "GET", body, signal } = {}) {
  let answer;
  try {
    answer = await fetch("/api" + path, {
      method, signal,
      headers: body === undefined ? {} : { "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ status: 0, detail: "The server does not answer. Runs go on without it. Start it again: raytrain serve" });
  }
  const text = await answer.text();
  let document;
  try {
    document = JSON.parse(text);
  } catch {
    document = { status: answer.status, detail: `The server answered ${answer.status}: ${text.slice(0, 300)}` };
  }
  if (!answer.ok) throw new Problem({ ...document, status: answer.status });
  return document;
}

export const runPath = (id, rest = "") => `/runs/${encodeURIComponent(id)}${rest}`;
export const query = (values) => {
  const kept = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return kept.length ? "?" + new URLSearchParams(kept) : "";
};

// Events of a stream, while the page is shown: a browser has six connections to a server, for all its
// tabs. It connects again by itself. `state` hears of every beginning and end; a beginning may follow
// a pause in which something was missed.
export function listen(path, handlers, state = () => {}) {
  let source = null;
  const close = () => {
    source?.close();
    source = null;
  };
  const open = () => {
    if (source || document.hidden) return;
    const now = (source = new EventSource("/api" + path));
    now.onopen = () => state(true);
    now.onerror = () => {
      state(false);
      // Refused, as when too many listen: browsers do not try that again.
      if (now.readyState === EventSource.CLOSED && now === source) (source = null), setTimeout(open, 10_000);
    };
    for (const [name, handle] of Object.entries(handlers))
      now.addEventListener(name, (event) => handle(event.data ? JSON.parse(event.data) : null));
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  open();
}

export function showLive(on) {
  const shown = find("#live");
  if (!shown) return;
  shown.dataset.on = on ? "yes" : "no";
  shown.textContent = on ? "live" : "not connected";
}

// `work` soon, and at most once in `every` milliseconds, never twice at once, and not while the page
// is hidden: then when it is shown again.
export function paced(work, every = 2000) {
  let wanted = false, busy = false, last = -Infinity, timer = null;
  const go = async () => {
    timer = null;
    if (document.hidden || busy || !wanted) return;
    (wanted = false), (busy = true), (last = performance.now());
    try {
      await work();
    } catch (error) {
      if (!(error instanceof Problem)) console.error(error);
      if (error.status === 0) showLive(false);
    } finally {
      busy = false;
      if (wanted) plan();
    }
  };
  const plan = () => {
    timer ??= setTimeout(go, Math.max(50, last + every - performance.now()));
  };
  document.addEventListener("visibilitychange", () => !document.hidden && wanted && plan());
  return () => {
    wanted = true;
    plan();
  };
}
