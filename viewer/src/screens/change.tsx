// Change it: set a part of the model to zero or its mean, or take it from another text, and see what follows.

import { diverging, type Palette } from "../colors";
import { add, chosen, HOWS, nameOf, ranOf, serveCommand, type How, type Judged, type What } from "../edits";
import { effectOf, sharesOf } from "../effects";
import { Figure, type Drawing } from "../figure";
import { rowName } from "../follow";
import { Choice, Gap, Note, Tick } from "../inputs";
import { largest, pairs, upTo } from "../lists";
import { barRows, heatMap, type Bar } from "../marks";
import { shortName } from "../river";
import { useApp, useParam, type App } from "../state";
import { number, percent, quoted, visible } from "../text";
import { byToken, roomFor } from "../tokens";
import { PARTS, type Trace } from "../trace";
import { HeadPicker } from "./attention";
import { Find } from "./neurons";
import { LayerPicker } from "./overview";

const WHATS: Record<Exclude<What, "checkpoint">, string> = { head: "a head", neuron: "a neuron", block: "a block: attention and MLP", position: "a position of the stream" };

function Form() {
  const app = useApp();
  const what = useParam<string>("what", "head");
  const how = useParam<string>("how", "zero");
  const here = useParam<boolean>("here", false);
  const other = useParam<string>("other", "");
  const keys = useParam<boolean>("keys", true);
  const trace = app.trace.value;
  const at = trace.header.tokens[app.atQuery.value].text;
  const patches = how.value === "patch";
  const apply = () => add(app, { ...chosen(app), how: how.value as How, ...(patches ? { other: other.value } : {}) });
  return (
    <form
      class="card change"
      aria-labelledby="pellucid-change"
      onSubmit={(event) => {
        event.preventDefault();
        apply();
      }}
    >
      <h2 id="pellucid-change">Change one thing</h2>
      <div class="controls">
        <Choice label="What" at={what} of={WHATS} />
        {what.value === "neuron" ? <Find /> : <LayerPicker />}
        {what.value === "head" && <HeadPicker />}
        {what.value === "position" ? (
          <span class="note">at {quoted(at)}, the chosen token</span>
        ) : (
          <Tick label={`only at ${quoted(at)}`} at={here} />
        )}
        <Choice label="How" at={how} of={HOWS} />
        {patches && (
          <label class="other">
            Second text
            <input name="other" required value={other.value} autocomplete="off" spellcheck={false} placeholder="of as many tokens, unless one position is patched" onInput={(event) => (other.value = event.currentTarget.value)} />
          </label>
        )}
        <button type="submit" class="primary">
          {patches ? "Patch" : "Change"}
        </button>
      </div>
      <Note>
        On every screen: <kbd>x</kbd> sets what is selected to zero, <kbd>X</kbd> to its mean, <kbd>p</kbd> patches it from the second text, <kbd>u</kbd> takes the last edit back.{" "}
        <Tick label="keys are on" at={keys} />
      </Note>
    </form>
  );
}

/** The lines that run the text without edits, after those that run it with them. */
const plainRun = (base: Trace): string => (base.header.calls.values ?? "").trimEnd().split("\n").at(-1)!.replace(/^logits, ckpts/, "plain, before");

type Row = { name: string; effect: Judged };

/** All edits together, and each alone if they are several. */
function judged(app: App, base: Trace, edited: Trace): Row[] {
  const effects = ranOf(app).effects.value;
  if (!effects) return [{ name: "the edits", effect: effectOf(base, edited) }];
  const { edits } = effects;
  const name = edits.length === 1 ? nameOf(edits[0], base) : "all together";
  return [{ name, effect: effects }, ...(effects.each ?? []).map((effect, at) => ({ name: nameOf(edits[at], base), effect }))];
}

const controlName = ({ control }: Judged) => (control?.head !== undefined ? `another head: ${control.head}` : `another neuron: ${control?.neuron}`);

