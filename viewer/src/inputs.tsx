// What the screens' controls share: a choice from a list, a box to tick, a button, and a line of explanation.

import type { Signal } from "@preact/signals";
import type { ButtonHTMLAttributes, ComponentChildren } from "preact";

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
