// Neurons: one neuron along the text, what it adds to the answer, and which neurons are strongest at a token.

import { extent, max } from "d3-array";
import { scaleLinear } from "d3-scale";
import type { Palette } from "../colors";
import { Figure, type Drawing } from "../figure";
import { Choice, Missing, Note } from "../inputs";
import { barRows, levels } from "../marks";
import { scatterPlot } from "../scatter";
import { asked } from "../source";
import { commandOf, keeping, useApp, useParam, type App } from "../state";
import { widthOf, type Surface } from "../surface";
import { number, quoted, visible } from "../text";
import { byToken, roomFor } from "../tokens";
import type { Point } from "../trace";
import { LayerPicker } from "./overview";
import { each } from "../lists";

/** Values of one checkpoint of neurons, and whether they are the run's own to the last bit. */
type Values = { at: (pos: number, neuron: number) => number; exact: boolean };

/** What this screen alone shows in the place of neurons, as if it were one layer of them. */
const features = (app: App) => (app.screen.value === "neurons" ? app.trace.value.header.features : undefined);
const title = (app: App): string => (features(app) ? "Feature" : "Neuron");
const noun = (app: App): string => title(app).toLowerCase();
const blockOf = (app: App, what: string) => app.trace.value.block(`${noun(app)}s.${what}`);
const layersOf = (app: App): number => (features(app) ? 1 : app.trace.value.layers);
const count = (app: App): number => features(app)?.count ?? app.trace.value.header.model.sizes.d_mlp ?? 0;
const layerOf = (app: App): number => Math.max(0, Math.min(app.layer.value, layersOf(app) - 1));
const numberOf = (app: App, layer: number, neuron: number): string => (features(app) ? "" : `${layer}.`) + neuron;

/** The neuron that was chosen; until then the layer's strongest at the last token. */
export function neuronOf(app: App): number {
  if (app.neuron.value >= 0) return Math.min(Math.round(app.neuron.value), count(app) - 1);
  const values = atToken(app, layerOf(app), app.trace.value.length - 1);
  let best = 0;
  for (let neuron = 1; values && neuron < count(app); neuron++) if (Math.abs(values(neuron)) > Math.abs(values(best))) best = neuron;
  return best;
}

/** What the neurons of a layer are made of, in the order of computation; the last is their value. */
const kinds = (app: App, layer: number): Point[] => (features(app) ? [features(app)!.kind] : app.trace.value.header.schema.points.filter((point) => point.block === layer && point.axes.at(-1) === "d_mlp"));

/** The values of a checkpoint of neurons: from the trace, else asked of the server; null where neither has them. */
function valuesOf(app: App, point: Point): Values | null {
  const trace = app.trace.value;
  for (const what of ["pre", "post"]) {
    const block = blockOf(app, what);
    if (block && String(block.entry.of) === point.short) return { at: (pos, neuron) => block.at(point.block!, pos, neuron), exact: block.exact };
  }
  const own = trace.block(`atlas.${point.name}`);
  if (own) return { at: (pos, neuron) => own.at(pos, neuron), exact: own.exact };
  const answer = asked(app, point.name, "Asking for the neurons", (server, about) => server.values(point.name, about));
  return answer && { at: (pos, neuron) => answer.data[pos * answer.shape[1] + neuron], exact: true };
}

type Series = { point: Point; values: number[]; exact: boolean };

/** The neuron's own values along the text, one series for each checkpoint that it goes through. */
function series(app: App): Series[] {
  const neuron = neuronOf(app);
  return kinds(app, layerOf(app)).flatMap((point) => {
    const found = valuesOf(app, point);
    return found ? [{ point, values: each(app.trace.value.length, (pos) => found.at(pos, neuron)), exact: found.exact }] : [];
  });
}

const told = (series: Series, pos: number): string => `${series.exact ? "" : "≈ "}${number(series.values[pos])}`;
const nameOf = (app: App): string => numberOf(app, layerOf(app), neuronOf(app));
const context = (app: App, pos: number): string =>
  visible(app.trace.value.header.tokens.slice(Math.max(0, pos - 3), pos).map((token) => token.text).join("")).replace(/^∅$/, "");

