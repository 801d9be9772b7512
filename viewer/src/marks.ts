// Marks that several screens share: bars in rows, heat maps with labelled axes, and the key of a colour scale.

import { extent, max } from "d3-array";
import { scaleLinear, type ScaleLinear } from "d3-scale";
import { diverging, inkOn, type Palette, type Scale } from "./colors";
import type { Drawing, Grid } from "./figure";
import { largest } from "./lists";
import { widthOf, type Surface } from "./surface";
import { number, round } from "./text";

/** Cells in rows and columns: where each is, and which one a point is in; `loose` counts what is beside a row as its next cell. */
export function lattice(rows: number, columns: number, [x, y]: number[], [width, height]: number[], [across, down] = [width, height], loose = false): Pick<Grid, "rows" | "columns" | "box" | "find"> {
  return {
    rows,
    columns,
    box: (row, column) => [x + column * across, y + row * down, width, height],
    find: (px, py) => {
      const row = Math.floor((py - y) / down);
      let column = Math.floor((px - x) / across);
      if (loose) column = Math.max(0, Math.min(columns - 1, column));
      return row >= 0 && row < rows && column >= 0 && column < columns ? [row, column] : null;
    },
  };
}

export type Bar = {
  label: string;
  value: number;
  /** What stands at the end of the bar; the number unless given. */
  text?: string;
  color?: string;
  /** A second, paler bar behind: the value before something was changed. */
  behind?: number;
};

type BarOptions = {
  width: number;
  palette: Palette;
  bars: Bar[];
  rowHeight?: number;
  mono?: boolean;
  /** The longest bar's value; the largest there is unless given. */
  most?: number;
  read?: (row: number) => string;
  choose?: (row: number) => void;
  hover?: (row: number | null) => void;
  /** Rows that are lit, read while drawing above. */
  lit?: () => number | null;
};

const held = new WeakMap<Drawing, Bar[]>();

/** What bars with the same labels had before, taken off; a label that was not there before has no difference. */
function barsBeside(options: BarOptions, before: Drawing): Drawing {
  const known = new Map((held.get(before) ?? []).map((bar) => [bar.label, bar.value]));
  const bars = options.bars.map((bar): Bar => {
    const was = known.get(bar.label);
    if (was === undefined) return { label: bar.label, value: 0, text: `new here: ${bar.text ?? number(bar.value)}` };
    const by = bar.value - was;
    return { label: bar.label, value: by, text: `${by > 0 ? "+" : ""}${number(by)}` };
  });
  const { read: _, most: __, ...rest } = options;
  const read = (row: number) => `${bars[row].label}: ${bars[row].text}, now ${options.bars[row].text ?? number(options.bars[row].value)}`;
  return barRows({ ...rest, bars, read });
}

