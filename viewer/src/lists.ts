// Lists of so many entries.

export const each = <T>(count: number, make: (at: number) => T): T[] => Array.from({ length: count }, (_, at) => make(at));

/** The numbers from 0 on. */
export const upTo = (count: number): number[] => each(count, (at) => at);