/** What one unit of a neuron adds to the followed token's logit; null if the trace does not say it. */
function effectOf(app: App, layer: number, neuron: number): number | null {
  return blockOf(app, "effect")?.at(layer, neuron) ?? null;
}

export function Find() {
  const app = useApp();
  const last = count(app) - 1;
  return (
    <>
      {!features(app) && <LayerPicker />}
      <label>
        {title(app)}
        <input
          type="number"
          min={0}
          max={last}
          value={neuronOf(app)}
          onChange={(event) => {
            const wanted = Number(event.currentTarget.value);
            if (event.currentTarget.value !== "" && Number.isInteger(wanted) && wanted >= 0 && wanted <= last) app.neuron.value = wanted;
            else {
              app.notice.value = `${title(app)}s have numbers from 0 to ${last}.`;
              event.currentTarget.value = String(neuronOf(app));
            }
          }}
        />
      </label>
      <span class="note">of {count(app)}</span>
    </>
  );
}

/** One neuron along the text: hollow marks before the activation, bars after it. */
function Along({ found }: { found: Series[] }) {
  const app = useApp();
  const { tokens, target } = app.trace.value.header;
  const after = found.at(-1)!;
  const neuron = neuronOf(app);
  const build = (width: number, palette: Palette): Drawing => {
    const found = series(app);
    const [before, after] = [found.slice(0, -1), found.at(-1)!];
    const { columnLabels: labels, hover, choose } = byToken(app);
    const all = found.flatMap(({ values }) => values).filter(Number.isFinite);
    const [left, top, tall] = [44, 30, 190];
    const foot = 14 + Math.min(96, max(labels, (label) => widthOf(label, { size: 12, mono: true }))!);
    const cell = (width - left - 4) / labels.length;
    const [low = 0, high = 0] = extent([0, ...all]);
    const y = scaleLinear([high, low], [top + 8, top + tall - 8]);
    const x = scaleLinear([-0.5, labels.length - 0.5], [left, width - 4]);
    const bar = Math.max(2, Math.min(30, cell * 0.66));
    const mark = (surface: Surface, kind: number, px: number, py: number) => {
      const r = Math.max(2, Math.min(4.5, cell * 0.22));
      const style = { fill: palette.panel, stroke: palette.ink, width: 1.5 };
      if (kind === 0) surface.circle(px, py, r, style);
      else surface.rect(px - r + 0.5, py - r + 0.5, 2 * r - 1, 2 * r - 1, style);
    };
    const thin = Math.max(1, Math.ceil(13 / cell));
    const draw = (surface: Surface) => {
      let px = left;
      const entry = (text: string, paint: (x: number) => void) => {
        paint(px + 5);
        surface.text(px + 15, 10, text, { size: 11.5, fill: palette.muted, baseline: "middle" });
        px += widthOf(text, { size: 11.5 }) + 32;
      };
      entry(after.point.short.replace(/^.*ckpt_/, "") + ", after", (at) => surface.rect(at - 4.5, 5.5, 9, 9, { fill: palette.accent, radius: 2 }));
      before.forEach(({ point }, kind) => entry(point.short.replace(/^.*ckpt_/, "") + ", before", (at) => mark(surface, kind, at, 10)));
      levels(surface, palette, y, y.ticks(4), [left, width - 4], palette.muted);
      after.values.forEach((value, pos) => {
        const [a, b] = [y(Math.max(0, value)), y(Math.min(0, value))];
        surface.rect(x(pos) - bar / 2, a, bar, Math.max(1, b - a), { fill: value < 0 ? palette.warm : palette.accent, radius: Math.min(3, bar / 4) });
      });
      before.forEach(({ values }, kind) => values.forEach((value, pos) => mark(surface, kind, x(pos), y(value))));
      labels.forEach((label, pos) => {
        if (pos % thin === 0) surface.text(x(pos), top + tall + 6, label, { size: 12, mono: true, fill: palette.muted, turn: -90, anchor: "end", baseline: "middle", fit: 96 });
      });
    };
    return {
      width,
      height: top + tall + foot,
      stays: left,
      draw,
      over: (surface) => {
        const pos = app.atQuery.value;
        surface.rect(x(pos) - cell / 2, top, cell, tall, { fill: palette.accent, opacity: 0.1, radius: 3 });
        surface.rect(x(pos) - 8, top + tall + 2, 16, foot, { fill: palette.panel });
        surface.text(x(pos), top + tall + 6, labels[pos], { size: 12, mono: true, weight: 700, fill: palette.accent, turn: -90, anchor: "end", baseline: "middle", fit: 96 });
      },
      grid: {
        rows: 1,
        columns: labels.length,
        box: (_, pos) => [x(pos) - cell / 2 + 1, top, cell - 2, tall],
        find: (px) => {
          const pos = Math.round(x.invert(px));
          return pos >= 0 && pos < labels.length ? [0, pos] : null;
        },
        read: (_, pos) => `at ${quoted(tokens[pos].text)}: ${found.map((one) => `${one.point.short} ${told(one, pos)}`).join(", ")}`,
        choose,
        hover,
        start: () => [0, app.atQuery.value],
      },
    };
  };
  const names = found.map(({ point }) => point.name);
  const effect = effectOf(app, layerOf(app), neuron);
  const adds = effect === null ? null : effect * after.values[target.pos];
  const rank = adds === null ? null : strongest(app, "effect", -1)?.findIndex((one) => one.layer === layerOf(app) && one.neuron === neuron);
  return (
    <Figure
      title={`${title(app)} ${nameOf(app)} along the text`}
      name={`${noun(app)}-${nameOf(app)}`}
      caption={features(app) ? `Of the autoencoder of ${features(app)!.at}. Bars are the feature’s activation.` : "Bars are the neuron’s value, after the activation; hollow marks are what went into it."}
      narrowest={roomFor(tokens.length, 22, 9) - 50}
      build={build}
      controls={<Find />}
      table={() => ({
        columns: ["pos", "token", ...found.map(({ point }) => point.short)],
        rows: tokens.map((token, pos) => [pos, token.text, ...series(app).map(({ values }) => values[pos])]),
        note: found.every(({ exact }) => exact) ? "" : "Approximate: stored in fewer bits than the run used.",
      })}
      python={() => (features(app) ? `sae.features(ckpts)[0, :, ${neuron}]` : `names = ${JSON.stringify(names)}\n[ckpts[name][0, :, ${neuron}] for name in names]`)}
      shell={() => (features(app) ? null : keeping(app, names))}
    >
      {adds !== null && (
        <dl class="closing">
          <dt>{`Value at ${quoted(tokens[target.pos].text)}`}</dt>
          <dd>{told(after, target.pos)}</dd>
          <dt>{`One unit adds to the logit of ${quoted(target.text)}`}</dt>
          <dd>{number(effect!)}</dd>
          <dt>So it adds{rank !== undefined && rank !== null && rank >= 0 ? `, as no. ${rank + 1} of ${layersOf(app) * count(app)}` : ""}</dt>
          <dd>{number(adds)}</dd>
        </dl>
      )}
    </Figure>
  );
}