function HowMuch({ base, edited }: { base: Trace; edited: Trace }) {
  const app = useApp();
  const rows = () => judged(app, base, edited);
  const { tokens } = effectOf(base, edited);
  const pair = tokens.map((id) => quoted(base.piece(id)));
  const bars = (palette: Palette): Bar[] =>
    rows().flatMap(({ name, effect }) => [
      { label: name, value: effect.kl, text: `${number(effect.kl)} nats` },
      ...(effect.control ? [{ label: controlName(effect), value: effect.control.kl, text: `${number(effect.control.kl)} nats`, color: palette.muted }] : []),
    ]);
  const has = rows().some(({ effect }) => effect.control);
  return (
    <Figure
      title="How far it goes"
      ofBoth
      name="change-effect"
      caption={has ? "KL divergence of the next token’s probabilities from those before. Grey: the same done at another head or neuron of the same layer, drawn at random. If that goes as far, the effect says little about what you chose." : "KL divergence of the next token’s probabilities from those before."}
      build={(width, palette) => barRows({ width, palette, bars: bars(palette), mono: false })}
      table={() => ({
        columns: ["edit", "kl", "logit_difference_base", "logit_difference_edited", "control", "control_kl", "control_logit_difference"],
        rows: rows().map(({ name, effect }) => [name, effect.kl, ...effect.logit_difference, effect.control ? controlName(effect) : null, effect.control?.kl ?? null, effect.control?.logit_difference[1] ?? null]),
        note: `KL in nats; the logit difference is ${pair[0]} − ${pair[1]}.`,
      })}
      python={() => `${plainRun(base)}\np, q = plain[0, -1].double().log_softmax(-1), logits[0, -1].double().log_softmax(-1)\n(p.exp() * (p - q)).sum()`}
    >
      {rows().map(({ name, effect }) => (
        <Note>
          <b>{name}</b>: {pair[0]} − {pair[1]} {number(effect.logit_difference[0], 4)} → {number(effect.logit_difference[1], 4)}
          {effect.control ? `; ${controlName(effect)} → ${number(effect.control.logit_difference[1], 4)}` : ""}
        </Note>
      ))}
    </Figure>
  );
}

const MOST_TOKENS = 14;

/** Next tokens in both runs, and what they gained or lost. */
function Tokens({ base, edited }: { base: Trace; edited: Trace }) {
  const shares = sharesOf(base, edited);
  const order = Array.from(shares.base.keys()).sort((a, b) => Math.max(shares.base[b], shares.edited[b]) - Math.max(shares.base[a], shares.edited[a]));
  const ids = order.slice(0, MOST_TOKENS).sort((a, b) => shares.base[b] - shares.base[a]);
  const piece = (id: number) => (String(id) in edited.header.vocabulary ? edited : base).piece(id);
  const build = (width: number, palette: Palette): Drawing => {
    const bars = ids.map((id) => ({ label: visible(piece(id)), value: shares.edited[id], behind: shares.base[id], text: `${percent(shares.base[id])} → ${percent(shares.edited[id])}` }));
    return barRows({ width, palette, bars, read: (row) => `${quoted(piece(ids[row]))} had ${percent(shares.base[ids[row]])}, has ${percent(shares.edited[ids[row]])} with the edits` });
  };
  return (
    <Figure
      title="What comes next, before and after"
      ofBoth
      name="change-tokens"
      caption="The likeliest next tokens of both runs after the last token: grey before, coloured with the edits."
      build={build}
      table={() => ({ columns: ["token", "id", "base", "edited", "difference"], rows: order.map((id) => [piece(id), id, shares.base[id], shares.edited[id], shares.edited[id] - shares.base[id]]), note: "Pieces of unlikely tokens may be missing; their ids are right." })}
      python={() => `${plainRun(base)}\n(logits.softmax(-1) - plain.softmax(-1))[0, -1]`}
    />
  );
}

