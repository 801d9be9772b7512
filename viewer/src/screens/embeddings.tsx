// Embeddings: the tokens' vectors as points, at any checkpoint, coloured by what is known of each token.

import { extent } from "d3-array";
import { sequential, type Palette } from "../colors";
import { Figure, type Drawing } from "../figure";
import { Choice, Missing, Tick } from "../inputs";
import { key, lattice } from "../marks";
import { along, equally, scatterPlot, type Dot } from "../scatter";
import { asked } from "../source";
import { keeping, useApp, useParam, type App } from "../state";
import { widthOf, type Surface } from "../surface";
import { number, percent, quoted, round, visible } from "../text";
import type { Trace } from "../trace";
import { each, upTo } from "../lists";

const HEIGHT = 480;

const PCA = "embeddings.pca";

/** The checkpoints whose components the trace holds. */
const held = (trace: Trace): string[] => trace.need(PCA).entry.of!;

/** The checkpoints that can be shown: with a server, everything that is a vector for each token. */
const places = (app: App): string[] =>
  app.server ? app.trace.value.header.schema.points.filter((point) => point.axes[1] === "pos").map((point) => point.name) : held(app.trace.value);

const placeOf = (app: App, wanted: string): string => (places(app).includes(wanted) ? wanted : held(app.trace.value).at(-1)!);

type Cloud = {
  /** Coordinates of each token: three components, or the plane of t-SNE. */
  points: number[][];
  /** The share of the variance that each component explains; none of t-SNE. */
  shares: number[];
  norms: number[] | null;
};

/** The length of each token's vector where the trace says it. */
function normsOf(trace: Trace, place: string): number[] | null {
  const found = /^blocks\.(\d+)\.(resid_pre|resid_post)$/.exec(place);
  const block = trace.need("norms");
  const row = found ? block.entry.of!.indexOf(found[2]) : -1;
  return row < 0 ? null : each(trace.length, (pos) => block.at(row, Number(found![1]), pos));
}

/** Principal components: from the trace, else from the server; null until they are there. */
function components(app: App, place: string): Cloud | null {
  const trace = app.trace.value;
  const block = trace.need(PCA);
  const row = held(trace).indexOf(place);
  if (row < 0) return asked<Cloud>(app, `pca ${place}`, "Asking for the principal components", (server, about) => server.json("/api/pca", { name: place, ...about }));
  const points = each(trace.length, (pos) => [0, 1, 2].map((axis) => block.at(row, pos, axis)));
  return { points, shares: block.entry.of_variance![row], norms: normsOf(trace, place) };
}

function neighbours(app: App, place: string, perplexity: number, seed: number): Cloud | null {
  const found = asked<{ points: number[][] }>(app, `tsne ${place} ${perplexity} ${seed}`, "Computing t-SNE", (server, about) => server.json("/api/tsne", { name: place, perplexity, seed, ...about }));
  return found && { points: found.points, shares: [], norms: components(app, place)?.norms ?? null };
}

/** The row of the lens that stands for a checkpoint: what is read from the stream that it is, or goes into. */
function lensRow(trace: Trace, place: string): number {
  const found = /^blocks\.(\d+)\.(.*)/.exec(place);
  if (!found) return place.startsWith("ln_final") ? trace.layers : 0;
  return found[2] === "resid_pre" ? Number(found[1]) : Number(found[1]) + 1;
}

const NONE = "no variance: all dots are one";

/** What components explain of the variance, if there is any. */
const explained = (all: number[], some = all): string => (all.some(Boolean) ? `${some.map(percent).join(", ")} of the variance` : NONE);

type Shade = { name: string; says: string; values: number[] };

