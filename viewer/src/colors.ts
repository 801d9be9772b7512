// Colours of the two themes. Sequential scales run like cividis, from the paper of the theme to its ink side, and are
// monotone in lightness, so they can be read without colour; diverging ones run from orange (negative) over the
// paper to blue (positive), as bars do.

export type Palette = {
  dark: boolean;
  paper: string;
  panel: string;
  ink: string;
  muted: string;
  line: string;
  faint: string;
  accent: string;
  warm: string;
  grid: string;
  /** For categories: told apart by lightness as well as by hue. */
  series: string[];
};

export const LIGHT: Palette = {
  dark: false,
  paper: "#faf9f6",
  panel: "#ffffff",
  ink: "#1d2329",
  muted: "#5c6670",
  line: "#e3e0d9",
  faint: "#f1efe9",
  accent: "#1c5d99",
  warm: "#b4530a",
  grid: "#ece9e2",
  series: ["#1c5d99", "#d98a3d", "#6f9c76", "#8b5a9e", "#c2b24f", "#5c6670"],
};

export const DARK: Palette = {
  dark: true,
  paper: "#101418",
  panel: "#171c21",
  ink: "#e8e6e1",
  muted: "#a0a8b0",
  line: "#2b3239",
  faint: "#1f252b",
  accent: "#7fb5e6",
  warm: "#f2a35e",
  grid: "#252c33",
  series: ["#6aa9e0", "#f0a55f", "#8fc098", "#bd93cf", "#e0d274", "#a0a8b0"],
};

type RGB = [number, number, number];

const STOPS: Record<string, string[]> = {
  "light-sequential": ["#faf8ef", "#e6dca8", "#b0aa87", "#6c7480", "#37507d", "#00224e"],
  "dark-sequential": ["#1a2027", "#203a66", "#556076", "#8f8a72", "#cfba5c", "#ffea6b"],
  "light-diverging": ["#93400a", "#dd8a3c", "#f6cfa6", "#f6f4ee", "#b5d2ea", "#4a8bc2", "#08467f"],
  "dark-diverging": ["#ffc388", "#d08540", "#6b4422", "#1c2228", "#2a4a6b", "#4f93d1", "#9cd0ff"],
};

function rgb(hex: string): RGB {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)) as RGB;
}

const tables = new Map<string, Uint8ClampedArray>();

/** 256 colours (RGB, one after another) of a scale. */
function table(kind: "sequential" | "diverging", dark: boolean): Uint8ClampedArray {
  const name = `${dark ? "dark" : "light"}-${kind}`;
  const known = tables.get(name);
  if (known) return known;
  const stops = STOPS[name].map(rgb);
  const out = new Uint8ClampedArray(768);
  for (let i = 0; i < 256; i++) {
    const along = (i / 255) * (stops.length - 1);
    const from = Math.min(Math.floor(along), stops.length - 2);
    for (let channel = 0; channel < 3; channel++) {
      out[3 * i + channel] = stops[from][channel] + (along - from) * (stops[from + 1][channel] - stops[from][channel]);
    }
  }
  tables.set(name, out);
  return out;
}

export type Scale = {
  low: number;
  high: number;
  diverging: boolean;
  /** The 0 to 255 place of a value. */
  place(value: number): number;
  color(value: number): string;
  colors: Uint8ClampedArray;
};

function scale(low: number, high: number, diverging: boolean, dark: boolean): Scale {
  const colors = table(diverging ? "diverging" : "sequential", dark);
  const span = high - low || 1;
  const place = (value: number) => Math.max(0, Math.min(255, Math.round((255 * (value - low)) / span) || 0));
  const color = (value: number) => {
    const at = 3 * place(value);
    return `rgb(${colors[at]},${colors[at + 1]},${colors[at + 2]})`;
  };
  return { low, high, diverging, place, color, colors };
}

export const sequential = (low: number, high: number, dark: boolean): Scale => scale(low, high, false, dark);

/** Symmetric around zero. */
export const diverging = (reach: number, dark: boolean): Scale => scale(-Math.abs(reach), Math.abs(reach), true, dark);

/** Black or white, whichever can be read on a colour like "rgb(1,2,3)". */
export function inkOn(color: string): string {
  const [r, g, b] = color.startsWith("#") ? rgb(color) : (color.match(/\d+/g)!.map(Number) as RGB);
  return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#14181c" : "#ffffff";
}
