// Overview: what the run ends with, the ladder of blocks, and the way from ids to logits, box by box.

import { max } from "d3-array";
import type { Palette } from "../colors";
import { pointsOf, told } from "../checkpoints";
import { Figure, type Drawing } from "../figure";
import { Formula } from "../formula";
import { Choice, Plain } from "../inputs";
import { each, pairs, upTo } from "../lists";
import { barRows, lattice } from "../marks";
import { useApp, useParam, type App } from "../state";
import type { Surface } from "../surface";
import { copy } from "../take";
import { number, percent, quoted, visible } from "../text";
import type { Point } from "../trace";

/** The most probable next tokens at the token that is looked at. */
function Next() {
  const app = useApp();
  const rows = () => {
    const trace = app.trace.value;
    const pos = app.atQuery.value;
    const [ids, logprobs] = [trace.need("prediction.top.ids"), trace.need("prediction.top.logprobs")];
    return each(Math.min(8, ids.shape[1]), (i) => ({ id: ids.at(pos, i), probability: Math.exp(logprobs.at(pos, i)) }));
  };
  return (
    <Figure
      title="What comes next"
      name="next"
      caption="The most probable next tokens after the token that is chosen above."
      build={(width, palette) => {
        const trace = app.trace.value;
        return barRows({
          width,
          palette,
          bars: rows().map(({ id, probability }) => ({ label: visible(trace.piece(id)), value: probability, text: percent(probability) })),
          read: (row) => `${quoted(trace.piece(rows()[row].id))} has ${percent(rows()[row].probability)} after ${quoted(trace.header.tokens[app.atQuery.value].text)}`,
        });
      }}
      table={() => ({
        columns: ["token", "id", "probability"],
        rows: rows().map(({ id, probability }) => [app.trace.value.piece(id), id, probability]),
        by: ["token", "id"],
      })}
      python={() => `probabilities = logits[0, ${app.atQuery.value}].softmax(-1)\nprobabilities.topk(8)`}
    />
  );
}

const KINDS = ["attn_out", "mlp_out", "resid_post"];
const KIND_TITLES = ["attention adds", "MLP adds", "stream after"];

/** For each block: how much attention and the MLP add at a token, and how long the vector is afterwards. */
function Ladder() {
  const app = useApp();
  const norm = (kind: string, layer: number, pos: number) => {
    const norms = app.trace.value.need("norms");
    return norms.at(norms.entry.of!.indexOf(kind), layer, pos);
  };
  const build = (width: number, palette: Palette): Drawing => {
    const trace = app.trace.value;
    const pos = app.atQuery.value;
    const rowHeight = Math.max(18, Math.min(34, 340 / trace.layers));
    const [left, head, gap] = [34, 22, 14];
    const column = (width - left - 2 * gap) / 3;
    const most = KINDS.map((kind) => max(each(trace.layers, (layer) => norm(kind, layer, pos)))!);
    // The three kinds share one unit of length, so their bars can be compared.
    const largest = max(most)!;
    const colors = [palette.series[0], palette.series[1], palette.ink];
    const draw = (surface: Surface) => {
      KIND_TITLES.forEach((title, kind) => surface.text(left + kind * (column + gap), 11, title, { size: 11.5, fill: palette.muted, fit: column }));
      for (let layer = 0; layer < trace.layers; layer++) {
        const y = head + layer * rowHeight;
        surface.text(7, y + rowHeight / 2, `${layer}`, { size: 12, mono: true, fill: palette.muted, baseline: "middle" });
        KINDS.forEach((kind, at) => {
          const value = norm(kind, layer, pos);
          const x = left + at * (column + gap);
          const room = column - 44;
          surface.rect(x, y + 3, column, rowHeight - 6, { fill: palette.faint, radius: 4 });
          surface.rect(x, y + 3, Math.max(2, (room * value) / largest), rowHeight - 6, { fill: colors[at], radius: 4 });
          surface.text(x + Math.max(2, (room * value) / largest) + 5, y + rowHeight / 2, number(value), { size: 11, fill: palette.muted, baseline: "middle" });
        });
      }
    };
    return {
      width,
      height: head + trace.layers * rowHeight + 2,
      draw,
      over: (surface) => {
        const { layer } = app.at();
        surface.rect(0, head + layer * rowHeight, width, rowHeight, { stroke: palette.accent, width: 1.5, radius: 5 });
      },
      grid: {
        ...lattice(trace.layers, 3, [left, head], [column, rowHeight], [column + gap, rowHeight], true),
        read: (row, kind) => `block ${row}, ${KIND_TITLES[kind]}: length ${number(norm(KINDS[kind], row, pos), 4)} at ${quoted(trace.header.tokens[pos].text)}`,
        choose: (row) => (app.layer.value = row),
      },
    };
  };
  return (
    <Figure
      title="The ladder of blocks"
      name="ladder"
      caption="Length of the vectors at the chosen token: what each block adds, and what is there afterwards. All bars share one unit."
      build={build}
      table={() => {
        const trace = app.trace.value;
        const norms = trace.need("norms");
        const rows = norms.entry.of!.flatMap((kind, k) => pairs(trace.layers, trace.length, (layer, pos) => [kind, layer, pos, trace.header.tokens[pos].text, norms.at(k, layer, pos)]));
        return { columns: ["checkpoint", "layer", "pos", "token", "norm"], rows };
      }}
      python={() => `ckpts["blocks.${app.at().layer}.resid_post"][0].norm(dim=-1)`}
    />
  );
}