/** What the dots may be coloured by. */
function shades(app: App, place: string, norms: number[] | null): Record<string, Shade> {
  const trace = app.trace.value;
  const row = lensRow(trace, place);
  const where = row ? `after layer ${row - 1}` : "at the embeddings";
  const lens = (name: string) => each(trace.length, (pos) => trace.need(name).at(row, pos));
  return {
    position: { name: "position", says: "position in the text", values: upTo(trace.length) },
    ...(norms ? { norm: { name: "norm", says: `length of the vector at ${place}`, values: norms } } : {}),
    entropy: { name: "entropy", says: `entropy of the lens ${where}, in bits`, values: lens("lens.entropy") },
    kl: { name: "distance to the output", says: `KL to the output ${where}, in nats`, values: lens("lens.kl") },
    next: { name: "probability of the text’s next token", says: `probability of the next token ${where}; of the followed one at the last`, values: lens("lens.next_logprob").map(Math.exp) },
    target: { name: "probability of the followed token", says: `probability of the followed token ${where}`, values: lens("lens.target_logprob").map(Math.exp) },
  };
}

const PLANES: Record<string, [number, number]> = { "1 and 2": [0, 1], "1 and 3": [0, 2], "2 and 3": [1, 2] };

/** The lines that place the vectors again, up to rounding. */
function pythonOf(place: string, method: string, perplexity: number, seed: number): string {
  const vectors = `vectors = ckpts["${place}"][0].flatten(1).double()`;
  if (method === "tsne") return `from sklearn.manifold import TSNE\n\n${vectors}\nTSNE(perplexity=${perplexity}, random_state=${seed}, init="pca").fit_transform(vectors.numpy())`;
  return `import torch\n\n${vectors}\nu, s, _ = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False)\npoints = (u * s)[:, :3]\npoints * points.gather(0, points.abs().argmax(0, keepdim=True)).sign()`;
}

