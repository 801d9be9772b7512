// Lengths of vectors by layer, and whether a token's follows from those before it: a series regressed on its own past by
// least squares, with confidence intervals of Student's t.

import { extent, maxIndex, quantileSorted } from "d3-array";
import { scaleLinear } from "d3-scale";
import { area, line } from "d3-shape";
import type { Palette } from "./colors";
import { Figure, type Drawing } from "./figure";
import { Choice, Note } from "./inputs";
import { each } from "./lists";
import { levels } from "./marks";
import { commandOf, useApp, useParam } from "./state";
import type { Surface } from "./surface";
import { number, quoted } from "./text";
import type { Trace } from "./trace";

type Place = (value: number) => number;

/** A checkpoint of the blocks whose lengths the trace holds: `attn_out` -> `attn.ckpt_attn_out`. */
const kindOf = (trace: Trace, name: string): string => trace.header.schema.points.find((point) => point.block === 0 && point.short.replace(/^.*ckpt_/, "") === name)?.short ?? name;

/** Whose lengths are looked at, and what chooses it. */
function useKind() {
  const app = useApp();
  const wanted = useParam<string>("norms_of", "resid_post");
  const of = app.trace.value.need("norms").entry.of!;
  const kind = of.includes(wanted.value) ? wanted.value : of.at(-1)!;
  return { kind, picker: <Choice label="Vectors" at={wanted} value={kind} of={Object.fromEntries(of.map((name) => [name, kindOf(app.trace.value, name)]))} /> };
}

/** The lengths [layer][pos] of one kind of vectors. */
function lengths(trace: Trace, kind: string): number[][] {
  const block = trace.need("norms");
  const row = block.entry.of!.indexOf(kind);
  return each(trace.layers, (layer) => each(trace.length, (pos) => block.at(row, layer, pos)));
}

/** Axes over layers: where a layer and a value are, and their lines and numbers. */
function layerAxes(width: number, layers: number, low: number, high: number, log: boolean) {
  const [left, right, top, tall] = [52, 12, 10, 210];
  const of: Place = log ? Math.log10 : Number;
  const x = scaleLinear([-0.5, layers - 0.5], [left, width - right]);
  const down = scaleLinear([of(high), of(low)], [top, top + tall]);
  const y = (value: number) => down(of(value));
  const marks = log ? [-6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5].flatMap((power) => [1, 2, 5].map((times) => times * 10 ** power)).filter((one) => one >= low && one <= high) : down.ticks(5);
  const axes = (surface: Surface, palette: Palette) => {
    levels(surface, palette, y, marks, [left, width - right], palette.muted);
    const thin = Math.ceil((layers * 20) / (width - left - right));
    for (let layer = 0; layer < layers; layer += thin) surface.text(x(layer), top + tall + 16, `${layer}`, { size: 11, fill: palette.muted, anchor: "middle" });
    surface.text(left, top + tall + 32, "layer", { size: 11, fill: palette.muted });
  };
  /** The line and the layer under a point; `values` holds those of each layer. */
  const nearest = (values: number[][]) => (px: number, py: number): [number, number] | null => {
    const layer = Math.round(x.invert(px));
    if (layer < 0 || layer >= layers || py < top || py > top + tall) return null;
    return [Math.max(0, maxIndex(values[layer], (value) => -Math.abs(y(value) - py))), layer];
  };
  return { x, y, axes, nearest, height: top + tall + 38, right };
}

