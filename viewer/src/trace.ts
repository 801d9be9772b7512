// Reads `pellucid-trace/1`: a header in JSON and named blocks of numbers (docs/trace.md says what each block holds).

import { each } from "./lists";

export type Code = { kind: "sqrt" } | { kind: "linear"; low: number; high: number };
export type Outlier = { dimension: number; mean_abs: number };
export type BlockEntry = {
  dtype: "u8" | "u16" | "u32" | "f16" | "f32" | "f64";
  shape: number[];
  offset: number;
  code?: Code & { edges?: number[] };
  layout?: "lower";
  of?: string[];
  of_variance?: number[][];
  clipped?: number[][];
  total?: number[][];
  outliers?: Outlier[][][];
};
export type Point = {
  name: string;
  block: number | null;
  short: string;
  axes: string[];
  shape: number[];
  unit: string;
  meaning: string;
  equation: string;
  computed: string;
};
export type Parameter = { name: string; axes: string[]; shape: number[]; stored_in: string };
export type TraceEdit = { name: string; heads: number[] | null; pos: number[] | null; how: string; python: string };
export type Header = {
  format: string;
  model: {
    name: string;
    family: string;
    fingerprint: string;
    sizes: Record<string, number>;
    tied: boolean;
    numerics: string;
    dtype: string;
  };
  versions: Record<string, string>;
  made: string;
  text: string;
  tokens: { id: number; text: string }[];
  vocabulary: Record<string, string>;
  schema: { points: Point[]; parameters: Parameter[] };
  /** The features of an autoencoder, which are shown in the place of neurons. */
  features?: { count: number; at: string; kind: Point };
  /** What makes this very run again, and (values) what binds `model`, `logits` and `ckpts`; null if it cannot be said in a line. */
  calls: { python: string | null; shell: string | null; values?: string | null };
  target: { id: number; text: string; pos: number; why: string };
  /** The factor of q · k, for each layer. */
  attention?: { scale: number[] };
  edits: TraceEdit[];
  left_out: { what: string; why: string; bytes: number }[];
  blocks: Record<string, BlockEntry>;
};

type Numbers = Uint8Array | Uint16Array | Uint32Array | Float32Array | Float64Array;

export class TraceError extends Error {}

const WIDTH = { u8: 1, u16: 2, u32: 4, f16: 2, f32: 4, f64: 8 } as const;

/** The value of a 16-bit float. */
function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

let halves: Float32Array | null = null;

/** All 65,536 halves once: a table is faster than arithmetic for millions of values. */
function halfTable(): Float32Array {
  if (!halves) {
    halves = new Float32Array(65536);
    for (let bits = 0; bits < 65536; bits++) halves[bits] = half(bits);
  }
  return halves;
}

/** One block: its shape, its raw numbers, and `at(...)` that gives the value at an index. */
export class Block {
  readonly shape: number[];
  readonly size: number;
  /** False if the numbers are approximate (a linear code); they are then shown with "≈". */
  readonly exact: boolean;
  private table: Float32Array | null = null;

  constructor(
    readonly name: string,
    readonly entry: BlockEntry,
    readonly raw: Numbers,
  ) {
    this.shape = entry.shape;
    this.size = raw.length;
    this.exact = !entry.code && entry.dtype !== "f16";
    const code = entry.code;
    if (code) {
      this.table = new Float32Array(256);
      for (let byte = 0; byte < 256; byte++) {
        this.table[byte] =
          code.kind === "sqrt" ? (byte / 255) ** 2 : code.low + (byte / 255) * (code.high - code.low);
      }
    } else if (entry.dtype === "f16") this.table = halfTable();
  }

  /** The value at a flat index. */
  value(index: number): number {
    const raw = this.raw[index];
    return this.table ? this.table[raw] : raw;
  }

  /** The flat index of the first element at the leading indices that are given. */
  index(...where: number[]): number {
    let flat = 0;
    for (let axis = 0; axis < this.shape.length; axis++) flat = flat * this.shape[axis] + (where[axis] ?? 0);
    return flat;
  }

  at(...where: number[]): number {
    return this.value(this.index(...where));
  }

  /** The values of the last axes as a Float32Array, at the leading indices that are given. Not to be written to: it may be the trace itself. */
  slice(...where: number[]): Float32Array {
    const rest = this.shape.slice(where.length).reduce((a, b) => a * b, 1);
    const start = this.index(...where);
    if (this.raw instanceof Float32Array) return this.raw.subarray(start, start + rest);
    const out = new Float32Array(rest);
    for (let i = 0; i < rest; i++) out[i] = this.value(start + i);
    return out;
  }
}

