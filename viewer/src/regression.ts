// A series regressed on its own past by least squares, with confidence intervals of Student's t.

const COEFFICIENTS = [76.18009172947146, -86.50532032941677, 24.01409824083091, -1.231739572450155, 0.1208650973866179e-2, -0.5395239384953e-5];

/** The logarithm of the gamma function (Lanczos). */
function logGamma(x: number): number {
  const shifted = x + 5.5 - (x + 0.5) * Math.log(x + 5.5);
  const sum = COEFFICIENTS.reduce((before, one, i) => before + one / (x + 1 + i), 1.000000000190015);
  return -shifted + Math.log((2.5066282746310005 * sum) / x);
}

/** The regularized incomplete beta function, by its continued fraction. */
function beta(a: number, b: number, x: number): number {
  if (x > (a + 1) / (a + b + 2)) return 1 - beta(b, a, 1 - x);
  let [c, d] = [1, 1 / (1 - ((a + b) * x) / (a + 1))];
  let sum = d;
  for (let m = 1; m < 300; m++) {
    for (const step of [(m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m)), (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1))]) {
      d = 1 / (1 + step * d);
      c = 1 + step / c;
      sum *= c * d;
    }
    if (Math.abs(c * d - 1) < 1e-14) break;
  }
  return (Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log(1 - x)) * sum) / a;
}

/** How many standard errors hold 95 % to both sides, with this many degrees of freedom. */
export function halfWidth(df: number): number {
  const outside = (t: number) => beta(df / 2, 0.5, df / (df + t * t));
  let [low, high] = [0, 20];
  while (high - low > 1e-12) {
    const middle = (low + high) / 2;
    if (outside(middle) > 0.05) low = middle;
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
  const past = Array.from({ length: lags }, (_, i) => series.slice(lags - i, series.length - 1 - i));
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
