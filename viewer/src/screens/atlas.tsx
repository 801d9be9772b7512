// The atlas: every checkpoint of one run on one canvas, from the whole model down to a single number.

import { signal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { indexAt, lookOf, mapOf, nameAt, valueAt, type Chart, type Tile } from "../atlas";
import { told } from "../checkpoints";
import { inkOn, type Palette } from "../colors";
import { Figure, type Drawing } from "../figure";
import { Choice, Missing, Plain } from "../inputs";
import { useApp, useParam, type App } from "../state";
import { widthOf, type Surface } from "../surface";
import { copy } from "../take";
import { number, quoted, visible } from "../text";

type Eye = { x: number; y: number; scale: number };

const HEIGHT = 620;

/** The number under a point of the world. */
function cellOf(tile: Tile, x: number, y: number): [number, number] {
  const within = (value: number, size: number) => Math.max(0, Math.min(size - 1, Math.floor(value)));
  return [within(((y - tile.y) / tile.height) * tile.rows, tile.rows), within(((x - tile.x) / tile.width) * tile.columns, tile.columns)];
}

function placed(app: App, tile: Tile, row: number, column: number): string {
  const { tokens } = app.trace.value.header;
  const index = indexAt(tile, row, column).slice(1);
  const axes = tile.point.axes.slice(1);
  const where = axes.map((axis, i) => (["pos", "query", "key"].includes(axis) ? `${axis} ${quoted(tokens[index[i]].text)}` : `${axis} ${index[i]}`)).join(", ");
  const value = valueAt(tile, row, column);
  return `${nameAt(tile, row, column)} ${tile.block?.exact === false ? "≈" : "="} ${number(value, 4)} (${where})`;
}

function Map({ chart }: { chart: Chart }) {
  const app = useApp();
  const focus = useParam<string>("tile", "");
  const size = useMemo(() => signal({ width: 0, height: HEIGHT }), []);
  const eye = useMemo(() => signal<Eye | null>(null), [chart, focus.value]);
  const tileNamed = (name: string) => chart.tiles.find((tile) => tile.point.name === name) ?? null;
  // Far in, cells keep growing only in width: numbers are wider than they are high.
  const down = (scale: number) => Math.min(scale, 44 / chart.rowHeight);
  const whole = (width: number, height: number): Eye => {
    const scale = Math.min(width / (chart.width + 90), height / (chart.height + 30));
    return { scale, x: (chart.width - width / scale) / 2 - 20, y: (chart.height - height / scale) / 2 };
  };
  const onto = (tile: Tile, width: number, height: number): Eye => {
    const scale = Math.min(width / (tile.width + 60), height / (tile.height + 70));
    return { scale, x: tile.x + tile.width / 2 - width / scale / 2 - 20, y: tile.y + tile.height / 2 - height / down(scale) / 2 };
  };
  const look = (width: number, height: number): Eye => {
    if (eye.value) return eye.value;
    const tile = tileNamed(focus.value);
    return tile ? onto(tile, width, height) : whole(width, height);
  };
  /** False where it is as far out as it goes, so that the wheel then scrolls the page. */
  const zoom = (x: number, y: number, factor: number): boolean => {
    const { width, height } = size.peek();
    const now = look(width, height);
    const scale = Math.max(whole(width, height).scale, Math.min(400, now.scale * factor));
    if (scale === now.scale) return false;
    eye.value = { scale, x: now.x + x / now.scale - x / scale, y: now.y + y / down(now.scale) - y / down(scale) };
    return true;
  };
  const go = (tile: Tile | null) => {
    focus.value = tile?.point.name ?? "";
    eye.value = null;
  };

  /** Bring a number into the middle, large enough to be read. */
  const reveal = (tile: Tile, row: number, column: number) => {
    const { width, height } = size.peek();
    const scale = Math.max(look(width, height).scale, 58 / (tile.width / tile.columns));
    eye.value = {
      scale,
      x: tile.x + ((column + 0.5) / tile.columns) * tile.width - width / scale / 2,
      y: tile.y + ((row + 0.5) / tile.rows) * tile.height - height / down(scale) / 2,
    };
  };
  const build = (width: number, palette: Palette): Drawing => {
    const height = Math.max(240, Math.min(HEIGHT, (width * chart.height) / chart.width + 24));
    if (size.peek().width !== width) size.value = { width, height };
    const now = look(width, height);
    const sx = (x: number) => (x - now.x) * now.scale;
    const tall = down(now.scale);
    const sy = (y: number) => (y - now.y) * tall;
    const chosen = tileNamed(focus.value);
    const seen = chart.tiles.filter((tile) => sx(tile.x) < width && sx(tile.x + tile.width) > 0 && sy(tile.y) < height && sy(tile.y + tile.height) > 0);
    const { tokens } = app.trace.value.header;
    const numbers = (surface: Surface, tile: Tile) => {
      const [cw, ch] = [(tile.width / tile.columns) * now.scale, (tile.height / tile.rows) * tall];
      if (cw < 40 || ch < 15) return;
      const { scale } = lookOf(tile, palette);
      const [top, left] = cellOf(tile, now.x, now.y);
      const [bottom, right] = cellOf(tile, now.x + width / now.scale, now.y + height / tall);
      for (let row = top; row <= bottom; row++) {
        for (let column = left; column <= right; column++) {
          const value = valueAt(tile, row, column);
          if (Number.isNaN(value)) continue;
          const [x, y] = [sx(tile.x) + (column + 0.5) * cw, sy(tile.y) + (row + 0.5) * ch];
          const fill = inkOn(scale.color(value));
          surface.text(x, ch > 34 ? y - 7 : y, number(value, 3), { size: 12, mono: true, fill, anchor: "middle", baseline: "middle", fit: cw - 4 });
          if (ch > 34) surface.text(x, y + 9, `[${indexAt(tile, row, column).slice(1).join(", ")}]`, { size: 9.5, fill, anchor: "middle", baseline: "middle", fit: cw - 4 });
        }
      }
    };
    const draw = (surface: Surface) =>
      surface.clip(0, 0, width, height, () => {
        surface.rect(0, 0, width, height, { fill: palette.paper, radius: 8 });
        for (const band of chart.bands) {
          surface.rect(sx(-70), sy(band.y), (chart.width + 84) * now.scale, band.height * tall, { fill: palette.faint, radius: Math.min(8, 20 * now.scale) });
          if (56 * now.scale > 8) surface.text(sx(-58), sy(band.y + band.height / 2), `${band.layer}`, { size: Math.min(20, 44 * now.scale + 4), weight: 650, fill: palette.muted, baseline: "middle" });
        }
        for (const tile of seen) {
          const [x, y, w, h] = [sx(tile.x), sy(tile.y), tile.width * now.scale, tile.height * tall];
          if (tile.block) surface.picture(x, y, w, h, lookOf(tile, palette).picture);
          else surface.rect(x, y, w, h, { fill: palette.panel, stroke: palette.line, dash: [3, 3] });
          for (let head = 1; head < tile.heads && w / tile.heads > 6; head++) surface.rect(x + (head * w) / tile.heads - 0.5, y, 1, h, { fill: palette.panel });
          numbers(surface, tile);
          const text = now.scale > 1.2 ? tile.point.name : told(tile.point).label;
          const room = Math.min(x + w + 20 * now.scale, width) - Math.max(x, 4);
          const size = Math.max(9, Math.min(13, 9 + now.scale * 4));
          // A label is whole or not there, except far in, where its beginning says enough.
          const fits = chart.label * tall > 8 && widthOf(text, { size, mono: true, weight: 550 }) <= room;
          if (fits || (now.scale > 1.2 && room > 60)) surface.text(Math.max(x, 4), Math.max(y - 4, 12), text, { size, mono: true, weight: 550, fill: palette.ink, fit: room });
          if (tile === chosen) surface.rect(x - 1, y - 1, w + 2, h + 2, { stroke: palette.accent, width: 2 });
          const ch = h / tile.rows;
          if (ch > 13 && (tile === chosen || ch > 24)) {
            for (let row = 0; row < tile.rows; row++) {
              const at = y + (row + 0.5) * ch;
              if (at > 10 && at < height - 6 && x > 30) surface.text(x - 5, at, visible(tokens[row]?.text ?? ""), { size: 11, mono: true, fill: palette.muted, anchor: "end", baseline: "middle", fit: Math.min(x - 8, 90) });
            }
          }
        }
      });
    const tileAt = (x: number, y: number) => {
      const [wx, wy] = [now.x + x / now.scale, now.y + y / tall];
      return seen.find((tile) => wx >= tile.x && wx < tile.x + tile.width && wy >= tile.y && wy < tile.y + tile.height) ?? null;
    };
    // Without a chosen checkpoint the cells are checkpoints; with one they are its numbers.
    const grid: NonNullable<Drawing["grid"]> = chosen
      ? {
          rows: chosen.rows,
          columns: chosen.columns,
          box: (row, column) => [sx(chosen.x + (column / chosen.columns) * chosen.width), sy(chosen.y + (row / chosen.rows) * chosen.height), (chosen.width / chosen.columns) * now.scale, (chosen.height / chosen.rows) * tall],
          find: (x, y) => (tileAt(x, y) === chosen ? cellOf(chosen, now.x + x / now.scale, now.y + y / tall) : null),
          has: (row, column) => !Number.isNaN(valueAt(chosen, row, column)) || !chosen.block,
          read: (row, column) => placed(app, chosen, row, column),
          choose: (row, column) => void copy(app, nameAt(chosen, row, column), nameAt(chosen, row, column)),
          hover: (where) => (app.hover.value = where ? { query: where[0] } : {}),
        }
      : {
          rows: chart.tiles.length,
          columns: 1,
          box: (row) => {
            const tile = chart.tiles[row];
            return [sx(tile.x), sy(tile.y), tile.width * now.scale, tile.height * tall];
          },
          find: (x, y) => {
            const tile = tileAt(x, y);
            return tile ? [chart.tiles.indexOf(tile), 0] : null;
          },
          read: (row) => {
            const { point } = chart.tiles[row];
            return `${point.name} [${point.axes.join(", ")}] = [${point.shape.join(", ")}]: ${point.meaning}`;
          },
          choose: (row) => go(chart.tiles[row]),
        };
    return {
      width,
      height,
      draw,
      grid,
      differ: () => build(width, palette), // the chart holds the difference already
      wheel: (x, y, by) => zoom(x, y, Math.exp(-by / 300)),
      drag: (dx, dy) => {
        const at = look(width, height);
        eye.value = { ...at, x: at.x - dx / at.scale, y: at.y - dy / down(at.scale) };
      },
      moved: (row, column) => {
        if (chosen) reveal(chosen, row, column);
      },
      key: (event) => {
        if (event.key === "+" || event.key === "=") zoom(width / 2, height / 2, 1.6);
        else if (event.key === "-") zoom(width / 2, height / 2, 1 / 1.6);
        else if (event.key === "0") go(null);
        else if (event.key === "Escape" && chosen) go(null);
        else return false;
        return true;
      },
    };
  };
  const chosen = tileNamed(focus.value);
  return (
    <Figure
      title={chosen ? chosen.point.name : "The atlas of this run"}
      name={chosen ? `atlas-${chosen.point.name}` : "atlas"}
      caption={
        chosen
          ? `${told(chosen.point).line} Rows are tokens. Choose a number to copy its name in Python.`
          : "Every value that the model computed, in the order of computation: down the blocks, and from left to right in each. Blue is positive, orange negative. Wheel or + and − zoom, dragging moves; choose a checkpoint to go there."
      }
      build={build}
      controls={
        <>
          <Choice label="Checkpoint" at={focus} of={{ "": "the whole model", ...Object.fromEntries(chart.tiles.map(({ point }) => [point.name, point.name])) }} />
          <Plain aria-label="Zoom in" onClick={() => zoom(size.value.width / 2, size.value.height / 2, 1.6)}>
            +
          </Plain>
          <Plain aria-label="Zoom out" onClick={() => zoom(size.value.width / 2, size.value.height / 2, 1 / 1.6)}>
            −
          </Plain>
          <Plain onClick={() => go(null)}>
            Whole model
          </Plain>
        </>
      }
      table={() => {
        if (!chosen) return { columns: ["checkpoint", "axes", "shape", "meaning"], rows: chart.tiles.map(({ point }) => [point.name, point.axes.join(" "), point.shape.join("×"), point.meaning]) };
        const rows: (string | number)[][] = [];
        const tile = { ...chosen, block: app.trace.value.block(`atlas.${chosen.point.name}`), minus: null };
        for (let row = 0; tile.block && row < tile.rows; row++) {
          for (let column = 0; column < tile.columns; column++) {
            const value = valueAt(tile, row, column);
            if (!Number.isNaN(value)) rows.push([...indexAt(tile, row, column), value]);
          }
        }
        const note = chosen.block?.exact === false ? "Approximate: stored in fewer bits than the run used." : "";
        return { columns: [...chosen.point.axes, "value"], rows, note };
      }}
      python={() => (chosen ? `ckpts["${chosen.point.name}"]` : "list(ckpts)")}
    />
  );
}

export function Atlas() {
  const app = useApp();
  const trace = app.trace.value;
  const base = app.pair.value?.base ?? null;
  const chart = useMemo(() => mapOf(trace, base), [trace, base]);
  const empty = chart.tiles.filter((tile) => !tile.block).length;
  return (
    <>
      {empty > 0 && (
        <Missing what="atlas">{empty === chart.tiles.length ? "The numbers of the atlas are not in this file" : `${empty} of ${chart.tiles.length} checkpoints are not in this file`}</Missing>
      )}
      <Map chart={chart} />
    </>
  );
}
