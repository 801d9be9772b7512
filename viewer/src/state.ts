// What the page shows, as signals. Everything that a link should restore lives in location.hash.

import { batch, computed, effect, signal, type ReadonlySignal, type Signal } from "@preact/signals";
import { createContext } from "preact";
import { useContext, useState } from "preact/hooks";
import type { Example, Reading, Server, Source } from "./source";
import type { Trace } from "./trace";

/** What the pointer or the cell cursor is on; it goes before what is selected, in every panel. */
export type Hover = { query?: number; key?: number; layer?: number; head?: number };

type Slot = { read: () => string; write: (text: string | null) => void };

/** The state of one view. A page may hold several (cells of a notebook), and each has a state of its own. */
export class App {
  /** The run that is drawn: with edits, or with `show=base` the one without them. */
  readonly trace: { readonly value: Trace };
  /** The same text without edits, where there is such a run. */
  readonly base: ReadonlySignal<Trace | null>;
  /** The run with its edits, whichever is drawn. */
  readonly edited: ReadonlySignal<Trace>;
  /** "base", "edited" or "difference". */
  readonly showing: Signal<string>;
  /** What is changed, as edits.tsx writes it; empty if nothing is. */
  readonly edits: Signal<string>;
  /** Both runs while their difference is shown. */
  readonly pair: ReadonlySignal<{ base: Trace; edited: Trace } | null>;
  readonly server: Server | null;
  readonly examples: Example[];
  readonly readings: Reading[];

  readonly screen: Signal<string>;
  readonly layer: Signal<number>;
  readonly head: Signal<number>;
  readonly query: Signal<number>;
  readonly key: Signal<number>;
  /** -1 until one is chosen. */
  readonly neuron: Signal<number>;
  /** The token id that lenses and attribution follow; -1 is the trace's own target. */
  readonly token: Signal<number>;
  /** The reading that is open; empty if none is. */
  readonly reading: Signal<string>;
  readonly hover = signal<Hover>({});
  /** What a screen reader is told of the cell under the cursor. */
  readonly said = signal("");
  /** What the last action did, for everyone. */
  readonly notice = signal("");
  readonly fault = signal<{ message: string; remedy: string } | null>(null);
  readonly busy = signal("");
  readonly theme: Signal<string>;
  readonly systemDark = signal(matchMedia("(prefers-color-scheme: dark)").matches);
  readonly dark: ReadonlySignal<boolean>;

  /** The token that rows and columns light up for: under the pointer, else selected. */
  readonly atQuery: ReadonlySignal<number>;
  readonly atKey: ReadonlySignal<number>;
  // Computed, so that what depends on the layer is not drawn again for each move of the pointer.
  private readonly atLayer: ReadonlySignal<number>;
  private readonly atHead: ReadonlySignal<number>;

  private readonly runs: Signal<{ run: Trace; base: Trace | null }>;
  /** What `trace` says while the two runs of a difference are drawn one after another. */
  private instead: Trace | null = null;

  private readonly slots = new Map<string, Slot>();
  private started = false;
  /** What the address was when it was last read or written. */
  private address = "";

