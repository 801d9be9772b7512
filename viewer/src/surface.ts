// One way to draw, two back ends: a canvas for the screen and for pictures, SVG text for export. A figure is drawn by
// the same code on either, so what is exported is what was seen.

import type { Scale } from "./colors";

export type TextOptions = {
  size?: number;
  fill: string;
  anchor?: "start" | "middle" | "end";
  baseline?: "alphabetic" | "middle" | "hanging";
  mono?: boolean;
  weight?: number;
  /** Degrees, clockwise, around the point. */
  turn?: number;
  /** The text is cut off with "…" where it would be wider. */
  fit?: number;
};

export type PathOptions = { fill?: string; stroke?: string; width?: number; dash?: number[]; opacity?: number };

export interface Surface {
  rect(x: number, y: number, width: number, height: number, options: PathOptions & { radius?: number }): void;
  /** SVG path data. */
  path(data: string | null, options: PathOptions): void;
  circle(x: number, y: number, radius: number, options: PathOptions): void;
  text(x: number, y: number, text: string, options: TextOptions): void;
  /** Rows by columns of values, drawn as cells in the colours of a scale; NaN cells stay empty. */
  cells(x: number, y: number, width: number, height: number, rows: number, columns: number, at: (row: number, column: number) => number, scale: Scale): void;
  /** Cells that were coloured before, for figures that move many of them. */
  picture(x: number, y: number, width: number, height: number, cells: HTMLCanvasElement): void;
  clip(x: number, y: number, width: number, height: number, inside: () => void): void;
}

export const SANS = 'system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif';
export const MONO = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';

const font = (options: TextOptions): string =>
  `${options.weight ?? 400} ${options.size ?? 12}px ${options.mono ? MONO : SANS}`;

const ruler = document.createElement("canvas").getContext("2d")!;

/** The width of a text in pixels. */
export function widthOf(text: string, options: Omit<TextOptions, "fill">): number {
  ruler.font = font({ ...options, fill: "" });
  return ruler.measureText(text).width;
}

/** The longest beginning of a text that fits, with "…" if it is not the whole. */
export function fitted(text: string, options: TextOptions): string {
  if (options.fit === undefined || widthOf(text, options) <= options.fit) return text;
  const letters = [...text];
  let low = 0;
  let high = letters.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (widthOf(letters.slice(0, middle).join("") + "…", options) <= options.fit) low = middle;
    else high = middle - 1;
  }
  return low ? letters.slice(0, low).join("") + "…" : "";
}

