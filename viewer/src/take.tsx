// Taking things away: figures as SVG, PNG and PDF, data as a table, as CSV and JSON, and text to the clipboard.

import { useRef } from "preact/hooks";
import type { Palette } from "./colors";
import type { FigureProps } from "./figure";
import { Note } from "./inputs";
import { useApp, type App } from "./state";
import { CanvasSurface, SvgSurface, type Surface } from "./surface";
import { number, visible } from "./text";
import type { Trace } from "./trace";

export type Cell = string | number | null;
export type Table = {
  columns: string[];
  rows: Cell[][];
  note?: string;
  /** The columns that say which row it is, where the order of the rows depends on the numbers; else it is the place. */
  by?: string[];
};

/** Two tables as one: columns that changed stand there as base, edited and difference. */
export function tableOfBoth(base: Table, edited: Table): Table {
  const keys = edited.by?.map((name) => edited.columns.indexOf(name));
  const name = (row: Cell[], at: number) => (keys ? JSON.stringify(keys.map((key) => row[key])) : String(at));
  const before = new Map(base.rows.map((row, at) => [name(row, at), row]));
  const pairs = edited.rows.map((row, at): [Cell[] | null, Cell[]] => [before.get(name(row, at)) ?? null, row]);
  const same = (a: Cell, b: Cell) => a === b || (Number.isNaN(a) && Number.isNaN(b));
  const changed = edited.columns.map((_, i) => !keys?.includes(i) && pairs.some(([one, other]) => one && !same(one[i], other[i])));
  const numeric = edited.columns.map((_, i) => edited.rows.every((row) => row[i] === null || typeof row[i] === "number"));
  const parts = (i: number) => (numeric[i] ? [" base", " edited", " difference"] : [" base", " edited"]);
  const difference = (a: Cell, b: Cell) => (typeof a === "number" && typeof b === "number" ? b - a : null);
  return {
    columns: edited.columns.flatMap((column, i) => (changed[i] ? parts(i).map((part) => column + part) : [column])),
    rows: pairs.map(([one, other]) =>
      other.flatMap((value, i) => (changed[i] ? [one ? one[i] : null, value, ...(numeric[i] ? [difference(one ? one[i] : null, value)] : [])] : [value])),
    ),
    note: [edited.note, changed.some(Boolean) ? "" : "The edits change none of these."].filter(Boolean).join(" "),
  };
}

/** A figure as it leaves the page: with its title, and a line that says where the numbers come from. */
export type Sheet = { title: string; source: string; width: number; height: number; palette: Palette; draw: (surface: Surface) => void };

const HEAD = 58;
const EDGE = 20;

function paint(sheet: Sheet, surface: Surface, shift: (dx: number, dy: number, inside: () => void) => void): void {
  const { palette, width } = sheet;
  surface.text(EDGE, 26, sheet.title, { size: 15, weight: 600, fill: palette.ink, fit: width });
  surface.text(EDGE, 44, sheet.source, { size: 11, fill: palette.muted, fit: width });
  shift(EDGE, HEAD, () => sheet.draw(surface));
}

const outer = (sheet: Sheet): [number, number] => [Math.ceil(sheet.width + 2 * EDGE), Math.ceil(sheet.height + HEAD + EDGE)];

export function svgOf(sheet: Sheet): string {
  const surface = new SvgSurface();
  const [width, height] = outer(sheet);
  paint(sheet, surface, (dx, dy, inside) => surface.shifted(dx, dy, inside));
  return surface.file(width, height, sheet.title, sheet.palette.panel);
}

/** The figure on a canvas, `times` as large as on the screen. */
export function pictureOf(sheet: Sheet, times = 3): HTMLCanvasElement {
  const [width, height] = outer(sheet);
  const canvas = document.createElement("canvas");
  canvas.width = width * times;
  canvas.height = height * times;
  const context = canvas.getContext("2d")!;
  context.scale(times, times);
  context.fillStyle = sheet.palette.panel;
  context.fillRect(0, 0, width, height);
  paint(sheet, new CanvasSurface(context), (dx, dy, inside) => {
    context.save();
    context.translate(dx, dy);
    inside();
    context.restore();
  });
  return canvas;
}

