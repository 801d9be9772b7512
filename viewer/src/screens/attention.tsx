// Attention: every head as a small picture, one head large, and the steps from q · k to a share.

import { max } from "d3-array";
import { diverging, sequential, type Palette } from "../colors";
import { Figure, type Drawing } from "../figure";
import { Formula } from "../formula";
import { patternOf, small, steps, vectors, type Step } from "../heads";
import { Choice, Missing, Tick } from "../inputs";
import { each, largest, pairs, upTo } from "../lists";
import { heatMap, lattice } from "../marks";
import { commandOf, useApp, useParam, type App } from "../state";
import type { Surface } from "../surface";
import { number, quoted, visible } from "../text";
import { idsIn, type Trace } from "../trace";
import { LayerPicker } from "./overview";

const MEASURES: Record<string, { name: string; says: string }> = {
  previous: { name: "previous token", says: "mean share on the token before" },
  first: { name: "first token", says: "mean share on the first token" },
  induction: { name: "induction", says: "mean share on what followed this token last time" },
  duplicate: { name: "duplicate", says: "mean share on the same token earlier" },
  entropy: { name: "entropy, sharpest first", says: "how spread out the shares are, in bits" },
};

type Place = { layer: number; head: number; value: number | null };

/** The heads in the order that was asked for. */
function ordered(app: App, by: string): Place[] {
  const trace = app.trace.value;
  const measures = trace.need("attention.measures");
  const row = measures.entry.of!.indexOf(by);
  const places = pairs(trace.layers, trace.heads, (layer, head): Place => ({ layer, head, value: row < 0 ? null : measures.at(row, layer, head) }));
  if (row < 0) return places;
  const sign = by === "entropy" ? 1 : -1;
  const rank = (place: Place) => (Number.isNaN(place.value!) ? Infinity : sign * place.value!);
  return places.sort((a, b) => rank(a) - rank(b));
}