export function Lengths() {
  const app = useApp();
  const { kind, picker } = useKind();
  const full = kindOf(app.trace.value, kind);
  const build = (width: number, palette: Palette): Drawing => {
    const trace = app.trace.value;
    const { tokens } = trace.header;
    const rows = lengths(trace, kind);
    const [low = 0, high = 0] = extent(rows.flat());
    const log = low > 0 && high > 12 * low;
    const room = log ? 1.1 : 0;
    const { x, y, axes, nearest, height, right } = layerAxes(width, trace.layers, log ? low / room : Math.min(low, 0), log ? high * room : high, log);
    const sorted = rows.map((row) => [...row].sort((a, b) => a - b));
    const middle = [0.25, 0.5, 0.75].map((share) => sorted.map((row) => quantileSorted(row, share)!));
    const through = line<number>((_, layer) => x(layer), y).defined(Number.isFinite);
    const band = area<number>((_, layer) => x(layer), y, (_, layer) => y(middle[2][layer])).defined(Number.isFinite);
    const draw = (surface: Surface) => {
      axes(surface, palette);
      if (log) surface.text(width - right, height - 6, "logarithmic", { size: 11, fill: palette.muted, anchor: "end" });
      surface.path(band(middle[0]), { fill: palette.accent, opacity: 0.18 });
      for (let pos = 0; pos < trace.length; pos++) {
        if (trace.length <= 400) surface.path(through(rows.map((row) => row[pos])), { stroke: palette.muted, width: 0.8, opacity: trace.length > 60 ? 0.25 : 0.5 });
      }
      surface.path(through(middle[1]), { stroke: palette.accent, width: 2.5 });
      if (trace.layers === 1) surface.circle(x(0), y(middle[1][0]), 4, { fill: palette.accent });
    };
    return {
      width,
      height,
      draw,
      over: (surface) => {
        const own = rows.map((row) => row[app.atQuery.value]);
        surface.path(through(own), { stroke: palette.warm, width: 2.5 });
        own.forEach((value, layer) => surface.circle(x(layer), y(value), 3.5, { fill: palette.panel, stroke: palette.warm, width: 2 }));
      },
      grid: {
        rows: trace.length,
        columns: trace.layers,
        box: (pos, layer) => [x(layer) - 6, y(rows[layer][pos]) - 6, 12, 12],
        find: nearest(rows),
        read: (pos, layer) => `${quoted(tokens[pos].text)}: length of blocks.${layer}.${full} ${number(rows[layer][pos])}; half of the tokens lie between ${number(middle[0][layer])} and ${number(middle[2][layer])}`,
        choose: (pos, layer) => {
          app.query.value = pos;
          app.layer.value = layer;
        },
        hover: (where) => (app.hover.value = where ? { query: where[0] } : {}),
        start: () => [app.atQuery.value, 0],
      },
    };
  };
  return (
    <Figure
      title="How long the vectors are"
      name={`lengths-${kind}`}
      caption={`One line for each token, the orange one for the token that is chosen; the blue line is the median, the band holds the middle half.`}
      build={build}
      controls={picker}
      table={() => ({
        columns: ["layer", "pos", "token", "norm"],
        rows: lengths(app.trace.value, kind).flatMap((row, layer) => row.map((value, pos) => [layer, pos, app.trace.value.header.tokens[pos].text, value])),
      })}
      python={() => `pl.measure.norms(ckpts, "${full}").values[:, 0]`}
      shell={() => commandOf(app, "norms", `--at ${full} --linear --skip 0 --lags 0 --csv norms.csv`)}
    />
  );
}

/** The share of Student's distribution within t standard errors: a finite sum (Abramowitz and Stegun 26.7.3, 26.7.4). */
function within(t: number, df: number): number {
  const angle = Math.atan(t / Math.sqrt(df));
  const [sine, cosine] = [Math.sin(angle), Math.cos(angle)];
  const odd = df % 2;
  let term = odd ? cosine : 1;
  let sum = df > 1 ? term : 0;
  for (let power = 2 + odd; power < df - 1; power += 2) sum += term *= (cosine ** 2 * (power - 1)) / power;
  return odd ? (2 / Math.PI) * (angle + sine * sum) : sine * sum;
}

