// What the lens follows: a token's rank and probability through the layers, and the parts of its logit at a cell.

import { Choice } from "./inputs";
import { asked } from "./source";
import { useApp, useParam, type App } from "./state";
import { pythonText, quoted, visible } from "./text";
import { each, pairs } from "./lists";
import { PARTS, isBare } from "./trace";

/** The name of a row of the lens. */
export const rowName = (row: number): string => (row ? `after ${row - 1}` : "embeddings");

/** The row that is pinned; the output unless another was chosen. */
export const pinned = (app: App, row: number): number => (row < 0 ? app.trace.value.layers : Math.min(row, app.trace.value.layers));

/** The token that is followed: the trace's target, the one that comes next, or any other by its id or as it is written. */
export type Followed = { piece: string; id: number | null; by: string };

export function followed(app: App): Followed {
  const trace = app.trace.value;
  const { tokens, target } = trace.header;
  const by = app.param<string>("follow", "target").value;
  const pos = app.atQuery.value;
  const written = app.param<string>("word", "").value;
  if (by === "next" && pos + 1 < tokens.length) return { piece: tokens[pos + 1].text, id: tokens[pos + 1].id, by };
  if (by === "token" && written) return { piece: written, id: isBare(trace) && +written >= 0 ? +written : null, by };
  if (by === "token" && app.token.value >= 0) return { piece: trace.piece(app.token.value), id: app.token.value, by };
  return { piece: target.text, id: target.id, by: by === "token" ? "target" : by };
}

type Path = { name: string; ranks: number[]; logprobs: number[] };
type LensAnswer = { rank: number[][]; logprob: number[][]; parts?: { of: string[]; values: number[] } };

/** Rank and probability of the followed token through the layers at a position; NaN where a file does not list it. */
export function pathOf(app: App): Path {
  const trace = app.trace.value;
  const pos = app.atQuery.value;
  const { piece, id, by } = followed(app);
  const rows = each(trace.layers + 1, (row) => row);
  const name = quoted(piece);
  if (by !== "token") {
    const [ranks, logprobs] = by === "next" ? ["lens.next_rank", "lens.next_logprob"] : ["lens.rank", "lens.target_logprob"];
    return { name, ranks: rows.map((row) => trace.need(ranks).at(row, pos) + 1), logprobs: rows.map((row) => trace.need(logprobs).at(row, pos)) };
  }
  const token = id ?? piece;
  const answer = asked<LensAnswer>(app, `lens ${JSON.stringify(token)}`, "Asking the lens", (server, about) => server.json("/api/lens", { token, ...about }));
  if (answer) return { name, ranks: rows.map((row) => answer.rank[row][pos] + 1), logprobs: rows.map((row) => answer.logprob[row][pos]) };
  const [ids, logprobs] = [trace.need("lens.ids"), trace.need("lens.logprobs")];
  const listed = rows.map((row) => each(ids.shape[2], (i) => ids.at(row, pos, i)).indexOf(id ?? -1));
  return { name, ranks: listed.map((at) => (at < 0 ? NaN : at + 1)), logprobs: listed.map((at, row) => (at < 0 ? NaN : logprobs.at(row, pos, at))) };
}

/** Which token to follow: with the server any, in a file those that are listed at this position. */
export function Follow() {
  const app = useApp();
  const which = useParam<string>("follow", "target");
  const word = useParam<string>("word", "");
  const trace = app.trace.value;
  const ids = trace.need("lens.ids");
  const pos = app.atQuery.value;
  const listed = [...new Set(pairs(ids.shape[0], ids.shape[2], (row, i) => ids.at(row, pos, i)))];
  if (app.token.value >= 0 && !listed.includes(app.token.value)) listed.push(app.token.value);
  return (
    <>
      <Choice label="Follow" at={which} of={{ target: `the followed token ${quoted(trace.header.target.text)}`, next: "the text’s own next token", token: "another token" }} />
      {which.value === "token" && (
        <label>
          Token
          <select
            value={word.value ? "" : String(app.token.value)}
            onChange={(event) => {
              word.value = "";
              app.token.value = Number(event.currentTarget.value);
            }}
          >
            <option value={word.value ? "" : "-1"}>…</option>
            {listed.map((id) => (
              <option value={String(id)}>{visible(trace.piece(id))}</option>
            ))}
          </select>
        </label>
      )}
      {which.value === "token" && app.server && (
        <label>
          or as written
          <input name="word" size={12} value={word.value} autocomplete="off" spellcheck={false} placeholder="with its space" onChange={(event) => (word.value = event.currentTarget.value)} />
        </label>
      )}
    </>
  );
}

/** The followed token in Python. */
export const tokenIn = ({ piece, id }: Followed): string => (id === null ? pythonText(piece) : String(id));

type Added = { label: string; value: number; layer: number | null };

type Parts = { of: string[]; values: number[]; layer: number; pos: number };

/** The parts of the followed token's logit at the pinned cell: from the server, in a file only those of the target at the end. */
export function partsAt(app: App): Parts {
  const trace = app.trace.value;
  const { target } = trace.header;
  const { id, piece } = followed(app);
  const [row, pos] = [pinned(app, app.param<number>("row", -1).value), app.atQuery.value];
  const layer = Math.max(0, row - 1);
  const last = trace.layers - 1;
  const block = trace.block(PARTS);
  const own = block && { of: block.entry.of!, values: each(block.size, (i) => block.value(i)), layer: last, pos: target.pos };
  if (own && (!app.server || (id === target.id && layer === last && pos === target.pos))) return own;
  const token = id ?? piece;
  const answer = asked<LensAnswer>(app, `parts ${JSON.stringify(token)} ${layer} ${pos}`, "Asking for the parts", (server, about) => server.json("/api/lens", { token, layer, pos, ...about }));
  return { of: answer?.parts?.of ?? [], values: answer?.parts?.values ?? [], layer, pos };
}

/** Heads, or attention and the MLP of each layer, summed in the order of computation. */
export function added({ of, values }: Parts, byHead: boolean): Added[] {
  const sums = new Map<string, Added>();
  of.forEach((name, i) => {
    const found = /^blocks\.(\d+)\.(\w+)(?:\[(\d+)\])?/.exec(name);
    const layer = found ? Number(found[1]) : null;
    const head = byHead && found?.[3] !== undefined ? ` head ${found[3]}` : found && byHead && found[2] === "attn" ? " attention offset" : " attention";
    const label = !found ? (name.startsWith("ln_final") ? "final offset" : "embeddings") : found[2] === "attn" ? `${layer}${head}` : `${layer} MLP`;
    const sum = sums.get(label) ?? { label, value: 0, layer };
    sum.value += values[i];
    sums.set(label, sum);
  });
  return [...sums.values()];
}