/** Horizontal bars, one row each; negative values go to the left of a common zero. */
export function barRows(options: BarOptions): Drawing {
  const { width, palette, bars, rowHeight = 24, mono = true } = options;
  const textsOf = (sign: number) => Math.max(20, max(bars, (bar) => (bar.value < 0 === sign < 0 ? widthOf(bar.text ?? number(bar.value), { size: 12 }) : 0)) ?? 0) + 12;
  const [before, after] = [textsOf(-1), textsOf(1)];
  const [lowest = 0, most = 0] = extent(bars.flatMap((bar) => [0, bar.value, bar.behind ?? 0]));
  const highest = options.most ?? most;
  const texts = after + (lowest < 0 ? before : 0);
  const labels = Math.min(width * 0.4, Math.max(70, width - texts - 30), Math.max(24, max(bars, (bar) => widthOf(bar.label, { size: 12.5, mono })) ?? 0) + 10);
  const start = labels + (lowest < 0 ? before : 0);
  const place = scaleLinear([lowest, highest > lowest ? highest : lowest + 1], [start, start + width - labels - texts]);
  const zero = place(0);
  const longOf = (value: number) => Math.abs(place(value) - zero);
  const height = bars.length * rowHeight + 4;
  const draw = (surface: Surface) => {
    bars.forEach((bar, row) => {
      const y = row * rowHeight + 2;
      const middle = y + rowHeight / 2;
      const color = bar.color ?? (bar.value < 0 ? palette.warm : palette.accent);
      surface.text(0, middle, bar.label, { size: 12.5, mono, fill: palette.ink, baseline: "middle", fit: labels - 8 });
      if (bar.behind !== undefined) {
        const w = longOf(bar.behind);
        surface.rect(bar.behind < 0 ? zero - w : zero, y + 3, w, rowHeight - 6, { fill: palette.line, radius: 3 });
      }
      const w = Math.max(longOf(bar.value), bar.value ? 1 : 0);
      const inset = bar.behind === undefined ? 5 : 7;
      surface.rect(bar.value < 0 ? zero - w : zero, y + inset, w, rowHeight - 2 * inset, { fill: color, radius: 3 });
      const reach = Math.max(w, bar.behind !== undefined && bar.behind * bar.value > 0 ? longOf(bar.behind) : 0);
      surface.text(bar.value < 0 ? zero - reach - 6 : zero + reach + 6, middle, bar.text ?? number(bar.value), {
        size: 12,
        fill: palette.muted,
        baseline: "middle",
        anchor: bar.value < 0 ? "end" : "start",
      });
    });
    if (lowest < 0) surface.rect(zero - 0.5, 0, 1, height, { fill: palette.muted });
  };
  const grid: Grid = {
    ...lattice(bars.length, 1, [0, 2], [width, rowHeight]),
    read: (row) => options.read?.(row) ?? `${bars[row].label}: ${bars[row].text ?? number(bars[row].value)}`,
    ...(options.choose ? { choose: (row: number) => options.choose!(row) } : {}),
    hover: (where) => options.hover?.(where ? where[0] : null),
  };
  const over = (surface: Surface) => {
    const lit = options.lit?.() ?? null;
    if (lit !== null && lit >= 0 && lit < bars.length) {
      surface.rect(0, lit * rowHeight + 2, width, rowHeight, { fill: palette.accent, opacity: 0.1, radius: 4 });
    }
  };
  const made: Drawing = { width, height, draw, over, grid, differ: (before) => barsBeside(options, before) };
  held.set(made, bars);
  return made;
}

type HeatOptions = {
  width: number;
  palette: Palette;
  rows: number;
  columns: number;
  at: (row: number, column: number) => number;
  scale: Scale;
  rowLabels: string[];
  columnLabels: string[];
  mono?: boolean;
  /** Square cells (attention), else the height of a row. */
  rowHeight?: number;
  /** The largest side of a square cell. */
  largest?: number;
  /** What is written into a cell that has room for it. */
  cellText?: (row: number, column: number) => string;
  /** Titles of the axes. */
  rowTitle?: string;
  columnTitle?: string;
  legend?: { title: string; low: string; high: string };
  read: (row: number, column: number) => string;
  has?: (row: number, column: number) => boolean;
  choose?: (row: number, column: number) => void;
  hover?: (where: [number, number] | null) => void;
  /** The row and the column that are looked at; -1 for none. */
  lit?: () => { row: number; column: number };
};

/** Lines across at round numbers, which are written at the left; that at zero may be another colour. */
export function levels(surface: Surface, palette: Palette, y: (value: number) => number, values: number[], [left, right]: number[], zero = palette.grid): void {
  for (const value of values) {
    surface.rect(left, y(value) - 0.5, right - left, 1, { fill: value ? palette.grid : zero });
    surface.text(left - 7, y(value), round(value), { size: 11, fill: palette.muted, anchor: "end", baseline: "middle", fit: left - 8 });
  }
}

/** The round numbers of a scale from left to right, written under a line from top to foot at each. */
export function uprights(surface: Surface, palette: Palette, x: ScaleLinear<number, number>, count: number, [top, foot]: number[]): void {
  for (const value of x.ticks(count)) {
    surface.rect(x(value) - 0.5, top, 1, foot - top, { fill: value ? palette.grid : palette.line });
    surface.text(x(value), foot + 15, round(value), { size: 10.5, fill: palette.muted, anchor: "middle" });
  }
}

/** Every how many labels one is written, so that they do not run into each other. */
const every = (cell: number, needs: number): number => Math.max(1, Math.ceil(needs / cell));