function AllHeads() {
  const app = useApp();
  const sort = useParam<string>("sort", "layer");
  const build = (width: number, palette: Palette, minus: Trace | null = null): Drawing => {
    const trace = app.trace.value;
    const places = ordered(app, sort.value);
    const byLayer = sort.value === "layer";
    const large = trace.heads <= 6;
    const columns = byLayer ? trace.heads : Math.min(places.length, large ? trace.heads : Math.max(8, Math.floor(width / 62)));
    const side = byLayer ? 26 : 0;
    const gap = large ? 10 : 5;
    const size = Math.min(120, (width - side - gap * (columns - 1)) / columns);
    const labelled = size >= 44 && !(byLayer && !large);
    const head = byLayer ? 18 : 0;
    const tall = size + gap + (labelled ? 15 : 0);
    const rows = Math.ceil(places.length / columns);
    const cellsOf = ({ layer, head: at }: Place) => {
      const { cells, values } = small(trace, layer, at);
      const was = minus && small(minus, layer, at).values;
      return { cells, values: was ? values.map((value, i) => value - was[i]) : values };
    };
    const reach = minus ? places.reduce((most, place) => cellsOf(place).values.reduce((one, value) => Math.max(one, Math.abs(value)), most), 1e-3) : 1;
    const scale = minus ? diverging(reach, palette.dark) : sequential(0, 1, palette.dark);
    const corner = (i: number): [number, number] => [side + (i % columns) * (size + gap), head + Math.floor(i / columns) * tall];
    const draw = (surface: Surface) => {
      if (byLayer) {
        for (let h = 0; h < columns; h++) surface.text(side + h * (size + gap) + size / 2, 11, `${h}`, { size: 11, fill: palette.muted, anchor: "middle" });
        for (let layer = 0; layer < rows; layer++) surface.text(0, head + layer * tall + size / 2, `${layer}`, { size: 11, fill: palette.muted, baseline: "middle" });
      }
      places.forEach((place, i) => {
        const [x, y] = corner(i);
        const { cells, values } = cellsOf(place);
        surface.cells(x, y, size, size, cells, cells, (q, k) => values[q * cells + k], scale);
        surface.rect(x + 0.5, y + 0.5, size - 1, size - 1, { stroke: palette.line });
        if (labelled) {
          const value = place.value === null ? "" : ` · ${number(place.value, 2)}`;
          surface.text(x, y + size + 12, `${place.layer}.${place.head}${value}`, { size: 11, fill: palette.muted, fit: size + gap });
        }
      });
    };
    const over = (surface: Surface) => {
      const { layer, head: at } = app.at();
      const { query, key } = app.hover.value;
      const n = trace.length;
      places.forEach((place, i) => {
        const [x, y] = corner(i);
        if (query !== undefined) surface.rect(x, y + (query / n) * size, size, Math.max(1, size / n), { fill: palette.accent, opacity: 0.45 });
        if (key !== undefined) surface.rect(x + (key / n) * size, y, Math.max(1, size / n), size, { fill: palette.warm, opacity: 0.45 });
        if (place.layer === layer && place.head === at) surface.rect(x - 2, y - 2, size + 4, size + 4, { stroke: palette.accent, width: 2.5, radius: 3 });
      });
    };
    const says = MEASURES[sort.value];
    return {
      width,
      height: head + rows * tall,
      draw,
      over,
      differ: () => app.of(trace, () => build(width, palette, app.base.value)),
      grid: {
        ...lattice(rows, columns, [side, head], [size, size], [size + gap, tall]),
        has: (row, column) => row * columns + column < places.length,
        read: (row, column) => {
          const place = places[row * columns + column];
          return `layer ${place.layer}, head ${place.head}${place.value === null ? "" : `: ${says.says} ${number(place.value)}`}`;
        },
        choose: (row, column) => {
          const place = places[row * columns + column];
          app.layer.value = place.layer;
          app.head.value = place.head;
        },
        start: () => {
          const { layer, head: at } = app.at();
          const found = places.findIndex((place) => place.layer === layer && place.head === at);
          return [Math.floor(found / columns), found % columns];
        },
      },
    };
  };
  const measures = app.trace.value.need("attention.measures").entry.of!;
  return (
    <Figure
      title="All heads"
      name={`heads-${sort.value}`}
      caption={sort.value === "layer" ? "A row for each layer, a column for each head. Queries run down, keys run right." : `Sorted by ${MEASURES[sort.value]?.says ?? sort.value}.`}
      build={(width, palette) => build(width, palette)}
      shell={() => commandOf(app, "heads", `--top ${app.trace.value.layers * app.trace.value.heads}`)}
      controls={
        <Choice label="Sort by" at={sort} of={{ layer: "layer", ...Object.fromEntries(measures.map((name) => [name, MEASURES[name] ?? name])) }} />
      }
      table={() => {
        const block = app.trace.value.need("attention.measures");
        return {
          columns: ["layer", "head", ...measures],
          rows: ordered(app, sort.value).map(({ layer, head }) => [layer, head, ...measures.map((_, row) => block.at(row, layer, head))]),
          by: ["layer", "head"],
          note: "Shares are means over the tokens where the measure is defined; entropy is in bits.",
        };
      }}
      python={() => `pl.heads.scores(model, ${idsIn(app.trace.value)})`}
    />
  );
}

const cellName = (edges: number[], at: number) => (edges[at + 1] - edges[at] > 1 ? `${edges[at]}–${edges[at + 1] - 1}` : `${edges[at]}`);

export function HeadPicker() {
  const app = useApp();
  return <Choice label="Head" at={app.head} of={upTo(app.trace.value.heads)} />;
}