/** One attention pattern, whole or as means over cells of a long text. */
export type Pattern = {
  /** Rows and columns that there are values for. */
  cells: number;
  /** True if each cell is a mean over several tokens. */
  pooled: boolean;
  /** First token of each cell, and the end. */
  edges: number[];
  at(query: number, key: number): number;
};

/** A pattern with a value for each query and each key up to it. */
export const wholePattern = (cells: number, at: (query: number, key: number) => number): Pattern => ({
  cells,
  pooled: false,
  edges: each(cells + 1, (i) => i),
  at: (q, k) => (k > q ? 0 : at(q, k)),
});

export class Trace {
  private made = new Map<string, Block>();

  constructor(
    readonly header: Header,
    private readonly buffer: ArrayBuffer,
    private readonly start: number,
  ) {}

  get length(): number {
    return this.header.tokens.length;
  }
  get layers(): number {
    return this.header.model.sizes.layer;
  }
  get heads(): number {
    return this.header.model.sizes.head;
  }

  has(name: string): boolean {
    return name in this.header.blocks;
  }

  /** The block of this name, or null if the trace does not hold it. */
  block(name: string): Block | null {
    const known = this.made.get(name);
    if (known) return known;
    const entry = this.header.blocks[name];
    if (!entry) return null;
    const count = entry.shape.reduce((a, b) => a * b, 1);
    const at = this.start + entry.offset;
    const made = new Block(name, entry, read(entry.dtype, this.buffer, at, count));
    this.made.set(name, made);
    return made;
  }

  /** The block of this name; an error if the trace does not hold it, for blocks that are always there. */
  need(name: string): Block {
    const block = this.block(name);
    if (!block) throw new TraceError(`the trace holds no block ${name}`);
    return block;
  }

  /** The piece of a token id. */
  piece(id: number): string {
    return String(this.header.vocabulary[id] ?? `#${id}`);
  }

  pattern(layer: number, head: number): Pattern {
    const whole = this.block("attention.pattern");
    if (whole) {
      const start = whole.index(layer, head, 0);
      return wholePattern(this.length, (q, k) => whole.value(start + (q * (q + 1)) / 2 + k));
    }
    const pooled = this.need("attention.pooled");
    const cells = pooled.shape[2];
    const start = pooled.index(layer, head, 0, 0);
    const edges = pooled.entry.code?.edges ?? each(cells + 1, (i) => Math.floor((i * this.length) / cells));
    return { cells, pooled: true, edges, at: (q, k) => pooled.value(start + q * cells + k) };
  }
}

function read(dtype: BlockEntry["dtype"], buffer: ArrayBuffer, at: number, count: number): Numbers {
  switch (dtype) {
    case "u8":
      return new Uint8Array(buffer, at, count);
    case "u16":
    case "f16":
      return new Uint16Array(buffer, at, count);
    case "u32":
      return new Uint32Array(buffer, at, count);
    case "f32":
      return new Float32Array(buffer, at, count);
    case "f64":
      return new Float64Array(buffer, at, count);
  }
}

const POINT = { name: "", short: "", axes: [""], shape: [0], unit: "", meaning: "", equation: "" };
/** What a header says: texts where "" stands, whole numbers where 0 does, any numbers where 0.5 does; entries of a list are like its first. */
const HEADER = {
  model: { name: "", family: "", fingerprint: "", numerics: "", dtype: "", sizes: { layer: 0, head: 0, d_vocab: 0 } },
  versions: { pellucid: "" },
  made: "",
  text: "",
  tokens: [{ id: 0, text: "" }],
  vocabulary: {},
  schema: { points: [POINT], parameters: [{ name: "", shape: [0] }] },
  calls: {},
  target: { id: 0, text: "", pos: 0, why: "" },
  edits: [{ name: "", how: "" }],
  left_out: [{ what: "", why: "", bytes: 0 }],
  blocks: {},
};
const OF_DISTRIBUTIONS = { clipped: [[0]], total: [[0]], outliers: [[[{ dimension: 0, mean_abs: 0.5 }]]] };

/** See that a value is made like an example. */
export function like(value: any, example: any, where: string): void {
  const isList = Array.isArray(example);
  const kind = typeof example;
  const right = kind === "number" ? typeof value === kind && (example || (Number.isSafeInteger(value) && value >= 0)) : kind === "string" ? typeof value === kind : value && typeof value === "object" && Array.isArray(value) === isList;
  if (!right) throw new TraceError(`${where} is ${JSON.stringify(value)?.slice(0, 60)}, expected ${kind === "object" ? (isList ? "a list" : "an object") : kind === "string" ? "a text" : "a number"}`);
  if (kind === "object") for (const key of Object.keys(isList ? value : example)) like(value[key], isList ? example[0] : example[key], `${where}.${key}`);
}

/** The block with all parts of the logit. */
export const PARTS = "attribution.components";