const MOST = 8;

/** The tokens at which the neuron is largest. */
function Largest({ found }: { found: Series[] }) {
  const app = useApp();
  const { tokens } = app.trace.value.header;
  const after = found.at(-1)!;
  const order = () => series(app).at(-1)!.values.map((value, pos) => ({ pos, value })).sort((a, b) => b.value - a.value);
  return (
    <Figure
      title="Its largest tokens"
      name={`${noun(app)}-${nameOf(app)}-tokens`}
      caption={`The tokens at which this ${noun(app)} is largest, after the words that it has read by then.`}
      build={(width, palette) => {
        const rows = order().slice(0, MOST);
        const room = width * 0.4 - 10;
        return barRows({
          width,
          palette,
          bars: rows.map(({ pos, value }) => {
            const own = visible(tokens[pos].text);
            let said = context(app, pos);
            while (said && widthOf(`…${said}▸${own}`, { size: 12.5, mono: true }) > room) said = [...said].slice(1).join("");
            return { label: `${said ? `…${said}` : ""}▸${own}`, value, text: `${after.exact ? "" : "≈ "}${number(value)}` };
          }),
          read: (row) => `at position ${rows[row].pos}, ${quoted(tokens[rows[row].pos].text)}: ${told(after, rows[row].pos)}`,
          choose: (row) => (app.query.value = rows[row].pos),
          hover: (row) => (app.hover.value = row === null ? {} : { query: rows[row].pos }),
          lit: () => rows.findIndex(({ pos }) => pos === app.atQuery.value),
        });
      }}
      table={() => ({ columns: ["pos", "token", "value"], rows: order().map(({ pos, value }) => [pos, tokens[pos].text, value]), by: ["pos"] })}
      python={() => (features(app) ? `sae.features(ckpts)[0, :, ${neuronOf(app)}]` : `ckpts["${after.point.name}"][0, :, ${neuronOf(app)}].sort(descending=True)`)}
      shell={() => (features(app) ? null : keeping(app, [after.point.name]))}
    />
  );
}