function Cloud() {
  const app = useApp();
  const wanted = useParam<string>("place", "");
  const method = useParam<string>("method", "pca");
  const plane = useParam<string>("plane", "1 and 2");
  const shade = useParam<string>("shade", "position");
  const join = useParam<boolean>("join", false);
  const spread = useParam<number>("perplexity", 5);
  const seed = useParam<number>("tsne_seed", 0);
  const trace = app.trace.value;
  const { tokens } = trace.header;
  const place = placeOf(app, wanted.value);
  const most = (trace.length - 1) / 3;
  const perplexity = Math.max(1, Math.floor(Math.min(spread.value, most)));
  const canPlace = method.value !== "tsne" || (app.server !== null && trace.length >= 4);
  const near = method.value === "tsne" && canPlace;
  // Of the run that is shown; a figure asks for those of two runs in turn.
  const cloudOf = () => (near ? neighbours(app, place, perplexity, seed.value) : components(app, place));
  const knownOf = () => shades(app, place, cloudOf()?.norms ?? null);
  const choices = knownOf();
  const [first, second] = near ? [0, 1] : (PLANES[plane.value] ?? PLANES["1 and 2"]);
  const title = near ? "t-SNE" : "Principal components";
  const axis = (cloud: Cloud | null, i: number) => (near ? `t-SNE ${i + 1}` : `component ${i + 1}: ${cloud ? explained(cloud.shares, [cloud.shares[i]]) : "…"}`);
  const build = (width: number, palette: Palette): Drawing => {
    const [cloud, known] = [cloudOf(), knownOf()];
    const by = known[shade.value] ?? known.position;
    const [low = 0, high = 0] = extent(by.values.filter(Number.isFinite));
    const scale = sequential(low, high, palette.dark);
    const dots = (cloud?.points ?? []).map((point, pos): Dot => ({ x: point[first], y: point[second], label: visible(tokens[pos].text), color: scale.color(by.values[pos]) }));
    const height = Math.max(300, Math.min(HEIGHT, width * 0.8));
    const drawn = scatterPlot({
      width,
      height,
      palette,
      dots,
      xTitle: axis(cloud, first),
      yTitle: axis(cloud, second),
      equal: true,
      outlined: true,
      join: join.value,
      read: (pos) => `${quoted(tokens[pos].text)} at position ${pos}: ${number(dots[pos].x)}, ${number(dots[pos].y)}; ${by.name} ${round(by.values[pos], 3)}`,
      choose: (pos) => (app.query.value = pos),
      hover: (pos) => (app.hover.value = pos === null ? {} : { query: pos }),
      lit: () => app.atQuery.value,
    });
    const narrow = width < 520;
    return {
      ...drawn,
      height: height + (narrow ? 52 : 36),
      draw: (surface) => {
        drawn.draw(surface);
        const legend = { title: narrow ? "" : by.says, low: round(scale.low, 3), high: round(scale.high, 3) };
        key(surface, 56, height + 10, 180, width - 56, scale, palette, legend);
        if (narrow) surface.text(56, height + 46, by.says, { size: 11, fill: palette.muted, fit: width - 58 });
      },
    };
  };
  const table = () => {
    const [cloud, known] = [cloudOf(), knownOf()];
    return {
      columns: ["pos", "token", ...(near ? ["tsne1", "tsne2"] : ["pc1", "pc2", "pc3"]), ...Object.keys(known)],
      rows: (cloud?.points ?? []).map((point, pos) => [pos, tokens[pos].text, ...point, ...Object.values(known).map(({ values }) => values[pos])]),
      note: near || !cloud ? "" : `The components explain ${explained(cloud.shares)}.`,
    };
  };
  return (
    <Figure
      title={`${title} of ${place}`}
      name={`vectors-${place}-${near ? "tsne" : "pca"}`}
      caption={
        near
          ? "Neighbours stay neighbours. Distances between groups, and their sizes, mean little; another seed gives another map."
          : "Each dot is a token’s vector, seen from where the dots lie farthest apart. What the two axes do not explain is not in the picture."
      }
      build={build}
      controls={
        <>
          <Choice label="At" at={wanted} value={place} of={places(app)} />
          <Choice label="Place by" at={method} of={{ pca: "principal components", tsne: "t-SNE" }} />
          {near ? (
            <>
              <label>
                Perplexity
                <input type="number" min={1} max={Math.floor(most)} value={perplexity} onChange={(event) => (spread.value = Number(event.currentTarget.value) || 5)} />
              </label>
              <label>
                Seed
                <input type="number" min={0} value={seed.value} onChange={(event) => (seed.value = Math.max(0, Math.round(Number(event.currentTarget.value) || 0)))} />
              </label>
            </>
          ) : (
            <Choice label="Components" at={plane} of={Object.keys(PLANES)} />
          )}
          <Choice label="Colour" at={shade} value={choices[shade.value] ? shade.value : "position"} of={choices} />
          <Tick label="joined in order" at={join} />
        </>
      }
      table={table}
      python={() => pythonOf(place, near ? "tsne" : "pca", perplexity, seed.value)}
      shell={() => keeping(app, [place])}
    >
      {!canPlace && (
        <p class="note" role="status">
          {app.server ? "t-SNE takes a text of four tokens or more." : "t-SNE is computed on request: pellucid serve shows it."} These are the principal components.
        </p>
      )}
    </Figure>
  );
}

const called = (place: string): string => (/ckpt_embed$/.test(place) ? "embed" : place.replace(/^blocks\.(\d+)\.resid_pre$/, "into $1").replace(/^blocks\.(\d+)\.resid_post$/, "after $1"));

