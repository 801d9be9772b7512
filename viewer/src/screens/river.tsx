// The river: the logit of one token as a sum that grows from layer to layer and closes.

import { extent, max } from "d3-array";
import { scaleLinear } from "d3-scale";
import { area, curveBumpX, line, stack, type SeriesPoint } from "d3-shape";
import { diverging, type Palette } from "../colors";
import { Figure, type Drawing } from "../figure";
import { Choice, Missing } from "../inputs";
import { barRows, heatMap, levels } from "../marks";
import { partsOf, shortName, streams, type Streams } from "../river";
import { commandOf, useApp, useParam, type App } from "../state";
import type { Surface } from "../surface";
import { number, quoted, shellText } from "../text";
import { byToken, roomFor } from "../tokens";
import { PARTS, type Trace } from "../trace";

const GROUPS: Record<string, string> = { source: "the tokens it was read from", head: "heads", layer: "layers", kind: "kinds of parts" };

const HUES_LIGHT = ["#1c5d99", "#d98a3d", "#3f8f86", "#8b5a9e", "#c2a83a", "#b4574e", "#6b8e4e", "#4d7fb8", "#b98fc4"];
const HUES_DARK = ["#6aa9e0", "#f0a55f", "#6cc3b8", "#bd93cf", "#e0cb62", "#e58a80", "#a5c985", "#8fb9ea", "#d9b8e2"];

function hue(name: string, index: number, palette: Palette): string {
  if (name === "MLPs") return palette.dark ? "#56616d" : "#b9c0c6";
  if (name === "embeddings") return palette.dark ? "#7d8894" : "#8d979f";
  if (name.includes("offset")) return palette.dark ? "#3f4954" : "#d8dade";
  if (name.startsWith("other")) return palette.dark ? "#4a5a6b" : "#c8d3dd";
  const hues = palette.dark ? HUES_DARK : HUES_LIGHT;
  return hues[index % hues.length];
}

/** At each step what helps is stacked above zero and what hinders below; together they are the sum so far. */
const stacked = ({ sums, steps }: Streams, side: (a: number, b: number) => number) =>
  stack<unknown, number, number>().keys(sums.keys()).value((step, row) => side(0, sums[row][step]))(steps.keys());