/** What goes into the activation against what comes out: its curve, as far as this text walks along it. */
function Through({ found }: { found: Series[] }) {
  const app = useApp();
  const { tokens } = app.trace.value.header;
  const [first, last] = [found[0], found.at(-1)!];
  const gated = found.length > 2;
  return (
    <Figure
      title="Before and after the activation"
      name={`neuron-${nameOf(app)}-through`}
      caption={gated ? "Each dot is a token: the gate to the right, the value upwards. What is gated may turn the sign." : "Each dot is a token. Together they lie on the curve of the activation function."}
      build={(width, palette) =>
        scatterPlot({
          width,
          height: 290,
          palette,
          dots: tokens.map((token, pos) => ({ x: first.values[pos], y: last.values[pos], label: visible(token.text), color: last.values[pos] < 0 ? palette.warm : palette.accent })),
          xTitle: first.point.short,
          yTitle: last.point.short,
          read: (pos) => `${quoted(tokens[pos].text)}: ${first.point.short} ${told(first, pos)}, ${last.point.short} ${told(last, pos)}`,
          choose: (pos) => (app.query.value = pos),
          hover: (pos) => (app.hover.value = pos === null ? {} : { query: pos }),
          lit: () => app.atQuery.value,
        })
      }
      table={() => ({ columns: ["pos", "token", first.point.short, last.point.short], rows: tokens.map((token, pos) => [pos, token.text, series(app)[0].values[pos], series(app).at(-1)!.values[pos]]) })}
      python={() => `names = ${JSON.stringify([first.point.name, last.point.name])}\n[ckpts[name][0, :, ${neuronOf(app)}] for name in names]`}
      shell={() => keeping(app, [first.point.name, last.point.name])}
    />
  );
}

type Strong = { layer: number; neuron: number; value: number };

/** The values of all neurons of a layer at one token. */
function atToken(app: App, layer: number, pos: number): ((neuron: number) => number) | null {
  const { name, short } = kinds(app, layer).at(-1)!;
  const block = blockOf(app, "post");
  if (block && String(block.entry.of) === short) return (neuron) => block.at(layer, pos, neuron);
  const answer = asked(app, `${name} at ${pos}`, "Asking for the neurons", (server, about) => server.values(name, { pos: [pos], ...about }));
  return answer && ((neuron) => answer.data[neuron]);
}

/** Neurons by the size of their value at the chosen token, or of what they add to the logit; of one layer, or of all (-1). */
function strongest(app: App, by: string, only: number): Strong[] | null {
  const { header } = app.trace.value;
  const layers = layersOf(app);
  const pos = by === "effect" ? header.target.pos : app.atQuery.value;
  const out: Strong[] = [];
  for (let layer = 0; layer < layers; layer++) {
    if (only >= 0 && layer !== only) continue;
    const values = atToken(app, layer, pos);
    if (!values) return null;
    for (let neuron = 0; neuron < count(app); neuron++) out.push({ layer, neuron, value: values(neuron) * (by === "effect" ? effectOf(app, layer, neuron)! : 1) });
  }
  return out.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
}

const MOST_NEURONS = 20;
const MOST_ROWS = 1000;