/** Where the change arrives: nothing before the edit, and then more and more. */
function Arrives({ base, edited }: { base: Trace; edited: Trace }) {
  const app = useApp();
  const of = (trace: Trace, row: number, pos: number) => trace.need("lens.target_logprob").at(row, pos);
  const difference = (row: number, pos: number) => of(edited, row, pos) - of(base, row, pos);
  const rows = base.layers + 1;
  const piece = quoted(base.header.target.text);
  return (
    <Figure
      title="Where the change arrives"
      ofBoth
      name="change-arrives"
      caption={`What the edits add to the log-probability of ${piece} at each token if the model stopped after each block (the logit lens). What comes before an edit stays as it was.`}
      narrowest={roomFor(base.length, 50, 12)}
      build={(width, palette) => {
        const reach = largest(rows, base.length, difference, 1e-9);
        return heatMap({
          width,
          palette,
          rows,
          ...byToken(app),
          rowHeight: 26,
          at: difference,
          scale: diverging(reach, palette.dark),
          rowLabels: upTo(rows).map(rowName),
          cellText: (row, pos) => (Math.abs(difference(row, pos)) < reach / 50 ? "" : number(difference(row, pos), 2)),
          legend: { title: "nats", low: number(-reach, 2), high: number(reach, 2) },
          read: (row, pos) => `${rowName(row)}, at ${quoted(base.header.tokens[pos].text)}: ${piece} had ${percent(Math.exp(of(base, row, pos)))}, has ${percent(Math.exp(of(edited, row, pos)))}`,
        });
      }}
      table={() => ({
        columns: ["row", "pos", "token", "base", "edited", "difference"],
        rows: pairs(rows, base.length, (row, pos) => [rowName(row), pos, base.header.tokens[pos].text, of(base, row, pos), of(edited, row, pos), difference(row, pos)]),
      })}
      python={() => {
        const read = (ckpts: string) => `pl.lens.logit(${ckpts}).logprobs(${base.header.target.id})`;
        return `${plainRun(base)}\n${read("ckpts")} - ${read("before")}`;
      }}
    />
  );
}

const MOST_PARTS = 16;

/** The change of one logit as a sum over the components. */
function Writers({ base, edited }: { base: Trace; edited: Trace }) {
  const [before, after] = [base, edited].map((trace) => trace.need(PARTS));
  const parts = before.entry.of!.map((name, i) => ({ name, base: before.value(i), edited: after.value(i), by: after.value(i) - before.value(i) })).sort((a, b) => Math.abs(b.by) - Math.abs(a.by));
  const { target } = base.header;
  const total = edited.need("attribution.logit").value(0) - base.need("attribution.logit").value(0);
  return (
    <Figure
      title={`Who makes the difference to ${quoted(target.text)}`}
      ofBoth
      name="change-parts"
      caption={`What each component adds now, less what it added before. All of them sum to the change of the logit, ${number(total, 4)}: also those that were not edited, because they read something else.`}
      build={(width, palette) => {
        return barRows({ width, palette, bars: parts.slice(0, MOST_PARTS).map(({ name, by }) => ({ label: shortName(name), value: by })), rowHeight: 22, read: (row) => `${parts[row].name} added ${number(parts[row].base, 4)}, adds ${number(parts[row].edited, 4)}` });
      }}
      table={() => ({ columns: ["component", "base", "edited", "difference"], rows: parts.map((part) => [part.name, part.base, part.edited, part.by]) })}
      python={() => {
        const read = (ckpts: string) => `pl.attribution.direct(${ckpts}, ${target.id}, by="head")[:, 0, ${target.pos}]`;
        return `${plainRun(base)}\n${read("ckpts")} - ${read("before")}`;
      }}
    />
  );
}

function NeedsServer() {
  const app = useApp();
  return (
    <Gap>
      <b>Changing something needs the model</b>, which is not in this file: <code>{serveCommand(app)}</code> sets heads, neurons, blocks and positions to zero or their mean, or patches them from a second text.
    </Gap>
  );
}

export function Change() {
  const app = useApp();
  const base = app.base.value;
  const edited = app.edited.value;
  const both = base && { base, edited };
  // A run that is compared with one of another text or target has no difference cell by cell.
  const whole = both && base.length === edited.length && base.header.target.id === edited.header.target.id;
  return (
    <>
      {app.server ? <Form /> : <NeedsServer />}
      {both ? (
        <>
          <div class="columns">
            <HowMuch {...both} />
            <Tokens {...both} />
          </div>
          {whole && <Arrives {...both} />}
          {whole && base.has(PARTS) && edited.has(PARTS) && <Writers {...both} />}
        </>
      ) : (
        app.server && <Note>Nothing is changed yet. Choose something above, or select it on another screen and press x.</Note>
      )}
    </>
  );
}