type Box = { point: Point; x: number; y: number; width: number; height: number };
type Plan = {
  boxes: Box[];
  height: number;
  /** The middle of the stream. */
  stream: number;
  branch: number;
  /** Where the stream is read, and where something is added to it. */
  reads: number[];
  joins: number[];
  /** Arrows from box to box, as path data. */
  arrows: string;
  groups: { title: string; y: number }[];
};

/** Checkpoints that stand in one row. */
const ROWS = [
  ["ckpt_embed", "ckpt_pos_embed"],
  ["ckpt_scaled", "ckpt_normalized", "logits"],
  ["ckpt_q", "ckpt_k", "ckpt_v"],
  ["ckpt_rot_q", "ckpt_rot_k"],
  ["ckpt_scores", "ckpt_pattern", "ckpt_z"],
  ["ckpt_pre", "ckpt_gate", "ckpt_up", "ckpt_post"],
];
/** Neighbours in a row of which neither comes from the other. */
const BESIDE = ["ckpt_pos_embed", "ckpt_k", "ckpt_v", "ckpt_rot_k", "ckpt_up"];
const GROUPS: Record<string, string> = { attn: "attention", mlp: "MLP", ln1: "LayerNorm", ln2: "LayerNorm", ln_final: "LayerNorm and unembedding" };
const last = (name: string) => name.split(".").at(-1)!;
const onStream = (point: Point) => last(point.short).startsWith("resid_");

/** Where each box goes: the stream runs down the left, and what reads from it and adds to it stands on the right. */
function plan(points: Point[], layer: number, width: number): Plan {
  const shown = points.filter((point) => point.block === null || point.block === layer);
  const streamWidth = Math.min(150, width * 0.3);
  const branch = streamWidth + Math.min(44, width * 0.08);
  const room = width - branch - 6;
  const boxes: Box[] = [];
  const [groups, joins, reads]: [Plan["groups"], number[], number[]] = [[], [], []];
  const [tall, gap, between] = [40, 14, 16];
  let arrows = "";
  const arrow = (x: number, y: number, dx: number, dy: number) => {
    const [ux, uy] = [Math.sign(dx), Math.sign(dy)];
    arrows += `M${x} ${y}l${dx} ${dy}m${-4 * ux - 3 * uy} ${-4 * uy - 3 * ux}l${4 * ux + 3 * uy} ${4 * uy + 3 * ux}l${-4 * ux + 3 * uy} ${-4 * uy + 3 * ux}`;
  };
  let y = 6;
  let group = "";
  for (let i = 0; i < shown.length; ) {
    const point = shown[i];
    const names = ROWS.find((row) => row.includes(last(point.short)));
    let end = i + 1;
    while (names && end < shown.length && names.includes(last(shown[end].short)) && shown[end].block === point.block) end++;
    const row = shown.slice(i, end);
    const stream = onStream(point);
    const part = stream || !point.short.includes(".") ? "" : point.short.split(".")[0];
    const begins = part !== group && part !== "";
    if (begins) {
      groups.push({ title: GROUPS[part] ?? part, y });
      y += 20;
    }
    const [x, w] = stream ? [0, streamWidth] : [branch, room];
    const each = stream ? w : Math.min(row.length === 1 ? (w - gap) / 2 : 240, (w - gap * (row.length - 1)) / row.length);
    row.forEach((one, k) => {
      const at = x + k * (each + gap);
      boxes.push({ point: one, x: at, y, width: each, height: tall });
      if (k && !BESIDE.includes(last(one.short))) arrow(at - gap + 1, y + tall / 2, gap - 3, 0);
    });
    const adds = /(attn_out|mlp_out)$/.test(point.short) || last(point.short) === "ckpt_embed";
    if (adds) joins.push(y + tall / 2);
    else if (begins && /^ln|^norm/.test(part)) reads.push(y + tall / 2);
    if (!stream && i && !begins && !onStream(shown[i - 1])) arrow(x + Math.min(each, 80) / 2, y - between + 1, 0, between - 3);
    group = part;
    y += tall + between;
    i = end;
  }
  return { boxes, height: y - between + 8, stream: streamWidth / 2, joins, reads, arrows, groups, branch };
}