export async function pngOf(sheet: Sheet): Promise<Blob> {
  return new Promise((done) => pictureOf(sheet).toBlob((blob) => done(blob!), "image/png"));
}

/** A PDF of one page that holds the picture at three times its size: its text cannot be selected; the SVG's can. */
export async function pdfOf(sheet: Sheet): Promise<Blob> {
  const canvas = pictureOf(sheet);
  const pixels = canvas.getContext("2d")!.getImageData(0, 0, canvas.width, canvas.height).data;
  const colors = new Uint8Array((pixels.length / 4) * 3);
  for (let from = 0, to = 0; from < pixels.length; from += 4, to += 3) {
    colors[to] = pixels[from];
    colors[to + 1] = pixels[from + 1];
    colors[to + 2] = pixels[from + 2];
  }
  const packed = new Uint8Array(await new Response(new Blob([colors]).stream().pipeThrough(new CompressionStream("deflate"))).arrayBuffer());
  const [width, height] = outer(sheet).map((size) => size * 0.75); // points of 1/72 inch for pixels of 1/96
  const title = [...sheet.title].map((sign) => sign.charCodeAt(0).toString(16).padStart(4, "0").slice(-4)).join("");
  const content = `${width} 0 0 ${height} 0 0 cm /P Do`;
  const objects: (string | Uint8Array)[][] = [
    ["<< /Type /Catalog /Pages 2 0 R >>"],
    ["<< /Type /Pages /Kids [3 0 R] /Count 1 >>"],
    [`<< /Type /Page /Parent 2 0 R /MediaBox [0 0 ${width} ${height}] /Resources << /XObject << /P 5 0 R >> >> /Contents 4 0 R >>`],
    [`<< /Length ${content.length} >>\nstream\n${content}\nendstream`],
    [
      `<< /Type /XObject /Subtype /Image /Width ${canvas.width} /Height ${canvas.height} /ColorSpace /DeviceRGB /BitsPerComponent 8 /Filter /FlateDecode /Length ${packed.length} >>\nstream\n`,
      packed,
      "\nendstream",
    ],
    [`<< /Title <feff${title}> /Producer (pellucid) >>`],
  ];
  const encoder = new TextEncoder();
  const out: Uint8Array<ArrayBuffer>[] = [];
  let at = 0;
  const add = (part: string | Uint8Array) => {
    const bytes = typeof part === "string" ? encoder.encode(part) : new Uint8Array(part);
    out.push(bytes);
    at += bytes.length;
  };
  add("%PDF-1.4\n");
  const places = objects.map((parts, number) => {
    const place = at;
    add(`${number + 1} 0 obj\n`);
    parts.forEach(add);
    add("\nendobj\n");
    return place;
  });
  const table = at;
  add(`xref\n0 ${objects.length + 1}\n0000000000 65535 f \n${places.map((place) => `${String(place).padStart(10, "0")} 00000 n \n`).join("")}`);
  add(`trailer\n<< /Size ${objects.length + 1} /Root 1 0 R /Info 6 0 R >>\nstartxref\n${table}\n%%EOF\n`);
  return new Blob(out, { type: "application/pdf" });
}