/** Axes -> the blocks that have them; `of` is as long as the block's list of names, `lower` counts the keys of all queries. */
const SHAPES: Record<string, string> = {
  "of layer head": "attention.measures",
  "of layer pos": "norms",
  d_vocab: "prediction.logits",
  "pos top": "prediction.top.ids prediction.top.logprobs",
  "rows pos listed": "lens.ids lens.logprobs",
  "rows pos": "lens.entropy lens.kl lens.rank lens.target_logprob lens.next_rank lens.next_logprob",
  "layer head lower": "attention.pattern",
  "layer head 64 64": "attention.pooled",
  "layer pos head d_head": "attention.q",
  "layer pos head_kv d_head": "attention.k",
  "layer head pos": "attention.value_norm attribution.sources",
  of: PARTS,
  one: "attribution.logit",
  "layer pos d_mlp": "neurons.pre neurons.post",
  "layer d_mlp": "neurons.effect",
  "one pos features": "features.post",
  "one features": "features.effect",
  "of pos 3": "embeddings.pca",
  "2 norms 41": "distributions.edges",
  "2 of 40": "distributions.counts",
};
/** The blocks of so many of them, the first, and one of the patterns are in every trace. */
const ALWAYS = 6;
const MOST_HEADS = 1 << 12;

/** See that a header says what the page reads, and that its blocks have the shapes that it says. */
function check(header: Header): void {
  const { model, tokens, schema, target, features, attention, blocks, calls, edits, vocabulary } = header;
  const [pos, { sizes }] = [tokens.length, model];
  if (!pos || target.pos >= pos) throw new TraceError(`the trace has ${pos} tokens, and its target is at ${target.pos}`);
  if (sizes.head > MOST_HEADS) throw new TraceError(`the trace has ${sizes.head} heads in a layer, expected at most ${MOST_HEADS}`);
  const every = (values: object, example: unknown, where: string) => Object.entries(values).forEach(([name, value]) => (value ?? null) !== null && like(value, example, `${where}.${name}`));
  every(calls, "", "calls");
  every(sizes, 0, "header.model.sizes");
  every(vocabulary, "", "vocabulary");
  for (const { heads, pos } of edits) for (const [name, value] of Object.entries({ heads, pos })) every({ [name]: value }, typeof value === "string" ? "" : [0.5], "edits");
  if (features) like(features, { count: 0, at: "", kind: { ...POINT, block: 0 } }, "features");
  const named = Object.entries(SHAPES).map(([axes, names]) => [axes.split(" "), names.split(" ")]);
  const lacks = named.slice(0, ALWAYS).flatMap(([, names]) => names).find((name) => !blocks[name]) ?? (blocks["attention.pattern"] || blocks["attention.pooled"] ? null : "attention.pattern");
  if (lacks) throw new TraceError(`the trace holds no block ${lacks}`);
  const known: Record<string, number> = { ...sizes, pos, lower: (pos * (pos + 1)) / 2, ["rows"]: sizes.layer + 1, top: Math.min(20, sizes.d_vocab), listed: Math.min(10, sizes.d_vocab), features: features?.count ?? 0, one: 1, norms: blocks["distributions.counts"]?.of?.length ?? 0 };
  const has = (name: string, shape: number[], expected: number[]) => {
    if (String(shape) !== String(expected)) throw new TraceError(`${name} is [${shape}], expected [${expected}]`);
  };
  if (attention) {
    like(attention, { scale: [0.5] }, "attention");
    has("attention.scale", [attention.scale.length], [sizes.layer]);
  }
  const edges = blocks["attention.pooled"]?.code?.edges;
  if (edges) has("the edges of attention.pooled", [edges.length], [65]);
  for (const [axes, names] of named) {
    for (const name of names.filter((name) => blocks[name])) {
      const { of, shape } = blocks[name];
      if (axes.includes("of")) like(of, [""], `${name}.of`);
      has(`block ${name}`, shape, axes.map((axis) => (axis === "of" ? of!.length : (known[axis] ?? Number(axis)))));
    }
  }
  for (const point of schema.points) {
    every({ block: point.block }, 0, point.name);
    has(`the shape of ${point.name}`, point.shape, point.axes.map((axis, i) => (/^(pos|query|key)$/.test(axis) ? pos : /^head/.test(axis) ? Math.min(point.shape[i], MOST_HEADS) : point.shape[i])));
    const entry = blocks[`atlas.${point.name}`];
    if (entry) has(`block atlas.${point.name}`, entry.shape, entry.layout === "lower" ? [point.shape[1], known.lower] : point.shape.slice(1));
  }
  const [counts, pca, parts] = [blocks["distributions.counts"], blocks["embeddings.pca"], blocks[PARTS]];
  const beyond = parts?.of!.find((name) => Number(/^blocks\.(\d+)/.exec(name)?.[1] ?? -1) >= sizes.layer);
  if (beyond) throw new TraceError(`attribution.components names ${beyond}, but the model has ${sizes.layer} layers`);
  if (counts) {
    like(counts, OF_DISTRIBUTIONS, "distributions.counts");
    for (const list of [counts.clipped!, counts.total!, counts.outliers!]) has("a list of distributions.counts", list.map((side) => side.length), [known.norms, known.norms]);
    if (!blocks["distributions.edges"]) throw new TraceError("the trace holds no block distributions.edges");
  }
  if (pca) {
    like(pca.of_variance, [[0.5]], "embeddings.pca.of_variance");
    has("embeddings.pca.of_variance", pca.of_variance!.map((shares) => shares.length), pca.of!.map(() => 3));
  }
}

