// Lens: what the model would say if it stopped after each layer, and how the answer comes up.

import { extent } from "d3-array";
import { scaleLinear } from "d3-scale";
import { line } from "d3-shape";
import { sequential, type Palette } from "../colors";
import { Figure, type Drawing } from "../figure";
import { added, Follow, followed, partsAt, pathOf, pinned, rowName, tokenIn } from "../follow";
import { Choice, Missing, Tick } from "../inputs";
import { each, largest, pairs, upTo } from "../lists";
import { barRows, heatMap } from "../marks";
import { commandOf, useApp, useParam } from "../state";
import { type Surface } from "../surface";
import { number, percent, pythonText, quoted, shellText, superscript, visible } from "../text";
import { byToken, roomFor } from "../tokens";
import { PARTS, type Trace } from "../trace";

const COLOURS: Record<string, { name: string; says: string }> = {
  probability: { name: "probability of its first choice", says: "probability of the first choice" },
  next: { name: "probability of the text’s next token", says: "probability of the token that really comes next; of the followed one at the last" },
  target: { name: "probability of the followed token", says: "probability of the followed token" },
  entropy: { name: "entropy", says: "how undecided, in bits" },
  kl: { name: "distance to the output", says: "KL divergence to the output, in nats" },
};

function valueOf(trace: Trace, by: string, row: number, pos: number): number {
  switch (by) {
    case "entropy":
      return trace.need("lens.entropy").at(row, pos);
    case "kl":
      return trace.need("lens.kl").at(row, pos);
    case "next":
      return Math.exp(trace.need("lens.next_logprob").at(row, pos));
    case "target":
      return Math.exp(trace.need("lens.target_logprob").at(row, pos));
    default:
      return Math.exp(trace.need("lens.logprobs").at(row, pos, 0));
  }
}

function LensGrid() {
  const app = useApp();
  const by = useParam<string>("colour", "probability");
  const row = useParam<number>("row", -1);
  const build = (width: number, palette: Palette): Drawing => {
    const trace = app.trace.value;
    const ids = trace.need("lens.ids");
    const rows = trace.layers + 1;
    const isShare = by.value !== "entropy" && by.value !== "kl";
    const most = isShare ? 1 : largest(rows, trace.length, (r, p) => valueOf(trace, by.value, r, p), 1e-6);
    const said = (r: number, p: number) => trace.piece(ids.at(r, p, 0));
    return heatMap({
      width,
      palette,
      rows,
      ...byToken(app),
      rowHeight: 28,
      at: (r, p) => valueOf(trace, by.value, r, p),
      scale: sequential(0, most, palette.dark),
      rowLabels: upTo(rows).map(rowName),
      cellText: (r, p) => visible(said(r, p)),
      legend: { title: COLOURS[by.value]?.says ?? "", low: "0", high: number(most, 2) },
      read: (r, p) =>
        `${rowName(r)}, at ${quoted(trace.header.tokens[p].text)}: says ${quoted(said(r, p))} with ${percent(valueOf(trace, "probability", r, p))}; the ${p + 1 < trace.length ? "next" : "followed"} token is of rank ${trace.need("lens.next_rank").at(r, p) + 1}`,
      choose: (r, p) => {
        row.value = r;
        app.query.value = p;
      },
      lit: () => ({ row: pinned(app, row.value), column: app.atQuery.value }),
    });
  };
  const { length } = app.trace.value;
  return (
    <Figure
      title="What each layer would say"
      name={`lens-${by.value}`}
      caption="Each row reads the stream after one more block as if it were the last one. Choose a cell to follow it below."
      narrowest={roomFor(length, 57, 14)}
      build={build}
      controls={
        <Choice label="Colour" at={by} of={COLOURS} />
      }
      table={() => {
        const trace = app.trace.value;
        const columns = ["row", "pos", "token", "first_choice", ...Object.keys(COLOURS), "next_rank", "target_rank"];
        const rows = pairs(trace.layers + 1, trace.length, (r, p) => {
          const values = Object.keys(COLOURS).map((name) => valueOf(trace, name, r, p));
          const ranks = ["lens.next_rank", "lens.rank"].map((name) => trace.need(name).at(r, p) + 1);
          return [rowName(r), p, trace.header.tokens[p].text, trace.piece(trace.need("lens.ids").at(r, p, 0)), ...values, ...ranks];
        });
        return { columns, rows, note: "Ranks begin at 1." };
      }}
      python={() => `pl.lens.logit(ckpts, at="resid_post").top(5)`}
      shell={() => commandOf(app, "lens")}
    />
  );
}

