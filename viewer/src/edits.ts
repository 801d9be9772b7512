// Edits: what is selected, how it is changed, and the runs that the server makes of it.

import { effect, signal, type Signal } from "@preact/signals";
import { once } from "./lists";
import { neuronOf } from "./screens/neurons";
import type { ServerError } from "./source";
import type { App } from "./state";
import { pythonText, quoted } from "./text";
import { isBare, traceFrom, type Trace } from "./trace";

export type How = "zero" | "mean" | "patch";
export type What = "head" | "neuron" | "block" | "position" | "checkpoint";

/** One change. `at` is the head's or neuron's number, `pos` one position or all, `name` a checkpoint of a block. */
export type Edit = { what: What; layer: number; at?: number; pos?: number; name?: string; how: How; other?: string };

type Effect = { kl: number; tokens: [number, number]; logit_difference: [number, number] };
export type Judged = Effect & { control?: Effect & { head?: number; neuron?: number } };
/** What the edits of the run that is shown do: all together, and each alone if they are several. */
export type Effects = Judged & { each?: Judged[]; edits: Edit[] };

export const HOWS: Record<How, string> = { zero: "set to zero", mean: "set to its mean over the text", patch: "patched from a second text" };

/** The checkpoints that an edit is at. */
function namesOf({ what, name }: Edit): string[] {
  if (what === "head") return ["attn.ckpt_z"];
  if (what === "neuron") return ["mlp.ckpt_post"];
  if (what === "block") return ["attn.ckpt_attn_out", "mlp.ckpt_mlp_out"];
  return what === "position" ? ["resid_pre"] : [name ?? "resid_pre"];
}

/** What the server is asked for. */
const requests = (edit: Edit) =>
  namesOf(edit).map((name) => ({
    name,
    layer: edit.layer,
    how: edit.how,
    ...(edit.what === "head" ? { head: edit.at } : edit.what === "neuron" ? { neuron: edit.at } : {}),
    ...(edit.pos === undefined ? {} : { pos: edit.pos }),
    ...(edit.how === "patch" ? { other: edit.other } : {}),
  }));

/** An edit in words: "head 2.1 at ‘ John’". */
export function nameOf({ what, layer, at, pos, name }: Edit, trace: Trace): string {
  const part = { head: `head ${layer}.${at}`, neuron: `neuron ${layer}.${at}`, block: `block ${layer}`, position: `stream into block ${layer}`, checkpoint: `${name} of block ${layer}` }[what];
  return pos === undefined ? part : `${part} at ${quoted(trace.header.tokens[pos]?.text ?? String(pos))}`;
}

/** What the server is asked for; what one edit needs belongs together. */
export const asking = (edits: Edit[]) => edits.flatMap((edit, group) => requests(edit).map((one) => ({ ...one, group })));

/** Lines of Python that make the edited run: `model`, `logits` and `ckpts`. */
function valuesOf(base: Trace, edits: Edit[]): string | null {
  const lines = base.header.calls.values?.trimEnd();
  if (!lines) return null;
  const others = [...new Set(edits.filter((edit) => edit.how === "patch").map((edit) => edit.other ?? ""))];
  const call = (edit: Edit, name: string) => {
    const kind = { zero: "zero", mean: "mean_ablate", patch: "patch" }[edit.how];
    const source = edit.how === "patch" ? `, others[${others.indexOf(edit.other ?? "")}]` : "";
    const where = [...(edit.what === "head" ? [`heads=[${edit.at}]`] : edit.what === "neuron" ? [`neurons=[${edit.at}]`] : []), ...(edit.pos === undefined ? [] : [`pos=[${edit.pos}]`])];
    return `pl.Edit.${kind}(${[pythonText(`blocks.${edit.layer}.${name}`) + source, ...where].join(", ")})`;
  };
  const calls = edits.flatMap((edit) => namesOf(edit).map((name) => call(edit, name)));
  const before = others.length ? `others = [model.run_with_ckpts(other)[1] for other in [${others.map((other) => (isBare(base) ? `[[${other.match(/\d+/g)}]]` : pythonText(other))).join(", ")}]]\n` : "";
  return lines.replace(/^(logits, ckpts = .*)\)$/m, (_, run) => `${before}edits = [${calls.join(", ")}]\n${run}, edits=edits)`);
}