/** A trace from its bytes; raises TraceError with a plain sentence if they are damaged or say something untrue. */
function parseTrace(buffer: ArrayBuffer): Trace {
  const bytes = buffer.byteLength;
  if (bytes < 8) throw new TraceError(`the trace has ${bytes} bytes, expected at least 8`);
  const size = new DataView(buffer).getUint32(0, true);
  if (4 + size > bytes) throw new TraceError(`the trace's header should have ${size} bytes, but only ${bytes - 4} are there`);
  let header: Header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(buffer, 4, size)));
  } catch {
    throw new TraceError("the trace's header is no JSON text");
  }
  if (header?.format !== "pellucid-trace/1") {
    throw new TraceError(`the trace's format is ${JSON.stringify(header?.format)}, expected "pellucid-trace/1"`);
  }
  like(header, HEADER, "the trace's header");
  const start = Math.ceil((4 + size) / 8) * 8;
  for (const [name, entry] of Object.entries(header.blocks)) {
    like(entry, { dtype: "", shape: [0], offset: 0 }, `the trace's block ${name}`);
    const width = Object.hasOwn(WIDTH, entry.dtype) ? WIDTH[entry.dtype] : 0;
    if (!width) throw new TraceError(`block ${name} has the unknown type ${JSON.stringify(entry.dtype)}`);
    const end = start + entry.offset + width * entry.shape.reduce((a, b) => a * b, 1);
    if (entry.offset % width || end > bytes) throw new TraceError(`block ${name} ends at byte ${end}, but the trace has ${bytes} bytes`);
    const { code, of } = entry;
    if (of !== undefined && typeof of !== "string") like(of, [""], `${name}.of`);
    if (code?.edges) like(code.edges, [0], `${name}.code.edges`);
    if (code && (entry.dtype !== "u8" || (code.kind !== "sqrt" && !(code.kind === "linear" && Number.isFinite(code.low) && Number.isFinite(code.high))))) throw new TraceError(`block ${name} has the unknown code ${JSON.stringify(code)}`);
  }
  check(header);
  return new Trace(header, buffer, start);
}

/** The text's ids as Python writes them, which a model without a tokenizer takes, too. */
export const idsIn = ({ header }: Trace): string => `[[${header.tokens.map((token) => token.id).join(", ")}]]`;

/** Whether the model has no tokenizer: its tokens are then their ids. */
export const isBare = ({ header }: Trace): boolean => header.tokens.every(({ text, id }) => text === String(id));

const LARGEST = 1 << 28;

/** Undo zlib's deflate, of so many bytes as a page can show. */
async function inflate(bytes: Uint8Array<ArrayBuffer>): Promise<ArrayBuffer> {
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const parts: Uint8Array<ArrayBuffer>[] = [];
  for (let size = 0; ; ) {
    const { value, done } = await reader["read"]();
    if (done) return new Blob(parts).arrayBuffer();
    parts.push(value as Uint8Array<ArrayBuffer>);
    size += value.length;
    if (size > LARGEST) {
      void reader.cancel();
      throw new TraceError(`the trace has more than ${LARGEST} bytes`);
    }
  }
}

/** A trace from the bytes of a file, or from their base64. */
export async function traceFrom(packed: string | Uint8Array<ArrayBuffer>): Promise<Trace> {
  let bytes: ArrayBuffer;
  try {
    bytes = await inflate(typeof packed === "string" ? fromBase64(packed) : packed);
  } catch (fault) {
    throw fault instanceof TraceError ? fault : new TraceError("the trace is damaged or cut off: its bytes cannot be unpacked");
  }
  return parseTrace(bytes);
}

/** The bytes of a base64 text. */
export function fromBase64(text: string): Uint8Array<ArrayBuffer> {
  const quick = (Uint8Array as { fromBase64?: (text: string) => Uint8Array<ArrayBuffer> }).fromBase64;
  if (quick) return quick(text); // ten times as fast, in browsers of 2025 and later
  const raw = atob(text.trim());
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}
