// Distributions: values before and after each norm, lengths of vectors by layer, and dimensions that lie apart.

import { bisect, extent, max } from "d3-array";
import { scaleLinear } from "d3-scale";
import { area } from "d3-shape";
import { sequential, type Palette } from "../colors";
import { Figure, type Drawing } from "../figure";
import { Choice, Missing, Note } from "../inputs";
import { Lengths, Regression } from "../lengths";
import { heatMap, lattice, levels, uprights } from "../marks";
import { keeping, useApp, useParam, type App } from "../state";
import { type Surface } from "../surface";
import { number, percent, round } from "../text";
import type { Trace } from "../trace";
import { upTo } from "../lists";

const COUNTS = "distributions.counts";
const SIDES = ["before", "after"];

type Histogram = { edges: Float32Array; counts: Float32Array; clipped: number; total: number };

const normNames = (trace: Trace): string[] => trace.need(COUNTS).entry.of!;

function histogram(trace: Trace, side: number, at: number): Histogram {
  const counts = trace.need(COUNTS);
  const { clipped, total } = counts.entry;
  return { edges: trace.need("distributions.edges").slice(side, at), counts: counts.slice(side, at), clipped: clipped![side][at], total: total![side][at] };
}

/** The checkpoint that enters a norm, or leaves it. */
function checkpoint(trace: Trace, norm: string, side: number): string {
  if (side) return `${norm}.ckpt_normalized`;
  const [, block, which] = /^(?:blocks\.(\d+)\.)?(.*)$/.exec(norm)!;
  if (block === undefined) return `blocks.${trace.layers - 1}.resid_post`;
  const middle = `blocks.${block}.resid_mid`;
  return which === "ln2" && trace.header.schema.points.some((point) => point.name === middle) ? middle : `blocks.${block}.resid_pre`;
}

const short = (norm: string): string => norm.replace(/^blocks\./, "");
const whole = (count: number): string => count.toLocaleString("en");

function held({ edges, clipped, total }: Histogram): string {
  return `${whole(total - clipped)} of ${whole(total)} values lie between ${number(edges[0])} and ${number(edges[edges.length - 1])}, ${whole(clipped)} (${percent(clipped / total)}) outside`;
}

type Place = (value: number) => number;

/** The outline of a histogram, up from a base line: each count from its edge to the next. */
const outline = ({ edges, counts }: Histogram, x: Place, y: Place) => area<number>((i) => x(edges[(i + 1) >> 1]), y(0), (i) => y(counts[i >> 1]))(upTo(2 * counts.length));

const HISTOGRAM = "import numpy as np\n\ndef histogram(name):\n    values = ckpts[name][0].double().numpy().ravel()\n    low, high = np.quantile(values, [(1 - 0.995) / 2, (1 + 0.995) / 2])\n    return np.histogram(values, np.linspace(low, high, 41))[0]\n\n";
const sideColor = (palette: Palette, side: number): string => (side ? palette.accent : palette.warm);

/** The bins of one norm, before and after it. */
const binsOf = (trace: Trace, at: number) =>
  SIDES.flatMap((side, i) => {
    const { edges, counts } = histogram(trace, i, at);
    return Array.from(counts, (count, bin) => [side, edges[bin], edges[bin + 1], count]);
  });

function chosen(app: App, wanted: string): number {
  return Math.max(0, normNames(app.trace.value).indexOf(wanted));
}

