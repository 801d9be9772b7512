// What screens share beside figures: a choice from a list, a box to tick, a button, a line of explanation, and a card
// that says what a trace does not hold, in the words that its writer gave.

import type { Signal } from "@preact/signals";
import type { ButtonHTMLAttributes, ComponentChildren } from "preact";
import { useApp } from "./state";
import { bytes } from "./text";

type ChoiceProps = {
  label: string;
  at: Signal<any>;
  /** What can be chosen: values, or value -> what is read, or what has a name. */
  of: readonly (string | number)[] | Record<string, string | { name: string }>;
  /** What is chosen now, where that is not what the signal says. */
  value?: string | number;
};

export function Choice({ label, at, of, value = at.value }: ChoiceProps) {
  const entries: any[] = Array.isArray(of) ? of.map((one) => [one, one]) : Object.entries(of);
  return (
    <label>
      {label}
      <select value={value} onChange={({ currentTarget }) => (at.value = typeof at.value === "number" ? Number(currentTarget.value) : currentTarget.value)}>
        {entries.map(([id, name]) => (
          <option value={id}>{name.name ?? name}</option>
        ))}
      </select>
    </label>
  );
}

export function Tick({ label, at, title }: { label: string; at: Signal<boolean>; title?: string }) {
  return (
    <label title={title}>
      <input type="checkbox" checked={at.value} onChange={(event) => (at.value = event.currentTarget.checked)} /> {label}
    </label>
  );
}

export const Plain = (props: ButtonHTMLAttributes) => <button type="button" class="plain" {...props} />;

export const Note = (props: { children: ComponentChildren }) => <p class="note" {...props} />;

export function Missing({ what, children }: { what: string; children?: string }) {
  const app = useApp();
  const { left_out } = app.trace.value.header;
  const found = left_out.find((one) => what === one.what || what.startsWith(`${one.what}.`) || one.what.startsWith(`${what}.`));
  return (
    <Gap>
      <b>{children ?? `${what} is not in this file`}</b>
      {found ? `: ${found.why.replace(/\.$/, "")}` : ""}
      {found && found.bytes > 1 ? ` (${bytes(found.bytes)})` : ""}.
    </Gap>
  );
}

/** A card that says what is not there, and where it is. */
export const Gap = ({ children }: { children: ComponentChildren }) => (
  <section class="card missing">
    <p>{children}</p>
  </section>
);