function River() {
  const app = useApp();
  const asked = useParam<string>("by", "source");
  // An edited head is no longer the sum over its sources, so neither run is then shown by source.
  const bySource = app.edited.value.has("attribution.sources") && app.trace.value.has("attribution.sources");
  const by = { value: asked.value === "source" && !bySource ? "head" : asked.value };
  const { target, tokens } = app.trace.value.header;
  const build = (width: number, palette: Palette, minus: Trace | null = null): Drawing => {
    const trace = app.trace.value;
    const made = streams(trace, by.value, minus);
    const [above, below] = [stacked(made, Math.max), stacked(made, Math.min)];
    const { names, sums, steps } = made;
    const height = Math.max(300, Math.min(430, width * 0.46));
    const [left, top, right] = [34, 14, Math.min(190, 70 + width * 0.15)];
    const end = steps.length - 1;
    const [lowest = 0, highest = 0] = extent([...above, ...below].flat(2));
    const y = scaleLinear([Math.max(highest, 0.01), lowest], [top, top + height]);
    const x = scaleLinear([0, end], [left, width - right]);
    const running = steps.map((_, step) => sums.reduce((sum, row) => sum + row[step], 0));
    /** Eased from step to step like water. */
    const flow = area<SeriesPoint<number>>((_, step) => x(step), ([from]) => y(from), ([, to]) => y(to)).curve(curveBumpX);
    const course = line<number>((_, step) => x(step), y).curve(curveBumpX)(running);
    /** From where to where a stream is at a step, on the side of zero that it is on. */
    const spanOf = (row: number, step: number) => {
      const [upper, lower] = below[row][step];
      return lower < upper ? [lower, upper] : above[row][step];
    };
    const colors = names.map((name, i) => hue(name, i, palette));
    const middle = (row: number) => (y(spanOf(row, end)[0]) + y(spanOf(row, end)[1])) / 2;
    // Names at the right stand beside their streams, and move apart where they would touch.
    const labels = names
      .map((_, i) => ({ i, at: middle(i) }))
      .sort((a, b) => a.at - b.at);
    const gap = 15;
    labels.forEach((label, k) => (label.at = Math.max(label.at, k ? labels[k - 1].at + gap : top + 4)));
    for (let k = labels.length - 1; k >= 0; k--) labels[k].at = Math.min(labels[k].at, k === labels.length - 1 ? top + height : labels[k + 1].at - gap);
    const draw = (surface: Surface) => {
      levels(surface, palette, y, y.ticks(6), [left, width - right], palette.muted);
      names.forEach((_, i) => {
        for (const { [i]: series } of [above, below]) if (series.some(([from, to]) => from !== to)) surface.path(flow(series), { fill: colors[i] });
      });
      surface.path(course, { stroke: palette.panel, width: 5 });
      surface.path(course, { stroke: palette.ink, width: 2 });
      surface.circle(x(end), y(running[end]), 4.5, { fill: palette.ink, stroke: palette.panel, width: 2 });
      for (const { i, at } of labels) {
        const color = colors[i];
        const from = middle(i);
        surface.path(`M${x(end) + 6} ${from}C${x(end) + 16} ${from} ${x(end) + 14} ${at} ${x(end) + 24} ${at}`, { stroke: color, width: 1.5 });
        const value = number(sums[i][end], 3);
        surface.text(x(end) + 29, at, width < 480 ? names[i] : `${names[i]}  ${value}`, { size: 11.5, fill: palette.ink, baseline: "middle", fit: width - x(end) - 30 });
      }
      steps.forEach((_, i) => {
        const layer = i % 2 === 1 && i < end ? (i - 1) / 2 : -1;
        const many = Math.ceil((steps.length * 16) / (width - left - right));
        if (layer >= 0 && layer % many === 0) surface.text((x(i) + x(i + 1)) / 2, top + height + 18, `${layer}`, { size: 11, fill: palette.muted, anchor: "middle" });
        if (i) surface.rect(x(i) - 0.5, top + height + 2, 1, layer >= 0 ? 6 : 3, { fill: palette.line });
      });
      surface.text(left, top + height + 34, width < 480 ? "layers →" : "layers: attention, then MLP →", { size: 11, fill: palette.muted });
      surface.text(width, top + height + 34, `${minus ? "change of the logit" : "logit"} ${number(made.logit, 4)}`, { size: 12, weight: 700, fill: palette.ink, anchor: "end" });
    };
    const find = (px: number, py: number): [number, number] | null => {
      const step = Math.round(x.invert(px));
      if (step < 0 || step > end) return null;
      const value = y.invert(py);
      const row = names.findIndex((_, i) => value >= spanOf(i, step)[0] && value < spanOf(i, step)[1]);
      return row < 0 ? null : [row, step];
    };
    return {
      width,
      height: top + height + 42,
      draw,
      differ: () => app.of(trace, () => build(width, palette, app.base.value)),
      grid: {
        rows: names.length,
        columns: steps.length,
        find,
        box: (row, step) => {
          const [b, a] = spanOf(row, step).map(y);
          return [x(step) - 5, a, 10, Math.max(3, b - a)];
        },
        read: (row, step) => `${names[row]} has added ${number(sums[row][step], 4)} after ${steps[step]}; the sum so far is ${number(running[step], 4)}`,
        choose: (row) => {
          const source = by.value === "source" ? /^(\d+) /.exec(names[row]) : null;
          if (source) app.key.value = Number(source[1]);
          const head = by.value === "head" ? /(\d+)\.(\d+)$/.exec(names[row]) : null;
          if (head) {
            app.layer.value = Number(head[1]);
            app.head.value = Number(head[2]);
          }
        },
        hover: (where) => {
          const source = where && by.value === "source" ? /^(\d+) /.exec(names[where[0]]) : null;
          app.hover.value = source ? { key: Number(source[1]) } : {};
        },
        start: () => [0, end],
      },
    };
  };
  return (
    <Figure
      title={`The river of ${quoted(target.text)}`}
      name={`river-${by.value}`}
      caption={`How its logit at ${quoted(tokens[target.pos].text)} comes together, layer by layer. What helps flows above zero, what hinders below; the line is the sum.`}
      build={(width, palette) => build(width, palette)}
      controls={
        <Choice label="Streams are" at={asked} value={by.value} of={Object.fromEntries(Object.entries(GROUPS).filter(([id]) => id !== "source" || bySource))} />
      }
      table={() => {
        const { names, sums, steps } = streams(app.trace.value, by.value);
        return { columns: ["stream", ...steps], rows: names.map((name, i) => [name, ...sums[i]]), by: ["stream"], note: "Each column is what a stream has added up to and with that step." };
      }}
      python={() => `parts = pl.attribution.direct(ckpts, ${target.id}, by="head")[:, 0, ${target.pos}]\nparts.sum()`}
      shell={() => partsCommand(app)}
    >
      <Closing />
    </Figure>
  );
}

/** The sum of all parts beside the logit of the run. */
export function Closing() {
  const trace = useApp().trace.value;
  const { total, logit } = streams(trace, "kind");
  return (
    <dl class="closing">
      <dt>{`Sum of ${trace.need(PARTS).size} parts`}</dt>
      <dd>{plain(total)}</dd>
      <dt>Logit of the run</dt>
      <dd>{plain(logit)}</dd>
      <dt>What is left</dt>
      <dd>{logit === total ? "0" : (logit - total).toExponential(3).replaceAll("-", "−")}</dd>
    </dl>
  );
}

/** The command that writes the logit as the sum of all its parts. */
const partsCommand = (app: App) => {
  const { header } = app.trace.value;
  return commandOf(app, "attribute", `--token ${shellText(header.target.text)} --pos ${header.target.pos} --by head --top ${app.trace.value.need(PARTS).size}`);
};

/** All digits of a number. */
const plain = (value: number) => String(value).replaceAll("-", "−");

type Head = { layer: number; head: number; total: number; bySource: number[] };

