// What only the server knows of a run, asked for once and kept with it.

import { signal, type Signal } from "@preact/signals";
import type { Server } from "./source";
import type { App } from "./state";
import type { Trace } from "./trace";

const held = new WeakMap<Trace, Map<string, Signal<unknown>>>();

/** The server's answer about the run that is shown, under a name of its own; `about` says to the server which run it is; null without a server, and until it is there. Of large answers whose names begin with `one` only the last is kept. */
export function asked<T>(app: App, name: string, what: string, ask: (server: Server, about: { plain?: boolean }) => Promise<T>, one = ""): T | null {
  const trace = app.trace.value;
  const { server } = app;
  if (!server) return null;
  let known = held.get(trace);
  if (!known) held.set(trace, (known = new Map()));
  const found = known.get(name) as Signal<T | null> | undefined;
  if (found) return found.value;
  const made = signal<T | null>(null);
  if (one) for (const other of [...known.keys()]) if (other.startsWith(one)) known.delete(other);
  known.set(name, made);
  // Not at once: this is called while something is drawn.
  queueMicrotask(() => void app.attempt(what, async () => void (made.value = await ask(server, app.about(trace)))));
  return made.value;
}