  constructor(
    source: Source & { trace: Trace },
    /** The element that the view is in. */
    readonly root: HTMLElement,
    /** False in a notebook, whose address is not ours. */
    readonly linked: boolean,
  ) {
    // A page may hold the two runs in either order; the one without edits is the base.
    const swapped = source.second && source.second.header.edits.length > 0 && !source.trace.header.edits.length;
    this.runs = signal(swapped ? { run: source.second!, base: source.trace } : { run: source.trace, base: source.second });
    this.showing = this.param("show", "edited");
    this.edits = this.param("edits", "");
    this.base = computed(() => this.runs.value.base);
    this.edited = computed(() => this.runs.value.run);
    const drawn = computed(() => (this.showing.value === "base" ? this.runs.value.base : null) ?? this.runs.value.run);
    const now = () => this.instead ?? drawn.value;
    this.trace = {
      get value() {
        return now();
      },
    };
    this.pair = computed(() => {
      const { run, base } = this.runs.value;
      const comparable = base && base.length === run.length && base.layers === run.layers && base.heads === run.heads;
      return comparable && this.showing.value === "difference" ? { base, edited: run } : null;
    });
    this.server = source.server;
    this.examples = source.examples;
    this.readings = source.readings;
    this.screen = this.param("", "overview");
    this.layer = this.param("layer", 0);
    this.head = this.param("head", 0);
    this.query = this.param("q", -1);
    this.key = this.param("k", -1);
    this.neuron = this.param("neuron", -1);
    this.token = this.param("token", -1);
    this.reading = this.param("reading", "");
    this.theme = this.param("theme", "auto");
    this.dark = computed(() => (this.theme.value === "auto" ? this.systemDark.value : this.theme.value === "dark"));
    const last = () => this.trace.value.length - 1;
    const clamp = (at: number) => (at < 0 ? last() : Math.min(at, last()));
    this.atQuery = computed(() => clamp(this.hover.value.query ?? this.query.value));
    this.atKey = computed(() => this.hover.value.key ?? Math.min(this.key.value, last()));
    const within = (value: number, size: number) => Math.max(0, Math.min(size - 1, Math.round(value)));
    this.atLayer = computed(() => within(this.hover.value.layer ?? this.layer.value, this.trace.value.layers));
    this.atHead = computed(() => within(this.hover.value.head ?? this.head.value, this.trace.value.heads));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => (this.systemDark.value = event.matches));
  }

  /** A value that a link restores; the same name gives the same signal. */
  param<T extends string | number | boolean>(name: string, initial: T): Signal<T> {
    const known = this.params.get(name);
    if (known) return known as Signal<T>;
    const made = signal<T>(initial);
    const read = (text: string | null): T => {
      if (text === null) return initial;
      if (typeof initial === "number") return (Number.isFinite(Number(text)) ? Number(text) : initial) as T;
      if (typeof initial === "boolean") return (text === "1") as T;
      return text as T;
    };
    const write = (value: T): string => {
      if (value === initial && name) return "";
      return typeof value === "boolean" ? (value ? "1" : "0") : String(value);
    };
    this.params.set(name, made);
    this.slots.set(name, { read: () => write(made.value), write: (text) => (made.value = read(text)) });
    this.known.value = this.slots.size;
    const waiting = this.pending.get(name);
    if (waiting !== undefined) made.value = read(waiting);
    return made;
  }
  /** How many parameters there are: the address has to be written anew when a screen brings its own. */
  private readonly known = signal(0);
  private readonly params = new Map<string, Signal<any>>();
  /** What the address said of parameters that no screen has asked for yet. */
  private readonly pending = new Map<string, string>();

  /** Read the address, and keep it true from now on. */
  start(): void {
    if (this.started || !this.linked) return;
    this.started = true;
    this.readHash();
    addEventListener("hashchange", () => this.readHash());
    let waiting = 0;
    effect(() => {
      void this.hash();
      clearTimeout(waiting);
      waiting = window.setTimeout(() => this.writeHash(), 120); // browsers count how often an address changes
    });
  }

  private writeHash(): void {
    // An address that was not read yet is that of a link that was just followed, which goes before what is shown.
    if (location.hash !== this.address) return;
    const hash = this.hash();
    try {
      history.replaceState(null, "", hash);
    } catch {
      location.hash = hash; // a sandboxed frame may not replace its state
    }
    this.address = location.hash;
  }

  private readHash(): void {
    this.address = location.hash;
    const [screen, rest] = location.hash.replace(/^#/, "").split("?");
    const said = new URLSearchParams(rest ?? "");
    batch(() => {
      for (const [name, text] of said) this.pending.set(name, text);
      // Read as a parameter, a screen whose name is cut off in the middle of a sign is an unknown one and no error.
      for (const [name, slot] of this.slots) slot.write(name ? said.get(name) : new URLSearchParams(`at=${screen}`).get("at") || null);
    });
  }

  /** The address of this very state. */
  hash(): string {
    const said = new URLSearchParams();
    void this.known.value;
    for (const [name, slot] of this.slots) {
      const text = slot.read();
      if (name && text) said.set(name, text);
    }
    const rest = said.toString();
    return `#${encodeURIComponent(this.screen.value)}${rest ? "?" + rest : ""}`;
  }


  /** The layer and the head that are looked at, within what the model has. */
  at(): { layer: number; head: number } {
    return { layer: this.atLayer.value, head: this.atHead.value };
  }

  /** Do something that may fail, and show how it failed. */
  async attempt(what: string, action: () => Promise<void>): Promise<void> {
    this.busy.value = what;
    this.fault.value = null;
    try {
      await action();
    } catch (fault) {
      const remedy = fault instanceof Error && "remedy" in fault ? String(fault.remedy) : "";
      this.fault.value = { message: fault instanceof Error ? fault.message : String(fault), remedy };
    } finally {
      this.busy.value = "";
    }
  }

  /** Open a reading beside what is shown. */
  read(slug: string): void {
    this.reading.value = slug;
  }

  /** Make something of one of the two runs, whichever is shown. */
  of<T>(trace: Trace, make: () => T): T {
    const before = this.instead;
    this.instead = trace;
    try {
      return make();
    } finally {
      this.instead = before;
    }
  }

  /** What a request needs to be about this run: the server remembers the edited one and the one before. */
  about(trace: Trace): { plain?: boolean } {
    return trace === this.base.peek() ? { plain: true } : {};
  }

  /** Show an edited run beside the one before; null shows the latter alone. */
  change(edited: Trace | null): void {
    const base = this.base.peek() ?? this.runs.peek().run;
    this.runs.value = edited ? { run: edited, base } : { run: base, base: null };
  }

  /** Show a run of another text. */
  show(trace: Trace): void {
    batch(() => {
      this.runs.value = { run: trace, base: null };
      this.edits.value = "";
      this.hover.value = {};
      this.query.value = -1;
      this.key.value = -1;
      this.token.value = -1;
    });
  }
}

export const AppContext = createContext<App>(null as unknown as App);
export const useApp = (): App => useContext(AppContext);

/** A value of a screen's own that a link restores. */
export function useParam<T extends string | number | boolean>(name: string, initial: T): Signal<T> {
  const app = useApp();
  return useState(() => app.param(name, initial))[0];
}

/** A command that makes numbers of the run that is shown; null if none does: of edited runs, or of a model that is in no file. */
export function commandOf(app: App, verb: string, more = ""): string | null {
  const { shell } = app.trace.value.header.calls;
  // A token of bytes that are no character cannot be written.
  return shell && !more.includes("\ufffd") ? `${shell.replace(/^pellucid view/, `pellucid ${verb}`).replace(/ --html page\.html$/, "")} ${more}`.trimEnd() : null;
}

/** The command that writes checkpoints of the run that is shown to a file. */
export const keeping = (app: App, names: string[]): string | null => commandOf(app, "run", `${names.map((name) => `--names ${name}`).join(" ")} --save values.safetensors`);