function OneHead() {
  const app = useApp();
  const weighted = useParam<boolean>("weighted", false);
  const norms = app.trace.value.block("attention.value_norm");
  const { layer, head } = app.at();
  const values = () => {
    const trace = app.trace.value;
    const where = app.at();
    const pattern = patternOf(app, trace, where.layer, where.head);
    const norm = weighted.value && !pattern.pooled ? trace.block("attention.value_norm") : null;
    const at = norm ? (q: number, k: number) => pattern.at(q, k) * norm.at(where.layer, where.head, k) : pattern.at;
    return { pattern, at, isWeighted: norm !== null, ...where };
  };
  const build = (width: number, palette: Palette): Drawing => {
    const trace = app.trace.value;
    const { pattern, at, isWeighted } = values();
    const n = pattern.cells;
    const most = isWeighted ? largest(n, n, (q, k) => (k > q ? 0 : Math.max(0, at(q, k)))) : 1;
    const piece = (i: number) => (pattern.pooled ? cellName(pattern.edges, i) : visible(trace.header.tokens[i].text));
    const labels = each(n, (i) => piece(i));
    const named = (i: number) => (pattern.pooled ? `tokens ${piece(i)}` : quoted(trace.header.tokens[i].text));
    const cellOf = (token: number) => (pattern.pooled ? pattern.edges.findIndex((edge, i) => token >= edge && token < pattern.edges[i + 1]) : token);
    return heatMap({
      width,
      palette,
      rows: n,
      columns: n,
      at: (q, k) => (k > q ? NaN : at(q, k)),
      scale: sequential(0, most, palette.dark),
      rowLabels: labels,
      columnLabels: labels,
      largest: 36,
      rowTitle: "query: who looks",
      columnTitle: "key: who is looked at",
      legend: { title: isWeighted ? "share × norm of the value" : pattern.pooled ? "mean share of attention" : "share of attention", low: "0", high: number(most, 2) },
      has: (q, k) => k <= q,
      read: (q, k) => `query ${named(q)} → key ${named(k)}, ${isWeighted ? number(at(q, k)) : at(q, k).toFixed(2)}`,
      hover: (where) => (app.hover.value = where ? { query: pattern.edges[where[0]], key: pattern.edges[where[1]] } : {}),
      choose: (q, k) => {
        app.query.value = pattern.edges[q];
        app.key.value = pattern.edges[k];
      },
      lit: () => ({ row: cellOf(app.atQuery.value), column: app.atKey.value < 0 ? -1 : cellOf(app.atKey.value) }),
    });
  };
  return (
    <Figure
      title={`Layer ${layer}, head ${head}`}
      name={`attention-${layer}-${head}`}
      caption={
        app.server || app.trace.value.has("attention.pattern")
          ? "Each row sums to one: where the token on the left looks. Choose a row to see how its shares come about."
          : "Means over cells of a long text: where the tokens on the left look. pellucid serve shows every pair of tokens."
      }
      build={build}
      controls={
        <>
          <LayerPicker />
          <HeadPicker />
          {norms && (
            <Tick label="weighted by the norm of the value" at={weighted} title="A token can be looked at and hand over almost nothing" />
          )}
        </>
      }
      table={() => {
        const { pattern, at, isWeighted } = values();
        const { tokens } = app.trace.value.header;
        const rows = [];
        for (let q = 0; q < pattern.cells; q++) {
          for (let k = 0; k <= q; k++) rows.push([q, pattern.pooled ? null : tokens[q].text, k, pattern.pooled ? null : tokens[k].text, at(q, k)]);
        }
        return { columns: ["query", "query_token", "key", "key_token", isWeighted ? "share × norm" : "share"], rows, note: pattern.pooled ? "Means over cells of a long text." : app.trace.value.has("attention.pattern") ? "Shares are stored in 8 bits: right to within 0.004." : "" };
      }}
      python={() => `ckpts["blocks.${app.at().layer}.attn.ckpt_pattern"][0, ${app.at().head}]`}
    />
  );
}

const MOST_KEYS = 22;

/** Keys worth showing, in the order of the text: all if they are few, else the largest shares, and two masked ones. */
function shown(all: Step[], chosen: number): Step[] {
  const seen = all.filter((step) => !step.masked);
  const masked = all.filter((step) => step.masked).slice(0, 2);
  if (seen.length <= MOST_KEYS) return [...seen, ...masked];
  const largest = [...seen].sort((a, b) => b.share - a.share).slice(0, MOST_KEYS);
  if (chosen >= 0 && chosen < seen.length && !largest.includes(seen[chosen])) largest[MOST_KEYS - 1] = seen[chosen];
  return [...largest.sort((a, b) => a.key - b.key), ...masked];
}

const STEP_NAMES = ["q · k", "× scale", "mask", "softmax"];