/** All norms, one row each. */
function Ridges() {
  const app = useApp();
  const norm = useParam<string>("norm", "");
  const range = useParam<string>("range", "common");
  const build = (width: number, palette: Palette): Drawing => {
    const trace = app.trace.value;
    const names = normNames(trace);
    const [left, top, gap] = [70, 22, 18];
    const room = (width - left - gap) / 2;
    const tall = names.length > 30 ? 18 : 30;
    const all = SIDES.map((_, side) => names.map((_, at) => histogram(trace, side, at)));
    const limits = all.map((rows) => extent(rows.flatMap(({ edges }) => [edges[0], edges.at(-1)!])) as [number, number]);
    const from = (side: number) => left + side * (room + gap);
    const place = (side: number, at: number) => {
      const { edges } = all[side][at];
      return scaleLinear(range.value === "own" ? [edges[0], edges.at(-1)!] : limits[side], [from(side), from(side) + room]);
    };
    const foot = range.value === "own" ? 4 : 22;
    const draw = (surface: Surface) => {
      SIDES.forEach((name, side) => {
        surface.text(from(side), 11, name, { size: 12, weight: 600, fill: palette.ink });
        if (range.value === "own") return;
        uprights(surface, palette, place(side, 0), room / 56, [top, top + names.length * tall]);
      });
      names.forEach((name, at) => {
        const base = top + (at + 1) * tall - 1;
        surface.text(left - 10, base - tall / 2 + 2, short(name), { size: 11.5, mono: true, fill: palette.muted, anchor: "end", baseline: "middle", fit: left - 10 });
        SIDES.forEach((_, side) => {
          const found = all[side][at];
          const y = scaleLinear([0, max(found.counts) || 1], [base, base - tall + 5]);
          surface.path(outline(found, place(side, at), y), { fill: sideColor(palette, side), opacity: 0.85 });
          surface.rect(from(side), base, room, 1, { fill: palette.line });
        });
      });
    };
    return {
      width,
      height: top + names.length * tall + foot,
      draw,
      over: (surface) => surface.rect(0.5, top + chosen(app, norm.value) * tall, width - 1, tall, { stroke: palette.accent, width: 1.5, radius: 4 }),
      grid: {
        ...lattice(names.length, 2, [left, top], [room, tall], [room + gap, tall], true),
        read: (row, side) => `${checkpoint(trace, names[row], side)}: ${held(all[side][row])}`,
        choose: (row) => (norm.value = names[row]),
        start: () => [chosen(app, norm.value), 0],
      },
    };
  };
  const names = () => normNames(app.trace.value).flatMap((norm) => SIDES.map((_, side) => checkpoint(app.trace.value, norm, side)));
  return (
    <Figure
      title="Before and after each norm"
      name="norm-histograms"
      caption="The values of all tokens and dimensions. Each shape is as high as any other; compare places, widths and forms. Each holds 99.5 % of its values, what lies outside is counted below."
      build={build}
      controls={
        <Choice label="Range" at={range} of={{ common: "one for all rows", own: "each row its own" }} />
      }
      table={() => ({ columns: ["norm", "side", "low", "high", "count"], rows: normNames(app.trace.value).flatMap((norm, at) => binsOf(app.trace.value, at).map((row) => [norm, ...row])) })}
      python={() => `${HISTOGRAM}names = ${JSON.stringify(names())}\n[histogram(name) for name in names]`}
      shell={() => keeping(app, names())}
    />
  );
}

/** One norm with its counts. */
function One() {
  const app = useApp();
  const norm = useParam<string>("norm", "");
  const at = chosen(app, norm.value);
  const name = normNames(app.trace.value)[at];
  const names = SIDES.map((_, side) => checkpoint(app.trace.value, name, side));
  const build = (width: number, palette: Palette): Drawing => {
    const trace = app.trace.value;
    const [left, tall, gap] = [46, 112, 58];
    const found = SIDES.map((_, side) => histogram(trace, side, at));
    const panels = found.map((one, side) => {
      const { edges, counts } = one;
      const top = 24 + side * (tall + gap);
      return { ...one, top, x: scaleLinear([edges[0], edges.at(-1)!], [left, width - 6]), y: scaleLinear([0, max(counts) || 1], [top + tall, top + 4]) };
    });
    const draw = (surface: Surface) =>
      panels.forEach((panel, side) => {
        surface.text(left, panel.top - 8, `${SIDES[side]}: ${names[side]}`, { size: 12, fill: palette.ink, fit: width - left });
        levels(surface, palette, panel.y, panel.y.ticks(3), [left, width - 6]);
        surface.path(outline(panel, panel.x, panel.y), { fill: sideColor(palette, side) });
        for (const value of panel.x.ticks(width / 84)) surface.text(Math.min(panel.x(value), width - 16), panel.top + tall + 15, round(value), { size: 10.5, fill: palette.muted, anchor: "middle" });
      });
    return {
      width,
      height: 24 + 2 * tall + gap + 22,
      draw,
      grid: {
        rows: 2,
        columns: panels[0].counts.length,
        box: (side, bin) => {
          const { x, top, edges } = panels[side];
          return [x(edges[bin]), top, x(edges[bin + 1]) - x(edges[bin]), tall];
        },
        find: (px, py) => {
          const side = panels.findIndex(({ top }) => py >= top && py < top + tall);
          if (side < 0) return null;
          const { x, edges, counts } = panels[side];
          const bin = bisect(edges, x.invert(px)) - 1;
          return bin >= 0 && bin < counts.length ? [side, bin] : null;
        },
        read: (side, bin) => {
          const { counts, edges } = panels[side];
          return `${names[side]}: ${whole(counts[bin])} values between ${number(edges[bin])} and ${number(edges[bin + 1])}`;
        },
      },
    };
  };
  const outliers = app.trace.value.need(COUNTS).entry.outliers!;
  return (
    <Figure
      title={`${name} in numbers`}
      name={`histogram-${name}`}
      build={build}
      controls={
        <Choice label="Norm" at={norm} value={name} of={normNames(app.trace.value)} />
      }
      table={() => ({ columns: ["side", "low", "high", "count"], rows: binsOf(app.trace.value, at) })}
      python={() => `${HISTOGRAM}[histogram(name) for name in ${JSON.stringify(names)}]`}
      shell={() => keeping(app, names)}
    >
      {SIDES.map((side, i) => (
        <Note>
          {side}: {held(histogram(app.trace.value, i, at))}. Outlier dimensions: {outliers[i][at].map(({ dimension, mean_abs }) => `${dimension} (mean size ${number(mean_abs)})`).join(", ") || "none"}.
        </Note>
      ))}
    </Figure>
  );
}