function headsOf(app: ReturnType<typeof useApp>): Head[] {
  const trace = app.trace.value;
  const found = new Map<string, Head>();
  for (const part of partsOf(trace)) {
    if (part.head === null || part.layer === null) continue;
    const name = `${part.layer}.${part.head}`;
    const head = found.get(name) ?? { layer: part.layer, head: part.head, total: 0, bySource: trace.header.tokens.map(() => 0) };
    head.total += part.value;
    if (part.source !== null) head.bySource[part.source] += part.value;
    found.set(name, head);
  }
  return [...found.values()].sort((a, b) => Math.abs(b.total) - Math.abs(a.total));
}

const MOST_HEADS = 16;

function FromWhere() {
  const app = useApp();
  const { length } = app.trace.value;
  const count = Math.min(MOST_HEADS, headsOf(app).length);
  const build = (width: number, palette: Palette): Drawing => {
    const trace = app.trace.value;
    // Of a difference, both runs show the heads of the edited one.
    const chosen = app.of(app.edited.value, () => headsOf(app)).slice(0, count);
    const all = headsOf(app);
    const heads = chosen.map((one) => all.find((own) => own.layer === one.layer && own.head === one.head) ?? one);
    const reach = max(heads.flatMap((head) => head.bySource), Math.abs) || 1e-9;
    return heatMap({
      width,
      palette,
      rows: heads.length,
      ...byToken(app),
      rowHeight: 24,
      at: (row, pos) => heads[row].bySource[pos],
      scale: diverging(reach, palette.dark),
      rowLabels: heads.map((head) => `${head.layer}.${head.head}  ${number(head.total, 3)}`),
      cellText: (row, pos) => (Math.abs(heads[row].bySource[pos]) < reach / 20 ? "" : number(heads[row].bySource[pos], 2)),
      legend: { title: "adds to the logit", low: number(-reach, 2), high: number(reach, 2) },
      read: (row, pos) => `head ${heads[row].layer}.${heads[row].head} adds ${number(heads[row].bySource[pos], 4)} from ${quoted(trace.header.tokens[pos].text)}`,
      hover: (where) => (app.hover.value = where ? { key: where[1] } : {}),
      choose: (row, pos) => {
        app.layer.value = heads[row].layer;
        app.head.value = heads[row].head;
        app.key.value = pos;
      },
      lit: () => {
        const { layer, head } = app.at();
        return { row: heads.findIndex((one) => one.layer === layer && one.head === head), column: app.atKey.value };
      },
    });
  };
  return (
    <Figure
      title="Which head, from which token"
      name="river-heads"
      caption={`The ${count} heads with the largest parts, and the tokens that they read them from. Choose a cell, then look at that head under “Attention”.`}
      narrowest={roomFor(length, 50, 10)}
      build={build}
      table={() => ({
        columns: ["layer", "head", "source", "token", "adds"],
        rows: headsOf(app).flatMap((head) => head.bySource.map((value, pos) => [head.layer, head.head, pos, app.trace.value.header.tokens[pos].text, value])),
        by: ["layer", "head", "source"],
      })}
      python={() => `pl.attribution.direct(ckpts, ${app.trace.value.header.target.id}, by="head")`}
    />
  );
}

const MOST_PARTS = 14;

function Largest() {
  const app = useApp();
  const bars = () => {
    const now = new Map(parts().map(({ name, value }) => [name, value]));
    const pair = app.pair.value;
    const before = new Map(pair ? app.of(pair.base, parts).map(({ name, value }) => [name, value]) : []);
    // Of a difference, both runs show the parts that changed most.
    const size = ({ name, value }: { name: string; value: number }) => Math.abs(value - (before.get(name) ?? 0));
    const order = app.of(app.edited.value, parts).sort((a, b) => size(b) - size(a));
    return order.slice(0, MOST_PARTS).map(({ name }) => ({ name, value: now.get(name) ?? 0 }));
  };
  const parts = () => {
    const block = app.trace.value.need(PARTS);
    return block.entry.of!.map((name, i) => ({ name, value: block.value(i) })).sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  };
  return (
    <Figure
      title="The largest parts"
      name="river-parts"
      build={(width, palette) =>
        barRows({
          width,
          palette,
          bars: bars().map(({ name, value }) => ({ label: shortName(name), value })),
          read: (row) => `${bars()[row].name} adds ${number(bars()[row].value, 4)}`,
        })
      }
      table={() => ({ columns: ["component", "adds"], rows: parts().map(({ name, value }) => [name, value]), by: ["component"] })}
      shell={() => partsCommand(app)}
      python={() => `pl.attribution.direct(ckpts, ${app.trace.value.header.target.id}, by="head")[:, 0, ${app.trace.value.header.target.pos}]`}
    />
  );
}

export function RiverScreen() {
  const app = useApp();
  if (!app.trace.value.has(PARTS)) return <Missing what={PARTS} />;
  return (
    <>
      <River />
      {app.trace.value.has("attribution.sources") ? <FromWhere /> : <Missing what="attribution.sources" />}
      <Largest />
    </>
  );
}
