// Two models: every checkpoint of both on this text, where they first differ, and which of their weights are tied.

import { signal, type Signal } from "@preact/signals";
import { sequential } from "../colors";
import { Figure } from "../figure";
import { Gap, Note, Tick } from "../inputs";
import { once } from "../lists";
import { barRows, heatMap } from "../marks";
import { useApp, useParam, type App } from "../state";
import { number, pythonText, quoted, shellText } from "../text";
import { PARTS, idsIn } from "../trace";
import { Closing } from "./river";

type Checkpoint = { name: string; bit_equal: boolean; fp32: number; fp32_local: number | null; fp64: number | null; fp64_local: number | null };
type Report = {
  a: string;
  b: string;
  verdict: string;
  first_divergence: { where: string; what: string; detail: string; cause: string | null } | null;
  parameters: { a: string; b: string; bit_equal: boolean; max_abs: number; relative: number }[];
  checkpoints: Checkpoint[];
  notes: string[];
};
type Compared = { other: string; report: Report; said: string; ties: { what: string; lines: string[] }[] };

const comparedOf = once<App, Signal<Compared | null>>(() => signal(null));

/** In float64, errors below this are rounding. */
const ROUNDING = 1e-10;
const SMALLEST = -17;

const MEANS: Record<string, string> = {
  identical: "Every parameter and every checkpoint is the same to the bit.",
  equivalent: "They compute the same function; what differs is rounding.",
  different: "They differ by more than rounding.",
  inconclusive: "What was found neither proves nor disproves that they are the same.",
};

/** A figure's lines: the comparison, and then what it shows of it. */
function python(app: App, other: string, lines: string): string {
  const opened = `pl.load(${pythonText(other.replace(/^hf:/, ""))})`;
  return `other = ${other.startsWith("hf:") ? `pl.to_hf(${opened})` : opened}\nreport = pl.compare(model, other, inputs=${idsIn(app.trace.value)})\n${lines}`;
}

function shell(app: App, other: string): string | null {
  const { calls, tokens, model } = app.trace.value.header;
  if (!calls.shell) return null;
  const name = / -m ('(?:[^']|'"'"')*'|\S+)( --dtype \w+)? --html page\.html$/.exec(calls.shell)?.[1] ?? "bundled";
  const ids = tokens.map((token) => token.id).join(",");
  return `pellucid compare ${name} ${shellText(other)} --ids ${ids} --dtype A=${model.dtype} --dtype B=float32`;
}

function Strip({ found }: { found: Compared }) {
  const app = useApp();
  const own = useParam<boolean>("own", false);
  const { checkpoints, first_divergence: first } = found.report;
  const errorOf = (row: Checkpoint) => (own.value ? (row.fp64_local ?? row.fp32_local) : null) ?? row.fp64 ?? row.fp32;
  const power = (row: Checkpoint) => (errorOf(row) > 0 ? Math.log10(errorOf(row)) : SMALLEST);
  const placed = checkpoints.map((row) => {
    const [, block, short] = /^blocks\.(\d+)\.(.+)$/.exec(row.name) ?? [null, null, row.name];
    return { row, line: block ? `block ${block}` : row.name.includes("embed") ? "embeddings" : "end", column: short!.replace("ckpt_", "") };
  });
  // What lies before and after the blocks has lines and columns of its own, so that each cell stands under its name.
  const lines = [...new Set(placed.map(({ line }) => line))];
  const columns = [...new Set(placed.map(({ column }) => column))];
  const at = (line: number, column: number): Checkpoint | null => placed.find((one) => one.line === lines[line] && one.column === columns[column])?.row ?? null;
  const mark = (row: Checkpoint) => (row.bit_equal && errorOf(row) === 0 ? "=" : errorOf(row) <= ROUNDING ? "≈" : String(Math.floor(power(row))).replace("-", "−"));
  const said = (row: Checkpoint) => `${row.name}: ${row.bit_equal && errorOf(row) === 0 ? "equal to the bit" : `${errorOf(row) <= ROUNDING ? "rounding, " : ""}differs by ${number(errorOf(row))} of the largest value`}${first?.where === row.name ? "; the first that differs" : ""}`;
  return (
    <Figure
      title="Every checkpoint of both"
      ofBoth
      name="models-strip"
      caption="= is equal to the bit, ≈ is rounding; a number is the power of ten of the largest difference, relative to the largest value."
      narrowest={columns.length * 30 + 100}
      build={(room, palette) => {
        return heatMap({
          width: room,
          palette,
          rows: lines.length,
          columns: columns.length,
          rowHeight: 26,
          at: (line, column) => {
            const row = at(line, column);
            return row ? Math.max(SMALLEST, power(row)) : NaN;
          },
          scale: sequential(SMALLEST, 0, palette.dark),
          rowLabels: lines,
          columnLabels: columns,
          cellText: (line, column) => {
            const row = at(line, column);
            return row ? mark(row) : "";
          },
          legend: { title: "relative difference", low: "none", high: "1" },
          has: (line, column) => at(line, column) !== null,
          read: (line, column) => said(at(line, column)!),
          lit: () => {
            const found = placed.find(({ row }) => row.name === first?.where) ?? placed.find(({ row }) => errorOf(row) > ROUNDING);
            return { row: lines.indexOf(found?.line ?? ""), column: columns.indexOf(found?.column ?? "") };
          },
        });
      }}
      controls={
        <Tick label="only what each adds itself, given the first model’s values" at={own} />
      }
      table={() => ({
        columns: ["checkpoint", "equal_to_the_bit", "fp32", "fp32_own", "fp64", "fp64_own"],
        rows: checkpoints.map((row) => [row.name, row.bit_equal ? "yes" : "no", row.fp32, row.fp32_local, row.fp64, row.fp64_local]),
        note: "Largest differences relative to the first model’s largest value, in the models’ own dtype and in float64.",
      })}
      python={() => python(app, found.other, "[(row.name, row.bit_equal, row.fp32, row.fp32_local, row.fp64, row.fp64_local) for row in report.checkpoints]")}
      shell={() => shell(app, found.other)}
    />
  );
}

