// What build.mjs puts in the place of JSX, whose children then need no name, and of functions that are called often.

export { h as element, Fragment } from "preact";
export const { abs: $abs, ceil: $ceil, exp: $exp, floor: $floor, max: $max, min: $min, round: $round } = Math;
export const { isFinite: $isFinite, isNaN: $isNaN } = Number;
export const { stringify: $stringify } = JSON;
export const { from: $from } = Array;
export const { entries: $entries, fromEntries: $fromEntries, keys: $keys } = Object;
