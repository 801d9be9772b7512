// The atlas's map: which checkpoint lies where, and which number of it a place shows.

import { max, quantileSorted } from "d3-array";
import { diverging, sequential, type Palette, type Scale } from "./colors";
import { once } from "./lists";
import { pixels } from "./surface";
import type { Block, Point, Trace } from "./trace";

/** A rectangle of numbers: rows are tokens (queries), columns are features or, head after head, keys or features. */
export type Tile = {
  point: Point;
  block: Block | null;
  /** What is taken off: the run before, while a difference is shown. */
  minus: Block | null;
  rows: number;
  columns: number;
  /** Heads that lie side by side; 0 if the checkpoint has none. */
  heads: number;
  x: number;
  y: number;
  width: number;
  height: number;
  /** Row of tiles that it is in. */
  line: number;
};

export type Chart = { tiles: Tile[]; width: number; height: number; label: number; rowHeight: number; bands: { y: number; height: number; layer: number }[] };

const square = (point: Point) => point.axes.at(-1) === "key";
const byHead = (point: Point) => point.axes.includes("head") || point.axes.includes("head_kv");

/** The value at a row and a column of a tile; NaN where there is none. */
export function valueAt(tile: Tile, row: number, column: number): number {
  const value = stored(tile, tile.block, row, column);
  return tile.minus ? value - stored(tile, tile.minus, row, column) : value;
}

function stored(tile: Tile, block: Block | null, row: number, column: number): number {
  if (!block) return NaN;
  if (!square(tile.point)) return block.value(row * tile.columns + column);
  const size = tile.columns / tile.heads;
  const [head, key] = [Math.floor(column / size), column % size];
  if (key > row) return NaN;
  return block.entry.layout === "lower" ? block.value(head * block.shape[1] + (row * (row + 1)) / 2 + key) : block.value((head * tile.rows + row) * size + key);
}

/** The index in Python: without the batch's axis first. */
export function indexAt(tile: Tile, row: number, column: number): number[] {
  if (!tile.heads) return [0, row, column];
  const size = tile.columns / tile.heads;
  const [head, inner] = [Math.floor(column / size), column % size];
  return square(tile.point) ? [0, head, row, inner] : [0, row, head, inner];
}

/** One number's name in Python. */
export const nameAt = (tile: Tile, row: number, column: number): string => `ckpts["${tile.point.name}"][${indexAt(tile, row, column).join(", ")}]`;

const GAP = 34;
const WIDEST = 3200;

/** Every checkpoint in execution order: two lines for each block, attention and MLP, from left to right. */
export function mapOf(trace: Trace, minus: Trace | null = null): Chart {
  const tiles: Tile[] = [];
  let [x, line] = [0, 0];
  let before: string | null = null;
  for (const point of trace.header.schema.points) {
    const half = point.block === null ? point.short.split(".")[0].replace(/^ckpt_.*/, "embed") : `${point.block}.${/^(ln2|mlp|resid_post|resid_mid)/.test(point.short) ? "mlp" : "attn"}`;
    const rows = square(point) ? point.shape.at(-2)! : point.shape[1];
    const heads = byHead(point) ? (square(point) ? point.shape[1] : point.shape[2]) : 0;
    const columns = square(point) ? heads * point.shape.at(-1)! : point.shape.slice(2).reduce((a, b) => a * b, 1);
    const width = square(point) ? heads * Math.max(24, Math.min(80, 480 / heads)) : Math.max(120, Math.min(columns, 760));
    if (x && (half !== before || x + width > WIDEST)) [x, line] = [0, line + 1];
    before = half;
    tiles.push({ point, block: trace.block(`atlas.${point.name}`), minus: minus?.block(`atlas.${point.name}`) ?? null, rows, columns, heads, x, y: 0, width, height: 0, line });
    x += width + GAP;
  }
  // Lines are as high as makes the whole the shape of a page, however many blocks there are.
  const width = max(tiles, (tile) => tile.x + tile.width)!;
  const each = (0.62 * width) / (line + 1);
  const tall = Math.max(14, Math.min(300, 0.6 * each, 10 * Math.max(6, trace.length)));
  const label = Math.min(52, 0.34 * each + 4);
  const bands: Chart["bands"] = [];
  for (const tile of tiles) {
    tile.y = label + tile.line * (tall + label);
    tile.height = tall;
    const { block } = tile.point;
    if (block === null) continue;
    const top = tile.y - label + 4;
    const band = bands.find((one) => one.layer === block);
    if (band) band.height = tile.y + tall + 4 - band.y;
    else bands.push({ layer: block, y: top, height: tall + label });
  }
  return { tiles, width, height: (line + 1) * (tall + label) + 12, label, rowHeight: tall / trace.length, bands };
}

export type Look = { scale: Scale; picture: HTMLCanvasElement };

const looks = once<Tile, Map<boolean, Look>>(() => new Map());

/** A tile in colour: shares from nothing to one, everything else around zero, saturated at its 99th percentile. */
export function lookOf(tile: Tile, palette: Palette): Look {
  const known = looks(tile);
  const found = known.get(palette.dark);
  if (found) return found;
  const sample: number[] = [];
  const count = tile.rows * tile.columns;
  const step = Math.max(1, Math.floor(count / 4000));
  for (let i = 0; i < count; i += step) {
    const value = Math.abs(valueAt(tile, Math.floor(i / tile.columns), i % tile.columns));
    if (Number.isFinite(value)) sample.push(value);
  }
  sample.sort((a, b) => a - b);
  const reach = quantileSorted(sample, 0.99) || 1;
  const scale = /pattern$/.test(tile.point.name) && !tile.minus ? sequential(0, 1, palette.dark) : diverging(reach, palette.dark);
  const made = { scale, picture: pixels(tile.rows, tile.columns, (row, column) => valueAt(tile, row, column), scale) };
  known.set(palette.dark, made);
  return made;
}