/** The most probable tokens at the pinned cell. */
function Cell() {
  const app = useApp();
  const row = useParam<number>("row", -1);
  const top = () => {
    const trace = app.trace.value;
    const [r, p] = [pinned(app, row.value), app.atQuery.value];
    const [ids, logprobs] = [trace.need("lens.ids"), trace.need("lens.logprobs")];
    return each(ids.shape[2], (i) => ({ id: ids.at(r, p, i), probability: Math.exp(logprobs.at(r, p, i)) }));
  };
  const title = `${rowName(pinned(app, row.value))}, at ${quoted(app.trace.value.header.tokens[app.atQuery.value].text)}`;
  return (
    <Figure
      title={`At the pinned cell: ${title}`}
      name="lens-cell"
      build={(width, palette) => {
        const trace = app.trace.value;
        return barRows({
          width,
          palette,
          bars: top().map(({ id, probability }) => ({ label: visible(trace.piece(id)), value: probability, text: percent(probability) })),
          read: (at) => `${quoted(trace.piece(top()[at].id))} has ${percent(top()[at].probability)}`,
          choose: (at) => {
            app.param<string>("follow", "target").value = "token";
            app.param<string>("word", "").value = "";
            app.token.value = top()[at].id;
          },
        });
      }}
      table={() => ({ columns: ["token", "id", "probability"], rows: top().map(({ id, probability }) => [app.trace.value.piece(id), id, probability]), by: ["token", "id"] })}
      caption="Choose a token to follow it through the layers."
      python={() => `pl.lens.logit(ckpts, at="resid_post").top(10)`}
      shell={() => commandOf(app, "lens", `--pos ${app.atQuery.value} --top 10`)}
    />
  );
}

