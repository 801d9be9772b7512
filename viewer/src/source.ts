// Where values come from: a trace inside the page, or the server that `pellucid serve` started.

import { signal, type Signal } from "@preact/signals";
import { once } from "./lists";
import type { App } from "./state";
import { fromBase64, like, traceFrom, type Trace } from "./trace";

export type Example = { id: string; text: string; look_for: string; trace?: string };
export type Reading = { slug: string; title: string; html: string };
export type Values = { shape: number[]; data: Float32Array };

/** An error of the library, with its own code, sentence and remedy. */
export class ServerError extends Error {
  constructor(
    readonly code: string,
    message: string,
    readonly remedy: string,
  ) {
    super(message);
  }
}

/** The server; every method is a request to the machine that the page came from. */
export class Server {
  /** One per tab, so that two tabs do not disturb each other. */
  private readonly session = crypto.randomUUID();

  constructor(
    private readonly base: string,
    private readonly token: string,
  ) {}

  private async answer(path: string, init: RequestInit): Promise<Response> {
    let response: Response;
    try {
      response = await fetch(this.base + path, { ...init, credentials: "omit" });
    } catch (fault) {
      if (fault instanceof DOMException && fault.name === "AbortError") throw fault;
      throw new ServerError("unreachable", "the server does not answer", "Start it again, and open the address that it prints: pellucid serve");
    }
    if (response.ok) return response;
    const said = await response.json().catch(() => null);
    const error = said?.error ?? {};
    throw new ServerError(error.code ?? String(response.status), error.message ?? response.statusText, error.remedy ?? "");
  }

  /** What is at a path, or the answer to what is sent there. */
  private ask(path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
    if (body === undefined) return this.answer(path, {});
    return this.answer(path, {
      method: "POST",
      headers: {
        "Content-Type": "application/json",
        "X-Pellucid-Token": this.token,
        "X-Pellucid-Session": this.session,
      },
      body: JSON.stringify(body),
      ...(signal ? { signal } : {}),
    });
  }

  async json<T>(path: string, body?: unknown): Promise<T> {
    return (await this.ask(path, body)).json() as Promise<T>;
  }

  async trace(path: string, body?: unknown): Promise<Trace> {
    return traceFrom(new Uint8Array(await (await this.ask(path, body)).arrayBuffer()));
  }

  /** The exact values of a checkpoint in this tab's last run. */
  async values(name: string, where: { pos?: number[]; heads?: number[]; plain?: boolean } = {}): Promise<Values> {
    const answer = await this.json<{ shape: number[]; data: string }>("/api/values", { name, ...where });
    return { shape: answer.shape, data: new Float32Array(fromBase64(answer.data).buffer) };
  }

  /** The events of a generation, one after another. */
  async *events(path: string, body: unknown, signal: AbortSignal): AsyncGenerator<{ event: string; data: any }> {
    const response = await this.ask(path, body, signal);
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader["read"]();
      if (done) return;
      text += value;
      for (let end = text.search(/\r?\n\r?\n/); end >= 0; end = text.search(/\r?\n\r?\n/)) {
        const lines = text.slice(0, end).split(/\r?\n/);
        text = text.slice(end).replace(/^\r?\n\r?\n/, "");
        const field = (name: string) =>
          lines.filter((line) => line.startsWith(name + ":")).map((line) => line.slice(name.length + 1).trim()).join("\n");
        if (field("data")) yield { event: field("event") || "message", data: JSON.parse(field("data")) };
      }
    }
  }
}

/** What the page brings along. */
export type Source = {
  trace: Trace | null;
  second: Trace | null;
  server: Server | null;
  readings: Reading[];
  examples: Example[];
};

function textOf(scope: ParentNode, id: string): string | null {
  return scope.querySelector(`script#${id}`)?.textContent ?? null;
}

async function embedded(scope: ParentNode, id: string): Promise<Trace | null> {
  const text = textOf(scope, id);
  return text ? traceFrom(text) : null;
}

/** Everything that the page holds in its script elements, and the server if it names one. */
export async function readSource(scope: ParentNode): Promise<Source> {
  const json = <T>(id: string, example: T): T | null => {
    const text = textOf(scope, id);
    if (!text) return null;
    let found: T;
    try {
      found = JSON.parse(text);
    } catch {
      throw new Error(`its part ${id} is no JSON text`);
    }
    like(found, example, id);
    return found;
  };
  const named = json("pellucid-server", { token: "", base: "" });
  const server = named ? new Server(named.base, named.token) : null;
  const [trace, second] = await Promise.all([embedded(scope, "pellucid-trace"), embedded(scope, "pellucid-trace-2")]);
  const later = <T>(path: string): Promise<T[]> => (server ? server.json<T[]>(path).catch(() => []) : Promise.resolve([]));
  const examples = json<Example[]>("pellucid-examples", [{ id: "", text: "", look_for: "" }]) ?? (await later<Example>("/api/examples"));
  const readings = json<Reading[]>("pellucid-readings", [{ slug: "", title: "", html: "" }]) ?? (await later<Reading>("/api/readings"));
  return { trace, second, server, readings, examples };
}

const held = once<Trace, Map<string, Signal<unknown>>>(() => new Map());

/** The server's answer about the run that is shown, under a name of its own; `about` says to the server which run it is; null without a server, and until it is there. Of large answers whose names begin with `one` only the last is kept. */
export function asked<T>(app: App, name: string, what: string, ask: (server: Server, about: { plain?: boolean }) => Promise<T>, one = ""): T | null {
  const trace = app.trace.value;
  const { server } = app;
  if (!server) return null;
  const known = held(trace);
  const found = known.get(name) as Signal<T | null> | undefined;
  if (found) return found.value;
  const made = signal<T | null>(null);
  if (one) for (const other of [...known.keys()]) if (other.startsWith(one)) known.delete(other);
  known.set(name, made);
  // Not at once: this is called while something is drawn.
  queueMicrotask(() => void app.attempt(what, async () => void (made.value = await ask(server, app.about(trace)))));
  return made.value;
}