/** The edits that a link says; what cannot be read is no edit. */
export function editsOf(text: string): Edit[] {
  try {
    const found: unknown = JSON.parse(text || "[]");
    return Array.isArray(found) ? (found as Edit[]).filter((edit) => edit && typeof edit === "object" && edit.how in HOWS && Number.isInteger(edit.layer)) : [];
  } catch {
    return [];
  }
}

type Ran = { edits: string; effects: Signal<Effects | null>; past: Signal<string[]>; last: Promise<void> };

export const ranOf = once<App, Ran>(() => ({ edits: "", effects: signal(null), past: signal([]), last: Promise.resolve() }));

/** Keep the run that is shown true to `app.edits`, one request after another, and listen for the keys. */
export function followEdits(app: App, page: Document | HTMLElement): void {
  const ran = ranOf(app);
  effect(() => {
    if (app.edits.value !== ran.edits) ran.last = ran.last.then(() => runEdits(app));
  });
  page.addEventListener("keydown", (event) => onKey(app, event as KeyboardEvent));
}

/** Run what `app.edits` says. If that fails, the edits are again those of the run that is shown. */
async function runEdits(app: App): Promise<void> {
  const ran = ranOf(app);
  const wanted = app.edits.value;
  const server = app.server;
  if (!server || wanted === ran.edits) return;
  const base = app.base.peek() ?? app.trace.value;
  const edits = editsOf(wanted);
  const before = ran.edits;
  ran.edits = wanted;
  await app.attempt("Running the model with the edits", async () => {
    try {
      if (!edits.length) {
        ran.effects.value = null;
        if (!app.base.peek()) return;
        await server.trace("/api/run", { ids: base.header.tokens.map((token) => token.id), target: base.header.target.id });
        return app.change(null);
      }
      const answer = await server.json<{ trace: string; effects: Effects }>("/api/edit", { edits: asking(edits), target: base.header.target.id, control: true });
      const edited = await traceFrom(answer["trace"]);
      edited.header.calls.values = valuesOf(base, edits);
      edited.header.calls.shell = null;
      ran.effects.value = { ...answer.effects, edits };
      app.change(edited);
    } catch (fault) {
      ran.edits = before;
      app.edits.value = before;
      throw fault as ServerError;
    }
  });
}

function put(app: App, edits: Edit[], said: string): void {
  const ran = ranOf(app);
  ran.past.value = [...ran.past.value, app.edits.value].slice(-50);
  app.edits.value = edits.length ? JSON.stringify(edits) : "";
  app.notice.value = said;
}

export function add(app: App, edit: Edit): void {
  const edits = editsOf(app.edits.value);
  const name = nameOf(edit, app.trace.value);
  if (edits.some((one) => JSON.stringify(one) === JSON.stringify(edit))) app.notice.value = `${name} is already ${HOWS[edit.how]}.`;
  else put(app, [...edits, edit], `${name}: ${HOWS[edit.how]}. Press u to undo.`);
}

/** Show a run of a text that begins like the one before, with those of its edits that fit. */
export async function goOn(app: App, next: Trace): Promise<void> {
  const edits = editsOf(app.edits.value);
  const kept = edits.filter(({ how, pos }) => (pos === undefined ? how !== "patch" : pos < next.length));
  app.show(next);
  await ranOf(app).last;
  const lost = edits.length - kept.length;
  if (edits.length) put(app, kept, lost ? `${lost} of ${edits.length} edits do not fit this text and were taken back: patches of a whole text, or changes at tokens that are gone.` : "The edits stay.");
}

export const remove = (app: App, at: number): void => put(app, editsOf(app.edits.value).filter((_, i) => i !== at), "The edit was removed.");