/** Cells as pixels, one for each; the picture that canvas and large SVG exports share. */
export function pixels(rows: number, columns: number, at: (row: number, column: number) => number, scale: Scale): HTMLCanvasElement {
  const picture = document.createElement("canvas");
  picture.width = columns;
  picture.height = rows;
  const context = picture.getContext("2d")!;
  const image = context.createImageData(columns, rows);
  let out = 0;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, out += 4) {
      const value = at(row, column);
      if (Number.isNaN(value)) continue;
      const from = 3 * scale.place(value);
      image.data[out] = scale.colors[from];
      image.data[out + 1] = scale.colors[from + 1];
      image.data[out + 2] = scale.colors[from + 2];
      image.data[out + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  return picture;
}

export class CanvasSurface implements Surface {
  constructor(private readonly context: CanvasRenderingContext2D) {}

  private finish(options: PathOptions, path: Path2D): void {
    const context = this.context;
    context.globalAlpha = options.opacity ?? 1;
    if (options.fill) {
      context.fillStyle = options.fill;
      context["fill"](path);
    }
    if (options.stroke) {
      context.strokeStyle = options.stroke;
      context.lineWidth = options.width ?? 1;
      context.setLineDash(options.dash ?? []);
      context["stroke"](path);
    }
    context.globalAlpha = 1;
  }

  rect(x: number, y: number, width: number, height: number, options: PathOptions & { radius?: number }): void {
    const path = new Path2D();
    path.roundRect(x, y, Math.max(0, width), Math.max(0, height), options.radius ?? 0);
    this.finish(options, path);
  }

  path(data: string | null, options: PathOptions): void {
    this.finish(options, new Path2D(data ?? ""));
  }

  circle(x: number, y: number, radius: number, options: PathOptions): void {
    const path = new Path2D();
    path.arc(x, y, radius, 0, 2 * Math.PI);
    this.finish(options, path);
  }

  text(x: number, y: number, text: string, options: TextOptions): void {
    const context = this.context;
    context.font = font(options);
    context.fillStyle = options.fill;
    context.textAlign = options.anchor === "middle" ? "center" : (options.anchor ?? "start");
    context.textBaseline = options.baseline ?? "alphabetic";
    const shown = fitted(text, options);
    if (!options.turn) return context.fillText(shown, x, y);
    context.save();
    context.translate(x, y);
    context.rotate((options.turn * Math.PI) / 180);
    context.fillText(shown, 0, 0);
    context.restore();
  }

  cells(x: number, y: number, width: number, height: number, rows: number, columns: number, at: (row: number, column: number) => number, scale: Scale): void {
    if (rows && columns) this.picture(x, y, width, height, pixels(rows, columns, at, scale));
  }

  picture(x: number, y: number, width: number, height: number, cells: HTMLCanvasElement): void {
    // Small cells are averaged, large ones keep their edges.
    this.context.imageSmoothingEnabled = width < cells.width;
    this.context.imageSmoothingQuality = "medium";
    this.context.drawImage(cells, x, y, width, height);
  }

  clip(x: number, y: number, width: number, height: number, inside: () => void): void {
    this.context.save();
    this.context.beginPath();
    this.context["rect"](x, y, width, height);
    this.context.clip();
    inside();
    this.context.restore();
  }
}

const escaped = (text: string): string =>
  // Control characters are not allowed in XML at all, so they become the replacement character.
  text
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\ufffd")
    .replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

const short = (value: number): string => String(Math.round(value * 100) / 100);

export class SvgSurface implements Surface {
  private readonly parts: string[] = [];
  private clips = 0;

  private style(options: PathOptions): string {
    const out = [`fill="${options.fill ?? "none"}"`];
    if (options.stroke) out.push(`stroke="${options.stroke}" stroke-width="${options.width ?? 1}"`);
    if (options.dash?.length) out.push(`stroke-dasharray="${options.dash.join(" ")}"`);
    if (options.opacity !== undefined) out.push(`opacity="${options.opacity}"`);
    return out.join(" ");
  }

  rect(x: number, y: number, width: number, height: number, options: PathOptions & { radius?: number }): void {
    const round = options.radius ? ` rx="${options.radius}"` : "";
    this.parts.push(
      `<rect x="${short(x)}" y="${short(y)}" width="${short(Math.max(0, width))}" height="${short(Math.max(0, height))}"${round} ${this.style(options)}/>`,
    );
  }

  path(data: string | null, options: PathOptions): void {
    this.parts.push(`<path d="${data ?? ""}" ${this.style(options)}/>`);
  }

  circle(x: number, y: number, radius: number, options: PathOptions): void {
    this.parts.push(`<circle cx="${short(x)}" cy="${short(y)}" r="${short(radius)}" ${this.style(options)}/>`);
  }

  text(x: number, y: number, text: string, options: TextOptions): void {
    const baseline = { alphabetic: "auto", middle: "central", hanging: "hanging" }[options.baseline ?? "alphabetic"];
    const turn = options.turn ? ` transform="rotate(${options.turn} ${short(x)} ${short(y)})"` : "";
    this.parts.push(
      `<text x="${short(x)}" y="${short(y)}" fill="${options.fill}" font-size="${options.size ?? 12}" font-weight="${options.weight ?? 400}" ` +
        `font-family="${escaped(options.mono ? MONO : SANS)}" text-anchor="${options.anchor ?? "start"}" dominant-baseline="${baseline}" ` +
        `xml:space="preserve"${turn}>${escaped(fitted(text, options))}</text>`,
    );
  }

  cells(x: number, y: number, width: number, height: number, rows: number, columns: number, at: (row: number, column: number) => number, scale: Scale): void {
    if (rows * columns > 4096) {
      // So many rectangles would make a file that no editor opens; the cells are a picture inside, pixel for cell.
      return this.picture(x, y, width, height, pixels(rows, columns, at, scale));
    }
    const [w, h] = [width / columns, height / rows];
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const value = at(row, column);
        if (!Number.isNaN(value)) this.rect(x + column * w, y + row * h, w + 0.3, h + 0.3, { fill: scale.color(value) });
      }
    }
  }

  picture(x: number, y: number, width: number, height: number, cells: HTMLCanvasElement): void {
    this.parts.push(
      `<image x="${short(x)}" y="${short(y)}" width="${short(width)}" height="${short(height)}" preserveAspectRatio="none" image-rendering="pixelated" href="${cells.toDataURL("image/png")}"/>`,
    );
  }

  clip(x: number, y: number, width: number, height: number, inside: () => void): void {
    const id = `clip${++this.clips}`;
    this.parts.push(`<clipPath id="${id}"><rect x="${x}" y="${y}" width="${width}" height="${height}"/></clipPath><g clip-path="url(#${id})">`);
    inside();
    this.parts.push("</g>");
  }

  shifted(dx: number, dy: number, inside: () => void): void {
    this.parts.push(`<g transform="translate(${dx} ${dy})">`);
    inside();
    this.parts.push("</g>");
  }

  /** The whole file. */
  file(width: number, height: number, title: string, background: string): string {
    return (
      `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">` +
      `<title>${escaped(title)}</title><rect width="100%" height="100%" fill="${background}"/>${this.parts.join("")}</svg>\n`
    );
  }
}