export function csvOf(table: Table): string {
  const cell = (value: Cell): string => {
    // Spreadsheets compute what begins like a formula, unless an apostrophe marks it as text (OWASP, CSV injection).
    const text = typeof value === "string" && /^[=+\-@\t\r\n]/.test(value) ? `'${value}` : String(value ?? "");
    return /[",\r\n]/.test(text) || text !== text.trim() ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [table.columns, ...table.rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

export function download(name: string, what: Blob | string, type = "text/plain;charset=utf-8"): void {
  const blob = typeof what === "string" ? new Blob([what], { type }) : what;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Put a text on the clipboard, and say so; a sandboxed frame may forbid it. */
export async function copy(app: App, what: string, text: string): Promise<void> {
  app.notice.value = (await onClipboard(text)) ? `${what} copied.` : `This frame does not allow copying. Copy it from here: ${text}`;
}

async function onClipboard(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.style.position = "fixed";
    area.style["opacity"] = "0";
    document.body.append(area);
    const before = document.activeElement;
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (before instanceof HTMLElement) before.focus();
    return done;
  }
}

const MOST_ROWS = 400;

export function TableView({ table, title }: { table: Table; title: string }) {
  const shown = table.rows.slice(0, MOST_ROWS);
  const cell = (value: Cell) => (value === null ? "" : typeof value === "number" ? number(value, 4) : visible(value));
  return (
    <div class="table-frame" tabIndex={0} role="region" aria-label={`${title}, as a table`}>
      <table>
        <thead>
          <tr>
            {table.columns.map((name) => (
              <th scope="col">{name}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {shown.map((row) => (
            <tr>
              {row.map((value) => (
                <td class={typeof value === "number" ? "num" : ""}>{cell(value)}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {(table.note || table.rows.length > MOST_ROWS) && (
        <Note>
          {table.note} {table.rows.length > MOST_ROWS && `The first ${MOST_ROWS} of ${table.rows.length} rows; CSV and JSON hold them all.`}
        </Note>
      )}
    </div>
  );
}

type TakeProps = Pick<FigureProps, "name" | "title" | "table" | "python" | "shell" | "ofBoth"> & { sheet: () => Sheet };

/** The menu with every form in which a figure leaves the page. */
export function TakeAway({ name, title, table, python, shell, ofBoth, sheet }: TakeProps) {
  const app = useApp();
  const box = useRef<HTMLDetailsElement>(null);
  const file = `pellucid-${name}`;
  const header = () => app.trace.value.header;
  const json = () => {
    const { model, versions, text, made } = header();
    const { columns, rows } = table();
    return JSON.stringify({ title, text, model, versions, made, python: code(), shell: command, ["columns"]: columns, ["rows"]: rows }, null, 1);
  };
  const codeOf = (trace: Trace): string | null =>
    app.of(trace, () => {
      const { values, python: whole } = trace.header.calls;
      const lines = values && python ? `${values.trimEnd()}\n\n${python()}` : whole;
      return lines ? `${lines.trimEnd()}\n` : null;
    });
  const code = () => {
    const pair = app.pair.value;
    if (!pair || !python || ofBoth) return codeOf(ofBoth ? app.edited.value : app.trace.value);
    const both = [codeOf(pair.base), codeOf(pair.edited)];
    if (!both[0] || !both[1]) return null;
    const named = both.map((lines, i) => lines!.trimEnd().replace(/\n([^\n]*)$/, `\n${["base", "edited"][i]} = $1`));
    return `${named[0]}\n\n${named[1].replace(/^import pellucid as pl\n+model = .*\n/, "")}\nbase, edited\n`;
  };
  const items: [string, string, () => unknown][] = [
    ["SVG", "a drawing", () => download(`${file}.svg`, svgOf(sheet()), "image/svg+xml")],
    ["PNG", "a picture, at three times the size", async () => download(`${file}.png`, await pngOf(sheet()))],
    ["PDF", "a page that holds the picture", async () => download(`${file}.pdf`, await pdfOf(sheet()))],
    ["CSV", "the numbers", () => download(`${file}.csv`, csvOf(table()), "text/csv;charset=utf-8")],
    ["JSON", "the numbers and where they come from", () => download(`${file}.json`, json(), "application/json")],
  ];
  const command = app.pair.value && !ofBoth ? null : shell ? shell() : header().calls.shell;
  const lines = code();
  if (lines) items.push(["Copy as Python", "", () => copy(app, "Python", lines)]);
  if (command) items.push(["Copy as command line", "", () => copy(app, "Command", command)]);
  if (app.linked) items.push(["Copy link", "to this very state", () => copy(app, "Link", location.href.replace(/#.*$/, "") + app.hash())]);
  const close = () => {
    if (box.current) box.current.open = false;
  };
  return (
    <details
      class="menu"
      ref={box}
      onKeyDown={(event) => {
        if (event.key !== "Escape" || !box.current?.open) return;
        close();
        box.current.querySelector("summary")?.focus();
      }}
      onFocusOut={(event) => {
        if (!box.current?.contains(event.relatedTarget as Node | null)) close();
      }}
    >
      <summary aria-label={`Take away: ${title}`}>Take away</summary>
      <ul>
        {items.map(([label, what, action]) => (
          <li>
            <button
              type="button"
              onClick={() => {
                close();
                void action();
              }}
            >
              {label} {what && <small>{what}</small>}
            </button>
          </li>
        ))}
      </ul>
    </details>
  );
}
