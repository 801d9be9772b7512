// Dots with their labels, as many as fit without touching; the cells of the figure are the dots, in their order.

import { extent } from "d3-array";
import { scaleLinear } from "d3-scale";
import { line } from "d3-shape";
import type { Palette } from "./colors";
import type { Drawing } from "./figure";
import { levels, uprights } from "./marks";
import { widthOf, type Surface } from "./surface";

export type Dot = { x: number; y: number; label: string; color: string };

type ScatterOptions = {
  width: number;
  height: number;
  palette: Palette;
  dots: Dot[];
  xTitle: string;
  yTitle: string;
  /** One scale on both axes, where distances mean something. */
  equal?: boolean;
  /** Dots have an edge, for colours that may be those of the paper. */
  outlined?: boolean;
  /** A line through the dots in their order. */
  join?: boolean;
  read: (at: number) => string;
  choose?: (at: number) => void;
  hover?: (at: number | null) => void;
  /** The dot that is named in any case. */
  lit?: () => number;
};

/** From data to pixels along one axis, with some room at both ends. */
export function along(values: number[], from: number, to: number) {
  const [low = 0, high = 0] = extent(values.filter(Number.isFinite));
  const room = high > low ? 0.06 * (high - low) : 1.12;
  return scaleLinear([low - room, high + room], [from, to]);
}

/** Make one unit as long on both axes, about their middles. */
export function equally(...both: ReturnType<typeof along>[]): void {
  const unit = Math.min(...both.map((axis) => Math.abs(axis(1) - axis(0))));
  for (const axis of both) {
    const [[low, high], [from, to]] = [axis.domain(), axis.range()];
    const [middle, reach] = [(low + high) / 2, Math.abs(to - from) / unit / 2];
    axis.domain([middle - reach, middle + reach]);
  }
}

type Box = [number, number, number, number];
const touch = (a: Box, b: Box) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
const MOST_LABELS = 120;

/** Where labels go beside their dots: those far from the middle first, none over another or over a dot. */
function labels(dots: Dot[], at: [number, number][], radius: number, frame: Box): { i: number; x: number; y: number }[] {
  const [cx, cy] = [(frame[0] + frame[2]) / 2, (frame[1] + frame[3]) / 2];
  const far = (i: number) => (at[i][0] - cx) ** 2 + (at[i][1] - cy) ** 2;
  const order = at.map((_, i) => i).sort((a, b) => far(b) - far(a)).slice(0, 4 * MOST_LABELS);
  const taken: Box[] = at.map(([x, y]) => [x - radius - 2, y - radius - 2, x + radius + 2, y + radius + 2]);
  const out: { i: number; x: number; y: number }[] = [];
  for (const i of order) {
    if (out.length >= MOST_LABELS) break;
    const w = widthOf(dots[i].label, { size: 11.5, mono: true });
    const [x, y] = at[i];
    const gap = radius + 4;
    for (const [left, middle] of [[x + gap, y], [x - gap - w, y], [x - w / 2, y - gap - 7], [x - w / 2, y + gap + 7]]) {
      const box: Box = [left - 1, middle - 7, left + w + 1, middle + 7];
      const inside = box[0] >= frame[0] && box[2] <= frame[2] && box[1] >= frame[1] && box[3] <= frame[3];
      if (!inside || taken.some((other, k) => k !== i && touch(box, other))) continue;
      taken.push(box);
      out.push({ i, x: left, y: middle });
      break;
    }
  }
  return out;
}

/** A scatter of dots. */
export function scatterPlot(options: ScatterOptions): Drawing {
  const { width, height, palette, dots, equal = false } = options;
  const [left, right, top, foot] = [56, 10, 10, 42];
  const frame: Box = [left, top, width - right, height - foot];
  const [h, v] = [along(dots.map((dot) => dot.x), left, width - right), along(dots.map((dot) => dot.y), height - foot, top)];
  if (equal) equally(h, v);
  const at = dots.map((dot): [number, number] => [h(dot.x), v(dot.y)]);
  const radius = Math.max(2.5, Math.min(5.5, 40 / Math.sqrt(dots.length)));
  const named = labels(dots, at, radius, frame);
  const draw = (surface: Surface) => {
    uprights(surface, palette, h, width / 90, [top, height - foot]);
    levels(surface, palette, v, v.ticks(height / 70), [left, width - right], palette.line);
    surface.text((left + width - right) / 2, height - 6, options.xTitle, { size: 11.5, fill: palette.muted, anchor: "middle", fit: width - left - right });
    surface.text(8, (top + height - foot) / 2, options.yTitle, { size: 11.5, fill: palette.muted, anchor: "middle", baseline: "middle", turn: -90, fit: height - foot - top });
    if (options.join) surface.path(line()(at), { stroke: palette.muted, width: 1, opacity: 0.45 });
    dots.forEach((dot, i) => surface.circle(...at[i], radius, { fill: dot.color, stroke: options.outlined ? palette.muted : palette.panel, width: 1 }));
    for (const { i, x, y } of named) surface.text(x, y, dots[i].label, { size: 11.5, mono: true, fill: palette.ink, baseline: "middle" });
  };
  const over = (surface: Surface) => {
    const i = options.lit?.() ?? -1;
    if (!at[i]) return;
    const [x, y] = at[i];
    const w = widthOf(dots[i].label, { size: 12.5, mono: true, weight: 700 }) + 14;
    const from = Math.max(0, Math.min(width - w, x - w / 2));
    const above = y - radius - 30 > 0 ? y - radius - 28 : y + radius + 8;
    surface.circle(x, y, radius + 3, { stroke: palette.accent, width: 2.5 });
    surface.rect(from, above, w, 20, { fill: palette.accent, radius: 6 });
    surface.text(from + w / 2, above + 10.5, dots[i].label, { size: 12.5, mono: true, weight: 700, fill: palette.panel, anchor: "middle", baseline: "middle" });
  };
  const near = (x: number, y: number): number => {
    let [best, least] = [-1, 18 ** 2];
    at.forEach(([px, py], i) => {
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    });
    return best;
  };
  return {
    width,
    height,
    draw,
    over,
    grid: {
      rows: 1,
      columns: dots.length,
      box: (_, i) => [at[i][0] - radius - 4, at[i][1] - radius - 4, 2 * radius + 8, 2 * radius + 8],
      find: (x, y) => {
        const i = near(x, y);
        return i < 0 ? null : [0, i];
      },
      read: (_, i) => options.read(i),
      hover: (where) => options.hover?.(where ? where[1] : null),
      ...(options.choose ? { choose: (_: number, i: number) => options.choose!(i) } : {}),
      start: () => [0, Math.max(0, options.lit?.() ?? 0)],
    },
  };
}