function Strongest() {
  const app = useApp();
  const own = features(app);
  const canEffect = !!blockOf(app, "effect");
  const wanted = useParam<string>("by_neurons", "value");
  const which = useParam<string>("of_neurons", "all");
  const by = canEffect ? wanted.value : "value";
  const only = which.value === "all" ? -1 : layerOf(app);
  const { tokens, target } = app.trace.value.header;
  const pos = by === "effect" ? target.pos : app.atQuery.value;
  const found = strongest(app, by, only);
  const kind = kinds(app, 0).at(-1)!.short;
  const where = only < 0 ? `stack("${kind}")[:, 0, ${pos}].flatten()` : `stack("${kind}")[${only}, 0, ${pos}]`;
  const exact = blockOf(app, "post")?.exact ?? true;
  const python = () =>
    own
      ? `${by === "value" ? "sae.features(ckpts)[0" : `pl.sae.direct(sae, ckpts, ${target.id})[:, 0`}, ${pos}]`
      : by === "value"
      ? `post = ckpts.${where}\npost[post.abs().topk(${MOST_NEURONS}).indices]`
      : `parts = pl.attribution.direct(ckpts, ${target.id}, by="neuron")[:, 0, ${pos}]\nparts = parts[(parts.index >= 0) & ${only < 0 ? "(parts.layer >= 0)" : `(parts.layer == ${only})`}]\nparts[abs(parts.values).argsort()[::-1][:${MOST_NEURONS}]]`;
  return (
    <Figure
      title={by === "value" ? `The strongest ${noun(app)}s at ${quoted(tokens[pos].text)}` : `The ${noun(app)}s that add most to ${quoted(target.text)}`}
      name={`${noun(app)}s-by-${by}`}
      caption={
        by === "value"
          ? "By the size of their value at the token that is chosen above. Choose one to see it along the text."
          : `What each adds to its logit at ${quoted(tokens[pos].text)}, where it is predicted: its value there times what one unit adds.`
      }
      build={(width, palette) =>
        barRows({
          width,
          palette,
          bars: (strongest(app, by, only) ?? []).slice(0, MOST_NEURONS).map(({ layer, neuron, value }) => ({ label: numberOf(app, layer, neuron), value, text: `${exact ? "" : "≈ "}${number(value)}` })),
          rowHeight: 22,
          read: (row) => `${noun(app)} ${found![row].neuron}${own ? "" : ` of layer ${found![row].layer}`}: ${number(found![row].value, 4)}`,
          choose: (row) => {
            if (!own) app.layer.value = found![row].layer;
            app.neuron.value = found![row].neuron;
          },
          lit: () => (found ?? []).slice(0, MOST_NEURONS).findIndex((one) => one.layer === layerOf(app) && one.neuron === neuronOf(app)),
        })
      }
      controls={
        <>
          <Choice label="Strong by" at={wanted} value={by} of={{ value: "value at the token", ...(canEffect ? { effect: `what they add to ${quoted(target.text)}` } : {}) }} />
          {!own && <Choice label="of" at={which} of={{ all: "all layers", layer: `layer ${layerOf(app)}` }} />}
        </>
      }
      table={() => {
        const all = strongest(app, by, only) ?? [];
        const rows = all.slice(0, MOST_ROWS).map(({ layer, neuron, value }) => [layer, neuron, value]);
        return { columns: ["layer", "neuron", by], rows, by: ["layer", "neuron"], note: all.length > MOST_ROWS ? `The first ${MOST_ROWS}.` : "" };
      }}
      python={python}
      shell={() => (own ? null : by === "effect" ? commandOf(app, "attribute", `--by neuron --pos ${pos} --top ${MOST_NEURONS}`) : commandOf(app, "run", `--names '**.${kind.split(".").at(-1)}' --pos ${pos} --save neurons.safetensors`))}
    />
  );
}

export function Neurons() {
  const app = useApp();
  const trace = app.trace.value;
  if (!trace.layers || !kinds(app, layerOf(app)).length || (!blockOf(app, "post") && !app.server)) return <Missing what={`${noun(app)}s`} />;
  const found = series(app);
  const pair = app.pair.value;
  const isThere = (values: Series[]) => values.at(-1)?.point.name === kinds(app, layerOf(app)).at(-1)?.name;
  if (pair && !isThere(app.of(pair.base, () => series(app)))) return <Note>Asking for the neurons …</Note>;
  if (found.at(-1)?.point !== kinds(app, layerOf(app)).at(-1)) return <Note>Asking for the neurons …</Note>;
  return (
    <>
      <Along found={found} />
      <div class="columns">
        <Strongest />
        <div class="rows">
          <Largest found={found} />
          {found.length > 1 && <Through found={found} />}
        </div>
      </div>
      {!blockOf(app, "effect") && <Missing what={`${noun(app)}s.effect`} />}
    </>
  );
}