/** The way from ids to logits through one block. */
function Diagram() {
  const app = useApp();
  const chosen = useParam<string>("point", "");
  const choose = (point: Point) => (chosen.value = point.name);
  const shape = (point: Point, narrow: boolean) => point.shape.slice(1).join(narrow ? "×" : " × ");
  const build = (width: number, palette: Palette): Drawing => {
    const { layer } = app.at();
    const points = pointsOf(app.trace.value.header);
    const made = plan(points, layer, width);
    const now = current(app, chosen.value);
    const inBlock = made.boxes.filter((box) => box.point.block !== null);
    const frame = { top: inBlock[0]?.y ?? 0, bottom: (inBlock.at(-1)?.y ?? 0) + 40 };
    const draw = (surface: Surface) => {
      surface.rect(made.stream - 2, 26, 4, made.height - 60, { fill: palette.line });
      if (inBlock.length) {
        surface.rect(0.5, frame.top - 9, width - 2, frame.bottom - frame.top + 18, { stroke: palette.line, dash: [4, 4], radius: 12 });
        surface.text(width - 12, frame.top + 6, `block ${layer} of ${app.trace.value.layers}`, { size: 11.5, fill: palette.muted, anchor: "end" });
      }
      surface.path(made.arrows, { stroke: palette.muted, width: 1.25 });
      for (const y of made.reads) {
        surface.path(`M${made.stream} ${y}H${made.branch - 3}m-5 -4l5 4l-5 4`, { stroke: palette.muted, width: 1.25 });
        surface.circle(made.stream, y, 3.5, { fill: palette.muted });
      }
      for (const y of made.joins) {
        surface.path(`M${made.branch - 1} ${y}H${made.stream + 12}m6 -4l-6 4l6 4`, { stroke: palette.accent, width: 1.5 });
        surface.circle(made.stream, y, 9, { fill: palette.panel, stroke: palette.accent, width: 1.5 });
        surface.path(`M${made.stream - 4} ${y}h8M${made.stream} ${y - 4}v8`, { stroke: palette.accent, width: 1.5 });
      }
      for (const { title, y } of made.groups) surface.text(made.branch, y + 13, title, { size: 11.5, fill: palette.muted });
      for (const { point, x, y, width: w, height } of made.boxes) {
        const stream = onStream(point);
        const lit = point.name === now.name;
        surface.rect(x + 0.5, y + 0.5, w - 1, height - 1, {
          fill: lit ? palette.accent : stream ? palette.faint : palette.panel,
          stroke: lit ? palette.accent : stream ? palette.muted : palette.line,
          radius: 8,
        });
        const narrow = w < 84;
        surface.text(x + (narrow ? 6 : 11), y + 17, told(point).label, { size: w < 66 ? 10 : 12.5, mono: true, weight: 600, fill: lit ? palette.panel : palette.ink, fit: w - 8 });
        surface.text(x + (narrow ? 6 : 11), y + 32, shape(point, narrow), { size: narrow ? 9.5 : 10.5, fill: lit ? palette.panel : palette.muted, fit: w - 7 });
      }
    };
    return {
      width,
      height: made.height,
      draw,
      grid: {
        rows: made.boxes.length,
        columns: 1,
        box: (row) => {
          const box = made.boxes[row];
          return [box.x, box.y, box.width, box.height];
        },
        find: (x, y) => {
          const row = made.boxes.findIndex((box) => x >= box.x && x < box.x + box.width && y >= box.y && y < box.y + box.height);
          return row < 0 ? null : [row, 0];
        },
        read: (row) => {
          const { point } = made.boxes[row];
          return `${point.name} [${point.axes.join(", ")}] = [${point.shape.join(", ")}]: ${point.meaning}`;
        },
        choose: (row) => choose(made.boxes[row].point),
        start: () => [Math.max(0, made.boxes.findIndex((box) => box.point.name === now.name)), 0],
      },
    };
  };
  return (
    <Figure
      title="From ids to logits"
      name="diagram"
      caption="Each box is a checkpoint: a value with a name. The stream runs down on the left; each block reads from it on the right and adds (+) to it."
      build={build}
      controls={<LayerPicker />}
      table={() => ({
        columns: ["checkpoint", "axes", "shape", "unit", "equation", "meaning"],
        rows: pointsOf(app.trace.value.header).map((point) => [point.name, point.axes.join(" "), point.shape.join("×"), point.unit, point.equation, point.meaning]),
      })}
      python={() => "model.schema"}
    />
  );
}