/** Dimensions that lie apart, where they do. */
function Outliers() {
  const app = useApp();
  const rowsOf = (trace: Trace) => {
    const { of, outliers } = trace.need(COUNTS).entry;
    return of!.flatMap((norm, at) => outliers![0][at].map(({ dimension, mean_abs }) => ({ norm, at, dimension, mean_abs })));
  };
  const inputs = () => normNames(app.trace.value).map((norm) => checkpoint(app.trace.value, norm, 0));
  if (!rowsOf(app.trace.value).length) {
    return (
      <section class="card">
        <h2>Outlier dimensions</h2>
        <Note>No dimension of what enters a norm lies far from the others on this text.</Note>
      </section>
    );
  }
  return (
    <Figure
      title="Outlier dimensions"
      name="outlier-dimensions"
      caption="Dimensions of the stream that are many times as large as the others, at the norms where they are: their mean size over the tokens."
      build={(width, palette) => {
        const trace = app.trace.value;
        const rows = rowsOf(trace);
        const names = normNames(trace);
        // Of a difference, both runs show the dimensions of the edited one.
        const dimensions = [...new Set([...rowsOf(app.pair.value ? app.edited.value : trace)].sort((a, b) => b.mean_abs - a.mean_abs).map(({ dimension }) => dimension))].slice(0, 24);
        const at = (row: number, column: number) => rows.find((one) => one.dimension === dimensions[row] && one.at === column)?.mean_abs ?? NaN;
        const most = max(rows, ({ mean_abs }) => mean_abs)!;
        return heatMap({
          width,
          palette,
          rows: dimensions.length,
          columns: names.length,
          rowHeight: 26,
          at,
          scale: sequential(0, most, palette.dark),
          rowLabels: dimensions.map(String),
          columnLabels: names.map(short),
          cellText: (row, column) => at(row, column).toFixed(at(row, column) < 10 ? 1 : 0),
          has: (row, column) => !Number.isNaN(at(row, column)),
          legend: { title: "mean size", low: "0", high: number(most, 2) },
          read: (row, column) => `dimension ${dimensions[row]} of ${checkpoint(trace, names[column], 0)}: mean size ${number(at(row, column), 4)}`,
        });
      }}
      table={() => ({ columns: ["norm", "checkpoint", "dimension", "mean_abs"], rows: rowsOf(app.trace.value).map(({ norm, dimension, mean_abs }) => [norm, checkpoint(app.trace.value, norm, 0), dimension, mean_abs]), by: ["norm", "dimension"], note: "The eight largest of each." })}
      python={() => `names = ${JSON.stringify(inputs())}\nmeans = [ckpts[name][0].double().abs().mean(0).numpy() for name in names]\napart = [pl.measure.outliers(ckpts, name).outlier.values.ravel() for name in names]\n[mean[found] for mean, found in zip(means, apart)]`}
      shell={() => keeping(app, inputs())}
    />
  );
}

export function Distributions() {
  const app = useApp();
  const there = app.trace.value.has(COUNTS);
  return (
    <>
      {there ? (
        <div class="columns">
          <Ridges />
          <One />
        </div>
      ) : (
        <Missing what="distributions" />
      )}
      <div class="columns">
        <Lengths />
        <Regression />
      </div>
      {there && <Outliers />}
    </>
  );
}