/** The same tokens at every place of the stream that the trace holds, small. */
function Journey() {
  const app = useApp();
  const wanted = useParam<string>("place", "");
  const names = held(app.trace.value);
  const sharesOf = () => app.trace.value.need(PCA).entry.of_variance!;
  const build = (width: number, palette: Palette): Drawing => {
    const trace = app.trace.value;
    const [block, shares] = [trace.need(PCA), sharesOf()];
    const columns = Math.max(2, Math.min(names.length, Math.floor(width / 132)));
    const gap = 12;
    const size = Math.min(190, (width - gap * (columns - 1)) / columns);
    const tall = size + 36;
    const rows = Math.ceil(names.length / columns);
    const corner = (i: number): [number, number] => [(i % columns) * (size + gap), Math.floor(i / columns) * tall];
    const order = sequential(0, trace.length - 1, palette.dark);
    const dots = names.map((_, row) => {
      const [xs, ys] = [0, 1].map((axis) => each(trace.length, (pos) => block.at(row, pos, axis)));
      const [h, v] = [along(xs, 4, size - 4), along(ys, size - 4, 4)];
      equally(h, v);
      return xs.map((x, pos): [number, number] => [h(x), v(ys[pos])]);
    });
    const r = Math.max(1.5, Math.min(4, 24 / Math.sqrt(trace.length)));
    const draw = (surface: Surface) =>
      names.forEach((name, i) => {
        const [x, y] = corner(i);
        surface.rect(x + 0.5, y + 0.5, size - 1, size - 1, { fill: palette.faint, radius: 8 });
        dots[i].forEach(([dx, dy], pos) => surface.circle(x + dx, y + dy, r, { fill: order.color(pos), stroke: palette.muted, width: 0.6 }));
        surface.text(x + 2, y + size + 14, called(name), { size: 12, weight: 600, fill: palette.ink });
        const told = shares[i].some(Boolean) ? percent(shares[i][0] + shares[i][1]) : "one dot";
        if (widthOf(`${called(name)} ${told}`, { size: 12, weight: 600 }) < size) surface.text(x + size - 2, y + size + 14, told, { size: 11, fill: palette.muted, anchor: "end" });
      });
    return {
      width,
      height: rows * tall - 14,
      draw,
      over: (surface) => {
        const now = names.indexOf(placeOf(app, wanted.value));
        names.forEach((_, i) => {
          const [x, y] = corner(i);
          const [dx, dy] = dots[i][app.atQuery.value];
          surface.circle(x + dx, y + dy, r + 2.5, { stroke: palette.warm, width: 2 });
          if (i === now) surface.rect(x, y, size, size, { stroke: palette.accent, width: 2, radius: 8 });
        });
      },
      grid: {
        ...lattice(rows, columns, [0, 0], [size, size], [size + gap, tall]),
        has: (row, column) => row * columns + column < names.length,
        read: (row, column) => {
          const i = row * columns + column;
          return `${names[i]}: the first two components explain ${explained(shares[i], [shares[i][0] + shares[i][1]])}`;
        },
        choose: (row, column) => (wanted.value = names[row * columns + column]),
        start: () => {
          const at = Math.max(0, names.indexOf(placeOf(app, wanted.value)));
          return [Math.floor(at / columns), at % columns];
        },
      },
    };
  };
  return (
    <Figure
      title="The same tokens, layer by layer"
      name="vectors-journey"
      caption="Each picture has components of its own, so directions do not compare, but groups do. Colours run from the first token to the last; the ring is the token that is chosen."
      build={build}
      table={() => ({ columns: ["checkpoint", "share1", "share2", "share3"], rows: names.map((name, i) => [name, ...sharesOf()[i]]), note: "Shares of the variance that the first three components explain." })}
      python={() =>
        `import torch\n\nnames = ${JSON.stringify(names)}\nvectors = [ckpts[name][0].double() for name in names]\nstrengths = [torch.linalg.svdvals(each - each.mean(0)) ** 2 for each in vectors]\n[(each / each.sum())[:3].tolist() for each in strengths]`
      }
      shell={() => keeping(app, names)}
    />
  );
}

export function Embeddings() {
  const app = useApp();
  if (!app.trace.value.has(PCA)) return <Missing what={PCA} />;
  return (
    <>
      <Cloud />
      <Journey />
    </>
  );
}