const MOST = 12;

function Parameters({ found }: { found: Compared }) {
  const app = useApp();
  const { parameters } = found.report;
  const differ = parameters.filter((one) => !one.bit_equal).sort((a, b) => b.relative - a.relative);
  if (!differ.length) return null;
  return (
    <Figure
      title={`${differ.length} of ${parameters.length} parameters differ`}
      ofBoth
      name="models-parameters"
      caption="By the norm of the difference, relative to the parameter’s."
      build={(width, palette) => {
        return barRows({ width, palette, bars: differ.slice(0, MOST).map((one) => ({ label: one.a.length < one.b.length ? one.a : one.b, value: one.relative })), read: (row) => `${differ[row].a} and ${differ[row].b} differ by up to ${number(differ[row].max_abs)}` });
      }}
      table={() => ({ columns: ["a", "b", "equal_to_the_bit", "max_abs", "relative"], rows: parameters.map((one) => [one.a, one.b, one.bit_equal ? "yes" : "no", one.max_abs, one.relative]) })}
      python={() => python(app, found.other, "[(row.a, row.b, row.bit_equal, row.max_abs, row.relative) for row in report.parameters]")}
      shell={() => shell(app, found.other)}
    />
  );
}

function Verdict({ found }: { found: Compared }) {
  const { verdict, first_divergence: first, notes } = found.report;
  return (
    <section class="card verdict" aria-labelledby="pellucid-verdict">
      <h2 id="pellucid-verdict">{`The two models are ${verdict}`.replace("are inconclusive", "may or may not be the same")}</h2>
      <p>{MEANS[verdict] ?? ""}</p>
      {first && (
        <p>
          <b>First divergence:</b> <code>{first.where}</code>, {first.detail}.{first.cause ? ` Cause: ${first.cause}.` : ""}
        </p>
      )}
      {notes.map((note) => (
        <Note>{note[0].toUpperCase() + note.slice(1)}.</Note>
      ))}
      <details>
        <summary>The whole report in words</summary>
        <pre tabIndex={0}>{found.said}</pre>
      </details>
    </section>
  );
}

function Ties({ found }: { found: Compared }) {
  return (
    <div class="columns">
      {found.ties.map(({ what, lines }, at) => (
        <section class="card ties" aria-label={`Ties of model ${"AB"[at]}`}>
          <h2>
            Tied weights of {"AB"[at]}: {what}
          </h2>
          <ul>
            {lines.map((line) => (
              <li>{line.trim()}</li>
            ))}
          </ul>
        </section>
      ))}
    </div>
  );
}

/** What can be checked without another model: that the parts shown under River are the whole. */
function AddsUp() {
  const { header } = useApp().trace.value;
  return (
    <section class="card">
      <h2>The parts are the whole</h2>
      <Note>The logit of {quoted(header.target.text)} as this run has it, and as the sum of what each part of the model added (River).</Note>
      <Closing />
    </section>
  );
}

export function Models() {
  const app = useApp();
  const other = useParam<string>("model", "");
  const found = comparedOf(app);
  const { server } = app;
  const adds = app.trace.value.has(PARTS) && <AddsUp />;
  if (!server) {
    return (
      <>
        {adds}
        <Gap>
          <b>Comparing needs both models</b>, which are not in this file: <code>{shell(app, "OTHER") ?? "pellucid compare A B"}</code> writes the comparison, and <code>pellucid serve</code> shows it here.
        </Gap>
      </>
    );
  }
  const compare = () =>
    app.attempt("Comparing the models", async () => {
      found.value = null;
      found.value = { other: other.value, ...(await server.json<Omit<Compared, "other">>("/api/compare", { other: other.value })) };
      app.said.value = `The models are ${found.value.report.verdict}.`;
    });
  return (
    <>
      <form
        class="card change"
        aria-label="The other model"
        onSubmit={(event) => {
          event.preventDefault();
          void compare();
        }}
      >
        <div class="controls">
          <label class="other">
            The other model
            <input name="model" required value={other.value} autocomplete="off" spellcheck={false} placeholder="a folder, a file, an alias or a hub id on this machine; after hf: it runs in transformers" onInput={(event) => (other.value = event.currentTarget.value)} />
          </label>
          <button type="submit" class="primary">
            Compare
          </button>
        </div>
        <Note>Both run on the text above; nothing is downloaded.</Note>
      </form>
      {found.value && (
        <>
          <Verdict found={found.value} />
          <Strip found={found.value} />
          <Parameters found={found.value} />
          <Ties found={found.value} />
        </>
      )}
      {adds}
    </>
  );
}
