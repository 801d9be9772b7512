// How far an edit goes, from the logits of both runs: exact in a file, too.

import { maxIndex } from "d3-array";
import { softmax } from "./sampling";
import type { Trace } from "./trace";

export type Shares = { base: Float64Array; edited: Float64Array };
type Effect = { kl: number; tokens: [number, number]; logit_difference: [number, number] };

const found = new WeakMap<Trace, { of: Trace; shares: Shares; effect: Effect }>();

function measured(base: Trace, edited: Trace) {
  const known = found.get(edited);
  if (known?.of === base) return known;
  const [before, after] = [base, edited].map((trace) => Float64Array.from(trace.need("prediction.logits").raw));
  const shares = { base: softmax(before), edited: softmax(after) };
  const top = (values: Float64Array, but = -1) => maxIndex(values, (value, id) => (id === but ? NaN : value));
  const first = top(before);
  const second = top(before, first);
  const norm = (logits: Float64Array) => {
    const most = logits[top(logits)];
    return most + Math.log(logits.reduce((sum, value) => sum + Math.exp(value - most), 0));
  };
  const [a, b] = [norm(before), norm(after)];
  const kl = shares.base.reduce((sum, p, id) => sum + (p ? p * (before[id] - a - after[id] + b) : 0), 0);
  const effect: Effect = { kl, tokens: [first, second], logit_difference: [before[first] - before[second], after[first] - after[second]] };
  const made = { of: base, shares, effect };
  found.set(edited, made);
  return made;
}

/** KL(base ‖ edited) of the next token in nats, and how far the base's likeliest token is before its second. */
export const effectOf = (base: Trace, edited: Trace): Effect => measured(base, edited).effect;

/** Probabilities of the next token in both runs. */
export const sharesOf = (base: Trace, edited: Trace): Shares => measured(base, edited).shares;
