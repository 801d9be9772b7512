// The river's arithmetic: the parts of one logit, grouped into streams that grow from layer to layer.

import { once } from "./lists";
import { PARTS, type Trace } from "./trace";
import { visible } from "./text";

/** One part of the logit: a component of the model, and for heads each source token. */
export type Part = { name: string; layer: number | null; head: number | null; kind: "embed" | "attention" | "mlp" | "bias"; value: number; source: number | null };

export type Streams = {
  names: string[];
  /** [stream][step]: what each has added up to and with each step. */
  sums: number[][];
  steps: string[];
  /** The sum of all parts in order, in float64. */
  total: number;
  logit: number;
};

/** Every part, in execution order; a head's part is split by source token where the trace says how. */
export const partsOf = once((trace: Trace): Part[] => {
  const block = trace.need(PARTS);
  const sources = trace.block("attribution.sources");
  const out: Part[] = [];
  block.entry.of!.forEach((name, i) => {
    const found = /^blocks\.(\d+)\.(\w+)(?:\[(\d+)\])?(\.b_O)?/.exec(name);
    const value = block.value(i);
    if (!found) {
      out.push({ name, layer: null, head: null, kind: name.includes("embed") ? "embed" : "bias", value, source: null });
      return;
    }
    const layer = Number(found[1]);
    const head = found[3] === undefined ? null : Number(found[3]);
    const kind = found[2] === "mlp" ? "mlp" : found[4] ? "bias" : "attention";
    if (head === null || !sources) {
      out.push({ name, layer, head, kind, value, source: null });
      return;
    }
    let said = 0;
    for (let pos = 0; pos < trace.length; pos++) {
      const part = sources.at(layer, head, pos);
      if (!part) continue;
      said += part;
      out.push({ name, layer, head, kind, value: part, source: pos });
    }
    // Sources are stored in float32: what they miss of the head's part stays a part of its own, so that the sum closes.
    out.push({ name, layer, head, kind, value: value - said, source: null });
  });
  return out;
});

const MOST_STREAMS = 7;

function groupOf(part: Part, by: string, trace: Trace): string {
  if (by === "layer") return part.layer === null ? (part.kind === "embed" ? "embeddings" : "final offset") : `layer ${part.layer}`;
  if (by === "kind" || part.kind !== "attention") return { embed: "embeddings", mlp: "MLPs", bias: "offsets", attention: "attention" }[part.kind];
  if (by === "head") return `head ${part.layer}.${part.head}`;
  return part.source === null ? "offsets" : `${part.source} ${visible(trace.header.tokens[part.source].text)}`;
}

/** A component's name as bars say it: "3 head 0". */
export const shortName = (name: string): string => name.replace(/^blocks\./, "").replace(".attn[", " head ").replace("]", "").replace(".attn.b_O", " b_O").replace(".mlp", " MLP");

/** Streams by source token, head, layer or kind; beyond the largest, heads or tokens flow together. */
export function streams(trace: Trace, by: string, minus: Trace | null = null): Streams {
  const parts = minus ? [...partsOf(trace), ...partsOf(minus).map((part) => ({ ...part, value: -part.value }))] : partsOf(trace);
  const steps = ["embeddings"];
  for (let layer = 0; layer < trace.layers; layer++) steps.push(`${layer} attention`, `${layer} MLP`);
  steps.push("final offset");
  const stepOf = (part: Part) => (part.layer === null ? (part.kind === "embed" ? 0 : steps.length - 1) : 1 + 2 * part.layer + (part.kind === "mlp" ? 1 : 0));
  const size = new Map<string, number>();
  for (const part of parts) {
    const name = groupOf(part, by, trace);
    size.set(name, (size.get(name) ?? 0) + part.value);
  }
  const fixed = ["embeddings", "MLPs", "offsets", "attention", "final offset"];
  const free = [...size.keys()].filter((name) => !fixed.includes(name));
  const kept = by === "layer" ? free : [...free].sort((a, b) => Math.abs(size.get(b)!) - Math.abs(size.get(a)!)).slice(0, MOST_STREAMS);
  const rest = by === "head" ? "other heads" : "other tokens";
  const names = [...new Set([...(size.has("MLPs") ? ["MLPs"] : []), ...kept, ...(kept.length < free.length ? [rest] : []), ...fixed.filter((name) => size.has(name))])];
  const adds = names.map(() => steps.map(() => 0));
  let total = 0;
  for (const part of parts) {
    const name = groupOf(part, by, trace);
    const at = names.indexOf(names.includes(name) ? name : rest);
    adds[at][stepOf(part)] += part.value;
  }
  const block = trace.need(PARTS);
  for (let i = 0; i < block.size; i++) total += block.value(i);
  const sums = adds.map((row) => {
    let sum = 0;
    return row.map((value) => (sum += value));
  });
  return { names, sums, steps, total, logit: trace.need("attribution.logit").value(0) - (minus?.need("attribution.logit").value(0) ?? 0) };
}
