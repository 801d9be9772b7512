// What a trace does not hold, in the words that its writer gave.

import type { ComponentChildren } from "preact";
import { useApp } from "./state";
import { bytes } from "./text";

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