export function undo(app: App): void {
  const ran = ranOf(app);
  const before = ran.past.value.at(-1);
  if (before === undefined) return void (app.notice.value = "There is nothing to undo.");
  ran.past.value = ran.past.value.slice(0, -1);
  app.edits.value = before;
  app.notice.value = "Undone.";
}

/** What the screen has selected, as an edit without its way; null where nothing can be edited. */
export function selected(app: App): Omit<Edit, "how"> {
  const { layer, head } = app.at();
  const trace = app.trace.value;
  const checkpoint = (name: string): Omit<Edit, "how"> | null => {
    const found = /^blocks\.\d+\.(.+)$/.exec(name);
    return found ? { what: "checkpoint", layer: Number(name.split(".")[1]), name: found[1] } : null;
  };
  const position = (row: number) => ({ what: "position" as const, layer: Math.max(0, Math.min(row < 0 ? 0 : row, trace.layers - 1)), pos: app.atQuery.value });
  switch (app.screen.value) {
    case "attention":
    case "river":
      return { what: "head", layer, at: head };
    case "neurons":
      if (trace.header.features) return { what: "block", layer };
      return { what: "neuron", layer, at: neuronOf(app) };
    case "lens":
      return position(app.param<number>("row", -1).value);
    case "prediction":
    case "embeddings":
      return position(0);
    case "atlas":
      return checkpoint(app.param<string>("tile", "").value) ?? { what: "block", layer };
    case "overview":
      return checkpoint(app.param<string>("point", "").value.replace(/^blocks\.\d+/, `blocks.${layer}`)) ?? { what: "block", layer };
    case "change":
      return chosen(app);
    default:
      return { what: "block", layer };
  }
}

/** What the form of the screen "Change it" says. */
export function chosen(app: App): Omit<Edit, "how"> {
  const { layer, head } = app.at();
  const what = app.param<string>("what", "head").value as What;
  const where = what === "position" || app.param<boolean>("here", false).value ? { pos: app.atQuery.value } : {};
  return { what, layer, ...(what === "head" ? { at: head } : what === "neuron" ? { at: neuronOf(app) } : {}), ...where };
}

/** The command that starts the server on this text and model. */
export function serveCommand(app: App): string {
  const { calls } = app.trace.value.header;
  const given = /^pellucid view ('(?:[^']|'"'"')*'|\S+)(.*) --html page\.html$/s.exec(calls.shell ?? "");
  return !given ? "pellucid serve" : given[1] === "--ids" ? `pellucid serve${given[2].replace(/^ \S+/, "")}` : `pellucid serve --text ${given[1]}${given[2]}`;
}

/** The keys x (zero), X (mean), p (patch) and u (undo), wherever something is selected and nobody is writing. */
function onKey(app: App, event: KeyboardEvent): void {
  const target = event.composedPath()[0];
  const writing = target instanceof HTMLElement && target.matches("input:not([type=checkbox], [type=radio], [type=range]), select, textarea, [contenteditable]");
  if (writing || event.ctrlKey || event.metaKey || event.altKey || !app.param<boolean>("keys", true).value) return;
  if (!["x", "X", "p", "u"].includes(event.key)) return;
  event.preventDefault();
  if (!app.server) {
    app.notice.value = `This page is one file and cannot run the model. To change something: ${serveCommand(app)}`;
    return;
  }
  if (event.key === "u") return undo(app);
  const other = app.param<string>("other", "").value;
  if (event.key === "p" && !other) {
    app.screen.value = "change";
    app.param<string>("how", "zero").value = "patch";
    app.notice.value = "Write the second text first.";
    requestAnimationFrame(() => app.root.querySelector<HTMLInputElement>("input[name=other]")?.focus());
    return;
  }
  add(app, { ...selected(app), how: event.key === "p" ? "patch" : event.key === "X" ? "mean" : "zero", ...(event.key === "p" ? { other } : {}) });
}