/** How many standard errors hold 95 % to both sides, with this many degrees of freedom. */
function halfWidth(df: number): number {
  let [low, high] = [0, 20];
  while (high - low > 1e-12) {
    const middle = (low + high) / 2;
    if (within(middle, df) < 0.95) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

type Term = { name: string; value: number; low: number; high: number };

/** How many tokens a regression on so many takes, if the first is left out. */
const needed = (lags: number): number => 2 * lags + 3;

/** y[t] = const + lag1 y[t-1] + …, without the first value; the lags with their 95 % intervals, NaN where nothing can be fitted. */
function autoregression(series: number[], lags: number): Term[] {
  const y = series.slice(1 + lags);
  const past = each(lags, (i) => series.slice(lags - i, series.length - 1 - i));
  const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length;
  const centred = (values: number[]) => {
    const middle = mean(values);
    return values.map((value) => value - middle);
  };
  const dot = (a: number[], b: number[]) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const [target, columns] = [centred(y), past.map(centred)];
  // The normal equations beside the identity; what stands there in the end is the inverse.
  const rows = columns.map((one, i) => [...columns.map((other) => dot(one, other)), ...columns.map((_, k) => (i === k ? 1 : 0))]);
  for (let i = 0; i < lags; i++) {
    const pivot = rows[i][i];
    if (!(pivot > 1e-12 * dot(columns[i], columns[i]))) return past.map((_, k) => ({ name: `lag${k + 1}`, value: NaN, low: NaN, high: NaN }));
    rows[i] = rows[i].map((value) => value / pivot);
    for (let k = 0; k < lags; k++) {
      const factor = rows[k][i];
      if (k !== i) rows[k] = rows[k].map((value, at) => value - factor * rows[i][at]);
    }
  }
  const moments = columns.map((column) => dot(column, target));
  const values = rows.map((row) => dot(row.slice(lags), moments));
  const rest = target.map((value, t) => value - values.reduce((sum, one, i) => sum + one * columns[i][t], 0));
  const df = y.length - lags - 1;
  const reach = halfWidth(df);
  return values.map((value, i) => {
    const half = reach * Math.sqrt((dot(rest, rest) / df) * rows[i][lags + i]);
    return { name: `lag${i + 1}`, value, low: value - half, high: value + half };
  });
}

/** Each token's length explained by those of the tokens before it, layer by layer. */
export function Regression() {
  const app = useApp();
  const { kind, picker } = useKind();
  const wanted = useParam<number>("lags", 2);
  const full = kindOf(app.trace.value, kind);
  const lags = [1, 2, 3].includes(wanted.value) ? wanted.value : 2;
  const fits = (): Term[][] => lengths(app.trace.value, kind).map((row) => autoregression(row.map(Math.log), lags));
  const enough = app.trace.value.length >= needed(lags);
  const build = (width: number, palette: Palette): Drawing => {
    const { layers } = app.trace.value;
    const found = fits();
    const ends = found.flat().flatMap(({ low, high }) => [low, high]).filter(Number.isFinite);
    const { x, y, axes, nearest, height, right } = layerAxes(width, layers, Math.min(0, ...ends), Math.max(0, ...ends), false);
    const colors = [palette.accent, palette.warm, palette.series[2]];
    const draw = (surface: Surface) => {
      axes(surface, palette);
      for (let lag = 0; lag < lags; lag++) {
        const terms = found.map((terms) => terms[lag]);
        const fitted = ({ value }: Term) => Number.isFinite(value);
        const band = area<Term>((_, layer) => x(layer), ({ low }) => y(low), ({ high }) => y(high)).defined(fitted);
        surface.path(band(terms), { fill: colors[lag], opacity: 0.16 });
        surface.path(line<Term>((_, layer) => x(layer), ({ value }) => y(value)).defined(fitted)(terms), { stroke: colors[lag], width: 2 });
        found.forEach((terms, layer) => {
          const { value, low, high } = terms[lag];
          if (Number.isNaN(value)) return;
          surface.path(`M${x(layer)} ${y(low)}V${y(high)}`, { stroke: colors[lag], width: 1, opacity: 0.6 });
          surface.circle(x(layer), y(value), 4.5, { fill: low > 0 || high < 0 ? colors[lag] : palette.panel, stroke: colors[lag], width: 2 });
        });
        surface.circle(width - right - 60 * (lags - lag) + 8, height - 10, 4, { fill: colors[lag] });
        surface.text(width - right - 60 * (lags - lag) + 16, height - 6, `lag ${lag + 1}`, { size: 11.5, fill: palette.ink });
      }
    };
    return {
      width,
      height,
      draw,
      grid: {
        rows: lags,
        columns: layers,
        box: (lag, layer) => [x(layer) - 7, y(found[layer][lag].value) - 7, 14, 14],
        find: nearest(found.map((terms) => terms.map(({ value }) => value))),
        read: (lag, layer) => {
          const { value, low, high } = found[layer][lag];
          return Number.isNaN(value) ? `layer ${layer} cannot be fitted` : `layer ${layer}, lag ${lag + 1}: ${number(value)}, with 95 % confidence from ${number(low)} to ${number(high)}`;
        },
      },
    };
  };
  if (!enough) {
    return (
      <section class="card">
        <h2>Does a token’s length follow from those before?</h2>
        <Note>
          A regression on {lags} tokens before takes {needed(lags)} tokens; this text has {app.trace.value.length}.
        </Note>
      </section>
    );
  }
  return (
    <Figure
      title="Does a token’s length follow from those before?"
      name={`regression-${kind}`}
      caption="The logarithm of each token’s length regressed on those of the tokens before it, layer by layer, without the first token. Bands hold 95 %; filled marks differ from zero. One text has few rows: many layers are many tests."
      build={build}
      controls={
        <>
          {picker}
          <Choice label="Tokens before" at={wanted} value={lags} of={[1, 2, 3]} />
        </>
      }
      table={() => ({ columns: ["layer", "term", "coefficient", "low", "high"], rows: fits().flatMap((terms, layer) => terms.map(({ name, value, low, high }) => [layer, name, value, low, high])) })}
      python={() => `fit = pl.measure.autoregression(pl.measure.norms(ckpts, "${full}", log=True), lags=${lags}, skip=1)\nfit.params, fit.conf_int`}
      shell={() => commandOf(app, "norms", `--at ${full} --lags ${lags} --skip 1`)}
    />
  );
}
