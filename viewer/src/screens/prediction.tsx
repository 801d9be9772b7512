// Prediction: from the model's probabilities to the token that is drawn, stage by stage.

import { computed, signal, type Signal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import type { Palette } from "../colors";
import { asking, editsOf, goOn } from "../edits";
import { Figure, type Drawing } from "../figure";
import { Gap, Note, Plain } from "../inputs";
import { once } from "../lists";
import { lattice } from "../marks";
import { entropy, NEUTRAL, stagesOf, type Settings, type Stage } from "../sampling";
import { useApp, useParam, type App } from "../state";
import type { Surface } from "../surface";
import { number, percent, quoted, visible } from "../text";
import { Piece } from "../tokens";
import type { Trace } from "../trace";

type Slider = { name: keyof Settings; label: string; low: number; high: number; step: number; says: (value: number) => string };

const SLIDERS: Slider[] = [
  { name: "temperature", label: "Temperature", low: 0, high: 2, step: 0.05, says: (value) => (value === 0 ? "0: always the likeliest" : value === 1 ? "1: as the model says" : value < 1 ? `${value}: sharper` : `${value}: flatter`) },
  { name: "top_k", label: "Top-k", low: 0, high: 100, step: 1, says: (value) => (value ? `the ${value} likeliest` : "off") },
  { name: "top_p", label: "Top-p", low: 0, high: 1, step: 0.01, says: (value) => (value < 1 ? `until ${percent(value)} are reached` : "off") },
  { name: "repetition_penalty", label: "Repetition penalty", low: 1, high: 2, step: 0.05, says: (value) => (value === 1 ? "off" : `÷ ${value}`) },
  { name: "frequency_penalty", label: "Frequency penalty", low: 0, high: 2, step: 0.05, says: (value) => (value ? `− ${value} each time` : "off") },
];

const STAGE_NAMES: Record<string, string> = { model: "the model", temperature: "temperature", top_k: "top-k", top_p: "top-p", repetition_penalty: "repetition", frequency_penalty: "frequency" };

function useSettings(): { signals: Record<keyof Settings, Signal<number>>; value: () => Settings } {
  const signals = {
    temperature: useParam<number>("temperature", 1),
    top_k: useParam<number>("top_k", 0),
    top_p: useParam<number>("top_p", 1),
    repetition_penalty: useParam<number>("repetition_penalty", 1),
    frequency_penalty: useParam<number>("frequency_penalty", 0),
  };
  const within = ({ name, low, high }: Slider) => Math.max(low, Math.min(high, signals[name].value));
  return { signals, value: () => Object.fromEntries(SLIDERS.map((slider) => [slider.name, within(slider)])) as Settings };
}

const MOST_TOKENS = 16;

function StageFigure({ settings, stages }: { settings: () => Settings; stages: () => Stage[] }) {
  const app = useApp();
  const ranked = () => {
    const [first, final] = [stages()[0].probabilities, stages().at(-1)!.probabilities];
    const order = (values: Float64Array) => Array.from(values.keys()).sort((a, b) => values[b] - values[a]);
    // Those that end up likely, and then those that were likely and were taken out.
    const kept = order(final).filter((id) => final[id] > 0).slice(0, MOST_TOKENS - 4);
    const lost = order(first).filter((id) => !kept.includes(id)).slice(0, MOST_TOKENS - kept.length);
    return [...kept, ...lost].sort((a, b) => final[b] - final[a] || first[b] - first[a]);
  };
  const build = (width: number, palette: Palette): Drawing => {
    const trace = app.trace.value;
    const now = stages();
    const ids = ranked();
    const [rowHeight, head, gap] = [24, 24, 12];
    const left = Math.min(130, width * 0.28);
    const column = (width - left - gap * (now.length - 1)) / now.length;
    const most = Math.max(...now.map((stage) => Math.max(...ids.map((id) => stage.probabilities[id]))), 1e-9);
    const draw = (surface: Surface) => {
      now.forEach((stage, i) => surface.text(left + i * (column + gap), 12, STAGE_NAMES[stage.name], { size: 11.5, fill: palette.muted, fit: column }));
      ids.forEach((id, row) => {
        const y = head + row * rowHeight;
        const gone = now.at(-1)!.probabilities[id] === 0;
        surface.text(0, y + rowHeight / 2, visible(trace.piece(id)), { size: 12.5, mono: true, fill: gone ? palette.muted : palette.ink, baseline: "middle", fit: left - 8 });
        now.forEach((stage, i) => {
          const x = left + i * (column + gap);
          const p = stage.probabilities[id];
          const last = i === now.length - 1;
          surface.rect(x, y + 3, column, rowHeight - 6, { fill: palette.faint, radius: 4 });
          const w = ((column - (column > 110 ? 58 : 0)) * p) / most;
          surface.rect(x, y + 3, Math.max(p ? 1.5 : 0, w), rowHeight - 6, { fill: palette.accent, opacity: last ? 0.75 : 0.35, radius: 4 });
          if (column > 50) surface.text(column > 110 ? x + w + 6 : x + column - 4, y + rowHeight / 2, p ? percent(p) : "taken out", { size: 11, fill: !p ? palette.muted : last && column <= 110 && w > column / 2 ? palette.panel : palette.ink, anchor: column > 110 ? "start" : "end", baseline: "middle", fit: column - 4 });
        });
      });
    };
    return {
      width,
      height: head + ids.length * rowHeight + 2,
      stays: left - 4,
      draw,
      grid: {
        ...lattice(ids.length, now.length, [left, head], [column, rowHeight], [column + gap, rowHeight], true),
        read: (row, i) => `${quoted(trace.piece(ids[row]))} has ${percent(now[i].probabilities[ids[row]])} ${now[i].name === "model" ? "by the model alone" : `after ${STAGE_NAMES[now[i].name]}`}`,
      },
    };
  };
  return (
    <Figure
      title="Stage by stage"
      name="prediction"
      caption={`From the model’s own probabilities after ${quoted(app.trace.value.header.tokens.at(-1)!.text)} to those that a token is drawn from.`}
      narrowest={stages().length > 3 ? 130 + 78 * stages().length : 0}
      build={build}
      table={() => {
        const now = stages();
        const first = now[0].probabilities;
        const order = Array.from(first.keys()).sort((a, b) => first[b] - first[a]);
        return {
          columns: ["token", "id", ...now.map((stage) => stage.name)],
          rows: order.map((id) => [app.trace.value.piece(id), id, ...now.map((stage) => stage.probabilities[id])]),
          by: ["id"],
          note: "Pieces of unlikely tokens may be missing from the file; their ids are right.",
        };
      }}
      python={() => {
        const changed = (Object.keys(NEUTRAL) as (keyof Settings)[]).filter((name) => settings()[name] !== NEUTRAL[name]);
        const ids = app.trace.value.header.tokens.map((token) => token.id).join(", ");
        return `sampler = pl.Sampler(${changed.map((name) => `${name}=${settings()[name]}`).join(", ")})\nsampler.explain(logits[0, -1], ids=[${ids}])`;
      }}
    />
  );
}

/** Runs of this tab that can be gone back to. */
type Visit = { ids: number[]; tail: string };

const trail = once<App, Signal<Visit[]>>(() => signal([]));

const idsOf = (trace: Trace) => trace.header.tokens.map((token) => token.id);

/** Run other ids, and remember where we were, so that one can go back and take another way. */
async function runIds(app: App, ids: number[]): Promise<void> {
  const before = app.trace.value;
  const next = await app.server!.trace("/api/run", { ids });
  const tail = before.header.tokens.slice(-4).map((token) => token.text).join("");
  const known = trail(app);
  const same = (visit: Visit) => visit.ids.join() === idsOf(before).join();
  if (!known.value.some(same)) known.value = [...known.value, { ids: idsOf(before), tail }].slice(-12);
  await goOn(app, next);
}

type Drawn = { id: number; text: string };

function Draw({ settings }: { settings: () => Settings }) {
  const app = useApp();
  const seed = useParam<number>("seed", 0);
  const drawn = useMemo(() => signal<Drawn | null>(null), [app.trace.value]);
  const running = useMemo(() => signal<{ stop: AbortController; text: string } | null>(null), []);
  if (!app.server) {
    return (
      <Gap>
        <b>Drawing needs the model</b>: <code>pellucid serve</code> draws tokens with a seed, appends them, and goes back to any token to take another way.
      </Gap>
    );
  }
  const { server } = app;
  const asked = () => ({ ...settings(), seed: seed.value });
  // What is drawn is that of the run that is shown.
  const edits = app.about(app.trace.value).plain ? [] : editsOf(app.edits.value);
  const draw = () => app.attempt("Drawing a token", async () => void (drawn.value = await server.json<Drawn>("/api/sample", { ...asked(), ...app.about(app.trace.value) })));
  const go = (ids: number[]) => app.attempt("Running the model", () => runIds(app, ids));
  const generate = () =>
    app.attempt("Continuing the text", async () => {
      const stop = new AbortController();
      running.value = { stop, text: "" };
      const ids = idsOf(app.trace.value);
      try {
        for await (const { event, data } of server.events("/api/generate", { ids, max_new_tokens: Math.max(1, Math.min(20, app.trace.value.header.model.sizes.n_ctx - ids.length)), ...asked(), ...(edits.length ? { edits: asking(edits) } : {}) }, stop.signal)) {
          if (event === "error") throw Object.assign(new Error(data.message), { remedy: data.remedy });
          if (event !== "token") continue;
          ids.push(data.id);
          running.value = { stop, text: running.value!.text + data.text };
        }
      } catch (fault) {
        if (!stop.signal.aborted) throw fault;
        void server.json("/api/cancel", {}).catch(() => null);
      } finally {
        running.value = null;
      }
      if (ids.length > app.trace.value.length) await runIds(app, ids);
    });
  const at = app.query.value;
  const visited = trail(app).value;
  return (
    <section class="card draw" aria-labelledby="pellucid-draw">
      <h2 id="pellucid-draw">Draw, append, go back</h2>
      <div class="controls">
        <label>
          Seed
          <input type="number" min={0} step={1} value={seed.value} onInput={(event) => (seed.value = Math.max(0, Math.floor(Number(event.currentTarget.value) || 0)))} />
        </label>
        <button type="button" class="primary" onClick={draw}>
          Draw
        </button>
        <Plain disabled={running.value !== null} onClick={generate}>
          Continue by 20 tokens
        </Plain>
        {running.value && (
          <Plain onClick={() => running.value!.stop.abort()}>
            Stop
          </Plain>
        )}
        {at >= 0 && at < app.trace.value.length - 1 && (
          <Plain onClick={() => go(idsOf(app.trace.value).slice(0, at + 1))}>
            Go back to {quoted(app.trace.value.header.tokens[at].text)}
          </Plain>
        )}
      </div>
      <p aria-live="polite">
        {running.value ? (
          <Piece text={running.value.text || " "} />
        ) : drawn.value ? (
          <>
            Seed {seed.value} draws <Piece text={drawn.value.text} />{" "}
            <Plain onClick={() => go([...idsOf(app.trace.value), drawn.value!.id])}>
              Append it
            </Plain>
          </>
        ) : (
          "Nothing has been drawn yet."
        )}
      </p>
      {edits.length > 0 && <Note>Tokens are drawn from the edited run. At those that come, too, what is zero or a mean at every token stays so; other edits stay at their tokens.</Note>}
      {visited.length > 0 && (
        <div class="controls">
          <span class="note">Earlier:</span>
          {visited.map((visit) => (
            <Plain onClick={() => go(visit.ids)}>
              … <Piece text={visit.tail} />
            </Plain>
          ))}
        </div>
      )}
    </section>
  );
}

export function Prediction() {
  const app = useApp();
  const { signals, value } = useSettings();
  const made = useMemo(() => once((trace: Trace) => computed(() => stagesOf(Float64Array.from(trace.need("prediction.logits").raw), idsOf(trace), value()))), []);
  const stages = { get value() { return made(app.trace.value).value; } };
  const final = stages.value.at(-1)!.probabilities;
  const kept = final.reduce((count, p) => count + (p > 0 ? 1 : 0), 0);
  const changed = SLIDERS.some((slider) => signals[slider.name].value !== NEUTRAL[slider.name]);
  return (
    <>
      <div class="columns narrow-left">
        <section class="card sliders" aria-label="Settings of the sampler">
          {SLIDERS.map(({ name, label, low, high, step, says }) => (
            <label>
              <span>
                {label} <output>{says(signals[name].value)}</output>
              </span>
              <input type="range" aria-label={label} aria-valuetext={says(signals[name].value)} min={low} max={high} step={step} value={signals[name].value} onInput={(event) => (signals[name].value = Number(event.currentTarget.value))} />
            </label>
          ))}
          <Note>
            {kept.toLocaleString("en")} of {final.length.toLocaleString("en")} tokens are left, with {number(entropy(final), 3)} bits of entropy.
          </Note>
          <Plain disabled={!changed} onClick={() => SLIDERS.forEach(({ name }) => (signals[name].value = NEUTRAL[name]))}>
            As the model says
          </Plain>
        </section>
        <StageFigure settings={value} stages={() => stages.value} />
      </div>
      <Draw settings={value} />
    </>
  );
}
