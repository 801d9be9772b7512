// Tokens and numbers as people read them.

/** Signs that common fonts hold; control pictures such as U+2420 are missing in many. */
export const SPACE = "␣";
const NAMED: Record<string, string> = { " ": SPACE, "\n": "⏎", "\t": "⇥" };

const LONGEST = 1000;

/** A piece with its spaces and control characters made visible; what reorders or hides text becomes its number. */
export function visible(piece: string): string {
  let out = "";
  for (const letter of piece) {
    if (out.length > LONGEST) return out + "…"; // no piece of a vocabulary is as long
    const code = letter.codePointAt(0)!;
    if (NAMED[letter]) out += NAMED[letter];
    else if (/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u.test(letter)) out += `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
    else if (/\p{M}/u.test(letter) && !out) out += "\u25cc" + letter;
    else out += letter;
  }
  return out || "∅";
}

/** A piece in quotation marks, for sentences. */
export const quoted = (piece: string): string => `‘${visible(piece)}’`;

/** A number with three or four digits that matter, and a real minus sign. */
export function number(value: number, digits = 3): string {
  if (Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value < 0 ? "−∞" : "∞";
  const size = Math.abs(value);
  if (size === 0) return "0";
  const text =
    size >= 1e6 || size < 1e-3
      ? value.toExponential(digits - 1)
      : size >= 10 ** (digits - 1)
        ? value.toFixed(size >= 10 ** digits ? 0 : 1)
        : value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size))));
  return text.replace("-", "−").replace(/e\+?(−|-)?(\d+)/, (_, minus, power) => ` · 10${superscript((minus ? "-" : "") + power)}`);
}

export const superscript = (digits: string): string => [...digits].map((digit) => (digit === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(digit)])).join("");

/** A round number, as beside an axis: no digit that says nothing. */
export const round = (value: number, digits = 2): string => (Number.isInteger(value) && Math.abs(value) < 1e5 ? String(value).replace("-", "−") : number(Number(value.toPrecision(digits)), digits));

/** A share with at least two digits that matter. */
export function percent(share: number): string {
  const hundred = 100 * share;
  if (hundred >= 99.995) return "100 %";
  if (hundred < 0.01) return hundred ? "< 0.01 %" : "0 %";
  return `${hundred.toFixed(hundred >= 10 ? 1 : 2)} %`;
}

/** Bytes as people say them. */
export const bytes = (count: number): string =>
  count >= 1e6 ? `${(count / 1e6).toFixed(1)} MB` : count >= 1e3 ? `${Math.round(count / 1e3)} kB` : `${count} bytes`;

/** A text as a literal of Python. */
export function pythonText(text: string): string {
  return JSON.stringify(text)
    .replace(/[\u007f-\u009f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g, (sign) => "\\u" + sign.charCodeAt(0).toString(16).padStart(4, "0"));
}

/** A text as one word of a shell. */
export const shellText = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`;
