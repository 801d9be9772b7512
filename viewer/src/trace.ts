// Reads `pellucid-trace/1`: a header in JSON and named blocks of numbers (docs/trace.md says what each block holds).

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

  /** The values of the last axes as a Float32Array, at the leading indices that are given. */
  slice(...where: number[]): Float32Array {
    const rest = this.shape.slice(where.length).reduce((a, b) => a * b, 1);
    const start = this.index(...where);
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
  edges: Array.from({ length: cells + 1 }, (_, i) => i),
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

  /** Why something is not in this trace, in the trace's own words; null if nothing is said. */
  missing(what: string): string | null {
    const found = this.header.left_out.find((one) => what.startsWith(one.what) || one.what.startsWith(what));
    return found ? found.why : null;
  }

  /** The piece of a token id. */
  piece(id: number): string {
    return this.header.vocabulary[String(id)] ?? `#${id}`;
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
    const edges = pooled.entry.code?.edges ?? Array.from({ length: cells + 1 }, (_, i) => Math.floor((i * this.length) / cells));
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

/** A trace from its bytes; raises TraceError with a plain sentence if they are damaged or say something untrue. */
export function parseTrace(buffer: ArrayBuffer): Trace {
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
  const start = Math.ceil((4 + size) / 8) * 8;
  for (const [name, entry] of Object.entries(header.blocks ?? {})) {
    const width = WIDTH[entry.dtype];
    if (!width) throw new TraceError(`block ${name} has the unknown type ${JSON.stringify(entry.dtype)}`);
    if (!entry.shape.every((n) => Number.isInteger(n) && n >= 0)) throw new TraceError(`block ${name} has no shape`);
    const end = start + entry.offset + width * entry.shape.reduce((a, b) => a * b, 1);
    if (!(entry.offset >= 0) || entry.offset % width || end > bytes) {
      throw new TraceError(`block ${name} ends at byte ${end}, but the trace has ${bytes} bytes`);
    }
  }
  return new Trace(header, buffer, start);
}

/** Undo zlib's deflate. */
export async function inflate(bytes: Uint8Array<ArrayBuffer>): Promise<ArrayBuffer> {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
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