const heat = new WeakMap<Drawing, HeatOptions>();

/** The cells of a heat map less those of the run before, around zero. */
function heatBeside(options: HeatOptions, before: Drawing): Drawing {
  const was = heat.get(before);
  const { rows, columns, palette } = options;
  if (!was || was.rows !== rows || was.columns !== columns) return heatMap(options);
  const at = (row: number, column: number) => options.at(row, column) - was.at(row, column);
  const reach = largest(rows, columns, at);
  const signed = (value: number) => `${value > 0 ? "+" : ""}${number(value, 2)}`;
  const said = (row: number, column: number) => (options.cellText && was.cellText ? [was.cellText(row, column), options.cellText(row, column)] : ["", ""]);
  return heatMap({
    ...options,
    at,
    scale: diverging(reach || 1, palette.dark),
    // Cells that say a word say it still, with what it was before where that is another one and both are short.
    ...(options.cellText
      ? {
          cellText: (row: number, column: number) => {
            const [one, other] = said(row, column);
            if (Number.isNaN(Number(other.replace("−", "-")))) return one === other ? other : `${one.length + other.length < 6 ? one : ""}→${other}`;
            return Math.abs(at(row, column)) < reach / 20 ? "" : signed(at(row, column));
          },
        }
      : {}),
    legend: { title: reach ? `difference: ${options.legend?.title ?? "value"}` : "the edits change nothing here", low: number(-reach, 2), high: number(reach, 2) },
    read: (row, column) => `difference ${signed(at(row, column))} (before ${number(was.at(row, column))}); ${options.read(row, column)}`,
  });
}