function Rise() {
  const app = useApp();
  const row = useParam<number>("row", -1);
  const build = (width: number, palette: Palette, minus: Trace | null = null): Drawing => {
    const trace = app.trace.value;
    const { ranks, logprobs, name } = pathOf(app);
    const was = minus ? app.of(minus, () => pathOf(app)).logprobs.map((value) => value / Math.LN10) : [];
    const count = ranks.length;
    const [left, right, top, height] = [52, 16, 28, 190];
    // A scale of powers of ten: what rises from one in a million to one in a thousand has already been found.
    const powers = logprobs.map((value) => value / Math.LN10);
    const known = [...powers, ...was].filter((power) => !Number.isNaN(power));
    const lowest = Math.min(-1, Math.floor(Math.max(-9, extent(known)[0] ?? 0)));
    const x = scaleLinear([-0.5, count - 0.5], [left, width - right]);
    const y = scaleLinear([0, lowest], [top, top + height]).clamp(true);
    const through = line<[number, number]>(([i]) => x(i), ([, power]) => y(power));
    /** The rows in which the token is among those that are listed. */
    const listed = (values: number[]) => [...values.entries()].filter(([, power]) => !Number.isNaN(power));
    const draw = (surface: Surface) => {
      for (let power = 0; power >= lowest; power -= lowest < -5 ? 2 : 1) {
        surface.rect(left, y(power), width - left - right, 1, { fill: palette.grid });
        surface.text(left - 8, y(power), power === 0 ? "100 %" : power >= -2 ? `${10 ** (power + 2)} %` : `10${superscript(String(power))}`, { size: 11, fill: palette.muted, anchor: "end", baseline: "middle" });
      }
      if (was.length) {
        surface.path(through(listed(was)), { stroke: palette.warm, width: 2, dash: [6, 4] });
        surface.text(x(count - 1), y(was[count - 1]) - 8, "base", { size: 11.5, fill: palette.warm, anchor: "end" });
      }
      surface.path(through(listed(powers)), { stroke: palette.accent, width: 2.5 });
      powers.forEach((power, i) => {
        if (count <= 16 || i % 2 === 0) surface.text(x(i), top + height + 18, i ? `${i - 1}` : "emb", { size: 11, fill: palette.muted, anchor: "middle" });
        if (Number.isNaN(power)) return;
        surface.circle(x(i), y(power), 4.5, { fill: ranks[i] === 1 ? palette.accent : palette.panel, stroke: palette.accent, width: 2 });
        const rank = `#${ranks[i]}`;
        surface.rect(x(i) - 4 * rank.length, y(power) - 22, 8 * rank.length, 13, { fill: palette.panel });
        surface.text(x(i), y(power) - 12, rank, { size: 11.5, mono: true, weight: ranks[i] === 1 ? 700 : 400, fill: palette.ink, anchor: "middle" });
      });
      surface.text(left, top + height + 34, "after layer", { size: 11, fill: palette.muted });
    };
    return {
      width,
      height: top + height + 40,
      draw,
      differ: () => app.of(trace, () => build(width, palette, app.base.value)),
      over: (surface) => surface.rect(x(pinned(app, row.value)) - 0.5, top - 18, 1, height + 18, { fill: palette.warm }),
      grid: {
        rows: 1,
        columns: count,
        box: (_, i) => [x(i) - 8, y(Number.isNaN(powers[i]) ? lowest : powers[i]) - 8, 16, 16],
        find: (px) => {
          const i = Math.round(x.invert(px));
          return i >= 0 && i < count ? [0, i] : null;
        },
        read: (_, i) => (Number.isNaN(powers[i]) ? `${rowName(i)}: ${name} is not among the listed tokens` : `${rowName(i)}: ${name} has ${percent(Math.exp(logprobs[i]))}, rank ${ranks[i]}`),
        choose: (_, i) => (row.value = i),
      },
    };
  };
  const path = pathOf(app);
  const hidden = path.ranks.filter(Number.isNaN).length;
  const found = path.ranks.findIndex((_, i) => path.ranks.slice(i).every((rank) => rank === 1));
  return (
    <Figure
      title={`How ${path.name} comes up`}
      name="lens-path"
      caption={hidden ? `In ${hidden} of ${path.ranks.length} rows it is not among the listed tokens; pellucid serve says its rank in all.` : found < 0 ? "It is not the first choice at the end." : `From “${rowName(found)}” on it is the first choice. Filled dots are first choices; numbers are ranks.`}
      build={(width, palette) => build(width, palette)}
      controls={<Follow />}
      table={() => {
        const { ranks, logprobs } = pathOf(app);
        return { columns: ["row", "rank", "logprob"], rows: ranks.map((rank, i) => [rowName(i), rank, logprobs[i]]) };
      }}
      python={() => `pl.lens.logit(ckpts, at="resid_post").rank(${tokenIn(followed(app))})`}
      shell={() => commandOf(app, "lens", `--token ${shellText(followed(app).piece)} --pos ${app.atQuery.value}`)}
    />
  );
}

