// Lists of so many entries, the largest number of a table, and what is made of an object once.

export const each = <T>(count: number, make: (at: number) => T): T[] => Array.from({ length: count }, (_, at) => make(at));

/** The numbers from 0 on. */
export const upTo = (count: number): number[] => each(count, (at) => at);

/** An entry for each row and column, row after row. */
export const pairs = <T>(rows: number, columns: number, make: (row: number, column: number) => T): T[] => each(rows * columns, (at) => make(Math.floor(at / columns), at % columns));

/** The largest size of the numbers at rows and columns, and `least` if it is smaller. */
export function largest(rows: number, columns: number, at: (row: number, column: number) => number, least = 0): number {
  let most = least;
  for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) most = Math.max(most, Math.abs(at(row, column)) || 0);
  return most;
}

/** What is made of an object, made when it is first asked for and kept as long as the object is. */
export function once<K extends object, T>(make: (of: K) => T): (of: K) => T {
  const held = new WeakMap<K, T>();
  return (of) => {
    if (!held.has(of)) held.set(of, make(of));
    return held.get(of)!;
  };
}