function Steps() {
  const app = useApp();
  const trace = app.trace.value;
  const { layer, head } = app.at();
  const found = vectors(app, layer);
  const scale = trace.header.attention?.scale[layer] ?? 1;
  if (!found) return <Missing what="attention.q">Queries and keys are not in this file</Missing>;
  const all = () => {
    const where = app.at();
    const now = vectors(app, where.layer)!;
    return steps(now, app.trace.value.header.attention?.scale[where.layer] ?? 1, where.head, app.atQuery.value, app.trace.value.length);
  };
  const value = (step: Step, column: number) => [step.product, step.scaled, step.masked ? -Infinity : step.scaled, step.share][column];
  const build = (width: number, palette: Palette): Drawing => {
    const run = app.trace.value;
    const rows = shown(all(), app.atKey.value);
    const name = (step: Step) => visible(run.header.tokens[step.key].text);
    const [rowHeight, head, gap] = [23, 24, 12];
    const left = Math.min(130, width * 0.26);
    const column = (width - left - gap * 3) / 4;
    const reach = max(rows, (step) => Math.abs(step.product)) || 1e-9;
    const scaledReach = max(rows, (step) => Math.abs(step.scaled)) || 1e-9;
    const draw = (surface: Surface) => {
      STEP_NAMES.forEach((title, i) => surface.text(left + i * (column + gap), 12, title, { size: 11.5, fill: palette.muted }));
      rows.forEach((step, row) => {
        const y = head + row * rowHeight;
        const middle = y + rowHeight / 2;
        const faded = step.masked ? palette.muted : palette.ink;
        surface.text(0, middle, name(step), { size: 12.5, mono: true, fill: faded, baseline: "middle", fit: left - 8 });
        for (let i = 0; i < 4; i++) {
          const x = left + i * (column + gap);
          surface.rect(x, y + 3, column, rowHeight - 6, { fill: palette.faint, radius: 4 });
          const at = value(step, i);
          if (i === 3) surface.rect(x, y + 3, column * at, rowHeight - 6, { fill: palette.accent, radius: 4, opacity: 0.85 });
          else if (Number.isFinite(at)) {
            const w = (column / 2) * (Math.abs(at) / (i ? scaledReach : reach));
            surface.rect(at < 0 ? x + column / 2 - w : x + column / 2, y + 3, w, rowHeight - 6, { fill: at < 0 ? palette.warm : palette.accent, opacity: 0.32, radius: 2 });
          }
          const text = i === 3 ? at.toFixed(column < 70 ? 2 : 3) : column < 70 ? number(Math.round(at * 100) / 100, 2) : number(at);
          const inside = i === 3 && at > 0.55;
          surface.text(i === 3 ? (inside ? x + 6 : x + column * at + 5) : x + column - 5, middle, text, {
            size: 11.5,
            mono: true,
            fill: inside ? palette.panel : faded,
            anchor: i === 3 ? "start" : "end",
            baseline: "middle",
          });
        }
      });
    };
    const over = (surface: Surface) => {
      const row = rows.findIndex((step) => step.key === app.atKey.value);
      if (row >= 0) surface.rect(-1, head + row * rowHeight, width, rowHeight, { stroke: palette.warm, width: 1.5, radius: 4 });
    };
    return {
      width,
      height: head + rows.length * rowHeight + 2,
      draw,
      over,
      grid: {
        ...lattice(rows.length, 4, [left, head], [column, rowHeight], [column + gap, rowHeight], true),
        read: (row, i) => {
          const step = rows[row];
          const pair = `query ${quoted(run.header.tokens[app.atQuery.value].text)} → key ${quoted(run.header.tokens[step.key].text)}`;
          return `${pair}, ${STEP_NAMES[i]} ${i === 3 ? step.share.toFixed(4) : step.masked && i === 2 ? "masked: it comes later" : number(value(step, i), 4)}`;
        },
        hover: (where) => (app.hover.value = where ? { query: app.atQuery.value, key: rows[where[0]].key } : {}),
        choose: (row) => (app.key.value = rows[row].key),
      },
    };
  };
  return (
    <Figure
      title={`How ${quoted(trace.header.tokens[app.atQuery.value].text)} divides its attention`}
      name={`attention-steps-${layer}-${head}`}
      caption={
        <>
          <Formula tex={`a_{ij} = \\softmax_j ( q_i \\cdot k_j \\times ${number(scale, 3).replace("−", "-")} )`} /> in layer {layer}, head {head}, with the run’s own numbers. Keys after
          the query are masked.
        </>
      }
      build={build}
      table={() => ({
        columns: ["key", "token", "q_dot_k", "scaled", "masked", "share"],
        rows: all().map((step) => [step.key, app.trace.value.header.tokens[step.key].text, step.product, step.scaled, step.masked ? "masked" : "", step.share]),
      })}
      python={() => {
        const where = app.at();
        const attn = `blocks.${where.layer}.attn`;
        return `scores = ckpts["${attn}.ckpt_scores"][0, ${where.head}, ${app.atQuery.value}]\nscores.softmax(-1)`;
      }}
    />
  );
}

export function Attention() {
  return (
    <>
      <div class="columns heads">
        <AllHeads />
        <OneHead />
      </div>
      <Steps />
    </>
  );
}