export function LayerPicker() {
  const app = useApp();
  return <Choice label="Layer" at={app.layer} of={upTo(app.trace.value.layers)} />;
}

/** The checkpoint that is looked at, in the layer that is looked at. */
function current(app: App, name: string): Point {
  const points = pointsOf(app.trace.value.header);
  const found = points.find((point) => point.name === name);
  const { layer } = app.at();
  if (!found) return points.find((point) => point.short === "attn.ckpt_pattern" && point.block === layer) ?? points[0];
  if (found.block === null || found.block === layer) return found;
  return points.find((point) => point.block === layer && point.short === found.short) ?? found;
}

/** Everything about the box that was chosen. */
function About() {
  const app = useApp();
  const chosen = useParam<string>("point", "");
  const point = current(app, chosen.value);
  const { tex, line, reading } = told(point);
  const code = point.name === "logits" ? "logits" : `ckpts["${point.name}"]`;
  const found = app.readings.find((one) => reading && one.slug.includes(reading));
  const part = point.name.split(".").slice(0, -1).join(".");
  const words = new Set(point.equation.match(/\w+/g));
  const parameters = app.trace.value.header.schema.parameters.filter((one) => one.name.startsWith(`${part}.`) && words.has(last(one.name)));
  return (
    <section class="card about" aria-live="polite" aria-label="The chosen box">
      <h2>
        <code>{point.name}</code>
      </h2>
      <p class="about-line">{line}</p>
      <div class="about-formula">
        <Formula tex={tex} block />
      </div>
      <dl>
        <dt>Meaning</dt>
        <dd>{point.meaning}</dd>
        <dt>Shape</dt>
        <dd>
          {point.axes.map((axis, i) => (
            <span class="axis">
              {axis} <b>{point.shape[i]}</b>
            </span>
          ))}
        </dd>
        <dt>Equation</dt>
        <dd>
          <code>{point.equation}</code>
        </dd>
        {point.unit && (
          <>
            <dt>Unit</dt>
            <dd>{point.unit}</dd>
          </>
        )}
        {parameters.length > 0 && (
          <>
            <dt>Weights</dt>
            <dd>{parameters.map((one) => <code>{`${one.name} [${one.shape.join(", ")}]`}</code>)}</dd>
          </>
        )}
        <dt>Python</dt>
        <dd>
          <code>{code}</code>{" "}
          <button type="button" class="quiet" onClick={() => copy(app, "Name", code)}>
            Copy
          </button>
        </dd>
      </dl>
      {found && (
        <Plain onClick={() => app.read(found.slug)}>
          Read: {found.title}
        </Plain>
      )}
    </section>
  );
}

export function Overview() {
  return (
    <>
      <div class="columns">
        <Next />
        <Ladder />
      </div>
      <div class="columns wide-left">
        <Diagram />
        <About />
      </div>
    </>
  );
}