function Adds() {
  const app = useApp();
  const heads = useParam<boolean>("heads", false);
  const { header, layers } = app.trace.value;
  const { target, tokens } = header;
  const { layer, pos, of } = partsAt(app);
  const token = app.server ? followed(app) : { piece: target.text, id: target.id, by: "target" };
  const now = () => added(partsAt(app), heads.value);
  const where = `${layer === layers - 1 ? "" : `after layer ${layer}, `}at ${quoted(tokens[pos].text)}`;
  const total = now().reduce((sum, part) => sum + part.value, 0);
  return (
    <Figure
      title={`What attention and the MLPs add to ${quoted(token.piece)}`}
      name="lens-adds"
      caption={`Parts of its logit ${where}, in the order of the layers. They sum to the logit, ${number(total, 4)}. ${app.server ? "Choose a cell or a token above for its own parts." : "Of other cells and tokens pellucid serve shows them."}`}
      controls={
        <Tick label="each head by itself" at={heads} />
      }
      build={(width, palette) => {
        const parts = now();
        return barRows({
          width,
          palette,
          bars: parts.map(({ label, value }) => ({ label, value, text: number(value) })),
          mono: false,
          rowHeight: 22,
          read: (at) => `${parts[at].label} adds ${number(parts[at].value, 4)}`,
          choose: (at) => {
            if (parts[at].layer !== null) app.layer.value = parts[at].layer;
          },
        });
      }}
      table={() => ({ columns: ["part", "adds"], rows: now().map(({ label, value }) => [label, value]) })}
      python={() => {
        const id = token.id === null ? `model.tokenizer.encode(${pythonText(token.piece)})[0]` : String(token.id);
        if (layer === layers - 1) return `pl.attribution.direct(ckpts, ${tokenIn(token)}, by="head")[:, 0, ${pos}]`;
        const name = `"blocks.${layer}.resid_post"`;
        return `read = model.parameter("unembed.W_U").detach().double()[:, ${id}]\n${of.includes("ln_final.b") ? "offset = model.ln_final.b.detach().double() @ read\n" : ""}direction = model.ln_final.reads(read, ckpts[${name}].double()).detach()\npl.attribution.direct(ckpts, direction, at=${name}, by="head")[:, 0, ${pos}]`;
      }}
      shell={() => (layer < layers - 1 ? null : commandOf(app, "attribute", `--token ${shellText(token.piece)} --pos ${pos} --by head --top 9999`))}
    />
  );
}

/** How far the layers still are from the output, token by token. */
function Settled() {
  const app = useApp();
  const first = () => {
    const trace = app.trace.value;
    const ids = trace.need("lens.ids");
    return each(trace.length, (pos) => {
      const output = ids.at(trace.layers, pos, 0);
      let row = trace.layers;
      while (row > 0 && ids.at(row - 1, pos, 0) === output) row--;
      return row;
    });
  };
  return (
    <Figure
      title="From where on the answer stays"
      name="lens-settled"
      caption="For each token the row from which on the first choice no longer changes: the later, the stronger the colour."
      narrowest={roomFor(app.trace.value.length, 30, 10)}
      build={(width, palette) => {
        const trace = app.trace.value;
        const rows = first();
        return heatMap({
          width,
          palette,
          rows: 1,
          ...byToken(app),
          rowHeight: 26,
          at: (_, pos) => rows[pos],
          scale: sequential(0, trace.layers, palette.dark),
          rowLabels: ["row"],
          cellText: (_, pos) => (rows[pos] ? String(rows[pos] - 1) : "emb"),
          read: (_, pos) => `at ${quoted(trace.header.tokens[pos].text)} the first choice stays from “${rowName(rows[pos])}” on`,
        });
      }}
      table={() => ({ columns: ["pos", "token", "from"], rows: first().map((row, pos) => [pos, app.trace.value.header.tokens[pos].text, rowName(row)]) })}
      python={() => `pl.lens.logit(ckpts, at="resid_post").top(1)`}
    />
  );
}

export function Lens() {
  const app = useApp();
  return (
    <>
      <LensGrid />
      <div class="columns">
        <Rise />
        <Cell />
      </div>
      {app.server || app.trace.value.has(PARTS) ? <Adds /> : <Missing what={PARTS} />}
      <Settled />
    </>
  );
}
