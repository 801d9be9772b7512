// Taking things away: figures as SVG, PNG and PDF, data as CSV and JSON, and text to the clipboard.

import type { Palette } from "./colors";
import type { App } from "./state";
import { CanvasSurface, SvgSurface, type Surface } from "./surface";

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
    const text = value === null ? "" : String(value);
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
