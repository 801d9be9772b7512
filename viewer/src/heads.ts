// Attention heads: small pictures of their patterns, and the exact steps from queries and keys to shares.

import { max } from "d3-array";
import { once } from "./lists";
import { asked, type Server } from "./source";
import type { App } from "./state";
import { wholePattern, type Pattern, type Trace } from "./trace";

export type Small = { cells: number; values: Float32Array };

const smalls = once<Trace, Map<string, Small>>(() => new Map());
const MOST_CELLS = 64;

/** A pattern in at most 64 by 64 cells; each shows the largest share in it, so thin stripes stay visible. */
export function small(trace: Trace, layer: number, head: number): Small {
  const known = smalls(trace);
  const name = `${layer}.${head}`;
  const found = known.get(name);
  if (found) return found;
  const pattern = trace.pattern(layer, head);
  const cells = Math.min(MOST_CELLS, pattern.cells);
  const values = new Float32Array(cells * cells);
  for (let q = 0; q < pattern.cells; q++) {
    const row = Math.floor((q * cells) / pattern.cells) * cells;
    for (let k = 0; k <= q; k++) {
      const at = row + Math.floor((k * cells) / pattern.cells);
      const value = pattern.at(q, k);
      if (value > values[at]) values[at] = value;
    }
  }
  const made = { cells, values };
  known.set(name, made);
  return made;
}

/** The pattern of a head: of a long text the server's, in a file and until that is there means over cells. */
export function patternOf(app: App, trace: Trace, layer: number, head: number): Pattern {
  const pattern = trace.pattern(layer, head);
  if (!pattern.pooled) return pattern;
  const n = trace.length;
  const ask = (server: Server, about: object) => server.values(`blocks.${layer}.attn.ckpt_pattern`, { heads: [head], ...about });
  const whole = asked(app, `pattern ${layer}.${head}`, "Asking for the whole pattern", ask, "pattern");
  return whole ? wholePattern(n, (q, k) => whole.data[q * n + k]) : pattern;
}

/** Queries and keys of one layer, [pos, head, d_head]. */
export type Vectors = { q: Float32Array; k: Float32Array; size: number; heads: number; keyHeads: number };

const decoded = once<Trace, Map<number, Vectors>>(() => new Map());

/** The queries and keys of a layer: from the trace, else asked of the server; null until they are there. */
export function vectors(app: App, layer: number): Vectors | null {
  const trace = app.trace.value;
  const [q, k] = [trace.block("attention.q"), trace.block("attention.k")];
  if (q && k) {
    const known = decoded(trace);
    const found = known.get(layer) ?? { q: q.slice(layer), k: k.slice(layer), size: q.shape[3], heads: q.shape[2], keyHeads: k.shape[2] };
    known.set(layer, found);
    return found;
  }
  const turned = trace.header.schema.points.some((point) => point.short === "attn.ckpt_rot_q") ? "rot_" : "";
  return asked(app, `queries ${layer}`, "Asking for queries and keys", async (server, about) => {
    const [queries, keys] = await Promise.all(["q", "k"].map((letter) => server.values(`blocks.${layer}.attn.ckpt_${turned}${letter}`, about)));
    const [heads, size] = queries.shape.slice(-2);
    return { q: queries.data, k: keys.data, size, heads, keyHeads: keys.shape.at(-2)! };
  });
}

export type Step = { key: number; product: number; scaled: number; share: number; masked: boolean };

/** From q · k to shares for one query: every key, and the later ones that are masked. */
export function steps(found: Vectors, scale: number, head: number, query: number, tokens: number): Step[] {
  const group = Math.floor((head * found.keyHeads) / found.heads);
  const from = (query * found.heads + head) * found.size;
  const out: Step[] = [];
  for (let key = 0; key < tokens; key++) {
    const to = (key * found.keyHeads + group) * found.size;
    let product = 0;
    for (let i = 0; i < found.size; i++) product += found.q[from + i] * found.k[to + i];
    out.push({ key, product, scaled: product * scale, share: 0, masked: key > query });
  }
  const seen = out.slice(0, query + 1);
  const most = max(seen, (step) => step.scaled)!;
  let sum = 0;
  for (const step of seen) sum += step.share = Math.exp(step.scaled - most);
  for (const step of seen) step.share /= sum;
  return out;
}
