// Formulas in a small part of TeX's notation, shown as MathML: letters, _ ^ {} \frac \sqrt \sum \text and a few names.

import { h, type ComponentChild } from "preact";

const SYMBOLS: Record<string, string> = {
  cdot: "·", top: "⊤", sum: "∑", mu: "μ", sigma: "σ", gamma: "γ", beta: "β", epsilon: "ε", alpha: "α", le: "≤", ge: "≥", in: "∈",
  times: "×", infty: "∞", odot: "⊙", Delta: "Δ", ldots: "…", cos: "cos", sin: "sin", log: "log", exp: "exp", max: "max", tanh: "tanh", softmax: "softmax", gelu: "GELU", silu: "SiLU", ln: "LN", quad: "\u2003",
};

type Part = ComponentChild;

function parse(tokens: string[], until?: string): Part[] {
  const out: Part[] = [];
  const argument = (): Part => {
    const next = tokens.shift();
    if (next === "{") return h("mrow", null, parse(tokens, "}"));
    if (next === undefined) return h("mrow", null);
    tokens.unshift(next);
    return parse([tokens.shift()!])[0];
  };
  while (tokens.length) {
    const token = tokens.shift()!;
    if (token === until) return out;
    if (token === "_" || token === "^") {
      const base = out.pop() ?? h("mrow", null);
      const first = argument();
      if (tokens[0] === (token === "_" ? "^" : "_")) {
        tokens.shift();
        const second = argument();
        out.push(h("msubsup", null, base, token === "_" ? first : second, token === "_" ? second : first));
      } else out.push(h(token === "_" ? "msub" : "msup", null, base, first));
    } else if (token === "{") out.push(h("mrow", null, parse(tokens, "}")));
    else if (token === "\\frac") out.push(h("mfrac", null, argument(), argument()));
    else if (token === "\\sqrt") out.push(h("msqrt", null, argument()));
    else if (token === "\\hat") out.push(h("mover", null, argument(), h("mo", null, "^")));
    else if (token.startsWith("\\text{")) out.push(h("mtext", null, token.slice(6, -1)));
    else if (token.startsWith("\\")) {
      const name = token.slice(1);
      const sign = SYMBOLS[name] ?? name;
      out.push(h(/^[a-zA-Zα-ω]+$/.test(sign) ? "mi" : "mo", null, sign));
    } else if (/^[\d.]+$/.test(token)) out.push(h("mn", null, token));
    else if (/^[A-Za-z]+$/.test(token)) out.push(h("mi", null, token));
    else out.push(h("mo", null, token.replace("-", "−")));
  }
  return out;
}

/** A formula; `says` is what a screen reader says where it cannot read MathML. */
export function Formula({ tex, block = false }: { tex: string; block?: boolean }) {
  const tokens = tex.match(/\\text\{[^}]*\}|\\[a-zA-Z]+|[\d.]+|[A-Za-z]|[^\s]/g) ?? [];
  return h("math", { display: block ? "block" : "inline" }, parse(tokens));
}
