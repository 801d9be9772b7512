// A series regressed on its own past by least squares, with confidence intervals of Student's t.

import { each } from "./lists";

/** The share of Student's distribution within t standard errors: a finite sum (Abramowitz and Stegun 26.7.3, 26.7.4). */
function within(t: number, df: number): number {
  const angle = Math.atan(t / Math.sqrt(df));
  const [sine, cosine] = [Math.sin(angle), Math.cos(angle)];
  const odd = df % 2;
  let term = odd ? cosine : 1;
  let sum = df > 1 ? term : 0;
  for (let power = 2 + odd; power < df - 1; power += 2) sum += term *= (cosine ** 2 * (power - 1)) / power;
  return odd ? (2 / Math.PI) * (angle + sine * sum) : sine * sum;
}

/** How many standard errors hold 95 % to both sides, with this many degrees of freedom. */
export function halfWidth(df: number): number {
  let [low, high] = [0, 20];
  while (high - low > 1e-12) {
    const middle = (low + high) / 2;
    if (within(middle, df) < 0.95) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

export type Term = { name: string; value: number; low: number; high: number };

/** How many tokens a regression on so many takes, if the first is left out. */
export const needed = (lags: number): number => 2 * lags + 3;

/** y[t] = const + lag1 y[t-1] + …, without the first value; the lags with their 95 % intervals, NaN where nothing can be fitted. */
export function autoregression(series: number[], lags: number): Term[] {
  const y = series.slice(1 + lags);
  const past = each(lags, (i) => series.slice(lags - i, series.length - 1 - i));
  const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length;
  const centred = (values: number[]) => {
    const middle = mean(values);
    return values.map((value) => value - middle);
  };
  const dot = (a: number[], b: number[]) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const [target, columns] = [centred(y), past.map(centred)];
  // The normal equations beside the identity; what stands there in the end is the inverse.
  const rows = columns.map((one, i) => [...columns.map((other) => dot(one, other)), ...columns.map((_, k) => (i === k ? 1 : 0))]);
  for (let i = 0; i < lags; i++) {
    const pivot = rows[i][i];
    if (!(pivot > 1e-12 * dot(columns[i], columns[i]))) return past.map((_, k) => ({ name: `lag${k + 1}`, value: NaN, low: NaN, high: NaN }));
    rows[i] = rows[i].map((value) => value / pivot);
    for (let k = 0; k < lags; k++) {
      const factor = rows[k][i];
      if (k !== i) rows[k] = rows[k].map((value, at) => value - factor * rows[i][at]);
    }
  }
  const moments = columns.map((column) => dot(column, target));
  const values = rows.map((row) => dot(row.slice(lags), moments));
  const rest = target.map((value, t) => value - values.reduce((sum, one, i) => sum + one * columns[i][t], 0));
  const df = y.length - lags - 1;
  const reach = halfWidth(df);
  return values.map((value, i) => {
    const half = reach * Math.sqrt((dot(rest, rest) / df) * rows[i][lags + i]);
    return { name: `lag${i + 1}`, value, low: value - half, high: value + half };
  });
}