/** Cells in colour with a label for each row and column; the labels thin out before they would touch. */
export function heatMap(options: HeatOptions): Drawing {
  const { width, palette, rows, columns, at, scale, rowLabels, columnLabels, mono = true, cellText } = options;
  const size = 12;
  const longest = (labels: string[], most: number) =>
    Math.min(most, Math.max(12, max(labels.slice(0, 400), (label) => widthOf(label, { size, mono })) ?? 0));
  const left = Math.ceil(longest(rowLabels, Math.min(120, width * 0.28))) + 10 + (options.rowTitle ? 18 : 0);
  const topRoom = Math.ceil(longest(columnLabels, 96));
  const room = width - left - 4;
  const square = options.rowHeight === undefined;
  const cellWidth = square ? Math.min(options.largest ?? 40, room / columns) : room / columns;
  const cellHeight = options.rowHeight ?? cellWidth;
  const flat = columnLabels.every((label) => widthOf(label, { size, mono }) < cellWidth - 2);
  const head = (flat ? 16 : topRoom) + 8 + (options.columnTitle ? 18 : 0);
  const [bodyWidth, bodyHeight] = [cellWidth * columns, cellHeight * rows];
  const foot = options.legend ? 34 : 2;
  const rowStep = every(cellHeight, 13);
  const columnStep = every(cellWidth, flat ? 10 : 13);
  const label = (text: string, across: boolean, index: number, fill: string, weight: number, surface: Surface) => {
    if (!across) {
      surface.text(left - 6, head + (index + 0.5) * cellHeight, text, { size, mono, weight, fill, anchor: "end", baseline: "middle", fit: left - 8 - (options.rowTitle ? 18 : 0) });
    } else if (flat) {
      surface.text(left + (index + 0.5) * cellWidth, head - 7, text, { size, mono, weight, fill, anchor: "middle" });
    } else {
      surface.text(left + (index + 0.5) * cellWidth, head - 5, text, { size, mono, weight, fill, turn: -90, baseline: "middle", fit: topRoom });
    }
  };
  const draw = (surface: Surface) => {
    surface.cells(left, head, bodyWidth, bodyHeight, rows, columns, at, scale);
    if (cellWidth > 14 && cellHeight > 14 && rows * columns < 4000) {
      // A hair of paper between cells makes them countable.
      let lines = "";
      for (let column = 1; column < columns; column++) lines += `M${left + column * cellWidth} ${head}v${bodyHeight}`;
      for (let row = 1; row < rows; row++) lines += `M${left} ${head + row * cellHeight}h${bodyWidth}`;
      surface.path(lines, { stroke: palette.panel, width: 1 });
    }
    rowLabels.forEach((text, row) => row % rowStep || label(text, false, row, palette.muted, 400, surface));
    columnLabels.forEach((text, column) => column % columnStep || label(text, true, column, palette.muted, 400, surface));
    if (options.columnTitle) surface.text(left, 12, options.columnTitle, { size: 11.5, fill: palette.muted });
    if (options.rowTitle) surface.text(10, head, options.rowTitle, { size: 11.5, fill: palette.muted, turn: -90, anchor: "end", baseline: "middle", fit: bodyHeight + foot });
    if (cellText && cellWidth > 22 && cellHeight > 13) {
      for (let row = 0; row < rows; row++) {
        for (let column = 0; column < columns; column++) {
          if (options.has?.(row, column) === false || Number.isNaN(at(row, column))) continue;
          const text = cellText(row, column);
          // A word that is cut off can still be told, a number cannot.
          if (/^.?[\d.]+$/.test(text) && widthOf(text, { size: 11.5, mono }) > cellWidth - 4) continue;
          surface.text(left + (column + 0.5) * cellWidth, head + (row + 0.5) * cellHeight, text, {
            size: 11.5,
            mono,
            fill: inkOn(scale.color(at(row, column))),
            anchor: "middle",
            baseline: "middle",
            fit: cellWidth - 4,
          });
        }
      }
    }
    if (options.legend) key(surface, left, head + bodyHeight + 12, 180, width - left, scale, palette, options.legend);
  };
  const over = (surface: Surface) => {
    const lit = options.lit?.();
    if (!lit) return;
    const { row, column } = lit;
    if (row >= 0 && row < rows) {
      surface.rect(left - 1, head + row * cellHeight - 1, bodyWidth + 2, cellHeight + 2, { stroke: palette.accent, width: 1.5, radius: 2 });
      surface.rect(0, head + row * cellHeight, left - 3, Math.max(cellHeight, 14), { fill: palette.panel });
      surface.text(left - 6, head + (row + 0.5) * cellHeight, rowLabels[row], { size, mono, weight: 700, fill: palette.accent, anchor: "end", baseline: "middle", fit: left - 8 });
    }
    if (column >= 0 && column < columns) {
      surface.rect(left + column * cellWidth - 1, head - 1, cellWidth + 2, bodyHeight + 2, { stroke: palette.warm, width: 1.5, radius: 2 });
      if (!flat) surface.rect(left + (column + 0.5) * cellWidth - 8, head - 4 - topRoom, 16, topRoom + 2, { fill: palette.panel });
      label(columnLabels[column], true, column, palette.warm, 700, surface);
    }
  };
  const grid: Grid = {
    ...lattice(rows, columns, [left, head], [cellWidth, cellHeight]),
    read: options.read,
    ...(options.has ? { has: options.has } : {}),
    ...(options.choose ? { choose: options.choose } : {}),
    ...(options.hover ? { hover: options.hover } : {}),
    start: () => {
      const { row = 0, column = 0 } = options.lit?.() ?? {};
      return [Math.max(0, row), Math.max(0, column)];
    },
  };
  const made: Drawing = { width: Math.max(width, left + bodyWidth + 4), height: head + bodyHeight + foot, stays: left - 2, draw, over, grid, differ: (before) => heatBeside(options, before) };
  heat.set(made, options);
  return made;
}

/** What the colours of a scale mean. */
export function key(surface: Surface, x: number, y: number, width: number, room: number, scale: Scale, palette: Palette, legend: { title: string; low: string; high: string }): void {
  width = Math.max(60, Math.min(width, room - widthOf(legend.title, { size: 11 }) - 12));
  surface.cells(x, y, width, 7, 1, 64, (_, column) => scale.low + ((scale.high - scale.low) * column) / 63, scale);
  surface.text(x, y + 20, legend.low, { size: 11, fill: palette.muted });
  surface.text(x + width, y + 20, legend.high, { size: 11, fill: palette.muted, anchor: "end" });
  surface.text(x + width + 10, y + 8, legend.title, { size: 11, fill: palette.muted });
}
