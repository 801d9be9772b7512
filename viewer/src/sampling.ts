// From logits to probabilities, stage by stage, as pellucid's Sampler does it (and transformers' generate before it).

export type Settings = {
  temperature: number;
  top_k: number;
  top_p: number;
  repetition_penalty: number;
  frequency_penalty: number;
};

export type Stage = { name: string; probabilities: Float64Array };

/** Settings that do nothing; what differs from them is what "copy as Python" names. */
export const NEUTRAL: Settings = { temperature: 1, top_k: 0, top_p: 1, repetition_penalty: 1, frequency_penalty: 0 };

export function softmax(logits: Float64Array): Float64Array {
  let most = -Infinity;
  for (const value of logits) if (value > most) most = value;
  const out = new Float64Array(logits.length);
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += out[i] = Math.exp(logits[i] - most);
  for (let i = 0; i < logits.length; i++) out[i] /= sum;
  return out;
}

/** Keep the highest k and what equals the lowest of them. */
function topK(logits: Float64Array, k: number): Float64Array {
  const lowest = [...logits].sort((a, b) => b - a)[Math.min(k, logits.length) - 1];
  return logits.map((value) => (value < lowest ? -Infinity : value));
}

/** Keep the likeliest tokens up to and with the one that brings their sum to p. */
function topP(logits: Float64Array, p: number): Float64Array {
  const probabilities = softmax(logits);
  const ascending = Array.from(logits.keys()).sort((a, b) => logits[a] - logits[b]);
  const out = logits.slice();
  let sum = 0;
  for (const at of ascending.slice(0, -1)) {
    sum += probabilities[at];
    if (sum > 1 - p) break;
    out[at] = -Infinity;
  }
  return out;
}

/** Probabilities after each stage that does something; the first is the model's own. */
export function stagesOf(logits: Float64Array, ids: number[], settings: Settings): Stage[] {
  let now: Float64Array = logits.slice();
  const out: Stage[] = [{ name: "model", probabilities: softmax(now) }];
  const then = (name: string, next: Float64Array) => {
    now = next;
    out.push({ name, probabilities: softmax(now) });
  };
  const counts = new Map<number, number>();
  for (const id of ids) counts.set(id, (counts.get(id) ?? 0) + 1);
  const { temperature, top_k, top_p, repetition_penalty: repetition, frequency_penalty: frequency } = settings;
  if (repetition !== 1) then("repetition_penalty", now.map((value, id) => (counts.has(id) ? (value < 0 ? value * repetition : value / repetition) : value)));
  if (frequency !== 0) then("frequency_penalty", now.map((value, id) => value - frequency * (counts.get(id) ?? 0)));
  if (temperature === 0) {
    let best = 0;
    for (let id = 1; id < now.length; id++) if (now[id] > now[best]) best = id;
    out.push({ name: "temperature", probabilities: Float64Array.from(now, (_, id) => (id === best ? 1 : 0)) });
    return out;
  }
  if (temperature !== 1) then("temperature", now.map((value) => value / temperature));
  if (top_k > 0) then("top_k", topK(now, top_k));
  if (top_p < 1) then("top_p", topP(now, top_p));
  return out;
}

/** How undecided a distribution is, in bits. */
export function entropy(probabilities: Float64Array): number {
  let bits = 0;
  for (const p of probabilities) if (p > 0) bits -= p * Math.log2(p);
  return bits;
}
